"""A training for a given time: as many steps as fit, with the learning rate's decay ending where the time does."""

import time
from typing import Any

import pytorch_lightning as pl

from ldm.errors import UserError

FIRST = 10
"""Steps that are not measured: kernels are chosen and compiled in them."""

EVERY = 10
"""Steps between two estimates of how many there will be."""


class TimeBudget(pl.Callback):
    """Sets the trainer's `max_steps` to what fits into `minutes` of wall clock, those of the runs before included.

    The time counts from the first step. Validations on the way are part of it.
    """

    def __init__(self, minutes: float):
        if minutes <= 0:
            raise UserError(f"minutes is {minutes:g}: give a number above 0")
        self.seconds = 60 * minutes
        self.used = 0.0  # by the runs before
        self.began: float | None = None
        self.measured: tuple[int, float] | None = None  # the step and the time that the speed counts from

    def state_dict(self) -> dict[str, Any]:
        """The time used, kept in checkpoints."""
        return {"used": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a run that goes on."""
        self.used = state_dict["used"]

    def _elapsed(self) -> float:
        return self.used + (0.0 if self.began is None else time.monotonic() - self.began)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a run whose time is used up ends at once."""
        self.began, self.measured = time.monotonic(), None
        if self.used >= self.seconds:
            trainer.should_stop = True
            self._set(trainer, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Estimate how many steps there will be, or stop."""
        step, now, left = trainer.global_step, time.monotonic(), self.seconds - self._elapsed()
        if left <= 0:
            self._set(trainer, step)
            trainer.should_stop = True
            return
        if self.measured is None:
            if now - (self.began or now) > 0 and step >= FIRST:
                self.measured = (step, now)
            return
        done, since = step - self.measured[0], now - self.measured[1]
        if done and done % EVERY == 0:
            self._set(trainer, step + max(1, int(left * done / since)))

    @staticmethod
    def _set(trainer: pl.Trainer, steps: int) -> None:
        trainer.fit_loop.epoch_loop.max_steps = steps
