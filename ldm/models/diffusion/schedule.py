"""Noise levels, computed before any loop starts: the model's betas, and the steps that a sampler takes."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ldm.errors import UserError

SAMPLERS = ("ddim", "dpmpp_2m")
"""The solvers: DDIM (Song et al. 2021), and DPM-Solver++(2M), which is second order (Lu et al. 2022)."""


def make_beta_schedule(
    schedule: str = "linear", timesteps: int = 1000, linear_start: float = 1e-4, linear_end: float = 2e-2
) -> Tensor:
    """The variances beta_t of the forward process, (timesteps,) in float64.

    `linear` is linear in the square roots, as the latent diffusion models are trained; `sqrt_linear` is linear in
    beta itself, as Ho et al. 2020. The names are the original configs'.

    Raises:
        ValueError: another name.
    """
    if schedule == "linear":
        return torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=torch.float64) ** 2
    if schedule == "sqrt_linear":
        return torch.linspace(linear_start, linear_end, timesteps, dtype=torch.float64)
    raise ValueError(f'beta_schedule "{schedule}" is unknown: "linear" or "sqrt_linear"')


@dataclass(frozen=True)
class SamplingSchedule:
    """The walk downhill, as numbers on the host. Entry i belongs to step i; the noisiest step comes first.

    timesteps: what the network is told at each step.
    alphas: alphas_cumprod at the level that the step starts from.
    alphas_prev: alphas_cumprod at the level that it arrives at.
    sigmas: the standard deviation of the fresh noise that the step adds (0 for eta 0).
    slopes: what DPM-Solver++(2M) multiplies the change of z0 since the step before by, see `second_order_slopes`; 0
        where a step is first order, and so everywhere with DDIM.
    sampler: one of `SAMPLERS`.
    """

    timesteps: tuple[int, ...]
    alphas: tuple[float, ...]
    alphas_prev: tuple[float, ...]
    sigmas: tuple[float, ...]
    slopes: tuple[float, ...]
    sampler: str

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def one_trajectory(self) -> bool:
        """Whether steps build on those before them: then the background's noise must be the same at every level."""
        return self.sampler != "ddim"


def ddim_timesteps(steps: int, train_steps: int = 1000) -> tuple[int, ...]:
    """`steps` distinct timesteps of 0..train_steps-1, ascending and as even as whole numbers allow.

    Where the count divides, they are the original's: 1, 21, 41, ... for 50 of 1000. Elsewhere the original took a
    different number of steps than it was asked for, or ran past the schedule's end; here any count is exact.

    Raises:
        UserError: fewer than 1 step or more than the model was trained with.
    """
    if not 1 <= steps <= train_steps:
        raise UserError(f"{steps} steps are out of range: give 1 to {train_steps}, the model's own number")
    # +1 as in the original, which pairs step k with the training level k+1; there is no room for it at full count.
    offset = 1 if steps < train_steps else 0
    return tuple(min(i * train_steps // steps + offset, train_steps - 1) for i in range(steps))


def dpmpp_timesteps(steps: int, train_steps: int = 1000, skip_steps: int = 0, power: float = 1.5) -> tuple[int, ...]:
    """`steps - skip_steps` distinct timesteps, ascending: top * (j / n)^power, where DDIM's are even.

    The walk begins at the noisiest level, or with `skip_steps` about where DDIM's would begin. The power takes steps
    from the noisy end to the clean one, where log-SNR changes fast (docs/solvers.md).

    Raises:
        UserError: as `ddim_timesteps`.
    """
    top = ddim_timesteps(steps, train_steps)[-1 - skip_steps] if skip_steps else train_steps - 1
    n, timesteps = steps - skip_steps, []
    for j in range(n):
        least = timesteps[-1] + 1 if timesteps else 1  # from timestep 0, where the walk ends, a step would go nowhere
        timesteps.append(min(max(round(top * ((j + 1) / n) ** power), least), top - (n - 1 - j)))
    return tuple(timesteps)


def second_order_slopes(alphas: tuple[float, ...], alphas_prev: tuple[float, ...]) -> tuple[float, ...]:
    """The second-order part of DPM-Solver++(2M), for each step (Lu et al. 2022, Algorithm 2).

    With lambda = log(sqrt(a) / sqrt(1 - a)), a step h in lambda and the step h' before it, the update is DDIM's plus
    sqrt(a_prev) (1 - exp(-h)) h / (2 h') times (z0 - z0'). The first step has none before it, and the last, the
    longest jump in lambda of a walk of few steps, is first order for stability, as is usual.
    """
    slopes = [0.0] * len(alphas)
    steps = [_log_snr(after) - _log_snr(before) for before, after in zip(alphas, alphas_prev, strict=True)]
    for i, (h_before, h) in enumerate(pairwise(steps[:-1]), start=1):
        slopes[i] = alphas_prev[i] ** 0.5 * -math.expm1(-h) * h / (2 * h_before)
    return tuple(slopes)


def _log_snr(alpha: float) -> float:
    """lambda, half of the logarithm of the signal-to-noise ratio."""
    return 0.5 * math.log(alpha / (1 - alpha))


def make_sampling_schedule(
    alphas_cumprod: Tensor, steps: int, eta: float = 0.0, skip_steps: int = 0, sampler: str = "ddim"
) -> SamplingSchedule:
    """The steps of a sampler, of which the first `skip_steps` are left out.

    DDIM's are those of Song et al. 2021, eq. 12 and 16. The last step arrives at `alphas_cumprod[0]`, not at 1, as in
    the original.

    Args:
        alphas_cumprod: (T,), the model's.
        eta: 0 is deterministic, 1 adds as much noise as the ancestral sampler.
        sampler: one of `SAMPLERS`.

    Raises:
        UserError: `steps` out of range, `skip_steps` that leave no step, eta outside 0 to 1, an unknown sampler, or
            eta above 0 with a sampler that adds no noise.
    """
    levels = alphas_cumprod.double().cpu()
    ascending = ddim_timesteps(steps, len(levels))
    if not 0 <= skip_steps < steps:
        raise UserError(f"skip_steps {skip_steps} is out of range: give 0 to {steps - 1} with {steps} steps")
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta {eta:g} is out of range: give 0 (deterministic) to 1 (as noisy as DDPM)")
    if sampler not in SAMPLERS:
        raise UserError(f'sampler "{sampler}" is unknown: give one of {", ".join(SAMPLERS)}')
    if sampler == "ddim":
        return walk_along(levels, ascending[: steps - skip_steps], sampler, eta)
    if eta > 0:
        raise UserError(f"eta {eta:g} needs the sampler ddim: {sampler} adds no noise, give eta 0 with it")
    return walk_along(levels, dpmpp_timesteps(steps, len(levels), skip_steps), sampler)


def walk_along(levels: Tensor, ascending: tuple[int, ...], sampler: str, eta: float = 0.0) -> SamplingSchedule:
    """The schedule of given timesteps, for comparisons; see `make_sampling_schedule`, which chooses and checks them."""
    alphas = levels[list(ascending)]
    alphas_prev = torch.cat([levels[:1], alphas[:-1]])
    sigmas = eta * torch.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev).clamp(min=0))
    alphas, alphas_prev, sigmas = (tuple(column.flip(0).tolist()) for column in (alphas, alphas_prev, sigmas))
    slopes = (0.0,) * len(alphas) if sampler == "ddim" else second_order_slopes(alphas, alphas_prev)
    return SamplingSchedule(ascending[::-1], alphas, alphas_prev, sigmas, slopes, sampler)
