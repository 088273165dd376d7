"""The methods by name, each with the options that a job of it takes. Imports nothing heavy."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ldm.errors import UserError
from ldm.runs.baseline_jobs import BlendedDiffusionJob, GlideJob, PaintByWordJob
from ldm.runs.jobs import EditJob, MethodOptions

OURS = "blended_latent"


@dataclass(frozen=True)
class Method:
    """A method.

    job: the class of its options. preset: those that make it this method and no other, unless a job says so.
    """

    job: type[MethodOptions]
    preset: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_LOCAL = MappingProxyType({"local_clip_guided_diffusion": True, "background_preservation_loss": True})

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        OURS: Method(EditJob),
        "blended_diffusion": Method(BlendedDiffusionJob),
        "local_clip_guided_diffusion": Method(BlendedDiffusionJob, _LOCAL),
        "glide": Method(GlideJob),
        "paint_by_word": Method(PaintByWordJob),
    }
)


def method_named(name: str) -> Method:
    """A method by its name.

    Raises:
        UserError: there is no such method.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, 1)
    mend = f'is it "{near[0]}"?' if near else f"there are {', '.join(METHODS)}"
    raise UserError(f'there is no method "{name}": {mend}')
