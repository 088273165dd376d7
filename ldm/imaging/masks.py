"""Masks: from a file to {0,1}, or to grey levels, at the image's size; their thickness and their thin parts."""

import logging
import math
import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from scipy import ndimage

from ldm.errors import UserError
from ldm.imaging.images import ImageLike, Picture, as_picture

logger = logging.getLogger(__name__)

GREY = (32, 223)
"""Levels between these two are neither a black and white mask's nor JPEG's noise around 0 and 255."""

# Pixels painted by one brush differ by no more than this in any channel, in lossy files too.
_ONE_COLOUR = 32

# A corner of a thick part, unlike a thin part, extends beyond what a disc sweeps by less than this share of the
# disc's width: right angles by 0.21, angles of 60 degrees by 0.5.
_REACH = 2 / 3


def mask_from(image: ImageLike, size: tuple[int, int] | None = None, invert: bool = False) -> torch.Tensor:
    """A picture as a mask: float {0,1} (1,1,H,W), 1 (white) where to edit.

    The threshold is at half of the full range, 127 | 128, so that the noise of a JPEG adds nothing. A picture of
    another size is resampled in grey, antialiased, before that; parts too thin for it are kept. Where there is
    transparency, `grey_levels` says what the mask is.

    Args:
        image: a path, a picture of `load_image` or of Pillow, or an array (H,W) or (H,W,3 or 4) of booleans, of
            numbers from 0 to 1, or of codes (0 to 255, or the full range of an unsigned type).
        size: (H,W) of the image, to which a mask of another size is brought, with a notice; its own by default.
        invert: black, instead of white, is where to edit.

    Raises:
        UserError: the file cannot be read, or nothing is left to edit.
        ValueError: an array that is not a picture.
    """
    grey, name = _read(image, size)
    codes = np.asarray(grey)
    if ((codes > GREY[0]) & (codes < GREY[1])).mean() > 0.25:
        logger.warning('the mask "%s" is largely grey: levels from 128 up are where to edit', name)
    mask = (resize_levels(_unit(grey, invert), size) >= 0.5).float()
    if not mask.any():
        raise UserError(_nothing_left(name, invert, int(codes.max())))
    if mask.all():
        what = "all black and inverted" if invert else "all white"
        logger.warning('the mask "%s" is %s: the whole picture is edited', name, what)
    return mask


def mask_levels(image: ImageLike, size: tuple[int, int] | None = None, invert: bool = False) -> torch.Tensor:
    """The grey levels of a picture as float (1,1,H,W) in [0,1], of a soft mask; arguments as of `mask_from`.

    With a threshold of 0.5 they give the mask of `mask_from`, but for a layer painted with a brush of half opacity
    and less: that is levels of a half and less here, and all of the mask there.

    Raises:
        UserError: the file cannot be read, or is black all over (white, where inverted).
        ValueError: an array that is not a picture.
    """
    grey, name = _read(image, size, soft=True)
    levels = resize_levels(_unit(grey, invert), size)
    if not levels.any():
        raise UserError(_nothing_left(name, invert, 0))
    return levels


def grey_levels(picture: Picture, soft: bool = False) -> tuple[Image.Image, str | None]:
    """The levels of a mask (mode L, not yet inverted), and a clause on its transparency where that was decisive.

    The colours are the mask, unless what can be seen of them is
    - of one colour, as painted on an empty layer: opaque is edited;
    - a picture, as with a hole erased into the photograph (the way of other inpainting tools): the hole is edited.
    Where they are black and white, what is transparent counts as black, whatever colour is hidden there.

    A layer or a brush of less opacity means the same: the most opaque pixel of the file counts as opaque.

    Args:
        soft: the levels are wanted as they are: what is painted with half opacity has half the level.

    Raises:
        UserError: the file is transparent all over: there is nothing on it.
    """
    grey = picture.rgb.convert("L")
    if picture.alpha is None:
        return grey, None
    most = int(np.asarray(picture.alpha).max())
    if most == 0:
        raise UserError(
            f'the mask "{picture.path}" is transparent all over, so there is nothing to edit: paint where to edit, or '
            "save it without transparency"
        )
    alpha = picture.alpha.point([min(round(code * 255 / most), 255) for code in range(256)])
    opaque = np.asarray(alpha) >= 128
    if opaque.all():
        return grey, None
    seen = np.asarray(picture.rgb)[opaque]  # (n,3)
    painted = picture.alpha if soft else alpha
    if (seen.max(0) - seen.min(0) <= _ONE_COLOUR).all():
        return painted, "is of one colour: its alpha is the mask, opaque is edited"
    black_or_white = (seen <= GREY[0]).all(1) | (seen >= GREY[1]).all(1)
    if black_or_white.mean() > 0.75:
        return ImageChops.multiply(grey, painted), "has transparent parts: they count as black"
    return ImageChops.invert(alpha), "is a picture with a transparent hole: the hole is edited"


