"""Samplers as functions over a denoiser: DDIM and DPM-Solver++(2M), a step of each beside its equation.

A denoiser is any function `(z, level) -> Prediction` with z (b, c, h, w) at a noise level. Levels are numbers on the
host, so that a denoiser may choose by them without waiting for the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.schedule import NoiseLevel, SamplingSchedule

Denoiser = Callable[[Tensor, NoiseLevel], Prediction]


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees after each step.

    step: 0 for the first; total: how many there are; timestep: what the network was told.
    z: the latents after the step (b, c, h, w); z0: the estimate of the clean latents that the step made.
    """

    step: int
    total: int
    timestep: float
    z: Tensor
    z0: Tensor


Callback = Callable[[StepInfo], None]

Blend = Callable[[int, Tensor, Tensor], Tensor]
"""`(i, z, z0) -> z`: the latents to go on from after step i, given those it arrived at and its estimate z0."""


Step = Callable[[Prediction, NoiseLevel, "NoiseSource"], Tensor]
"""`(made, end, noise) -> z'`: a step to the level `end` from what was predicted."""


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
        return to_device(torch.stack(noise), like.device).to(like.dtype)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. A GPU copies from page-locked memory by itself, while the host prepares what comes next."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def noised(z0: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
    """z_0 brought to a noise level in one step, a z_0 + s noise (Ho et al. 2020, eq. 4)."""
    return level.a * z0 + level.s * noise


def ddim_step(made: Prediction, end: NoiseLevel, sigma: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """One step from where a prediction was made to the level `end` (a', s') -> z' (Song et al. 2021, eq. 12).

    z' = a' z0 + sqrt(s'^2 - sigma^2) eps + sigma noise

    With sigma 0 and a + s = 1 this is Euler's step of a flow: z' = z + (s' - s) (eps - z0).
    """
    z_end = end.a * made.z0 + max(end.s**2 - sigma**2, 0.0) ** 0.5 * made.eps
    return z_end if noise is None else z_end + sigma * noise


def dpmpp_2m_step(made: Prediction, end: NoiseLevel, coefficient: float, z0_before: Tensor) -> Tensor:
    """One second-order step -> z' (DPM-Solver++(2M); Lu et al. 2022, Algorithm 2).

    With lambda = log(a / s), h = lambda' - lambda, h_before that of the step before and r = h_before / h,

    D  = z0 + (z0 - z0_before) / (2 r)
    z' = (s' / s) z + a' (1 - exp(-h)) D

    In D's first term this is DDIM's step; what its second one adds is (z0 - z0_before) times the `coefficient`, which
    `second_order_coefficients` computes for a whole schedule.
    """
    return ddim_step(made, end) + coefficient * (made.z0 - z0_before)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    schedule: SamplingSchedule,
    z: Tensor,
    noise: NoiseSource,
    blend: Blend | None = None,
    callback: Callback | None = None,
    step: Step | None = None,
) -> Tensor:
    """Follow a schedule from z (b, c, h, w) at its first level to its last one -> z there, like z.

    Args:
        noise: asked only where a step adds some, once a step.
        blend: what becomes of the latents after each step; None leaves them.
        callback: called after each step, and after `blend`.
        step: makes the steps, such as `ldm.models.diffusion.respacing.ancestral_step`; None is as the schedule says.
    """
    z0 = None
    for i, (start, end) in enumerate(pairwise(schedule.levels)):
        made = denoiser(z, start)
        if step is not None:
            z = step(made, end, noise)
        elif z0 is not None and schedule.second_order[i] > 0:
            z = dpmpp_2m_step(made, end, schedule.second_order[i], z0)
        else:
            sigma = schedule.sigmas[i]
            z = ddim_step(made, end, sigma, noise.draw(z.shape[1:], z) if sigma > 0 else None)
        z0 = made.z0
        if blend is not None:
            z = blend(i, z, z0)
        if callback is not None:
            callback(StepInfo(i, len(schedule), start.t, z, z0))
    return z
