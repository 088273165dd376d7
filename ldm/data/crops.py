"""Squares cut out of pictures: what an image encoder of fixed input size looks at."""

import math

import torch.nn.functional as F
from torch import Tensor

Square = tuple[int, int, int]  # top, left, side in pixels; it may reach beyond the picture


def whole_picture(height: int, width: int) -> Square:
    """The smallest square around a picture, centred on it: nothing of an oblong one is cut off."""
    side = max(height, width)
    return (height - side) // 2, (width - side) // 2, side


def square_around(mask: Tensor, margin: float = 0.0) -> Square:
    """The square around a mask's bounding box; around the whole picture where the mask is empty.

    Args:
        mask: (1,1,H,W), set where it exceeds 0.5.
        margin: room on each side, as a fraction of the box's longer side.
    """
    inside = mask[0, 0] > 0.5
    rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
    if not len(rows):
        return whole_picture(*mask.shape[2:])
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    side = math.ceil(max(bottom - top, right - left) * (1 + 2 * margin))
    return (top + bottom - side) // 2, (left + right - side) // 2, side


def cut_square(x: Tensor, square: Square, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Cut a square and scale it, antialiased; black where it leaves the picture.

    Args:
        x: (B,C,H,W) in [0,1].
        size: (h, w) of the result.
        mode: `bicubic` or `bilinear`.

    Returns:
        (B,C,h,w) in [0,1].
    """
    top, left, side = square
    height, width = x.shape[2:]
    x = F.pad(x, (-left, left + side - width, -top, top + side - height))  # negative padding crops
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode=mode, antialias=True).clamp(0, 1)  # bicubic overshoots
