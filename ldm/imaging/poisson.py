"""Poisson image editing (Pérez et al. 2003) by OpenCV's seamlessClone, without its pitfalls."""

import logging
from typing import Literal

import numpy as np

from ldm.errors import MissingExtra

logger = logging.getLogger(__name__)

# OpenCV erodes the mask by so many pixels before it clones, and we dilate it by so many before that.
_EROSION, _GROWTH = 3, 2

# Pixels around the picture: OpenCV misplaces a patch that meets the border of its array, so none does.
_RING = _GROWTH + 1

_Ring = Literal["constant", "edge"]  # numpy's modes: zeros, or the outermost pixels again


def seamless_clone(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture that has the gradients of `source` inside the mask and of `target` elsewhere, in the same place.

    OpenCV solves for the whole rectangle around the mask, so that what shifts the source's colours may shift the
    target's within it. It erodes the mask by 3 pixels first; 2 are added before, so that thin parts survive and only
    the gradients across the border are left out. (Holes narrower than 5 pixels are closed by that.) Where the mask
    meets the edge of the picture, the picture is mirrored beyond it, so that the source is not drawn to
    the target's colours there. An all-white mask gives the source: there is nothing to clone into.

    Args:
        source, target: (h, w, 3), uint8.
        mask: (h, w), bool: True where the source is wanted.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "poisson", "`reconstruction_type=poisson`") from error

    if mask.all():
        return source
    height, width = mask.shape
    rows = (height * mask[0].any(), height * mask[-1].any())  # to mirror above and below
    columns = (width * mask[:, 0].any(), width * mask[:, -1].any())
    source, target = (_padded(image, rows, columns, "edge") for image in (source, target))
    square = np.ones((3, 3), np.uint8)
    mask = cv2.dilate(_padded(mask, rows, columns, "constant").astype(np.uint8) * 255, square, iterations=_GROWTH)
    x, y, w, h = cv2.boundingRect(mask)
    if cv2.erode(mask, square, iterations=_EROSION).any():
        # OpenCV lays the middle of the rectangle here; only this rounding puts each pixel back where it was.
        target = cv2.seamlessClone(source, target, mask, (x + w // 2, y + h // 2), cv2.NORMAL_CLONE)
    else:
        logger.warning("the mask is nowhere 3 pixels thick: Poisson cloning shows nothing of the edit")
    top, left = rows[0] + _RING, columns[0] + _RING
    return target[top : top + height, left : left + width]


def _padded(array: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], ring: _Ring) -> np.ndarray:
    """(h, w) or (h, w, 3), mirrored by so many pixels at each end, and a ring around it."""
    rest = [(0, 0)] * (array.ndim - 2)
    array = np.pad(array, [rows, columns, *rest], mode="symmetric")
    return np.pad(array, [(_RING, _RING), (_RING, _RING), *rest], mode=ring)
