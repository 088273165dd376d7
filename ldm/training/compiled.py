"""torch.compile of the networks that a training spends its time in."""

import logging

from torch import nn

logger = logging.getLogger(__name__)

PARTS = (
    "ldm.model",
    "ldm.cond_stage_model.transformer",
    "first_stage_model.encoder",
    "first_stage_model.decoder",
    "discriminator",
    "clip.visual",
)
"""Of our trainings, by their names in the module."""


def compile_parts(module: nn.Module) -> list[str]:
    """Compile in place those of `PARTS` that a training has; returns them. State dicts keep their keys.

    One that cannot be compiled is an error of the first step: of its pieces alone, tried one by one instead, each takes
    as long again.
    """
    found = []
    for name in PARTS:
        try:
            part = module.get_submodule(name)
        except AttributeError:
            continue
        part.compile()
        found.append(name)
    logger.info("compiled: %s", ", ".join(found) or "nothing")
    return found
