"""Which window of an image of any size is edited, the way to the model's size, and the way back.

A network works at one size, a photograph has another. So a window of the photograph, of the model's aspect ratio or of
the mask's (`shaped_size`), is resized to the model's size (`choose_window`, `cut`, `cut_mask`), and what the model
makes of it is resized back (`resize_back`); `ldm.imaging.finish` composes it with the photograph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, sqrt

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.imaging.masks import resize_levels

REGIONS = ("auto", "whole")

# A tiny mask is enlarged by at most this much: the pixels of a photograph hold no more detail than that.
_ENLARGEMENT = 4

# The least context of a window, as a fraction of the mask's extent: room for the band of `ldm.imaging.finish`.
_LEAST_CONTEXT = 1 / 16

# A window is at most so many times as wide as high, or as high as wide: models have seen little that is longer.
_LONGEST = 2.0


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in its pixels; where it extends beyond the image, the image is mirrored.

    All are integers: `Window(**json.loads(json.dumps(asdict(window))))` is the same window.

    Attributes:
        left, top: of the first pixel; below 0 where the window begins outside.
        width, height: at least 1.
        image_size: (h,w) of the image.

    Raises:
        ValueError: nothing of the image lies in it.
    """

    left: int
    top: int
    width: int
    height: int
    image_size: tuple[int, int]

    def __post_init__(self):
        object.__setattr__(self, "image_size", tuple(self.image_size))  # JSON has lists only
        if any(part.start >= part.stop for part in self.in_image):
            raise ValueError(f"nothing of the image lies in {self}")

    @property
    def in_image(self) -> tuple[slice, slice]:
        """Rows and columns of the image that lie in the window."""
        height, width = self.image_size
        return (
            slice(max(self.top, 0), min(self.top + self.height, height)),
            slice(max(self.left, 0), min(self.left + self.width, width)),
        )

    @property
    def in_window(self) -> tuple[slice, slice]:
        """The same rows and columns, counted from the window's corner."""
        rows, columns = self.in_image
        return (
            slice(rows.start - self.top, rows.stop - self.top),
            slice(columns.start - self.left, columns.stop - self.left),
        )


def choose_window(
    mask: Tensor | np.ndarray, size: tuple[int, int], region: str = "auto", context: float = 0.5
) -> Window:
    """The part of an image that is edited at the model's size.

    "whole" is all of the image, squashed where its aspect ratio is not the model's, as in the paper's code.

    "auto" is the smallest window of the model's aspect ratio that contains all parts of the mask with context around
    them, moved into the image where it fits. Besides:

    - It contains at most the whole image. Before it extends beyond the image, half of the context is given up: real
      surroundings at a higher resolution serve the model better than mirrored ones.
    - It is enlarged no more than the image is larger than the model's size, and 4 times at most. So a small mask in
      a large photograph is edited in detail but keeps its surroundings, and an image that is no larger than the
      model's size is used whole.

    Args:
        mask: (h,w) or (1,1,h,w) at the image's own size; above 0 is edited.
        size: (H,W), the model's working size.
        context: on each side, as a fraction of the mask's extent; at least 1/16 is taken.

    Raises:
        ValueError: the mask is empty, the region is unknown, or the context is not a number from 0.
    """
    mask = flat_mask(mask)
    if region not in REGIONS or not 0 <= context < float("inf"):
        raise ValueError(f"region {region!r} of {REGIONS}, context {context}")
    if not mask.any():
        raise ValueError("the mask is empty: there is nothing to choose a window for")
    image_size = mask.shape
    if region == "whole":
        return Window(0, 0, image_size[1], image_size[0], image_size)
    spans = mask_box(mask)

    def scale(context: float) -> Fraction:
        """Of the smallest window, in units of the model's size, with that much context."""
        sides = (ceil((span.stop - span.start) * (1 + 2 * max(context, _LEAST_CONTEXT))) for span in spans)
        return max(map(Fraction, map(min, sides, image_size), size))

    fits = list(map(Fraction, image_size, size))
    largest, largest_inside = max(fits), min(fits)
    smallest = min(largest, max(1 / largest, Fraction(1, _ENLARGEMENT)))
    chosen = max(smallest, min(scale(context), max(largest_inside, scale(context / 2))))
    height, width = (ceil(side * chosen) for side in size)
    top, left = map(_placed, spans, (height, width), image_size)
    return Window(left, top, width, height, image_size)


