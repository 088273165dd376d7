"""Noise levels are data: the model's betas, and the levels of a trajectory, computed before any loop starts.

At a level (a, s) the latents are z = a z_0 + s eps. The models of today are variance preserving, a^2 + s^2 = 1, with
a = sqrt(alphas_cumprod); nothing in the samplers needs that but DDIM's sigma.
"""

import math
from collections.abc import Sequence
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


def shift_log_snr(betas: Tensor, shift: float) -> Tensor:
    """The variances (T,) of the process whose lambda = log(a / s) is `shift` more at every timestep.

    A larger picture needs more noise to hide as much of it: -log 2 for twice the side (Hoogeboom et al. 2023,
    equation 4, which counts lambda twice).
    """
    if not shift:
        return betas
    alphas_cumprod = torch.sigmoid(torch.logit(torch.cumprod(1 - betas, dim=0)) + 2 * shift)
    return 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])


@dataclass(frozen=True)
class NoiseLevel:
    """z = a z_0 + s eps, with a, s >= 0."""

    a: float
    s: float

    @property
    def log_snr(self) -> float:
        """lambda = log(a / s), half of the logarithm of the signal-to-noise ratio; infinite at either end."""
        if self.a == 0 or self.s == 0:
            return math.inf if self.s == 0 else -math.inf
        return math.log(self.a / self.s)


@dataclass(frozen=True)
class SamplingSchedule:
    """The trajectory from noise to picture, as numbers on the host. Entry i belongs to step i, the noisiest first.

    timesteps: what the network is told at each step.
    levels: one more than steps: step i starts from `levels[i]` and arrives at `levels[i + 1]`.
    sigmas: the standard deviation of the fresh noise that each step adds (0 for eta 0).
    second_order: see `second_order_coefficients`; 0 where a step is first order, and so everywhere with DDIM.
    progress: how far along the trajectory each step is, rising in (0, 1): with DDIM the middle of the step, counted in
        steps; with another sampler about what DDIM has at the same noise level.
    sampler: one of `SAMPLERS`.
    """

    timesteps: tuple[int, ...]
    levels: tuple[NoiseLevel, ...]
    sigmas: tuple[float, ...]
    second_order: tuple[float, ...]
    progress: tuple[float, ...]
    sampler: str

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def multistep(self) -> bool:
        """Whether steps build on those before them: then a background must have the same noise at every level."""
        return self.sampler != "ddim"


def mask_parts(steps: int, masks: int) -> tuple[int, ...]:
    """Which of `masks` masks each step uses: parts as equal as whole numbers allow, in order.

    The last step always uses the last, tight mask. With fewer steps than masks some are left out, never that one.
    """
    return tuple(masks - 1 - (steps - 1 - i) * masks // steps for i in range(steps))


def parts_of(schedule: SamplingSchedule, masks: int) -> tuple[int, ...]:
    """Which of `masks` masks each step of a schedule uses; the last, tight one comes last in any case.

    The range of timesteps is divided into equal parts. DDIM's are even, so that equal numbers of steps are the same;
    with another sampler the masks change at the noise level at which they change with DDIM.
    """
    if schedule.sampler == "ddim":
        return mask_parts(len(schedule), masks)
    arrivals = [*schedule.timesteps[1:], 0]
    return tuple(masks - 1 - t * masks // (schedule.timesteps[0] + 1) for t in arrivals)


def ddim_timesteps(steps: int, train_steps: int = 1000) -> tuple[int, ...]:
    """`steps` distinct timesteps of 0..train_steps-1, ascending and as even as whole numbers allow.

    Where the count divides, they are the original's: 1, 21, 41, ... for 50 of 1000. Elsewhere the original took a
    different number of steps than it was asked for, or ran past the schedule's end; here any count is exact.

    Raises:
        UserError: fewer than 1 step or more than the model was trained with.
    """
    if not 1 <= steps <= train_steps:
        raise UserError(f"`ddim_steps` is {steps}: give 1 to {train_steps}, as many as the model was trained with")
    # +1 as in the original, which pairs step k with the training level k+1; there is no room for it at full count.
    offset = 1 if steps < train_steps else 0
    return tuple(min(i * train_steps // steps + offset, train_steps - 1) for i in range(steps))


def dpmpp_timesteps(steps: int, train_steps: int = 1000, skip_steps: int = 0, power: float = 1.5) -> tuple[int, ...]:
    """`steps - skip_steps` distinct timesteps, ascending: top * (j / n)^power, where DDIM's are even.

    The trajectory begins at the noisiest level, or with `skip_steps` about where DDIM's would begin. The power takes
    steps from the noisy end to the clean one, where log-SNR changes fast (docs/solvers.md).

    Raises:
        UserError: as `ddim_timesteps`.
    """
    top = ddim_timesteps(steps, train_steps)[-1 - skip_steps] if skip_steps else train_steps - 1
    n = steps - skip_steps
    timesteps: list[int] = []
    for j in range(n):
        least = timesteps[-1] + 1 if timesteps else 1  # from timestep 0, the end, a step would go nowhere
        timesteps.append(min(max(round(top * ((j + 1) / n) ** power), least), top - (n - 1 - j)))
    return tuple(timesteps)


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
        raise UserError(f"`skip_steps` is {skip_steps}: give 0 to {steps - 1} with `ddim_steps={steps}`")
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"`ddim_eta` is {eta:g}: give a number from 0 to 1")
    if sampler not in SAMPLERS:
        raise UserError(f'`sampler` is "{sampler}": give one of {", ".join(SAMPLERS)}')
    if sampler == "ddim":
        return schedule_along(levels, ascending[: steps - skip_steps], sampler, eta)
    if eta > 0:
        raise UserError(f"`ddim_eta={eta:g}` needs `sampler=ddim`: {sampler} adds no noise")
    return schedule_along(levels, dpmpp_timesteps(steps, len(levels), skip_steps), sampler)


def schedule_along(
    alphas_cumprod: Tensor, ascending: tuple[int, ...], sampler: str, eta: float = 0.0
) -> SamplingSchedule:
    """The schedule of given timesteps, for comparisons; see `make_sampling_schedule`, which chooses and checks them.

    Args:
        alphas_cumprod: (T,) in float64.
    """
    alphas = alphas_cumprod[list(ascending)]
    arrivals = torch.cat([alphas_cumprod[:1], alphas[:-1]])
    sigmas = eta * torch.sqrt((1 - arrivals) / (1 - alphas) * (1 - alphas / arrivals).clamp(min=0))  # eq. 16
    levels = tuple(
        NoiseLevel(alpha**0.5, (1 - alpha) ** 0.5) for alpha in [*alphas.tolist()[::-1], alphas_cumprod[0].item()]
    )
    timesteps, steps = ascending[::-1], len(ascending)
    if sampler == "ddim":
        second_order, progress = (0.0,) * steps, tuple((i + 0.5) / steps for i in range(steps))
    else:
        second_order, progress = second_order_coefficients(levels), _progress(timesteps)
    return SamplingSchedule(timesteps, levels, tuple(sigmas.tolist()[::-1]), second_order, progress, sampler)


def _progress(timesteps: tuple[int, ...]) -> tuple[float, ...]:
    """The middle of each step in timesteps, from 0 at the first timestep to 1 below the last.

    DDIM's timesteps are even: at the middle of one of its steps this is what it has there, within one step.
    """
    middles = [(before + after) / 2 for before, after in pairwise([*timesteps, 0])]
    return tuple(1 - (middle + 0.5) / (timesteps[0] + 1) for middle in middles)
