"""What our trainings share: where they begin, what they draw with, in which order, and the optimiser."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Generator, nn

from ldm.data.epochs import EpochSampler, seeded


class TrainingModule(pl.LightningModule):
    """A module with these hyperparameters, which a subclass saves: `learning_rate`, `warmup` and, where it has them,
    `begin` (see `begin_with_model`) and `seed`.

    Attributes:
        generator: of a training's own draws, on the CPU: from the seed, the process and the step it starts from, so
            that each process draws its own, and a resumed run does not draw again what it drew at its beginning.
    """

    hparams: Any
    generator: Generator

    @property
    def resumed(self) -> bool:
        """Whether the weights are a checkpoint's: Lightning loads them before `on_fit_start`, the step after it."""
        return self.trainer.ckpt_path is not None

    def begin_with_model(self, path: str) -> None:
        """Take the weights of `path`, which `begin` names; called once, where a training that is not resumed starts."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """Begin with another model's weights, unless this is a resumed run."""
        if self.hparams.get("begin") and not self.resumed:
            self.begin_with_model(self.hparams.begin)

    def on_train_start(self) -> None:
        """Seed the generator: here the step of a resumed run is known."""
        self.generator = seeded(self.hparams.get("seed", 0), self.global_rank, self.global_step)

    def adamw(self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]) -> dict[str, Any]:
        """The optimiser of these parameters, or groups of them, over the trainer's `max_steps`."""
        h = self.hparams
        return adamw_with_cosine(parameters, h.learning_rate, h.warmup, lambda: self.trainer.max_steps)


def drawing_on(device: torch.device, generator: Generator) -> Generator:
    """`generator` where it draws on `device` already; else one there, seeded by a draw of it.

    A GPU that waits for the draws of a CPU at every step waits longer than a small network takes.
    """
    if generator.device.type == device.type:
        return generator
    return Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


class EpochData(pl.LightningDataModule):
    """Data whose items are drawn for (epoch, index); `seed` is among its hyperparameters, which a subclass saves."""

    hparams: Any

    def sampler(self, count: int) -> EpochSampler:
        """The order of `count` items in training: another one in every epoch, and after every resumption."""
        return EpochSampler(count, self.hparams.seed, self.trainer.global_step if self.trainer else 0)


def adamw_with_cosine(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    learning_rate: float,
    warmup: int,
    total: int | Callable[[], int],
    floor: float = 0.02,
) -> dict[str, Any]:
    """AdamW with a linear warm-up and a cosine decay to `floor` of the rate at step `total`, for Lightning.

    total: a function is asked anew at each step, for a training whose end is not known at its beginning.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        end = total() if callable(total) else total
        progress = min(1.0, (step - warmup) / max(1, end - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
