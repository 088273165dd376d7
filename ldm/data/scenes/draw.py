"""Random draws, each from the generator that is passed in: nothing here touches the global one."""

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """One number in [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def chance(generator: torch.Generator, probability: float) -> bool:
    """True with the given probability."""
    return torch.rand((), generator=generator).item() < probability


def integer(generator: torch.Generator, high: int) -> int:
    """One integer of 0 .. high - 1."""
    return int(torch.randint(high, (), generator=generator).item())


def choice(generator: torch.Generator, items: Sequence[T]) -> T:
    """One of `items`, all equally likely."""
    return items[integer(generator, len(items))]


def weighted(generator: torch.Generator, items: Sequence[T], weights: Sequence[float]) -> T:
    """One of `items`, each with the likelihood of its weight."""
    target = uniform(generator, 0.0, sum(weights))
    for item, weight in zip(items, weights, strict=True):
        target -= weight
        if target < 0:
            return item
    return items[-1]
