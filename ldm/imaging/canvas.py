"""A picture of any size, its mask, and the window of both that the model works on."""

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from ldm.backbones.defaults import Defaults
from ldm.errors import UserError
from ldm.imaging.finish import Measures, auto_feather, deliver, finish, measure
from ldm.imaging.images import ImageLike, Picture, as_picture, load_image, to_tensor
from ldm.imaging.masks import mask_from
from ldm.imaging.region import REGIONS, Window, choose_window, cut, cut_mask


@dataclass(frozen=True)
class Place:
    """Where in a picture the work is done.

    Attributes:
        region: "auto", a window around the mask, or "whole", the paper's way; see `choose_window`.
        context: of the window, how much of the mask's extent lies around it on each side; None is the model's own,
            see `Defaults`.
        size: (H, W) that the model works at; None in either place is the model's own.
        feather: width in pixels of the input of the band around the mask in which the edit fades out; None is half a
            latent cell, see `auto_feather`. Beyond it the result is the input.

    Raises:
        UserError: a number is out of its range.
    """

    region: str = "auto"
    context: float | None = None
    size: tuple[int | None, int | None] = (None, None)
    feather: float | None = None

    def __post_init__(self):
        if self.region not in REGIONS:
            raise UserError(f'region is "{self.region}": give {" or ".join(REGIONS)}')
        for name in ("context", "feather"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} is {value}: give a number of at least 0")


@dataclass(frozen=True)
class Canvas:
    """A picture of which a window is worked on.

    picture, mask: the input, and its mask (1, 1, h, w) in {0, 1} of the same size. window: what of them the model
    sees. feather: see `Place`, in pixels. x_source, x_mask: the window at the model's size, (1, 3, H, W) in [-1, 1]
    and (1, 1, H, W) in {0, 1}.
    """

    picture: Picture
    mask: Tensor
    window: Window
    feather: float
    x_source: Tensor
    x_mask: Tensor

    @classmethod
    def at(cls, picture: Picture, mask: Tensor, window: Window, size: tuple[int, int], feather: float) -> "Canvas":
        """The canvas of a known window; `size` is (H, W), the model's."""
        x_source = to_tensor(cut(picture.rgb, window, size))
        return cls(picture, mask, window, feather, x_source, cut_mask(mask, window, size))

    def finish(self, x: Tensor, x_reference: Tensor | None = None) -> tuple[Image.Image, Measures]:
        """x (1, 3, H, W), a picture of the window -> the whole picture with it, and how well it sits there.

        Outside the mask and the band the result is the input, bit for bit; see `ldm.imaging.finish`.

        Args:
            x_reference: (1, 3, H, W), what made x makes this of the input: D(z_source) for a prediction D(z0), which
                is the finish `residual`. None is the input itself, for pictures whose background is restored.
        """
        reference = self.x_source if x_reference is None else x_reference
        finished = finish(self.picture.rgb, self.window, self.mask, x, reference, self.feather)
        result = deliver(finished, self.picture)
        return result, measure(result, self.picture, self.mask, finished.feather)


def mask_source(mask: ImageLike) -> Picture | Image.Image | np.ndarray:
    """The picture of a path; anything else as it is."""
    return load_image(mask) if isinstance(mask, str | os.PathLike) else mask


def open_canvas(
    image: ImageLike, mask: ImageLike | Tensor, place: Place, size: tuple[int, int], factor: int, invert: bool = False
) -> Canvas:
    """Find the window around a mask.

    Args:
        image: path, PIL image or array of uint8.
        mask: the same, brought to the image's size; or a tensor (1, 1, h, w) of that size.
        size: (H, W), the model's; factor: pixels of it that a latent cell is wide.
        invert: black, instead of white, is where to edit.

    Raises:
        UserError: an image or a mask that cannot be used.
    """
    picture = as_picture(image)
    if not isinstance(mask, Tensor):
        mask = mask_from(mask_source(mask), (picture.rgb.height, picture.rgb.width), invert)
    window = choose_window(mask, size, place.region, Defaults().fill(place).context)
    feather = auto_feather(window, size, factor) if place.feather is None else place.feather
    return Canvas.at(picture, mask, window, size, feather)
