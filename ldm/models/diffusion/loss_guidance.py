"""Guidance by the gradient of a loss, a wrapper around any backbone's denoiser; and the losses of Blended Diffusion.

At a level z = a z_0 + s eps the loss is taken of the estimate of z_0 and of a mix of it with z, decoded,

    x_in = D(s z_0 + (1 - s) z),

and its gradient with respect to z goes through the decoder and the network (Avrahami et al. 2022, Algorithm 1; the mix
is that of CLIP-guided diffusion, Crowson 2021). Each loss is a number for each sample and depends on that sample alone,
so that a prediction is the same alone and in a batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Generator, Tensor

from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.respacing import AncestralPrediction
from ldm.models.diffusion.sampling import Denoiser
from ldm.models.diffusion.schedule import NoiseLevel

Decode = Callable[[Tensor], Tensor]


class Guide:
    """What losses are taken of, with gradients: pictures (b, 3, H, W), decoded where they are asked for."""

    def __init__(self, z: Tensor, z0: Tensor, level: NoiseLevel, decode: Decode):
        self.z, self.z0, self.level, self.decode = z, z0, level, decode

    @cached_property
    def x0(self) -> Tensor:
        """The estimate of the picture."""
        return self.decode(self.z0)

    @cached_property
    def x_in(self) -> Tensor:
        """What CLIP looks at, see this module."""
        return self.decode(self.level.s * self.z0 + (1 - self.level.s) * self.z)


Loss = Callable[[Guide], Tensor]
"""-> (b,), of each sample."""


def weighted(terms: Sequence[tuple[float, Loss]]) -> Loss:
    """The sum of losses by their weights; those of weight 0 are not computed."""
    kept = [(weight, loss) for weight, loss in terms if weight]

    def total(guide: Guide) -> Tensor:
        return sum((weight * loss(guide) for weight, loss in kept), torch.zeros(len(guide.z), device=guide.z.device))

    return total


def guided_by_loss(denoiser: Denoiser, loss: Loss, decode: Decode, shift: str = "eps") -> Denoiser:
    """A denoiser that goes down a loss.

    Args:
        loss: what is to become small. decode: z -> x, with gradients.
        shift: "eps" moves the noise, eps + s grad, for any sampler (Dhariwal & Nichol 2021, Algorithm 2); "mean" leaves
            the prediction and hands the gradient to `ancestral_step` (Algorithm 1).
    """
    if shift not in ("eps", "mean"):
        raise ValueError(f"guidance shifts eps or mean, not {shift!r}")

    def denoise(z: Tensor, level: NoiseLevel) -> Prediction:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            made = denoiser(z, level)
            total = loss(Guide(z, made.z0, level, decode)).sum()
            if not total.requires_grad and total:
                raise RuntimeError("the decoder gives no gradients: a loss of what it decodes cannot guide")
            # Where there is no loss there is nothing to go down.
            gradient = torch.autograd.grad(total, z)[0] if total.requires_grad else torch.zeros_like(z)
        z, gradient = z.detach(), gradient.detach().contiguous()
        if shift == "eps":
            return Prediction(z, level, made.eps.detach() + level.s * gradient, "eps")
        fraction = (
            made.fraction.detach() if isinstance(made, AncestralPrediction) and made.fraction is not None else None
        )
        return AncestralPrediction(z, level, made.out.detach(), made.kind, fraction, gradient)

    return denoise


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """2 arcsin(|a - b| / 2)^2 of unit vectors (..., d): half the square of the angle between them."""
    return 2 * ((a - b).norm(dim=-1) / 2).clamp(max=1).arcsin().square()


def range_loss(guide: Guide) -> Tensor:
    """By how much the estimate leaves [-1, 1]: the mean of (x0 - clamp(x0))^2."""
    return (guide.x0 - guide.x0.clamp(-1, 1)).square().mean(dim=(1, 2, 3))


def background_l2(x_source: Tensor, mask: Tensor) -> Loss:
    """The mean square of x_in - x_source outside a mask, (1, 3, H, W) and (1, 1, H, W) in {0, 1}."""

    def loss(guide: Guide) -> Tensor:
        return ((guide.x_in - x_source) * (1 - mask)).square().mean(dim=(1, 2, 3))

    return loss


def background_lpips(x_source: Tensor, mask: Tensor, lpips: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A perceptual distance of what lies outside a mask, black elsewhere.

    Args:
        lpips: two pictures (b, 3, H, W) -> (b, ...), such as LPIPS with VGG (Zhang et al. 2018).
    """
    background = x_source * (1 - mask)

    def loss(guide: Guide) -> Tensor:
        outside = guide.x_in * (1 - mask)
        return lpips(outside, background.expand_as(outside)).flatten(1).sum(dim=1)

    return loss


# --- CLIP -------------------------------------------------------------------------------------------------------------


