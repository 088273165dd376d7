"""Pixels of a mask -> latent cells, and the masks of each step: progressive shrinking (section 4.3), grey levels.

The order is: binarise, invert, shrink, dilate. Inverting after dilating would turn shrinking into growing.
Soft masks keep their grey levels until the sampling, where each level joins at its own noise level.
"""

import logging
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ldm.imaging.masks import dilate, shown, thickness, thin_parts
from ldm.models.diffusion.schedule import SamplingSchedule, parts_of

logger = logging.getLogger(__name__)


def step_masks(
    levels: torch.Tensor,
    factor: int,
    schedule: SamplingSchedule,
    dilation_iterations: int = 3,
    downsample: str = "adaptive",
) -> torch.Tensor:
    """The mask of each step of a schedule, (steps,1,H/f,W/f) in {0,1}.

    Progressive shrinking (section 4.3 of the paper): the last steps have the tight mask, `levels` brought down by
    `DOWNSAMPLING[downsample]`; those before have it dilated by a kernel of ones: 7x7, 5x5, 3x3 for three iterations.
    `parts_of` divides the steps among these masks. Where downsampling leaves nothing of a mask that has pixels, every
    cell that the mask touches is taken, with a notice.

    Grey levels: what has level g is edited over the last g of the trajectory, as with the change maps of Differential
    Diffusion (Levin and Fried 2023): white from the first step, black never, and the darker the later, so the more of
    the input stays. Both work side by side.

    Args:
        levels: (1,1,H,W), float in [0,1], already inverted where it should be; a mask of {0,1} is one of two levels.
        factor: how many pixels of the image a latent cell is high and wide.
        schedule: the steps.
        dilation_iterations: 0 gives the tight mask alone.
        downsample: a name of `DOWNSAMPLING`.

    Raises:
        ValueError: levels outside [0,1], a size that is no multiple of `factor`, a negative count, an unknown name.
    """
    _check(levels, factor, dilation_iterations, downsample)
    if levels.min() < 0 or levels.max() > 1:
        raise ValueError(f"levels are from 0 to 1, not from {float(levels.min())} to {float(levels.max())}")
    masks, before, tight = [], None, levels
    for progress, part in zip(schedule.progress, parts_of(schedule, dilation_iterations + 1), strict=True):
        joined = (levels >= 1 - progress).to(levels.dtype)
        if before is None or not torch.equal(joined, before):
            before, tight = joined, _tight(joined, factor, downsample)
        masks.append(dilate(tight, dilation_iterations - part))
    _tell_if_lost(joined, factor, downsample)
    return torch.cat(masks)


def auto_dilation(mask: torch.Tensor, factor: int) -> tuple[int, str]:
    """How many dilations progressive shrinking should begin with, 0 to 3, and that with its reason as one clause.

    The paper's three turn a mask of one latent cell, the case that section 4.3 is about, into one of 7 cells, wide
    enough for rough colours and shapes to form. So: as many as bring the thinnest part up to 7 cells, since each
    adds 2. A mask of 7 cells needs none, and each one that is not needed lets the first steps change what lies
    around the mask.

    Args:
        mask: (1,1,H,W), float {0,1}, at the size that is edited; factor: pixels of a latent cell.
    """
    enough = 7 * factor
    width = thickness(mask, enough)
    iterations = min(3, math.ceil((enough - width) / (2 * factor)))
    least = "at least " if width == enough else ""
    return iterations, f"{iterations}, as the mask is {least}{width / factor:.1f} latent cells thick ({width} pixels)"


def area(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """(1,1,H,W) -> (1,1,H/f,W/f): the cells that the mask fills by half or more. Loses what is thin."""
    return (F.avg_pool2d(mask, factor) >= 0.5).to(mask.dtype)


def nearest(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """(1,1,H,W) -> (1,1,H/f,W/f): each cell by its middle pixel, as the paper's code does. Loses lines."""
    return mask[..., factor // 2 :: factor, factor // 2 :: factor].clone()


def cover(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """(1,1,H,W) -> (1,1,H/f,W/f): every cell that the mask touches. Loses nothing, grows by up to a cell."""
    return F.max_pool2d(mask, factor)


def adaptive(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """(1,1,H,W) -> (1,1,H/f,W/f): `area` for what is thick, `cover` for `thin_parts`. The default.

    Thin is what is narrower than 2 sqrt(2 / pi) f, about 1.6 cells: any wider disc, wherever it lies, fills some
    cell by half (a quarter of it does, at a corner of four cells), so `area` keeps something of all that it sweeps.
    So no line, speck or whisker longer than a cell is lost, and the outline of a large region is that of `area`,
    corners included, neither grown nor shrunk.
    """
    return torch.maximum(area(mask, factor), cover(thin_parts(mask, 1.6 * factor), factor))


DOWNSAMPLING: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "adaptive": adaptive,
    "area": area,
    "nearest": nearest,
    "cover": cover,
}


def _check(mask: torch.Tensor, factor: int, dilation_iterations: int, downsample: str) -> None:
    if mask.ndim != 4 or mask.shape[:2] != (1, 1):
        raise ValueError(f"a mask is (1,1,H,W), not {tuple(mask.shape)}")
    if factor < 1 or mask.shape[2] % factor or mask.shape[3] % factor:
        raise ValueError(f"a mask of {shown(mask.shape[2:])} cannot be parted into cells of {factor}x{factor}")
    if dilation_iterations < 0 or downsample not in DOWNSAMPLING:
        raise ValueError(f"{dilation_iterations} iterations, downsampling {downsample!r} of {sorted(DOWNSAMPLING)}")


def _tight(mask: torch.Tensor, factor: int, downsample: str) -> torch.Tensor:
    """A mask in latent cells; one that downsampling leaves nothing of is covered."""
    tight = DOWNSAMPLING[downsample](mask, factor)
    return tight if tight.any() else cover(mask, factor)


def _tell_if_lost(mask: torch.Tensor, factor: int, downsample: str) -> None:
    judge = area if downsample == "adaptive" else DOWNSAMPLING[downsample]
    if mask.any() and not judge(mask, factor).any():
        logger.warning(
            "the mask is thinner than a latent cell (%d pixels): every cell that it touches is edited", factor
        )