def resize_levels(levels: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Levels (1,1,h,w) in [0,1] -> (1,1,*size), antialiased; parts of 0.5 and more that this would lose are kept."""
    if size is None or levels.shape[2:] == tuple(size):
        return levels
    coarse = F.interpolate(levels, tuple(size), mode="bilinear", antialias=True).clamp(0, 1)
    # Pixels that are white and have no white within one pixel of the result: a part that would be lost.
    served = F.interpolate(dilate((coarse >= 0.5).float(), 1), size=levels.shape[2:], mode="nearest-exact")
    lost = torch.where((levels >= 0.5) & (served == 0), levels, 0.0)
    return torch.maximum(coarse, F.adaptive_max_pool2d(lost, tuple(size)))


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask (1,1,h,w) in {0,1} at another size (H,W): the area of each part is kept, and no thin part is lost.

    The result is empty only if the mask is; a line has no gap.
    """
    return (resize_levels(mask, size) >= 0.5).to(mask.dtype)


def thickness(mask: torch.Tensor, limit: int | None = None) -> int:
    """How thick the thinnest part of a mask (1,1,H,W) is, in pixels: the largest width without `thin_parts`.

    Corners do not count, nor thin parts that make up less than 1 % of the mask. 0 for an empty mask; what is thicker
    than `limit` counts as `limit`, which saves time.
    """
    mask = mask.cpu()
    rows, columns = (mask.amax((0, 1, side)).nonzero().flatten() for side in (3, 2))
    if not len(rows):
        return 0
    mask = mask[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # the rest would only take time
    few = 0.01 * mask.sum()
    limit = min(*mask.shape[2:], limit or max(mask.shape))
    return bisect_left(range(2, limit + 1), True, key=lambda width: bool(thin_parts(mask, width).sum() > few)) + 1


def thin_parts(mask: torch.Tensor, width: float) -> torch.Tensor:
    """(1,1,H,W) in {0,1} -> the same: lines, whiskers and specks narrower than `width` pixels, whole.

    Thick is what a disc of that width can sweep without leaving the mask (the morphological opening); thin is the
    rest, except for what extends less than two thirds of the width beyond: those are the corners of thick parts.
    """
    inside = mask[0, 0].bool().cpu().numpy()
    # Twice as fine, with a point on the middle of each pixel and on each border between two, so that widths are exact.
    fine = np.pad(inside, 1).repeat(2, 0).repeat(2, 1)
    fine = fine[1:, 1:] & fine[:-1, 1:] & fine[1:, :-1] & fine[:-1, :-1]
    centres = ndimage.distance_transform_edt(fine) >= width  # of discs that fit, in halves of a pixel
    if not centres.any():
        return mask.clone()
    beyond = ndimage.distance_transform_edt(~centres)[2:-2:2, 2:-2:2] - width
    thin = inside & (beyond >= 2 * _REACH * width)
    if thin.any():  # back to where they spring from the thick
        rest, steps = inside & (beyond >= 0), math.ceil(_REACH * width) + 1
        thin = ndimage.binary_dilation(thin, np.ones((3, 3)), steps, mask=rest)
    return torch.from_numpy(thin).float()[None, None].to(mask)


def dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Dilation by a kernel of ones of 2 radius + 1, first along rows, then along columns."""
    rows = F.max_pool2d(mask, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def _read(image: ImageLike, size: tuple[int, int] | None, soft: bool = False) -> tuple[Image.Image, Path]:
    """The grey levels of a mask and its name, with notices of what its author may not have meant."""
    picture = as_picture(_codes(image) if isinstance(image, np.ndarray) else image)
    grey, transparency = grey_levels(picture, soft)
    if transparency:
        logger.warning('the mask "%s" %s', picture.path, transparency)
    own_size = (grey.height, grey.width)
    if size is not None and own_size != tuple(size):
        logger.warning('the mask "%s" is %s, the image %s: it is resized', picture.path, shown(own_size), shown(size))
    return grey, picture.path


def _codes(array: np.ndarray) -> np.ndarray:
    """An array of any range -> 8-bit codes."""
    if array.dtype.kind not in "buif":
        raise ValueError(f"a mask is of booleans or numbers, not of {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise ValueError(f"a mask is an array of (H,W) or (H,W,3 or 4), not {array.shape}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError("a mask is of numbers from 0 to 1 or 255, and this one has NaN in it")
    top = 1 if array.max() <= 1 else np.iinfo(array.dtype).max if array.dtype.kind == "u" else 255
    levels = array.astype(np.float64) / top
    if not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"a mask is of numbers from 0 to 1 or 255, not from {array.min()} to {array.max()}")
    return (levels * 255).round().astype(np.uint8)


def _unit(grey: Image.Image, invert: bool) -> torch.Tensor:
    levels = torch.from_numpy(np.array(grey, dtype=np.float32))[None, None] / 255
    return 1 - levels if invert else levels


def _nothing_left(path: str | os.PathLike, invert: bool, brightest: int) -> str:
    if invert:
        return f'the mask "{path}" is all white and inverted: leave out `invert_mask`, or paint black where to edit'
    if 0 < brightest < 128:
        return f'the mask "{path}" has no level above {brightest} of 255: paint white (255) where to edit'
    return f'the mask "{path}" is all black: paint white where to edit, or use `invert_mask` if black is to be edited'


def shown(size: Sequence[int]) -> str:
    """(H,W) -> the usual WxH."""
    return f"{size[1]}x{size[0]}"