class ImageEncoder(Protocol):
    """What looks: pictures x (n, 3, H, W) in [-1, 1] of one size -> unit embeddings (n, d), with gradients."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what it takes."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CLIPLoss:
    """The distance between what a mask holds and a prompt: the mean over several copies of each picture.

    The first copy is as it is, the others are seen from elsewhere (`augmented`): what looks right to CLIP from one
    place alone, as adversarial patterns do, is not enough ("extending augmentations", section 3.3 of the paper).

    Args:
        encoder: see `ImageEncoder`. text: (1, d), the prompt's unit embedding.
        mask: (1, 1, H, W) in {0, 1}; outside: what is seen where it is 0, grey in the released program.
        frame: what of the masked pictures (n, 3, H, W) the encoder sees, at its size.
        copies: how many, the clean one among them.
        generators: of each sample, on the CPU.
    """

    encoder: ImageEncoder
    text: Tensor
    mask: Tensor
    frame: Callable[[Tensor], Tensor]
    copies: int
    generators: Sequence[Generator]
    outside: float = 0.0

    def __call__(self, guide: Guide) -> Tensor:
        """-> (b,), see `spherical_distance`."""
        inside = guide.x_in * self.mask + self.outside * (1 - self.mask)
        seen = augmented(self.frame(inside), self.copies, self.generators)
        distances = spherical_distance(self.encoder(seen), self.text)
        return rearrange(distances, "(b copies) -> b copies", copies=self.copies).mean(dim=1)


def framed(square: tuple[int, int, int] | None, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """A frame: pictures (n, c, H, W) as an encoder of `size` sees them, each pixel the mean of those it covers.

    square: (top, left, side) of what is looked at, as far as it lies in the picture; None is all of it, squashed.
    """

    def frame(x: Tensor) -> Tensor:
        if square is not None:
            top, left, side = square
            x = x[..., max(top, 0) : top + side, max(left, 0) : left + side]
        if x.shape[2] < size[0] or x.shape[3] < size[1]:  # a mean of less than a pixel repeats it, in blocks
            return F.interpolate(x, size, mode="bilinear", antialias=True)
        return F.adaptive_avg_pool2d(x, size)

    return frame


def augmented(x: Tensor, copies: int, generators: Sequence[Generator]) -> Tensor:
    """x (b, c, H, W) -> (b * copies, c, H, W): for each picture, in a row, itself and what `copies - 1` views show.

    A view is with probability 0.7 turned by up to 15 degrees and moved by up to a tenth of the side, repeating the
    border, and with probability 0.7 seen in perspective, each corner moved inwards by up to 0.35 of the side, black
    around. Both by bilinear interpolation. Copy k of sample i is drawn by its own generator.
    """
    if copies == 1:
        return x
    views = [_view(generator) for generator in generators for _ in range(copies - 1)]
    turned = torch.stack([affine for affine, _ in views]).to(x)
    slanted = torch.stack([perspective for _, perspective in views]).to(x)
    others = repeat(x, "b c h w -> (b copies) c h w", copies=copies - 1)
    others = warped(warped(others, turned, "border"), slanted, "zeros")
    both = [x[:, None], rearrange(others, "(b copies) c h w -> b copies c h w", copies=copies - 1)]
    return rearrange(torch.cat(both, dim=1), "b copies c h w -> (b copies) c h w")


def warped(x: Tensor, homographies: Tensor, padding: str) -> Tensor:
    """x (n, c, H, W) seen through homographies (n, 3, 3), from places of the result to places of x, both in [-1, 1].

    Written here, as torchvision's have no border padding and draw from the global generator.
    """
    height, width = x.shape[2:]
    # align_corners=False: pixel centres, at odd multiples of 1 / side.
    rows, columns = (torch.arange(side, device=x.device, dtype=x.dtype) for side in (height, width))
    v, u = torch.meshgrid((2 * rows + 1) / height - 1, (2 * columns + 1) / width - 1, indexing="ij")
    places = torch.stack([u, v, torch.ones_like(u)], dim=-1)  # (H, W, 3)
    seen = torch.einsum("nij,hwj->nhwi", homographies, places)
    return F.grid_sample(x, seen[..., :2] / seen[..., 2:], padding_mode=padding, align_corners=False)


def _view(generator: Generator, chance: float = 0.7) -> tuple[Tensor, Tensor]:
    """An affine map and a perspective, (3, 3) in float64, each the identity with probability `1 - chance`."""
    draws = torch.rand(13, generator=generator, dtype=torch.float64)
    affine = perspective = torch.eye(3, dtype=torch.float64)
    if draws[0] < chance:
        angle = math.radians(15) * (2 * draws[1].item() - 1)
        moved = 0.2 * (2 * draws[2:4] - 1)  # a tenth of the side is a fifth of a unit
        c, s = math.cos(angle), math.sin(angle)
        affine = torch.tensor([[c, -s, moved[0]], [s, c, moved[1]], [0, 0, 1]], dtype=torch.float64)
    if draws[4] < chance:
        corners = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
        perspective = homography(corners * (1 - 0.7 * draws[5:].view(4, 2)), corners)
    return affine, perspective


def homography(points: Tensor, images: Tensor) -> Tensor:
    """The (3, 3) map, its last entry 1, that takes four points (4, 2) to four others."""
    rows, right = [], []
    for (x, y), (u, v) in zip(points.tolist(), images.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    own = torch.tensor(rows, dtype=torch.float64)
    solved = torch.linalg.solve(own, torch.tensor(right, dtype=torch.float64))
    return torch.cat([solved, torch.ones(1, dtype=torch.float64)]).view(3, 3)
