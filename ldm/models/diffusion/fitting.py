"""The mask fits itself: while an edit is sampled, its mask shrinks to the cells in which the prompt matters. Ours.

Both halves of classifier-free guidance are computed anyway. Where they disagree, the prompt matters. As the contrast of
DiffEdit (Couairon et al. 2023), here between the prompt and no prompt, in units of z_0 and summed along the trajectory:

    c = sum over steps of (s_t / a_t) || eps(z_t, prompt) - eps(z_t, "") ||        the norm being over channels

The noisiest steps, in which nothing is decided, are left out. Otsu's threshold of c parts the cells of a mask in two,
and the upper ones are the thing. But once a part of it has been painted, both halves see it, and its contrast is lost:
so a cell is the thing's too whose estimate of z_0 looks like one of the upper ones, more than like the source. The mask
keeps those cells, the holes in them, and a margin of one cell around them.

That is done at each of `STAGES`. Masks are nested in time and never leave the user's, and each prediction has its own,
whatever shares its batch.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseLevel, SamplingSchedule

FROM = 0.1
"""Of the trajectory: what comes before does not count."""

STAGES = (0.45, 0.6, 0.75)
"""Of the trajectory: when a mask is fitted, for the first time and again."""

SEPARATION = 0.5
"""The least part of the contrast's variance that lies between its two classes; of an even spread it is 0.75."""

CONTRAST = 0.8
"""The most that the lower class's mean may be of the upper one's; nearer ones are one class."""

LIKENESS = 1.0
"""A cell of low contrast is the thing's if it is nearer in looks to the thing than this times what it is to the source.
"""

GAP = 0.35
"""A bay with a mouth narrower than this, in parts of the square root of the thing's area, belongs to it: in bays lie
parts of it that look like the photograph, such as a white belly before a white wall."""

LEAST = 0.5
"""Of the mask's cells: a fit that would leave fewer is not made, as it has mostly cut into the thing."""


def otsu(values: np.ndarray) -> tuple[float, float]:
    """The threshold that parts values (n,) best in two (Otsu 1979), and what part of their variance is between those.

    0 where all are equal. Exact: the threshold lies between two of the sorted values, not between bins.
    """
    x = np.sort(values.astype(np.float64))
    if len(x) == 0 or x[0] == x[-1]:
        return float(x.mean()) if len(x) else 0.0, 0.0
    lower = np.arange(1, len(x)) / len(x)  # the weight of the lower class, at each split
    between = (x.mean() * lower - np.cumsum(x)[:-1] / len(x)) ** 2 / (lower * (1 - lower))
    best = int(between.argmax())
    return float(x[best] + x[best + 1]) / 2, float(between[best] / x.var())


def fit_cells(contrast: Tensor, mask: Tensor, z0: Tensor, z_source: Tensor) -> tuple[Tensor, float]:
    """The cells of a mask that the prompt has painted, with a margin; see this module.

    Args:
        contrast, mask: (h, w); the mask in {0, 1}, and not empty.
        z0, z_source: (c, h, w), the estimate at hand, and the input.

    Returns:
        Cells (h, w) in {0, 1} of the mask, and the separation, see `SEPARATION`; where it is 0, all cells.
    """
    inside = mask.bool()
    contrast = _mean3(contrast[None] * mask)[0] / _mean3(mask[None])[0].clamp(min=1 / 9)
    threshold, separation = otsu(contrast[inside].cpu().numpy())
    thing, rest = inside & (contrast > threshold), inside & (contrast <= threshold)
    if not thing.any() or contrast[rest].mean() > CONTRAST * contrast[thing].mean():
        return mask, 0.0
    around = (_dilated(mask, 2) - mask).bool()
    z0, z_source = _mean3(z0), _mean3(z_source)
    own = z0[:, inside].T  # (n, c), as all below
    to_source = (own - z_source[:, inside].T).norm(dim=1)
    if around.any():
        to_source = torch.minimum(to_source, _nearest(own, z_source[:, around].T))
    thing[inside] |= _nearest(own, z0[:, thing].T) < LIKENESS * to_source
    return mask * _dilated(torch.from_numpy(whole(thing.cpu().numpy())).to(mask), 1), separation


