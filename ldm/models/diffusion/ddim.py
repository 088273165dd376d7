"""The step of a walk, guidance as a wrapper around a denoiser, and sampling from noise.

A denoiser is any function `(z, t) -> eps` with z (b, c, h, w) and eps like z; t (b,) holds one timestep for all rows
and lies on the host, so that a denoiser may choose by it without waiting for the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import UserError
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
        return _send(torch.stack(noise), like.device).to(like.dtype)


def model_denoiser(model: LatentDiffusion, context: Tensor) -> Denoiser:
    """The model under a context: (1, m, d), which every sample of a batch shares, or (b, m, d), one for each."""

    prepared = model.prepare_context(context)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return model.predict_eps(z, _send(t, z.device), prepared)

    return denoise


def guided_denoiser(
    model: LatentDiffusion,
    context: Tensor,
    empty: Tensor,
    scale: float,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """Classifier-free guidance: eps_empty + scale * (eps_context - eps_empty) (Ho & Salimans 2021, eq. 6).

    Both halves go through the network as one batch. At scale 1 the empty prompt is not computed.

    Args:
        context, empty: (1, m, d), of the prompt and of the empty prompt; or (b, m, d), one for each sample.
        interval: (low, high), the noise levels at which to guide, both included, in parts of the model's timesteps:
            0 is the cleanest, 1 the noisiest (Kynkaanniemi et al. 2024). Outside it the prompt's half runs alone, at
            half the cost. None guides everywhere.

    Raises:
        UserError: see `check_guidance_interval`.
    """
    if scale == 1.0:
        return model_denoiser(model, context)
    rows = max(len(context), len(empty))
    both = model.prepare_context(torch.cat([empty.expand(rows, -1, -1), context.expand(rows, -1, -1)]))

    def guided(z: Tensor, t: Tensor) -> Tensor:
        eps_empty, eps_context = model.predict_eps(z.repeat(2, 1, 1, 1), _send(t, z.device).repeat(2), both).chunk(2)
        return eps_empty + scale * (eps_context - eps_empty)

    if interval is None:
        return guided
    check_guidance_interval(interval)
    plain = model_denoiser(model, context)
    low, high = (part * (len(model.alphas_cumprod) - 1) for part in interval)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return (guided if low <= t[0].item() <= high else plain)(z, t)

    return denoise


def check_guidance_interval(interval: tuple[float, float]) -> None:
    """Refuse what is no interval of noise levels.

    Raises:
        UserError: not 0 <= low <= high <= 1.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise UserError(f"guidance_interval {low:g} {high:g} is none: give two numbers, 0 (clean) to 1 (pure noise)")


def _send(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. A GPU copies from page-locked memory by itself, while the host prepares what comes next."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


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
    denoiser: Denoiser,
    z: Tensor,
    schedule: SamplingSchedule,
    i: int,
    noise: NoiseSource,
    z0_before: Tensor | None = None,
    goes_on: Tensor | bool = True,
) -> tuple[Tensor, Tensor]:
    """Step i of a schedule -> (z at the next level, the estimate z0). Draws noise only where the step adds some.

    DDIM's step, to which DPM-Solver++(2M) adds a multiple of the change of z0 since the step before (Lu et al. 2022,
    Algorithm 2; see `SamplingSchedule.slopes`).

    Args:
        z0_before: the estimate of step i - 1, like z; None at the first step.
        goes_on: (b or 1, 1, 1, 1) bool, the samples whose walk goes on smoothly; the others' step is first order.
    """
    t = torch.full((len(z),), schedule.timesteps[i])
    sigma, slope = schedule.sigmas[i], schedule.slopes[i]
    fresh = noise.draw(z.shape[1:], z) if sigma > 0 else None
    z_prev, z0 = ddim_step(z, denoiser(z, t), schedule.alphas[i], schedule.alphas_prev[i], sigma, fresh)
    if slope > 0:
        z_prev = z_prev + goes_on * slope * (z0 - z0_before)
    return z_prev, z0


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
        z, z0 = z_start, None
        for i, timestep in enumerate(self.schedule.timesteps):
            z, z0 = denoise_step(self.denoiser, z, self.schedule, i, noise, z0)
            if callback is not None:
                callback(StepInfo(i, len(self.schedule), timestep, z, z0))
        return z
