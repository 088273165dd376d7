"""The optimiser that our trainings share."""

import math
from collections.abc import Iterable

import torch
from torch import nn


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
