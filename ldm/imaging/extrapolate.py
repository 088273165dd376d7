"""A picture with room around it, to be painted beyond its borders."""

import numpy as np
from PIL import Image

from ldm.errors import UserError

MOST = 16384
"""Pixels a side of what comes out."""


def extended(image: Image.Image, room: tuple[int, int, int, int]) -> tuple[Image.Image, Image.Image]:
    """A picture with `room` (left, top, right, bottom) in pixels around it, and the mask of that room, in white.

    Alpha stays, the room is opaque. It shows the picture mirrored, so that what begins from it has its colours.

    Raises:
        UserError: no room, or more than a picture may have.
    """
    left, top, right, bottom = room
    width, height = image.width + left + right, image.height + top + bottom
    if not any(room) or max(width, height) > MOST:
        raise UserError(
            f"`extrapolate` is {' '.join(map(str, room))}: give pixels beyond left, top, right and bottom, "
            f"not all 0, for at most {MOST} a side"
        )
    pixels = np.asarray(image.convert("RGB"))
    mirrored = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="symmetric")
    mask = np.full((height, width), 255, np.uint8)
    mask[top : top + image.height, left : left + image.width] = 0
    larger = Image.fromarray(mirrored)
    if image.mode == "RGBA":
        alpha = Image.new("L", larger.size, 255)
        alpha.paste(image.getchannel("A"), (left, top))
        larger.putalpha(alpha)
    return larger, Image.fromarray(mask)
