"""Whether the mask of an edit is fitted to what the prompt paints, and what becomes of it; ours, see docs/fitting.md.

How cells are chosen is in `ldm.models.diffusion.fitting`. Here is what the photograph has to say before, and at the end
the border in pixels. A mask is worth fitting where it holds background that is to stay, as when a thing is added. Where
a thing is replaced, or the background around one, what lies under the mask is to go, all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ldm.editing.request import EditRequest
from ldm.imaging.canvas import Canvas
from ldm.imaging.masks import dilate, thickness
from ldm.models.diffusion.fitting import LEAST, SEPARATION, whole

THICK = 5
"""Latent cells: of a thinner mask nothing is to spare."""

SURROUNDING = 0.4
"""Part of the window's border from which on a mask surrounds what stays, and is that of a background."""

STRANGE = 0.12
"""See `strangeness`: from here on what lies under a mask is a thing of its own."""

CHANGED = 16 / 127.5
"""What differs by less, 16 of 255 codes, the prompt has not painted; its shadow is darker than that."""


@dataclass(frozen=True)
class FitPlan:
    """Whether a task's masks are to be fitted, and why, as one clause."""

    wanted: bool
    why: str


@dataclass(frozen=True)
class MaskFit:
    """The mask of one prediction at the end.

    fitted: False for the user's own. why: as one clause, of the prediction or of its task.
    cells: (1, h, w), the latent positions that the last step edited. x_mask: (1, H, W), the pixels of the window.
    """

    fitted: bool
    why: str
    cells: Tensor
    x_mask: Tensor


def plan_fit(canvas: Canvas, request: EditRequest, z_source: Tensor, latent_mask: Tensor, factor: int) -> FitPlan:
    """Decide before the sampling, by the photograph, the mask and the request.

    Args:
        request: with every value filled in.
        z_source: (1, c, h, w); latent_mask: (1, 1, h, w), of the last step. factor: pixels of a latent cell.
    """
    if request.fit_mask == "off":
        return FitPlan(False, "fit_mask is off")
    if request.prompt == "":
        return FitPlan(False, "the prompt is empty")
    if request.scale == 1:
        return FitPlan(False, "without guidance nothing is seen of where the prompt matters")
    if request.fit_mask == "on":
        return FitPlan(True, "fit_mask is on")
    share = border_share(latent_mask)
    if share >= SURROUNDING:
        return FitPlan(False, f"the mask surrounds what stays, with {share:.0%} of the window's border")
    width = thickness(canvas.x_mask, THICK * factor) / factor
    if width < THICK:
        return FitPlan(False, f"the mask is only {width:.1f} latent cells thick")
    strange = strangeness(z_source, latent_mask)
    if strange >= STRANGE:
        return FitPlan(False, f"under the mask is something of its own ({strange:.2f}), to be replaced")
    return FitPlan(True, f"under the mask it is like around it ({strange:.2f})")


def border_share(mask: Tensor) -> float:
    """The part of a window's border that is masked, (1, 1, h, w) in {0, 1}."""
    edge = torch.ones_like(mask)
    edge[..., 1:-1, 1:-1] = 0
    return float((mask * edge).sum() / edge.sum())


def strangeness(z_source: Tensor, mask: Tensor) -> float:
    """How unlike its surroundings is what lies under a mask (1, 1, h, w): 0 where all of it is seen there too.

    From each masked position of z_source (1, c, h, w) the squared distance to the nearest one, in looks and not in
    place, of those within two cells of the mask; its mean, in parts of the variance of z_source.
    """
    inside = mask[0, 0].bool()
    around = dilate(mask, 2)[0, 0].bool() & ~inside
    if not inside.any() or not around.any():
        return 0.0
    z = z_source[0].float()
    distance = torch.cdist(z[:, inside].T, z[:, around].T).amin(dim=1)
    return float(distance.square().mean() / len(z) / z.var().clamp(min=1e-6))


def judge_fit(plan: FitPlan, separation: float | None, fitted: bool) -> tuple[bool, str]:
    """Whether a prediction's mask has been fitted, and why, by what `MaskFitting` says of it."""
    if not plan.wanted:
        return False, plan.why
    if separation is None:
        return False, "no step was guided before the mask could be fitted"
    if separation < SEPARATION:
        return False, f"the prompt matters all over the mask (separation {separation:.2f})"
    if not fitted:
        return False, f"less than {LEAST:.0%} of it would be left, which is mostly wrong"
    return True, plan.why


def matte(x: Tensor, x_reference: Tensor, mask: Tensor, factor: int) -> Tensor:
    """The pixels of a mask (1, 1, H, W) that were painted: where x = D(z0) differs from x_reference = D(E(input)).

    So the border is that of the thing, with its shadow, and not of latent cells. What the thing surrounds is kept and
    specks are left out, and where nothing differs, all stay.

    Args:
        x, x_reference: (1, 3, H, W) in [-1, 1]. factor: pixels of a latent cell.
    """
    inside = mask[0, 0].numpy() > 0
    difference = (x - x_reference).abs().amax(1)[0].float().numpy()
    changed = inside & (ndimage.gaussian_filter(difference, factor / 5) > CHANGED)
    changed = inside & ndimage.binary_fill_holes(changed)
    cores = ndimage.binary_opening(changed, iterations=max(1, factor // 4))
    changed = inside & whole(ndimage.binary_propagation(cores, mask=changed))
    return torch.from_numpy(changed if changed.any() else inside)[None, None].to(mask)


def mask_fit(
    plan: FitPlan,
    separation: float | None,
    fitted: bool,
    cells: Tensor,
    x: Tensor,
    x_reference: Tensor,
    x_mask: Tensor,
    factor: int,
) -> MaskFit:
    """What has become of the mask of one prediction.

    Args:
        separation, fitted: see `MaskFitting`. cells: (1, h, w), those that the last step edited.
        x, x_reference: as of `matte`. x_mask: (1, 1, H, W), the user's.
    """
    fitted, why = judge_fit(plan, separation, fitted)
    if not fitted:
        return MaskFit(False, why, cells, x_mask[0])
    pixels = x_mask * F.interpolate(cells[None], scale_factor=factor, mode="nearest")
    return MaskFit(True, why, cells, matte(x, x_reference, pixels, factor)[0])


def told(fits: Sequence[MaskFit], x_mask: Tensor) -> str:
    """What has become of the masks of a run, in a line."""
    kept = [float(fit.x_mask.sum() / x_mask.sum()) for fit in fits if fit.fitted]
    others = {fit.why: sum(fit.why == one.why for one in fits if not one.fitted) for fit in fits if not fit.fitted}
    parts = [f"{count} of {len(fits)} left as given, as {why}" for why, count in others.items()]
    if kept:
        reasons = dict.fromkeys(fit.why for fit in fits if fit.fitted)
        share = f"{min(kept):.0%}" if len(kept) == 1 else f"{min(kept):.0%}-{max(kept):.0%}"
        parts.insert(0, f"{len(kept)} of {len(fits)} fitted, to {share} of the mask, as {', '.join(reasons)}")
    return "; ".join(parts)