def whole(thing: np.ndarray) -> np.ndarray:
    """What was seen of a thing (h, w) bool, with what it surrounds: holes, and bays of a mouth narrower than `GAP`.

    The closing by a disc of that width (Serra 1982), filled; it never leaves the thing's convex hull.
    """
    radius = GAP / 2 * float(thing.sum()) ** 0.5
    if radius == 0:
        return thing
    margin = math.ceil(radius) + 1  # a disc may lie partly beyond the border
    near = ndimage.distance_transform_edt(~np.pad(thing, margin)) <= radius
    closed = ndimage.distance_transform_edt(near)[margin:-margin, margin:-margin] > radius
    return ndimage.binary_fill_holes(thing | closed)


class MaskFitting:
    """`within` of `blended_sample` for one batch, which a guided denoiser tells of the contrast by `observe`.

    Args:
        schedule: the steps.
        masks: (steps, 1 or b, 1, h, w), the mask of each step. Fitting begins where progressive shrinking has ended,
            and judges the cells that have been edited from the start; those that a soft mask adds later stay.
        z_source: (1 or b, c, h, w).
        wanted: whether to fit, for all predictions or for each.

    Attributes:
        cells: (b, 1, h, w) in {0, 1}, what may be edited by now; None before the first step.
        separations: of each prediction at its first stage, see `SEPARATION`; None before that.
        fitted: of each prediction whether any stage has fitted its mask.
        observed: how many steps have been seen with both halves.
    """

    def __init__(self, schedule: SamplingSchedule, masks: Tensor, z_source: Tensor, wanted: Sequence[bool] = (True,)):
        self.schedule, self.z_source, self.wanted = schedule, z_source, wanted
        self.judged = masks.amin(dim=0)  # (1 or b, 1, h, w)
        self.stages = [_stages(schedule, masks[:, row]) for row in range(masks.shape[1])]
        self.contrast: Tensor | None = None  # (b, h, w)
        self.cells: Tensor | None = None
        self.separations: list[float | None] = []
        self.fitted: list[bool] = []
        self.observed = 0

    def observe(self, level: NoiseLevel, difference: Tensor) -> None:
        """Add what the prompt changes at a level of the schedule about the estimate of z_0 (b, c, h, w)."""
        step = self.schedule.levels.index(level)
        if self.schedule.progress[step] >= FROM:
            seen = difference.norm(dim=1)
            self.contrast = seen if self.contrast is None else self.contrast + seen
            self.observed += 1

    def __call__(self, i: int, z0: Tensor) -> Tensor:
        """The cells (b, 1, h, w) that step i may edit, given its estimate z0 (b, c, h, w)."""
        if self.cells is None:
            self.cells = torch.ones_like(z0[:, :1])
            self.separations, self.fitted = [None] * len(z0), [False] * len(z0)
        for row in range(len(z0)):
            if self.wanted[row % len(self.wanted)] and i in self.stages[row % len(self.stages)]:
                self._fit(row, z0[row], self.cells[row])
        return self.cells

    def _fit(self, row: int, z0: Tensor, cells: Tensor) -> None:
        judged = self.judged[row % len(self.judged), 0]
        if self.contrast is None or not judged.any():
            return
        kept, separation = fit_cells(self.contrast[row], judged, z0, self.z_source[row % len(self.z_source)])
        if self.separations[row] is None:
            self.separations[row] = separation
        if separation >= SEPARATION and (cells[0] * kept).sum() >= LEAST * judged.sum():
            cells *= 1 - (judged - kept)  # what is not judged stays
            self.fitted[row] = True


def _stages(schedule: SamplingSchedule, masks: Tensor) -> set[int]:
    """The steps after which the masks (steps, 1, h, w) of one prediction are fitted."""
    wide = [i for i, mask in enumerate(masks) if (mask > masks[-1]).any()]
    first = wide[-1] + 1 if wide else 0
    reached = ([i for i, progress in enumerate(schedule.progress) if progress >= stage] for stage in STAGES)
    return {max(steps[0], first) for steps in reached if steps}


def _mean3(x: Tensor) -> Tensor:
    """x (c, h, w) -> the means over 3x3 cells; beyond the border are those on it."""
    return F.avg_pool2d(F.pad(x[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]


def _dilated(mask: Tensor, cells: int) -> Tensor:
    """(h, w) -> (h, w)."""
    return F.max_pool2d(mask[None, None], 2 * cells + 1, 1, cells)[0, 0]


def _nearest(x: Tensor, others: Tensor) -> Tensor:
    """From each of x (n, c) the distance to the nearest of (k, c): (n,)."""
    return torch.cdist(x, others).amin(dim=1)
