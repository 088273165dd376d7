"""What a network says of z at a noise level, whatever it was trained to predict: the clean latents, and the noise."""

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from ldm.models.diffusion.schedule import NoiseLevel

KINDS = ("eps", "v", "flow", "z0")
"""What networks predict: the noise (Ho et al. 2020); v = a eps - s z_0 with a^2 + s^2 = 1 (Salimans & Ho 2022); the
velocity eps - z_0 of a straight path, a + s = 1 (Lipman et al. 2023, Liu et al. 2023); the clean latents."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's own output `out` at z = a z_0 + s eps, all (b, c, h, w); `kind` is one of `KINDS`.

    z_0 and eps are linear in the output, so guidance may act on the output itself, and nothing is lost at the ends of
    a trajectory, where one of the two cannot be had from the other.
    """

    z: Tensor
    level: NoiseLevel
    out: Tensor
    kind: str = "eps"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'a prediction of "{self.kind}" is unknown: one of {", ".join(KINDS)}')

    @cached_property
    def z0(self) -> Tensor:
        """The estimate of the clean latents."""
        a, s = self.level.a, self.level.s
        if self.kind == "eps":
            return (self.z - s * self.out) / a
        if self.kind == "v":
            return a * self.z - s * self.out
        return self.z - s * self.out if self.kind == "flow" else self.out

    @cached_property
    def eps(self) -> Tensor:
        """The estimate of the noise."""
        a, s = self.level.a, self.level.s
        if self.kind == "eps":
            return self.out
        if self.kind == "v":
            return s * self.z + a * self.out
        return self.z + a * self.out if self.kind == "flow" else (self.z - a * self.out) / s

    def with_eps(self, eps: Tensor) -> "Prediction":
        """The same with another noise, and so with another z_0."""
        return replace(self, out=eps, kind="eps")

    def halves(self) -> tuple["Prediction", "Prediction"]:
        """Those of the first and of the second half of the samples."""
        (z, other_z), (out, other_out) = self.z.chunk(2), self.out.chunk(2)
        return replace(self, z=z, out=out), replace(self, z=other_z, out=other_out)

    def guided(self, prompted: "Prediction", scale: float) -> "Prediction":
        """This one, of no prompt, moved `scale` times as far as the prompted one (Ho & Salimans 2021, eq. 6)."""
        return replace(self, out=self.out + scale * (prompted.out - self.out))
