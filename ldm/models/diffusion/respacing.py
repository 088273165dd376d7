"""Guided-diffusion's chains: subsets of the timesteps, and ancestral steps with learned variances.

With z = a z_0 + s eps at a level and z' = a' z_0 + s' eps' at the next one, z given z' is normal with mean (a / a') z'
and variance

    beta = s^2 - (a / a')^2 s'^2,

which is 1 - alpha_t where a^2 + s^2 = 1, and z' given z and z_0 is normal with (Ho et al. 2020, equations 6 and 7)

    mean = (a / a') (s' / s)^2 z + a' (beta / s^2) z_0,        variance = beta (s' / s)^2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.levels import VariancePreserving
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.sampling import NoiseSource
from ldm.models.diffusion.schedule import NoiseLevel, SamplingSchedule

FAST27 = (10, 10, 3, 2, 2)
"""Of GLIDE's upsampler: how many steps each fifth of the timesteps has, the cleanest first."""


def space_timesteps(respacing: str | Sequence[int], train_steps: int = 1000) -> tuple[int, ...]:
    """A subset of the timesteps, ascending, as guided-diffusion's `timestep_respacing` names it.

    Args:
        respacing: numbers of steps with commas between, one for each of as many equal sections of the timesteps, whose
            first and last timestep are among its own; `ddim25` for 25 at a whole-numbered stride from 0; or `fast27`,
            `FAST27` with the noisiest timestep moved by two.

    Raises:
        UserError: there is no such subset.
    """
    if respacing == "fast27":
        *rest, last = space_timesteps(FAST27, train_steps)
        return (*rest, last - 2)
    if isinstance(respacing, str) and respacing.startswith("ddim"):
        (count,) = _counts(respacing.removeprefix("ddim"), respacing, 1)
        strides = (range(0, train_steps, i) for i in range(1, train_steps))
        even = next((one for one in strides if len(one) == count), None)
        if even is None:
            raise UserError(f'`timestep_respacing` is "{respacing}": no stride gives {count} of {train_steps} steps')
        return tuple(even)
    counts = _counts(respacing, respacing) if isinstance(respacing, str) else list(respacing)
    timesteps: list[int] = []
    begin = 0
    for i, count in enumerate(counts):
        size = train_steps // len(counts) + (i < train_steps % len(counts))
        if not 1 <= count <= size:
            raise UserError(f"`timestep_respacing` asks for {count} of {size} timesteps: give 1 to {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        timesteps += [begin + round(k * stride) for k in range(count)]
        begin += size
    return tuple(timesteps)


def _counts(text: str, given: str, most: int | None = None) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or (most is not None and len(parts) > most):
        raise UserError(f'`timestep_respacing` is "{given}": give a number of steps, such as 100, or ddim100')
    return [int(part) for part in parts]


@dataclass(frozen=True, eq=False)
class RespacedLevels(VariancePreserving):
    """The levels of a guided-diffusion model, whose trajectories begin at the last timestep and end without noise."""

    final: float | None = 1.0

    def timesteps(self, steps: int, skip_steps: int = 0, sampler: str = "ddim") -> tuple[int, ...]:
        """See `VariancePreserving`; they are those of `space_timesteps`."""
        if sampler != "ddim":
            raise UserError(f"`sampler={sampler}` is not for this model: take ddim")
        return space_timesteps(str(steps), len(self))[: steps - skip_steps]

    def respaced(self, respacing: str, skip_steps: int = 0, eta: float = 0.0) -> SamplingSchedule:
        """The trajectory along a subset of the timesteps, of which the first `skip_steps` are left out.

        Raises:
            UserError: there is no such subset, or nothing is left of it.
        """
        ascending = space_timesteps(respacing, len(self))
        if not 0 <= skip_steps < len(ascending):
            raise UserError(
                f"`skip_timesteps` is {skip_steps}: give 0 to {len(ascending) - 1} with "
                f"`timestep_respacing={respacing}`"
            )
        return self.along(ascending[: len(ascending) - skip_steps], "ddim", eta)


def transition_variance(start: NoiseLevel, end: NoiseLevel) -> float:
    """beta, from the level `end` to the noisier `start`; see this module."""
    return max(start.s**2 - (start.a / end.a) ** 2 * end.s**2, 0.0)


def posterior_variance(start: NoiseLevel, end: NoiseLevel) -> float:
    """Of z' at the level `end`, given z at the noisier `start` and z_0; see this module. 0 where `end` has no noise."""
    return transition_variance(start, end) * (end.s / start.s) ** 2


def posterior_mean(z: Tensor, z0: Tensor, start: NoiseLevel, end: NoiseLevel) -> Tensor:
    """Of z' at the level `end`, given z at the noisier `start` and z_0, all (b, c, h, w); see this module."""
    beta = transition_variance(start, end)
    return (start.a / end.a) * (end.s / start.s) ** 2 * z + end.a * beta / start.s**2 * z0


@dataclass(frozen=True, eq=False)
class AncestralPrediction(Prediction):
    """A prediction with what a step of the ancestral sampler asks beyond z_0, all (b, c, h, w).

    fraction: where the logarithm of the variance lies between the posterior's, 0, and beta's, 1 (Nichol & Dhariwal
        2021, equation 15); None is the posterior's.
    gradient: of a loss with respect to z, which the step goes down; None is without.
    """

    fraction: Tensor | None = None
    gradient: Tensor | None = None

    def variance(self, end: NoiseLevel) -> Tensor | float:
        """Of the step to the level `end`."""
        least = posterior_variance(self.level, end)
        if self.fraction is None or least == 0:
            return least
        beta = transition_variance(self.level, end)
        return torch.exp(self.fraction * math.log(beta) + (1 - self.fraction) * math.log(least))


def ancestral_step(made: Prediction, end: NoiseLevel, noise: NoiseSource) -> Tensor:
    """One step to the level `end` -> z': a sample of the posterior with the predicted z_0 (Ho et al. 2020).

    The mean is moved by the variance times the gradient, where there is one (Dhariwal & Nichol 2021, Algorithm 1).
    Into a level without noise the step is z_0 itself.
    """
    if end.s == 0:
        return end.a * made.z0
    if not isinstance(made, AncestralPrediction):
        made = AncestralPrediction(made.z, made.level, made.out, made.kind)
    mean, variance = posterior_mean(made.z, made.z0, made.level, end), made.variance(end)
    if made.gradient is not None:
        mean = mean - variance * made.gradient
    return mean + variance**0.5 * noise.draw(mean.shape[1:], mean)
