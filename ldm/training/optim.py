"""What our trainings share: where they begin, and the optimiser."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from ldm.checkpoint import read_state_dict
from ldm.errors import UserError
from ldm.training.deepen import deepened

logger = logging.getLogger(__name__)


def begin_from(module: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Give `module` the weights that the file has under `prefix`, where name and shape are the same.

    For going on with shipped weights, also after the config has grown: what the file lacks keeps its fresh values,
    and one line says how many tensors those are. A denoiser with more residual blocks begins where the file's was,
    see `deepened`.

    Raises:
        UserError: the file cannot be read, nothing in it fits, or its denoiser cannot become this one.
    """
    own = module.state_dict()
    found = deepened(read_state_dict(Path(path)), own)
    known = {
        name: found[prefix + name]
        for name, value in own.items()
        if prefix + name in found and found[prefix + name].shape == value.shape
    }
    if not known:
        raise UserError(f"nothing in {path} fits the model of this config: is it another model's?")
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in known.items()}, strict=False)
    new = sorted(own.keys() - known.keys())
    logger.warning("%d of %d tensors are those of %s%s", len(known), len(own), path, _new(new))


def _new(names: list[str]) -> str:
    return f"; new: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" if names else ""


def adamw_with_cosine(
    parameters: Iterable[nn.Parameter], learning_rate: float, warmup: int, total: int, floor: float = 0.02
) -> dict:
    """AdamW with a linear warm-up and a cosine decay to `floor` of the rate at step `total`, for Lightning."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
