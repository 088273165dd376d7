"""Denoisers and trajectories for tests: from a function `(z, t) -> eps`, and of a model under given contexts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.backbones.guidance import guided_denoiser
from ldm.models.diffusion.ddpm import TextConditioning
from ldm.models.diffusion.levels import VariancePreserving
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.sampling import Denoiser
from ldm.models.diffusion.schedule import NoiseLevel, SamplingSchedule


def of_eps(eps: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """The denoiser whose noise is a function of z (b, c, h, w) and t (b,)."""

    def denoise(z: Tensor, level: NoiseLevel) -> Prediction:
        return Prediction(z, level, eps(z, torch.full((len(z),), int(level.t))))

    return denoise


@of_eps
def wavy(z: Tensor, t: Tensor) -> Tensor:
    """A denoiser of nothing in particular: bounded, and every position depends on others and on the timestep."""
    return torch.sin(3 * z + z.flip(-1) + z.flip(-2) + 0.01 * t.view(-1, 1, 1, 1))


def trajectory(
    alphas_cumprod: Tensor, steps: int, eta: float = 0.0, skip_steps: int = 0, sampler: str = "ddim"
) -> SamplingSchedule:
    """Of a variance-preserving model."""
    return VariancePreserving(alphas_cumprod).schedule(steps, eta, skip_steps, sampler)


def guided(
    model: Any, context: Tensor, empty: Tensor, scale: float, interval: Any = None, observe: Any = None
) -> Denoiser:
    """A model under contexts (1 or b, m, d) and (1, m, d), guided."""
    n = len(context)
    conditioning = TextConditioning(model, torch.cat([context, empty]))
    return guided_denoiser(model, conditioning, range(n), [n], scale, interval, observe)


def level_at(alphas_cumprod: Tensor, t: int) -> NoiseLevel:
    """Of a variance-preserving model at a timestep."""
    alpha = alphas_cumprod[t].item()
    return NoiseLevel(alpha**0.5, (1 - alpha) ** 0.5, t)