def shaped_size(mask: Tensor | np.ndarray, native: tuple[int, int], unit: int, context: float = 0.5) -> tuple[int, int]:
    """A size (H,W) of about the area of `native`, of the aspect ratio of the mask with its context, 1:2 to 2:1.

    Args:
        mask, context: as of `choose_window`, which takes the size.
        native: (H,W), the model's own.
        unit: what its sizes must be multiples of.

    Raises:
        ValueError: the mask is empty.
    """
    mask = flat_mask(mask)
    if not mask.any():
        raise ValueError("the mask is empty: there is nothing to choose a size for")
    height, width = (
        min((span.stop - span.start) * (1 + 2 * max(context, _LEAST_CONTEXT)), side)
        for span, side in zip(mask_box(mask), mask.shape, strict=True)
    )
    ratio, area = min(max(width / height, 1 / _LONGEST), _LONGEST), native[0] * native[1]
    sides = sqrt(area / ratio), sqrt(area * ratio)
    return unit * max(1, round(sides[0] / unit)), unit * max(1, round(sides[1] / unit))


def cut(image: Image.Image, window: Window, size: tuple[int, int]) -> Image.Image:
    """The window's pixels as an RGB picture of `size` (H,W), the image mirrored beyond its borders.

    Resampling is Pillow's Lanczos in 8 bits, as in `to_tensor`: so the picture can be saved as a PNG that gives the
    same tensor again.

    Raises:
        ValueError: the image is not of the window's `image_size`.
    """
    _check(window, (image.height, image.width))
    rows = _mirrored(window.top, window.height, image.height)
    columns = _mirrored(window.left, window.width, image.width)
    pixels = Image.fromarray(np.asarray(image.convert("RGB"))[np.ix_(rows, columns)])
    return pixels if pixels.size == (size[1], size[0]) else pixels.resize(size[::-1], Image.Resampling.LANCZOS)


def cut_mask(mask: Tensor | np.ndarray, window: Window, size: tuple[int, int]) -> Tensor:
    """The window of a mask as float {0,1} (1,1,H,W); what is thin is not lost, see `resize_levels`.

    Beyond the image, the mask is mirrored only as far as it extends unbroken from the image's border: there the
    mirrored old content shall not constrain the new. Elsewhere nothing outside the image is edited.

    Args:
        mask: (h,w) or (1,1,h,w) at the image's own size; above 0 is edited.

    Raises:
        ValueError: the mask is not of the window's `image_size`.
    """
    mask = torch.from_numpy(flat_mask(mask)).float()[None, None]
    return (cut_levels(mask, window, size) >= 0.5).float()


def cut_levels(levels: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """The window of a soft mask: levels (1,1,h,w) in [0,1] -> (1,1,H,W), otherwise as `cut_mask`."""
    _check(window, levels.shape[2:])
    rows = _continued(levels[0, 0].cpu().numpy(), window.top, window.height)
    whole = _continued(rows.T, window.left, window.width).T
    return resize_levels(torch.from_numpy(np.ascontiguousarray(whole))[None, None], size)


def resize_back(x: Tensor, window: Window) -> Tensor:
    """x (b,3,H,W) -> (b,3,height,width) of the window: bicubic, antialiased, float32; x itself at equal sizes.

    `result[..., rows, columns]` with the slices of `window.in_window` belongs to `window.in_image` of the image.
    """
    if x.shape[2:] == (window.height, window.width):
        return x.float()
    return F.interpolate(x.float(), (window.height, window.width), mode="bicubic", antialias=True)


def flat_mask(mask: Tensor | np.ndarray) -> np.ndarray:
    """A mask (h,w) or (1,1,h,w) as bool (h,w): True where it is above 0.

    Raises:
        ValueError: another shape.
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    array = array[0, 0] if array.ndim == 4 and array.shape[:2] == (1, 1) else array
    if array.ndim != 2:
        raise ValueError(f"a mask is (h,w) or (1,1,h,w), not {array.shape}")
    return array > 0


def mask_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest box that contains a mask (h,w) that is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _placed(span: slice, length: int, side: int) -> int:
    """The start of `length` pixels about the middle of `span`, inside an image of `side` pixels or around it."""
    low, high = sorted((0, side - length))
    return min(max((span.start + span.stop - length) // 2, low), high)


def _mirrored(start: int, length: int, side: int) -> np.ndarray:
    """Indices into `side` pixels for `length` places from `start`: ... 1 0 | 0 1 ... side-1 | side-1 side-2 ..."""
    index = np.arange(start, start + length) % (2 * side)
    return np.minimum(index, 2 * side - 1 - index)


def _continued(levels: np.ndarray, start: int, length: int) -> np.ndarray:
    """`length` rows of a mask from `start`: beyond the first and the last mirrored, but never rising again."""
    rows = levels[_mirrored(start, length, len(levels))]
    before, after = max(-start, 0), len(levels) - start
    rows[:before] = np.minimum.accumulate(rows[:before][::-1])[::-1]
    rows[after:] = np.minimum.accumulate(rows[after:])
    return rows


def _check(window: Window, image_size: Sequence[int]) -> None:
    if window.image_size != tuple(image_size):
        raise ValueError(f"{window} is not a window of an image of (h,w) {tuple(image_size)}")
