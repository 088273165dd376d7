"""DDIM: the step, guidance as a wrapper around a denoiser, and sampling from noise (Song et al. 2021).

A denoiser is any function `(z, t) -> eps` with z (b, c, h, w), t (b,) and eps like z.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.schedule import SamplingSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees after each step.

    step: 0 for the first; total: how many there are; timestep: what the network was told.
    z: the latents after the step (b, c, h, w); z0: the estimate of the clean latents that the step made.
    """

    step: int
    total: int
    timestep: int
    z: Tensor
    z0: Tensor


Callback = Callable[[StepInfo], None]


class NoiseSource:
    """Standard normal noise with one generator per sample, so that a sample does not depend on its batch.

    Generators live on the CPU: prediction i is the same on every device.
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = tuple(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def draw(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Noise (b, *shape) on the device and in the precision of `like`, b being the number of seeds."""
        noise = [torch.randn(tuple(shape), generator=g) for g in self.generators]
        return torch.stack(noise).to(like)


def model_denoiser(model: LatentDiffusion, context: Tensor) -> Denoiser:
    """The model under a context: (1, m, d), which every sample of a batch shares, or (b, m, d), one for each."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return model.predict_eps(z, t, context.expand(len(z), -1, -1))

    return denoise


def guided_denoiser(model: LatentDiffusion, context: Tensor, empty: Tensor, scale: float) -> Denoiser:
    """Classifier-free guidance: eps_empty + scale * (eps_context - eps_empty) (Ho & Salimans 2021, eq. 6).

    Both halves go through the network as one batch. At scale 1 the empty prompt is not computed.

    Args:
        context, empty: (1, m, d), of the prompt and of the empty prompt; or (b, m, d), one for each sample.
    """
    if scale == 1.0:
        return model_denoiser(model, context)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        b = len(z)
        both = torch.cat([empty.expand(b, -1, -1), context.expand(b, -1, -1)])
        eps_empty, eps_context = model.predict_eps(z.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return eps_empty + scale * (eps_context - eps_empty)

    return denoise


def ddim_step(z: Tensor, eps: Tensor, alpha: float, alpha_prev: float, sigma: float, noise: Tensor | None):
    """One step from the level `alpha` to `alpha_prev` (Song et al. 2021, eq. 12).

    z0 = (z - sqrt(1 - alpha) eps) / sqrt(alpha)
    z_prev = sqrt(alpha_prev) z0 + sqrt(1 - alpha_prev - sigma^2) eps + sigma noise

    Returns:
        z_prev and z0, both like z.
    """
    z0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    z_prev = alpha_prev**0.5 * z0 + max(1 - alpha_prev - sigma**2, 0.0) ** 0.5 * eps
    if noise is not None:
        z_prev = z_prev + sigma * noise
    return z_prev, z0


def noised(z0: Tensor, alpha: float, noise: Tensor) -> Tensor:
    """z_0 brought to the level alphas_cumprod = `alpha` in one step (Ho et al. 2020, eq. 4)."""
    return alpha**0.5 * z0 + (1 - alpha) ** 0.5 * noise


def denoise_step(
    denoiser: Denoiser, z: Tensor, schedule: SamplingSchedule, i: int, noise: NoiseSource
) -> tuple[Tensor, Tensor]:
    """Step i of a schedule -> (z at the next level, the estimate z0). Draws noise only where the step adds some."""
    t = torch.full((len(z),), schedule.timesteps[i], device=z.device, dtype=torch.long)
    sigma = schedule.sigmas[i]
    fresh = noise.draw(z.shape[1:], z) if sigma > 0 else None
    return ddim_step(z, denoiser(z, t), schedule.alphas[i], schedule.alphas_prev[i], sigma, fresh)


class DDIMSampler:
    """Generation from a prompt alone.

    Args:
        denoiser: see the module's head.
        schedule: the steps to take.
    """

    def __init__(self, denoiser: Denoiser, schedule: SamplingSchedule):
        self.denoiser, self.schedule = denoiser, schedule

    @torch.no_grad()
    def sample(self, z_start: Tensor, noise: NoiseSource, callback: Callback | None = None) -> Tensor:
        """z_start (b, c, h, w) at the first step's level -> z_0 (b, c, h, w)."""
        z = z_start
        for i, timestep in enumerate(self.schedule.timesteps):
            z, z0 = denoise_step(self.denoiser, z, self.schedule, i, noise)
            if callback is not None:
                callback(StepInfo(i, len(self.schedule), timestep, z, z0))
        return z
