"""Randomness of a data set: every sample of every epoch has a generator of its own, whichever process draws it."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator
from torch.utils.data import Sampler


def seeded(*words: int) -> Generator:
    """A generator on the CPU, seeded by all of these whole numbers together (numpy's `SeedSequence` mixes them)."""
    entropy = [word % 2**64 for word in words]
    return Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) for `count` items; shuffled, unless `seed` is None. Lightning sets the epoch, also on resuming.

    step: that the training starts from. A resumed run begins its epoch anew, and would meet the same items first.
    """

    def __init__(self, count: int, seed: int | None, step: int = 0):
        self.count, self.seed, self.step, self.epoch = count, seed, step, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch from the next iteration on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.arange(self.count)
        if self.seed is not None:
            order = torch.randperm(self.count, generator=seeded(self.seed, self.epoch, self.step))
        for index in order.tolist():
            yield self.epoch, index
