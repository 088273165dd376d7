"""A picture of any size, its mask, and the window of both that a model works on."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.imaging.finish import Measures, auto_feather, deliver, finish, measure
from ldm.imaging.images import Picture, as_picture, to_pil, to_tensor
from ldm.imaging.region import Window, choose_window, cut, cut_levels, cut_mask


@dataclass(frozen=True)
class Canvas:
    """A picture of which a window is worked on.

    Attributes:
        picture, mask: the input, and its mask (1, 1, h, w) in {0, 1} of the same size.
        window: what of them the model sees.
        feather: width in pixels of the input of the band around the mask in which the edit fades out.
        x_source, x_mask: the window at the model's size, (1, 3, H, W) in [-1, 1] and (1, 1, H, W) in {0, 1}.
        x_levels: of a soft mask its grey levels in [0, 1] at the model's size, of a hard one `x_mask`.
        levels: of a soft mask its grey levels at the input's size; None for a hard one.
        strip: results do not carry the input's EXIF, DPI and the like.
    """

    picture: Picture
    mask: Tensor
    window: Window
    feather: float
    x_source: Tensor
    x_mask: Tensor
    x_levels: Tensor
    levels: Tensor | None = None
    strip: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), the model's."""
        height, width = self.x_source.shape[2:]
        return height, width

    @classmethod
    def at(
        cls,
        picture: Picture,
        mask: Tensor,
        window: Window,
        size: tuple[int, int],
        feather: float,
        levels: Tensor | None = None,
        strip: bool = False,
    ) -> "Canvas":
        """The canvas of a known window; `size` is (H, W), the model's."""
        x_source = to_tensor(cut(picture.rgb, window, size))
        x_mask = cut_mask(mask, window, size)
        x_levels = x_mask if levels is None else cut_levels(levels, window, size)
        return cls(picture, mask, window, feather, x_source, x_mask, x_levels, levels, strip)

    @classmethod
    def around(
        cls,
        picture: Picture,
        mask: Tensor,
        size: tuple[int, int],
        factor: int,
        region: str = "auto",
        context: float = 0.5,
        feather: float | None = None,
        levels: Tensor | None = None,
        strip: bool = False,
    ) -> "Canvas":
        """The canvas of the window that `choose_window` finds for a mask.

        Args:
            picture, mask, levels, strip: see `Canvas`.
            size: (H, W), the model's; factor: pixels of it that a latent cell is wide.
            region, context: of the window.
            feather: see `Canvas`; None is half a latent cell, see `auto_feather`.
        """
        window = choose_window(mask, size, region, context)
        feather = auto_feather(window, size, factor) if feather is None else feather
        return cls.at(picture, mask, window, size, feather, levels, strip)

    @classmethod
    def of_tensors(cls, x_source: Tensor, mask: Tensor) -> "Canvas":
        """The canvas of a picture (1, 3, H, W) that has the model's size already, with its mask (1, 1, H, W)."""
        height, width = x_source.shape[2:]
        window = Window(0, 0, width, height, (height, width))
        return cls(as_picture(to_pil(x_source)), mask, window, 0.0, x_source, mask, mask)

    def narrowed(self, x_mask: Tensor) -> "Canvas":
        """The same canvas with only that part of its mask which lies in x_mask (1, 1, H, W) in {0, 1}, of the window.

        A mask of which nothing would be left, as it is so small in the picture, stays as it is.
        """
        rows, columns = self.window.in_image
        size = (self.window.height, self.window.width)
        here = F.interpolate(x_mask.cpu().float(), size, mode="bilinear", antialias=True)[0, 0][self.window.in_window]
        mask = torch.zeros_like(self.mask)
        mask[..., rows, columns] = self.mask[..., rows, columns] * (here >= 0.5)
        if not mask.any():
            return self
        x_own = cut_mask(mask, self.window, (self.x_mask.shape[2], self.x_mask.shape[3])) * self.x_mask
        return replace(self, mask=mask, x_mask=x_own, x_levels=self.x_levels * x_own)

    def finish(self, x: Tensor, x_reference: Tensor | None = None) -> tuple[Image.Image, Measures]:
        """x (1, 3, H, W), a picture of the window -> the whole picture with it, and how well it sits there.

        Outside the mask and the band the result is the input, bit for bit; see `ldm.imaging.finish`.

        Args:
            x_reference: (1, 3, H, W), what made x makes this of the input: D(z_source) for a prediction D(z0), which
                is the finish `residual`. None is the input itself, for pictures whose background is restored.
        """
        reference = self.x_source if x_reference is None else x_reference
        finished = finish(self.picture.rgb, self.window, self.mask, x, reference, self.feather, self.levels)
        result = deliver(finished, self.picture, self.strip)
        return result, measure(result, self.picture, self.mask, finished.feather)
