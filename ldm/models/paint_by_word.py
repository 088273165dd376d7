"""PaintByWord++: a VQGAN's latents optimised until CLIP sees a prompt in a mask (Bau et al. 2021, Crowson et al.
2022)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.models.autoencoder import VQModel
from ldm.models.diffusion.loss_guidance import Guide, Loss
from ldm.models.diffusion.pixel import Pictures
from ldm.models.diffusion.respacing import RespacedLevels
from ldm.models.diffusion.schedule import NoiseLevel

CLEAN = NoiseLevel(1.0, 0.0)


class Painter(Pictures, nn.Module):
    """A `VQModel` as what paints pictures at one nominal size, with the parts of a backbone that a run asks for."""

    levels = RespacedLevels(
        torch.linspace(0.999, 0.001, 1000)
    )  # its steps are Adam's, but a request is checked by them

    def __init__(self, vq: VQModel, image_size: int):
        super().__init__()
        self.vq, self.image_size = vq, image_size

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image_size, self.image_size

    @property
    def unit(self) -> int:
        """Pixels that heights and widths must be multiples of."""
        return self.vq.factor

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.vq.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.vq.parameters()).device


@torch.enable_grad()
def paint_by_word(
    vq: VQModel,
    x_source: Tensor,
    loss: Loss,
    steps: int,
    learning_rate: float,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Optimise the latent of a picture by Adam -> the picture (1, 3, H, W) that it ends at.

    The latent is quantised before it is decoded, its gradients going straight through, and after each step it is held
    within the codebook's range, component by component.

    Args:
        x_source: (1, 3, H, W) in [-1, 1]. loss: of the decoded picture, whose `x_in` and `x0` are the same.
        on_step: called after each step with its number and the picture before it.
    """
    dtype = vq.quant_conv.weight.dtype

    def decode(z: Tensor) -> Tensor:
        return vq.decode_quantized(z.to(dtype)).to(x_source.dtype)

    with torch.no_grad():
        low, high = (bound.view(1, -1, 1, 1).to(x_source.dtype) for bound in vq.quantize.span)
        z = vq.encode_unquantized(x_source.to(dtype)).to(x_source.dtype).clamp(low, high)
    z = nn.Parameter(z)  # in the caller's precision, float32 as a rule: the optimiser's steps are small
    adam = torch.optim.Adam([z], learning_rate)
    for step in range(steps):
        x = decode(z)
        adam.zero_grad()
        total = loss(Guide(x, x, CLEAN, lambda x: x)).sum()
        if total.requires_grad:
            total.backward()
            adam.step()
            with torch.no_grad():
                z.clamp_(low, high)
        if on_step is not None:
            on_step(step, x.detach())
    with torch.no_grad():
        return decode(z)
