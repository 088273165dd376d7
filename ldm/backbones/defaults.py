"""What an edit takes where it is told nothing: the paper's numbers, unless the model's config has its own."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from ldm.backbones import diffusers_models, zoo
from ldm.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Told = TypeVar("Told", bound="DataclassInstance")


@dataclass(frozen=True)
class Defaults:
    """The section `editing` of a model's config, or what the makers of a family of models recommend.

    context: of windows, how much of the mask's extent lies around it on each side. A model of few latent cells paints
        best what fills most of its window; a large one wants to see surroundings.
    scale: of classifier-free guidance.
    background_noise: "shared" (released configs say "one"), see `EditRequest`; None is as the sampler needs it.
    ddim_steps, sampler: see `SamplingRequest`.
    """

    context: float = 0.5
    scale: float = 5.0
    background_noise: str | None = None
    ddim_steps: int = 50
    sampler: str = "ddim"

    @classmethod
    def of(cls, files: zoo.ModelFiles) -> "Defaults":
        """Those of a model.

        Raises:
            UserError: the section holds something else, no number from 0, or a noise that there is not.
        """
        if files.library == "diffusers":
            family = diffusers_models.family_of_files(files.weights, files.name)
            return cls(scale=family.scale, ddim_steps=family.steps, sampler=family.sampler)
        section = files.section("editing")
        names = [one.name for one in fields(cls) if one.name not in ("ddim_steps", "sampler")]
        if not isinstance(section, Mapping) or section.keys() - set(names):
            raise UserError(f'{files.config}: the section "editing" may hold {" and ".join(names)} alone')
        numbers = {name: value for name, value in section.items() if name != "background_noise"}
        noise = section.get("background_noise")
        if noise not in (None, "one", "shared"):  # "resampled" would refuse the samplers that cannot have it
            raise UserError(f"{files.config}: editing.background_noise is {noise}: write shared, or leave it out")
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
                raise UserError(f"{files.config}: editing.{name} is {value}: write a number of at least 0")
        own = replace(cls(), background_noise=None if noise is None else "shared")
        kept: dict[str, Any] = {name: float(value) for name, value in numbers.items()}
        return replace(own, **kept)

    def fill(self, request: Told) -> Told:
        """A `SamplingRequest` or `EditRequest` with these values where it leaves them to the model: the one place."""
        sampler = getattr(request, "sampler", None) or self.sampler
        noise = self.background_noise or "resampled"
        if sampler == "dpmpp_2m":  # it builds on one trajectory of the background
            noise = "shared"
        own: dict[str, Any] = {"scale": self.scale, "context": self.context, "background_noise": noise}
        own |= {"ddim_steps": self.ddim_steps, "sampler": sampler}
        left = {name: value for name, value in own.items() if getattr(request, name, value) is None}
        return replace(request, **left)
