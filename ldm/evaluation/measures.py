"""The measures of section 5 and appendix C.1: precision, diversity, background, CLIP score; and their intervals.

Each takes what one input gave and returns one number, or None where there is nothing to measure; `estimate` makes a
mean of many with its interval. No function gives NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.errors import MissingExtra

EXACT = 100.0
"""PSNR in dB from which pictures count as equal: of 8 bits, 512x512 pixels have 106 dB where one code differs by 1."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over inputs with its 95 % interval, and over how many. All are None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float | None], seed: int = 0, level: float = 0.95) -> Estimate:
    """The mean over inputs and its interval by the bootstrap (Efron 1979): percentiles of resampled means.

    Args:
        values: one of each input; None is left out. An infinite or undefined one is a mistake.

    Raises:
        ValueError: a value that is no finite number.
    """
    known = np.array([value for value in values if value is not None], float)
    if not np.isfinite(known).all():
        raise ValueError("a measure is infinite or NaN")
    if not len(known):
        return Estimate(None, None, None, 0)
    picked = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    tail = (1 - level) / 2
    low, high = np.quantile(known[picked].mean(1), [tail, 1 - tail])
    return Estimate(float(known.mean()), float(low), float(high), len(known))


def difference(ours: Sequence[float | None], theirs: Sequence[float | None], seed: int = 0) -> Estimate:
    """The mean of ours less theirs over the inputs that both have, and its interval: pairs are resampled together."""
    both = zip(ours, theirs, strict=True)
    return estimate([None if a is None or b is None else a - b for a, b in both], seed)


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0, level: float = 0.95) -> Estimate:
    """The sum of ours over the sum of theirs, and its interval: inputs are resampled, both numbers of one together.

    All are None where theirs is nothing.
    """
    pairs = np.array([ours, theirs], float)
    if not len(ours) or pairs[1].sum() <= 0:
        return Estimate(None, None, None, len(ours))
    picked = np.random.default_rng(seed).integers(len(ours), size=(RESAMPLES, len(ours)))
    above, below = pairs[:, picked].sum(-1)
    tail = (1 - level) / 2
    low, high = np.quantile(above[below > 0] / below[below > 0], [tail, 1 - tail])
    return Estimate(float(pairs[0].sum() / pairs[1].sum()), float(low), float(high), len(ours))


def batch_precision(right: Sequence[bool]) -> float | None:
    """Of one input's predictions, the share that the classifier takes for what the prompt names."""
    return sum(right) / len(right) if right else None


def diversity(distances: Tensor, right: Sequence[bool]) -> float | None:
    """Mean distance of one input's correct predictions from each other, over all pairs; None for fewer than two.

    Args:
        distances: (n, n), LPIPS between predictions that are black outside the mask.
    """
    chosen = torch.tensor(list(right), dtype=torch.bool)
    n = int(chosen.sum())
    if n < 2:
        return None
    return float(distances[chosen][:, chosen].triu(diagonal=1).sum() / (n * (n - 1) / 2))


def only_background(x: Tensor, x_source: Tensor, mask: Tensor) -> Tensor:
    """x (b, 3, H, W) with the source inside the mask: what is left to compare with the source is the background.

    Windows of SSIM and of networks that look across the border then see nothing of the edit.
    """
    return torch.where(mask > 0, x_source, x)


def background_psnr(x: Tensor, x_source: Tensor, mask: Tensor) -> float | None:
    """PSNR in dB outside the mask, at most `EXACT`; None where the mask covers everything.

    Args:
        x: one picture (1, 3, H, W) in [-1, 1]; x_source: the same shape. mask: (1, 1, H, W) in {0, 1}.
    """
    outside = mask <= 0
    if not outside.any():
        return None
    error = ((x.clamp(-1, 1) - x_source) / 2).square().mean(1, keepdim=True)[outside].mean().item()
    return EXACT if error <= 10 ** (-EXACT / 10) else -10 * math.log10(error)


def background_ssim(x: Tensor, x_source: Tensor, mask: Tensor) -> float | None:
    """Structural similarity (Wang et al. 2004), its map averaged outside the mask; see `background_psnr`."""
    outside = (mask <= 0).expand_as(x)
    if not outside.any():
        return None
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError as error:
        raise MissingExtra("torchmetrics", "evaluation", "SSIM") from error
    made, source = ((one.clamp(-1, 1) + 1) / 2 for one in (only_background(x, x_source, mask), x_source))
    _, full = ssim(made, source, data_range=1.0, return_full_image=True)
    return float(full[outside].mean())


def clip_score(distance: float) -> float:
    """CLIPScore (Hessel et al. 2021) as torchmetrics has it, 100 max(cos, 0), of a distance 1 - cos."""
    return 100 * max(1 - distance, 0.0)
