"""GLIDE-filtered's inpainting: a base network at 64x64 and an upsampler to 256x256 (Nichol et al. 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.levels import make_beta_schedule
from ldm.models.diffusion.pixel import Pictures
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.respacing import AncestralPrediction, RespacedLevels, ancestral_step
from ldm.models.diffusion.sampling import Callback, Denoiser, NoiseSource, sample
from ldm.models.diffusion.schedule import NoiseLevel
from ldm.modules.diffusionmodules.glide import InpaintText2ImUNet, padded
from ldm.modules.diffusionmodules.openaimodel import PreparedContext

Encode = Callable[[str], Sequence[int]]
"""A prompt -> its byte pairs, GPT-2's."""

UPSAMPLE_NOISE = 0.997
"""What the upsampler's starting noise is multiplied by."""


@dataclass(frozen=True)
class GlideSampling:
    """How to sample: guidance and respacing of the base, respacing of the upsampler."""

    scale: float = 5.0
    base_respacing: str = "100"
    upsample_respacing: str = "fast27"


class Glide(Pictures, nn.Module):
    """Both networks. A picture and its known part are given at the upsampler's size.

    Args:
        base, upsampler: in eval mode, each with the name of its beta schedule.
        encode: see `Encode`. end: the token that pads.
    """

    def __init__(
        self,
        base: InpaintText2ImUNet,
        upsampler: InpaintText2ImUNet,
        sizes: tuple[int, int],
        schedules: tuple[str, str],
        encode: Encode,
        end: int = 50256,
    ):
        super().__init__()
        self.base, self.upsampler = base, upsampler
        self.base_size, self.image_size = sizes
        self.base_levels, self.levels = (
            RespacedLevels(torch.cumprod(1 - make_beta_schedule(name), dim=0)) for name in schedules
        )
        self.encode_prompt, self.end = encode, end

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image_size, self.image_size

    @property
    def unit(self) -> int:
        """Pixels that heights and widths must be multiples of: it knows one size."""
        return self.image_size

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.base.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return next(self.base.parameters()).device

    def condition(self, prompts: Sequence[str], size: Any = None, scale: float | None = None) -> "TokenRows":
        """Prompts as padded tokens, a row each."""
        length = self.base.text_ctx
        rows = [padded(self.encode_prompt(prompt) if prompt else [], length, self.end) for prompt in prompts]
        tokens, known = (torch.tensor(column, device=self.device) for column in zip(*rows, strict=True))
        return TokenRows(tokens, known)

    @torch.no_grad()
    def paint(
        self,
        x_source: Tensor,
        mask: Tensor,
        prompt: str,
        noise: NoiseSource,
        told: GlideSampling | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Paint a prompt in the mask: x_source (1, 3, H, W) in [-1, 1], mask (1, 1, H, W) in {0, 1}, 1 to be painted
        -> (b, 3, H, W), one for each seed of `noise`."""
        told = told or GlideSampling()
        known = 1 - mask
        size = (self.base_size, self.base_size)
        small = nn.functional.interpolate(x_source, size, mode="bicubic", antialias=True).clamp(-1, 1)
        # What a position of the small picture holds of the mask is unknown to it.
        small_known = (nn.functional.interpolate(known, size, mode="area") >= 1).to(known)
        rows = self.condition([prompt, ""])

        schedule = self.base_levels.respaced(told.base_respacing)
        text = self.base.read(rows.tokens, rows.known)
        denoiser = _filling(self._guided(text, small, small_known, told.scale), small, small_known)
        start = noise.draw((3, *size), x_source)
        low = sample(denoiser, schedule, start, noise, callback=callback, step=ancestral_step)
        low = ((low + 1) * 127.5).round() / 127.5 - 1

        schedule = self.levels.respaced(told.upsample_respacing)
        text = self.upsampler.read(rows.tokens[:1], rows.known[:1])
        denoiser = _filling(self._upsampling(text, x_source, known, low), x_source, known)
        start = noise.draw(tuple(x_source.shape[1:]), x_source) * UPSAMPLE_NOISE
        return sample(denoiser, schedule, start, noise, callback=callback, step=ancestral_step)

    def _guided(self, text: PreparedContext, image: Tensor, known: Tensor, scale: float) -> Denoiser:
        """Classifier-free guidance of the noise; the variance is the prompt's. `text` has the prompt, then none."""

        def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
            out = _call(self.base, x.repeat(2, 1, 1, 1), level, text, image, known)
            (eps, learned), (eps_empty, _) = (half.chunk(2, dim=1) for half in out.chunk(2))
            return AncestralPrediction(x, level, eps_empty + scale * (eps - eps_empty), fraction=(learned + 1) / 2)

        return denoise

    def _upsampling(self, text: PreparedContext, image: Tensor, known: Tensor, low: Tensor) -> Denoiser:
        def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
            eps, learned = _call(self.upsampler, x, level, text, image, known, low).chunk(2, dim=1)
            return AncestralPrediction(x, level, eps, fraction=(learned + 1) / 2)

        return denoise


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Prompts as tokens (r, m), and which of them are no padding."""

    tokens: Tensor
    known: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Sequence[int]) -> "TokenRows":
        """These rows, in this order."""
        return TokenRows(self.tokens[list(rows)], self.known[list(rows)])


def _call(
    net: InpaintText2ImUNet,
    x: Tensor,
    level: NoiseLevel,
    text: PreparedContext,
    image: Tensor,
    known: Tensor,
    low: Tensor | None = None,
) -> Tensor:
    """The network in its own precision."""
    dtype = text.dtype
    t = torch.full((len(x),), float(level.t), device=x.device)
    given = None if low is None else low.to(dtype)
    return net.fill_in(x.to(dtype), t, text, image.to(dtype), known.to(dtype), given).to(x.dtype)


def _filling(denoiser: Denoiser, image: Tensor, known: Tensor) -> Denoiser:
    """The estimate clipped to [-1, 1], and the known part of a picture in its place."""

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        made = denoiser(x, level)
        fraction = made.fraction if isinstance(made, AncestralPrediction) else None
        x0 = torch.where(known.bool(), image, made.z0.clamp(-1, 1))
        return AncestralPrediction(x, level, x0, "z0", fraction)

    return denoise
