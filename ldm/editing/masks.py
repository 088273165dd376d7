"""Masks: from a file to {0,1} at the model's size, and on to the stack of latent masks, wide to tight.

The order is: binarise, invert, shrink, dilate. Inverting after dilating would turn shrinking into growing.
"""

import logging
import os
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.editing.images import Picture, load_image
from ldm.errors import UserError

logger = logging.getLogger(__name__)

# Levels that no painter of a black and white mask means, nor JPEG's noise about 0 and 255.
_GREY = (32, 223)


def load_mask(
    path: str | os.PathLike,
    size: tuple[int, int],
    invert: bool = False,
    image_size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """The mask of a file as float {0,1} (1,1,H,W), 1 (white) where to edit.

    Levels are parted at half of the full range, 127 | 128, so that the noise of a JPEG adds nothing. A file of
    another size is resampled in grey, antialiased, and parted then; parts too thin for that are kept.
    A file of one flat colour with transparency is a mask by its alpha: opaque is where to edit.

    Args:
        path: any picture that `load_image` reads.
        size: (H,W) to bring it to.
        invert: black, instead of white, is where to edit.
        image_size: (H,W) of the picture that it belongs to, if that is not `size` too; a mask of neither size
            gives a notice.

    Raises:
        UserError: the file cannot be read, or nothing is left to edit.
    """
    grey = _levels(load_image(path))
    own_size = (grey.height, grey.width)
    if own_size not in (tuple(size), tuple(image_size or size)):
        wanted = image_size or size
        logger.warning('the mask "%s" is %s, the image %s: it is resized', path, _shown(own_size), _shown(wanted))
    levels = np.asarray(grey)
    if ((levels > _GREY[0]) & (levels < _GREY[1])).mean() > 0.25:
        logger.warning('the mask "%s" is largely grey: levels from 128 up are where to edit', path)
    mask = _resized(grey, size, invert)
    if not mask.any():
        raise UserError(_nothing_left(path, invert, int(levels.max())))
    if mask.all():
        what = 'all black and inverted by "--invert_mask"' if invert else "all white"
        logger.warning('the mask "%s" is %s: the whole picture is edited', path, what)
    return mask


def latent_masks(
    mask: torch.Tensor, factor: int, dilation_iterations: int = 3, downsample: str = "adaptive"
) -> torch.Tensor:
    """The masks of progressive shrinking, (K,1,H/f,W/f) with K = dilation_iterations + 1, widest first.

    The tight latent mask, which comes last, is `mask` brought down by `DOWNSAMPLING[downsample]`; each one before it
    is the tight one dilated by a kernel of ones: 7x7, 5x5, 3x3 for three iterations (section 4.3 of the paper).
    Where downsampling leaves nothing of a mask that has pixels, every cell that the mask touches is taken, with a
    notice.

    Args:
        mask: (1,1,H,W), float {0,1}, already inverted where it should be.
        factor: how many pixels of the image a latent cell is high and wide.
        dilation_iterations: 0 gives the tight mask alone.
        downsample: a name of `DOWNSAMPLING`.

    Raises:
        ValueError: no mask of {0,1}, a size that is no multiple of `factor`, a negative count, an unknown name.
    """
    if mask.ndim != 4 or mask.shape[:2] != (1, 1) or not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"a mask is (1,1,H,W) of zeros and ones, not {tuple(mask.shape)} of {mask.unique().tolist()[:5]}"
        )
    if factor < 1 or mask.shape[2] % factor or mask.shape[3] % factor:
        raise ValueError(f"a mask of {_shown(mask.shape[2:])} cannot be parted into cells of {factor}x{factor}")
    if dilation_iterations < 0 or downsample not in DOWNSAMPLING:
        raise ValueError(f"{dilation_iterations} iterations, downsampling {downsample!r} of {sorted(DOWNSAMPLING)}")
    tight = DOWNSAMPLING[downsample](mask, factor)
    judge = area if downsample == "adaptive" else DOWNSAMPLING[downsample]
    if mask.any() and not judge(mask, factor).any():
        logger.warning(
            "the mask is thinner than a latent cell (%d pixels): every cell that it touches is edited", factor
        )
        tight = cover(mask, factor)
    wider = [_dilate(tight, k) for k in range(dilation_iterations, 0, -1)]  # (1,1,h,w) each
    return torch.cat([*wider, tight])


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
    """(1,1,H,W) -> (1,1,H/f,W/f): `area` for what is thick, `cover` for what is thin. The default.

    Thick is what a square of 2f-1 pixels can sweep without leaving the mask (its morphological opening): wherever
    such a square lies it holds a whole cell, so `area` keeps something of it. A rim of f/2 around counts as thick
    too, or the round ends of every disc would be called thin. So each pixel of the mask lies either in a cell that
    is kept or within f/2 of a square that has one: no line, whisker or speck is lost, and the outline of a large
    region is that of `area`, neither grown nor shrunk.
    """
    eroded = 1 - _dilate(1 - mask, factor - 1)
    thick = _dilate(eroded, factor - 1 + factor // 2)
    return torch.maximum(area(mask, factor), cover(mask * (1 - thick), factor))


DOWNSAMPLING: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "adaptive": adaptive,
    "area": area,
    "nearest": nearest,
    "cover": cover,
}


def _dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Dilation by a kernel of ones of 2 radius + 1, first along rows, then along columns."""
    rows = F.max_pool2d(mask, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (2 * radius + 1, 1), stride=1, padding=(radius, 0))


def _levels(picture: Picture) -> Image.Image:
    """The grey levels of a mask file, mode L: its alpha where the colours say nothing."""
    grey = picture.rgb.convert("L")
    low, high = grey.getextrema()
    if picture.alpha is not None and low == high:
        low, high = picture.alpha.getextrema()
        if low < 128 <= high:
            logger.warning('the mask "%s" is of one colour: its alpha is the mask, opaque is edited', picture.path)
            return picture.alpha
    return grey


def _resized(grey: Image.Image, size: tuple[int, int], invert: bool) -> torch.Tensor:
    """Grey levels -> {0,1} (1,1,H,W), inverted first; what antialiasing would thin out to nothing is kept."""
    grey = grey.point(lambda level: 255 - level) if invert else grey
    fine = _binary(grey)
    if (grey.height, grey.width) == tuple(size):
        return fine
    coarse = _binary(grey.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    # Pixels of the file that are white and have no white within one pixel of the result: a part that was lost.
    served = F.interpolate(_dilate(coarse, 1), size=fine.shape[2:], mode="nearest-exact")
    return torch.maximum(coarse, F.adaptive_max_pool2d(fine * (1 - served), size))


def _binary(grey: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(grey) >= 128).float()[None, None]


def _nothing_left(path: str | os.PathLike, invert: bool, brightest: int) -> str:
    if invert:
        return f'the mask "{path}" is all white and inverted: leave out "--invert_mask", or paint black where to edit'
    if 0 < brightest < 128:
        return f'the mask "{path}" has no level above {brightest} of 255: paint white (255) where to edit'
    return f'the mask "{path}" is all black: paint white where to edit, or use "--invert_mask" if black is to be edited'


def _shown(size: tuple[int, int]) -> str:
    """(H,W) -> the usual WxH."""
    return f"{size[1]}x{size[0]}"
