"""Noise levels and trajectories are data, computed before any loop starts.

At a level (a, s) the latents are z = a z_0 + s eps. Variance-preserving models have a^2 + s^2 = 1, those of flow
matching a + s = 1; the samplers need neither. Which levels a model knows is in `ldm.models.diffusion.levels`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

SAMPLERS = ("ddim", "dpmpp_2m", "lcm")
"""The solvers: DDIM (Song et al. 2021), which is Euler's for flow matching; DPM-Solver++(2M), which is second order (Lu
et al. 2022); and that of latent consistency models, with new noise at each step (Luo et al. 2023)."""


@dataclass(frozen=True)
class NoiseLevel:
    """z = a z_0 + s eps, with a, s >= 0; t is what the network is told there."""

    a: float
    s: float
    t: float = 0

    @property
    def log_snr(self) -> float:
        """lambda = log(a / s), half of the logarithm of the signal-to-noise ratio; infinite at either end."""
        if self.a == 0 or self.s == 0:
            return math.inf if self.s == 0 else -math.inf
        return math.log(self.a / self.s)


@dataclass(frozen=True)
class SamplingSchedule:
    """The trajectory from noise to picture, as numbers on the host. Entry i belongs to step i, the noisiest first.

    levels: one more than steps: step i starts from `levels[i]` and arrives at `levels[i + 1]`.
    sigmas: the standard deviation of the fresh noise that each step adds (0 for eta 0).
    second_order: see `second_order_coefficients`; 0 where a step is first order, and so everywhere with DDIM.
    progress: how far along the trajectory each step is, rising in (0, 1): with DDIM the middle of the step, counted in
        steps; with another sampler about what DDIM has at the same noise level.
    sampler: one of `SAMPLERS`.
    """

    levels: tuple[NoiseLevel, ...]
    sigmas: tuple[float, ...]
    second_order: tuple[float, ...]
    progress: tuple[float, ...]
    sampler: str = "ddim"

    @classmethod
    def along(cls, levels: Sequence[NoiseLevel], sampler: str = "ddim", eta: float = 0.0) -> "SamplingSchedule":
        """The schedule of given levels.

        DDIM's steps add noise of sigma = eta s' sqrt(1 - (a s' / (a' s))^2), which is equation 16 of Song et al. 2021
        where a^2 + s^2 = 1; those of `lcm` all that the level arrived at has, so that only z0 goes on.
        """
        n = len(levels) - 1
        sigmas, second_order, progress = [0.0] * n, (0.0,) * n, tuple((i + 0.5) / n for i in range(n))
        if sampler == "lcm":
            sigmas = [level.s for level in levels[1:]]
        elif sampler == "dpmpp_2m":
            second_order, progress = second_order_coefficients(levels), _progress([level.t for level in levels[:-1]])
        elif eta > 0:
            sigmas = [_sigma(start, end, eta) for start, end in pairwise(levels)]
        return cls(tuple(levels), tuple(sigmas), second_order, progress, sampler)

    def __len__(self) -> int:
        return len(self.levels) - 1

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the network is told at each step."""
        return tuple(level.t for level in self.levels[:-1])

    @property
    def multistep(self) -> bool:
        """Whether steps build on those before them: then a background must have the same noise at every level."""
        return self.sampler == "dpmpp_2m"


def mask_parts(steps: int, masks: int) -> tuple[int, ...]:
    """Which of `masks` masks each step uses: parts as equal as whole numbers allow, in order.

    The last step always uses the last, tight mask. With fewer steps than masks some are left out, never that one.
    """
    return tuple(masks - 1 - (steps - 1 - i) * masks // steps for i in range(steps))


def parts_of(schedule: SamplingSchedule, masks: int) -> tuple[int, ...]:
    """Which of `masks` masks each step of a schedule uses; the last, tight one comes last in any case.

    The range of timesteps is divided into equal parts. Those of most samplers are even, so that equal numbers of steps
    are the same; with a multistep one the masks change at the noise level at which they change with DDIM.
    """
    if not schedule.multistep:
        return mask_parts(len(schedule), masks)
    arrivals = [*schedule.timesteps[1:], 0]
    return tuple(masks - 1 - int(t * masks // (schedule.timesteps[0] + 1)) for t in arrivals)


def second_order_coefficients(levels: Sequence[NoiseLevel]) -> tuple[float, ...]:
    """What DPM-Solver++(2M) multiplies the change of z0 since the step before by, for each step; see `dpmpp_2m_step`.

    With h the step in lambda = log(a / s) and h' the step before it, a (1 - exp(-h)) h / (2 h'), a being that of the
    level arrived at (Lu et al. 2022, Algorithm 2). The first step has none before it, and the last, the longest jump
    in lambda of a trajectory of few steps, is first order for stability, as is usual.
    """
    coefficients = [0.0] * (len(levels) - 1)
    steps = [after.log_snr - before.log_snr for before, after in pairwise(levels[:-1])]
    for i, (h_before, h) in enumerate(pairwise(steps), start=1):
        coefficients[i] = levels[i + 1].a * -math.expm1(-h) * h / (2 * h_before)
    return tuple(coefficients)


def _sigma(start: NoiseLevel, end: NoiseLevel, eta: float) -> float:
    ratio = start.a * end.s / (end.a * start.s)
    return eta * end.s * math.sqrt(max(1 - ratio**2, 0.0))


def _progress(timesteps: Sequence[float]) -> tuple[float, ...]:
    """The middle of each step in timesteps, from 0 at the first timestep to 1 below the last.

    DDIM's timesteps are even: at the middle of one of its steps this is what it has there, within one step.
    """
    middles = [(before + after) / 2 for before, after in pairwise([*timesteps, 0])]
    return tuple(1 - (middle + 0.5) / (timesteps[0] + 1) for middle in middles)
