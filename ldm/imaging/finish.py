"""From a picture of the model's size to the result at the image's own, whose background is exact.

The autoencoder and the resampling lose detail, also where nothing was edited. With x the input's pixels in the
window, y what a reconstruction made of it at the model's size, y_ref what it makes of the untouched input, and up()
the way back to the window's size (`ldm.imaging.region.resize_back`):

    R      = up(y) + (1 - a) (x - up(y_ref))
    result = x + a (R - x)

a is 1 inside the mask and falls smoothly to 0 over a band of `feather` pixels around it. So the mask shows what was
made and nothing of the old; in the band, what was lost of the input comes back faster than the new fades, hence no
colour jumps; beyond it the result is the input, bit for bit.
"""

import math
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms
from torch import Tensor

from ldm.imaging.images import Picture
from ldm.imaging.region import Window, flat_mask, mask_box, resize_back


@dataclass(frozen=True)
class Measures:
    """How a result differs from its input, in 8-bit codes.

    Attributes:
        feather: the band's width as used, in pixels of the input.
        max_difference: of any pixel outside the mask and the band; 0 is exact.
        band_psnr: of the band against the input, in dB; infinite where it is equal, None where there is no band.
        seam: the seam score along the mask's border; source_seam: the input's own there, to judge it by.
    """

    feather: float
    max_difference: int
    band_psnr: float | None
    seam: float
    source_seam: float

    def info(self) -> dict[str, Any]:
        """For a JSON file, which has no infinity: "inf"."""
        return {name: "inf" if value == math.inf else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Finished:
    """A result at the input's own size: sRGB; `alpha`, (h,w) float32, is how much of each pixel is new."""

    image: Image.Image
    alpha: np.ndarray
    measures: Measures


def auto_feather(window: Window, size: tuple[int, int], factor: int) -> int:
    """The band's default width in pixels of the input: half a latent cell as it lies there, and 2 at least.

    A latent cell on the border is edited or kept as a whole, so what the mask's border means is known to about half
    a cell. size: (H,W) of the model; factor: pixels of it that a cell is wide.
    """
    return max(2, round(factor / 2 * max(window.height / size[0], window.width / size[1])))


def finish(
    picture: Image.Image,
    window: Window,
    mask: Tensor | np.ndarray,
    x_method: Tensor,
    x_ref: Tensor,
    feather: float,
) -> Finished:
    """Bring what a method made at the model's size into the input, whose pixels stay as they are elsewhere.

    Args:
        picture: the input at its own size (h,w), sRGB.
        mask: (h,w) or (1,1,h,w), above 0 where the edit is; it lies in the window.
        x_method: (1,3,H,W) in [-1,1], the method's picture of the window.
        x_ref: the same shape, what the method makes of the untouched input: D(z_source) for D(z0), since blending
            left the background latents as they were; the input at the model's size for methods that restore it.
        feather: the band's width in pixels of the input. It ends where the window does inside the image.

    Raises:
        ValueError: sizes that do not belong together, a mask that is empty or leaves the window, feather below 0.
    """
    mask = flat_mask(mask)
    if not mask.any():
        raise ValueError("the mask is empty: there is nothing to finish")
    if not mask.shape == (picture.height, picture.width) == window.image_size:
        raise ValueError(f"picture {picture.size}, mask {mask.shape[::-1]} and {window} do not belong together")
    if len(x_method) != 1 or x_method.shape != x_ref.shape:
        raise ValueError(f"x_method and x_ref are {tuple(x_method.shape)} and {tuple(x_ref.shape)}, not one picture")
    feather = min(feather, _room(mask, window))
    alpha = feather_alpha(mask, feather)
    source = np.asarray(picture.convert("RGB"))
    box = mask_box(alpha > 0)
    inside = tuple(
        slice(part.start - corner, part.stop - corner)
        for part, corner in zip(box, (window.top, window.left), strict=True)
    )
    method, ref = (
        resize_back(x.detach().cpu(), window)[0, :, inside[0], inside[1]].permute(1, 2, 0).numpy()  # (h,w,3)
        for x in (x_method, x_ref)
    )
    x, a = source[box] / np.float32(127.5) - 1, alpha[box][..., None]
    restored = method + (1 - a) * (x - ref)
    codes = _codes((x + a * (restored - x) + 1) * 127.5)
    result = source.copy()
    np.copyto(result[box], codes, where=a > 0)
    image = Image.fromarray(result)
    return Finished(image, alpha, measure(image, picture, mask, feather))


def feather_alpha(mask: np.ndarray, feather: float) -> np.ndarray:
    """(h,w) bool -> (h,w) float32: 1 inside, falling smoothly with the Euclidean distance d outside.

    It is exactly 0 from d > feather on, and d counts from pixel to pixel: the nearest pixels outside have d = 1.
    Between, it is the smoothstep of 1 - d / (feather + 1).

    Raises:
        ValueError: feather is below 0 or infinite.
    """
    if not 0 <= feather < math.inf:
        raise ValueError(f"feather is {feather}: a number of pixels from 0")
    alpha = mask.astype(np.float32)
    reach = int(feather)
    if reach == 0 or not mask.any():
        return alpha
    box = tuple(
        slice(max(span.start - reach, 0), min(span.stop + reach, side))
        for span, side in zip(mask_box(mask), mask.shape, strict=True)
    )
    part = mask[box]
    # Exact and separable: d^2 = min over columns dx of dx^2 + (distance to the mask within that column)^2.
    down = _distance_down(part, reach + 1)
    y, x = np.nonzero(~part & (reach >= _distance_down((down <= reach).T, reach + 1).T))  # the square around
    down = np.pad(down, ((0, 0), (reach, reach)), constant_values=reach + 1)
    squared = np.full(len(y), (reach + 1) ** 2)
    for dx in range(-reach, reach + 1):
        np.minimum(squared, down[y, x + reach + dx] ** 2 + dx**2, out=squared)
    d = np.sqrt(squared)
    t = 1 - d / (feather + 1)
    alpha[box][y, x] = np.where(d <= feather, t * t * (3 - 2 * t), 0)
    return alpha


def measure(result: Image.Image, picture: Image.Image, mask: np.ndarray, feather: float) -> Measures:
    """How a result differs from its input, of the same size; mask: (h,w) bool. Nothing is taken for granted."""
    difference = np.asarray(ImageChops.difference(result.convert("RGB"), picture.convert("RGB")))
    alpha = feather_alpha(mask, feather)
    return Measures(
        feather,
        int(difference[alpha == 0].max(initial=0)),
        _psnr(difference[(alpha > 0) & ~mask]),
        seam_score(result, mask),
        seam_score(picture, mask),
    )


def seam_score(image: Image.Image | np.ndarray, mask: np.ndarray) -> float:
    """How much more a picture jumps across the mask's border than beside it, in 8-bit levels.

    For each pair of neighbouring pixels that the border separates: the absolute difference across it, less the mean
    of the two differences next to it on the same line (one step further in, one further out; the one there is where
    the image ends). The positive part, averaged over pairs and channels. 0 for a picture that goes on smoothly,
    about the step for a pasted patch of another brightness; a texture has a score of its own. 0 without a border.

    Args:
        image: RGB, or uint8 (h,w,3).
        mask: (h,w), bool.
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    jumps = np.concatenate([_jumps(pixels, mask), _jumps(pixels.swapaxes(0, 1), mask.T)])
    return float(jumps.mean()) if len(jumps) else 0.0


def deliver(finished: Finished, picture: Picture) -> Image.Image:
    """The result as its input's file was: in that colour space, with its profile in `info`, and with its own alpha.

    What is painted under transparent pixels stays hidden, as their author wanted it.
    """
    image = finished.image
    if picture.own is not None:
        image = to_profile(finished, picture.rgb, picture.own, picture.icc_profile)
    if picture.alpha is not None or picture.icc_profile is not None:
        image = image.copy()
    if picture.alpha is not None:
        image.putalpha(picture.alpha)
    if picture.icc_profile is not None:
        image.info["icc_profile"] = picture.icc_profile
    return image


def to_profile(finished: Finished, picture: Image.Image, own: Image.Image, profile: bytes) -> Image.Image:
    """The result in the colour space of its input's file: there its untouched pixels are the file's, bit for bit.

    sRGB holds fewer colours than a wide profile. What the way there lost of the input, own - P(picture) with P from
    sRGB to the profile, is added back as in `finish`: with a = `finished.alpha`, P(result) + (1 - a)(own - P(picture)).

    Args:
        picture: the input, sRGB. own: the same pixels as the file has them, RGB in `profile`.
    """
    rows, columns = box = mask_box(finished.alpha > 0)
    area = (columns.start, rows.start, columns.stop, rows.stop)
    way = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"),
        ImageCms.getOpenProfile(BytesIO(profile)),
        "RGB",
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    new, old = (
        np.asarray(ImageCms.applyTransform(image.convert("RGB").crop(area), way)).astype(np.float32)
        for image in (finished.image, picture)
    )
    result, a = np.array(own), finished.alpha[box][..., None]
    np.copyto(result[box], _codes(new + (1 - a) * (result[box] - old)), where=a > 0)
    return Image.fromarray(result)


def _codes(levels: np.ndarray) -> np.ndarray:
    """Levels from 0 to 255, clipped and rounded."""
    return levels.clip(0, 255).round().astype(np.uint8)


def _psnr(difference: np.ndarray) -> float | None:
    """In dB, of differences in 8-bit codes; None where there are none."""
    if difference.size == 0:
        return None
    error = np.square(difference, dtype=np.float64).mean()
    return 10 * math.log10(255**2 / error) if error > 0 else math.inf


def _room(mask: np.ndarray, window: Window) -> int:
    """Pixels between the mask and those sides of the window beyond which the image goes on."""
    gaps = [max(window.image_size)]
    for span, part, side in zip(mask_box(mask), window.in_image, window.image_size, strict=True):
        gaps += [span.start - part.start] * (part.start > 0) + [part.stop - span.stop] * (part.stop < side)
    if min(gaps) < 0:
        raise ValueError(f"the mask leaves {window}")
    return min(gaps)


def _distance_down(mask: np.ndarray, most: int) -> np.ndarray:
    """(h,w) bool -> int32: of each pixel to the nearest True in its column, `most` at most."""
    row = np.arange(len(mask), dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(mask, row, -most), axis=0)
    below = np.minimum.accumulate(np.where(mask, row, len(mask) + most)[::-1], axis=0)[::-1]
    return np.minimum(np.minimum(row - above, below - row), most)


def _jumps(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(n,3): `seam_score`'s positive parts for the pairs of rows that the border of the mask separates."""
    row, column = np.nonzero(mask[1:] != mask[:-1])  # the pairs are pixels row, row + 1
    last = len(mask) - 2

    def step(row: np.ndarray) -> np.ndarray:
        return np.abs(pixels[row + 1, column].astype(np.int16) - pixels[row, column])

    before = np.where(row > 0, row - 1, np.minimum(row + 1, last))
    after = np.where(row < last, row + 1, np.maximum(row - 1, 0))
    return np.maximum(step(row) - (step(before) + step(after)) / 2, 0)
