"""Noise levels, computed before any loop starts: the model's betas, and the steps that a sampler takes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import UserError


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
    """

    timesteps: tuple[int, ...]
    alphas: tuple[float, ...]
    alphas_prev: tuple[float, ...]
    sigmas: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.timesteps)


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


def make_sampling_schedule(
    alphas_cumprod: Tensor, steps: int, eta: float = 0.0, skip_steps: int = 0
) -> SamplingSchedule:
    """The DDIM steps (Song et al. 2021, eq. 12 and 16), of which the first `skip_steps` are left out.

    The last step arrives at `alphas_cumprod[0]`, not at 1, as in the original.

    Args:
        alphas_cumprod: (T,), the model's.
        eta: 0 is deterministic, 1 adds as much noise as the ancestral sampler.

    Raises:
        UserError: `steps` out of range, `skip_steps` that leave no step, or eta outside 0 to 1.
    """
    levels = alphas_cumprod.double().cpu()
    ascending = ddim_timesteps(steps, len(levels))
    if not 0 <= skip_steps < steps:
        raise UserError(f"skip_steps {skip_steps} is out of range: give 0 to {steps - 1} with {steps} steps")
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta {eta:g} is out of range: give 0 (deterministic) to 1 (as noisy as DDPM)")
    alphas = levels[list(ascending)]
    alphas_prev = torch.cat([levels[:1], alphas[:-1]])
    sigmas = eta * torch.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev).clamp(min=0))
    walk = slice(steps - 1 - skip_steps, None, -1)
    return SamplingSchedule(
        timesteps=ascending[walk],
        alphas=tuple(alphas.flip(0)[skip_steps:].tolist()),
        alphas_prev=tuple(alphas_prev.flip(0)[skip_steps:].tolist()),
        sigmas=tuple(sigmas.flip(0)[skip_steps:].tolist()),
    )
