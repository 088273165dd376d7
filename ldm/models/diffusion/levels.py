"""The noise levels that a model was trained at, and the trajectories along them: variance preserving, flow matching."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.schedule import SAMPLERS, NoiseLevel, SamplingSchedule

LCM_STEPS = 50
"""Of the teacher's trajectory that latent consistency models are distilled from (Luo et al. 2023)."""


def make_beta_schedule(
    schedule: str = "linear", timesteps: int = 1000, linear_start: float = 1e-4, linear_end: float = 2e-2
) -> Tensor:
    """The variances beta_t of the forward process, (timesteps,) in float64.

    `linear` is linear in the square roots, as the latent diffusion models are trained; `sqrt_linear` is linear in
    beta itself, as Ho et al. 2020. `squaredcos_cap_v2` has alphas_cumprod fall as a squared cosine, each beta at most
    0.999 (Nichol & Dhariwal 2021, equation 17). The names are the original configs'.

    Raises:
        ValueError: another name.
    """
    if schedule == "linear":
        return torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=torch.float64) ** 2
    if schedule == "sqrt_linear":
        return torch.linspace(linear_start, linear_end, timesteps, dtype=torch.float64)
    if schedule == "squaredcos_cap_v2":
        level = torch.cos((torch.linspace(0, 1, timesteps + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - level[1:] / level[:-1]).clamp(max=0.999)
    raise ValueError(f'beta_schedule "{schedule}" is unknown: "linear", "sqrt_linear" or "squaredcos_cap_v2"')


def shift_log_snr(betas: Tensor, shift: float) -> Tensor:
    """The variances (T,) of the process whose lambda = log(a / s) is `shift` more at every timestep.

    A larger picture needs more noise to hide as much of it: -log 2 for twice the side (Hoogeboom et al. 2023,
    equation 4, which counts lambda twice).
    """
    if not shift:
        return betas
    alphas_cumprod = torch.sigmoid(torch.logit(torch.cumprod(1 - betas, dim=0)) + 2 * shift)
    return 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])


class NoiseLevels(Protocol):
    """What a model knows of noise."""

    def schedule(
        self,
        steps: int,
        eta: float = 0.0,
        skip_steps: int = 0,
        sampler: str = "ddim",
        size: tuple[int, int] | None = None,
    ) -> SamplingSchedule:
        """The steps of a sampler, of which the first `skip_steps` are left out.

        Args:
            eta: 0 is deterministic, 1 adds as much noise as the ancestral sampler.
            sampler: one of `SAMPLERS`.
            size: (h, w) in latent positions, of which the levels of some models depend; None is their native one.

        Raises:
            UserError: `steps` out of range, `skip_steps` that leave no step, eta outside 0 to 1, an unknown sampler,
                one that these levels have not, or eta above 0 with a sampler that adds no noise.
        """

    def position(self, level: NoiseLevel) -> float:
        """How noisy a level is, in parts of the model's timesteps: 0 is the cleanest, 1 the noisiest."""


@dataclass(frozen=True, eq=False)
class VariancePreserving:
    """a = sqrt(alphas_cumprod), a^2 + s^2 = 1, at discrete timesteps.

    alphas_cumprod: (T,). spacing: of DDIM's timesteps, see `ddim_timesteps`; with "trailing" those of DPM-Solver++ too.
    final: alphas_cumprod where the last step arrives; None is `alphas_cumprod[0]`, not 1, as in the original.
    """

    alphas_cumprod: Tensor
    spacing: str = "leading"
    final: float | None = None

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def schedule(
        self,
        steps: int,
        eta: float = 0.0,
        skip_steps: int = 0,
        sampler: str = "ddim",
        size: tuple[int, int] | None = None,
    ) -> SamplingSchedule:
        """See `NoiseLevels`; DDIM's are those of Song et al. 2021, eq. 12 and 16."""
        if not 1 <= steps <= len(self):
            raise UserError(f"`ddim_steps` is {steps}: give 1 to {len(self)}, as many as the model was trained with")
        check_steps(steps, eta, skip_steps, sampler)
        return self.along(self.timesteps(steps, skip_steps, sampler), sampler, eta)

    def timesteps(self, steps: int, skip_steps: int = 0, sampler: str = "ddim") -> tuple[int, ...]:
        """Those of a `schedule`, ascending: `steps - skip_steps` of them.

        Raises:
            UserError: a sampler that these levels have not, or more steps than it takes.
        """
        if sampler == "lcm":
            return lcm_timesteps(steps, len(self))[: steps - skip_steps]
        if sampler == "dpmpp_2m" and self.spacing == "leading":
            return dpmpp_timesteps(steps, len(self), skip_steps)
        return ddim_timesteps(steps, len(self), self.spacing)[: steps - skip_steps]

    def along(self, ascending: Sequence[int], sampler: str = "ddim", eta: float = 0.0) -> SamplingSchedule:
        """The schedule of given timesteps, for comparisons; see `schedule`, which chooses and checks them."""
        alphas = self.alphas_cumprod.double().cpu()
        own = [(t, alphas[t].item()) for t in reversed(ascending)]
        final = 1.0 if sampler == "lcm" else alphas[0].item() if self.final is None else self.final
        levels = [NoiseLevel(alpha**0.5, (1 - alpha) ** 0.5, t) for t, alpha in [*own, (0, final)]]
        return SamplingSchedule.along(levels, sampler, eta)

    def position(self, level: NoiseLevel) -> float:
        """See `NoiseLevels`."""
        return level.t / (len(self) - 1)


@dataclass(frozen=True)
class Flow:
    """Flow matching: a = 1 - s, where the network is told `train_steps` s.

    Even levels from 1 on are shifted to noisier ones, s -> shift s / (1 + (shift - 1) s) (Esser et al. 2024, eq. 23),
    since a larger picture needs more noise to hide as much of it. With `dynamic` the shift is exp(mu), mu being linear
    in the number of tokens, a square of `patch` latent positions each.

    least: the level before 0 of one step a timestep, before it is shifted; None divides 1 to 0 evenly.
    dynamic: (tokens, mu) at two sizes. shift_terminal: what the last level above 0 is stretched to.
    """

    shift: float = 1.0
    least: float | None = None
    dynamic: tuple[tuple[int, float], tuple[int, float]] | None = None
    native: tuple[int, int] = (128, 128)
    patch: int = 2
    train_steps: int = 1000
    shift_terminal: float | None = None

    def schedule(
        self,
        steps: int,
        eta: float = 0.0,
        skip_steps: int = 0,
        sampler: str = "ddim",
        size: tuple[int, int] | None = None,
    ) -> SamplingSchedule:
        """See `NoiseLevels`."""
        if not 1 <= steps <= self.train_steps:
            raise UserError(f"`ddim_steps` is {steps}: give 1 to {self.train_steps}")
        check_steps(steps, eta, skip_steps, sampler)
        if sampler == "lcm":
            raise UserError("`sampler=lcm` is for consistency models: this one is of flow matching, take ddim")
        least = 1 / steps if self.least is None else self._shifted(self.least, self.shift)
        shift = self._shift(size or self.native)
        even = [1 + (least - 1) * i / max(steps - 1, 1) for i in range(steps)]
        sigmas = [self._shifted(s, shift) for s in even]
        if self.shift_terminal is not None and steps > 1:
            stretch = (1 - sigmas[-1]) / (1 - self.shift_terminal)
            sigmas = [1 - (1 - s) / stretch for s in sigmas]
        levels = [NoiseLevel(1 - s, s, s * self.train_steps) for s in [*sigmas[skip_steps:], 0.0]]
        return SamplingSchedule.along(levels, sampler, eta)

    def position(self, level: NoiseLevel) -> float:
        """See `NoiseLevels`."""
        return level.s

    @staticmethod
    def _shifted(s: float, shift: float) -> float:
        return shift * s / (1 + (shift - 1) * s)

    def _shift(self, size: tuple[int, int]) -> float:
        if self.dynamic is None:
            return self.shift
        (tokens, mu), (most_tokens, most_mu) = self.dynamic
        own = (size[0] // self.patch) * (size[1] // self.patch)
        return math.exp(mu + (own - tokens) * (most_mu - mu) / (most_tokens - tokens))


def check_steps(steps: int, eta: float, skip_steps: int, sampler: str) -> None:
    """Refuse what no trajectory has; see `NoiseLevels.schedule`."""
    if not 0 <= skip_steps < steps:
        raise UserError(f"`skip_steps` is {skip_steps}: give 0 to {steps - 1} with `ddim_steps={steps}`")
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"`ddim_eta` is {eta:g}: give a number from 0 to 1")
    if sampler not in SAMPLERS:
        raise UserError(f'`sampler` is "{sampler}": give one of {", ".join(SAMPLERS)}')
    if eta > 0 and sampler != "ddim":
        raise UserError(f"`ddim_eta={eta:g}` needs `sampler=ddim`: {sampler} adds no noise that eta could scale")


def ddim_timesteps(steps: int, train_steps: int = 1000, spacing: str = "leading") -> tuple[int, ...]:
    """`steps` distinct timesteps of 0..train_steps-1, ascending and as even as whole numbers allow.

    Where the count divides, they are the original's: 1, 21, 41, ... for 50 of 1000. Elsewhere the original took a
    different number of steps than it was asked for, or ran past the schedule's end; here any count is exact.
    "trailing" spacing begins at the very last timestep, as few-step models need it (Lin et al. 2024, Table 2).

    Raises:
        UserError: fewer than 1 step or more than the model was trained with.
    """
    if not 1 <= steps <= train_steps:
        raise UserError(f"`ddim_steps` is {steps}: give 1 to {train_steps}, as many as the model was trained with")
    if spacing == "trailing":
        return tuple(round(train_steps - i * train_steps / steps) - 1 for i in reversed(range(steps)))
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


def lcm_timesteps(steps: int, train_steps: int = 1000) -> tuple[int, ...]:
    """`steps` of the `LCM_STEPS` timesteps of a consistency model, ascending, from the noisiest on as even as may be.

    Raises:
        UserError: more steps than it was distilled at.
    """
    if steps > LCM_STEPS:
        raise UserError(f"`ddim_steps` is {steps}: give 1 to {LCM_STEPS} with `sampler=lcm`")
    own = [k * (train_steps // LCM_STEPS) - 1 for k in range(LCM_STEPS, 0, -1)]
    return tuple(own[i * LCM_STEPS // steps] for i in reversed(range(steps)))
