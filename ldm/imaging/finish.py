"""From a picture of the model's size to the result at the image's own, whose background is exact.

The autoencoder and the resampling lose detail, also where nothing was edited. With x the input's pixels in the
window, y what the method made of it at the model's size, y_ref what the method makes of the untouched input, and up()
the resampling to the window's size (`ldm.imaging.region.resize_back`):

    R      = up(y) + (1 - w) (x - up(y_ref))
    result = x + a (R - x)

a is 1 inside the mask and falls smoothly to 0 over a band of `feather` pixels around it. w is how much of each pixel
is new: a itself for a hard mask, a times the level for a soft one, whose levels fall gradually beside higher ones.
So a white mask shows what was made and nothing of the old; what is edited less keeps the detail of the input that the
method loses; in the band that detail comes back faster than the edit fades, hence no jump of colour; and beyond it
the result is the input, bit for bit.
"""

import math
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms
from scipy import ndimage
from torch import Tensor

from ldm.imaging.images import Picture
from ldm.imaging.region import Window, flat_mask, mask_box, resize_back

# Alpha, of 255, below which a pixel counts as transparent: an eraser of 80 % opacity leaves 51.
_HARDLY_VISIBLE = 64


@dataclass(frozen=True)
class Measures:
    """How a result as delivered differs from its input's file, in 8-bit codes of that file's colour space.

    Attributes:
        feather: the band's width as used, in pixels of the input.
        max_difference: of any pixel outside the mask and the band, alpha included; 0 is exact.
        band_psnr: of the band's colours against the input, in dB; infinite where they are equal, None where there is
            no band.
        seam: the seam score along the mask's border; source_seam: the input's own there, to compare it with.
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
    """A result at the input's own size (h,w).

    Attributes:
        image: sRGB.
        alpha, new: (h,w) float32 in [0,1], the weights a and w of this module's equations.
        feather: the band's width as used, in pixels of the input.
    """

    image: Image.Image
    alpha: np.ndarray
    new: np.ndarray
    feather: float


def auto_feather(window: Window, size: tuple[int, int], factor: int) -> int:
    """The band's default width in pixels of the input: half a latent cell at the input's scale, and at least 2.

    A latent cell on the border is edited or kept as a whole, so the mask's border is known to about half a cell.

    Args:
        size: (H,W) of the model; factor: pixels of it that a cell is wide.
    """
    return max(2, round(factor / 2 * max(window.height / size[0], window.width / size[1])))


def finish(
    picture: Image.Image,
    window: Window,
    mask: Tensor | np.ndarray,
    x_method: Tensor,
    x_ref: Tensor,
    feather: float,
    levels: Tensor | np.ndarray | None = None,
) -> Finished:
    """Bring what a method made at the model's size into the input, whose pixels stay as they are elsewhere.

    By the equations of this module.

    Args:
        picture: the input at its own size (h,w), sRGB.
        mask: (h,w) or (1,1,h,w), above 0 where the edit is; it lies in the window.
        x_method: (1,3,H,W) in [-1,1], the method's picture of the window.
        x_ref: the same shape, what the method makes of the untouched input: D(z_source) for D(z0), since blending
            left the background latents as they were; the input at the model's size for methods that restore it.
        feather: the band's width in pixels of the input. It ends where the window does inside the image.
        levels: (h,w) or (1,1,h,w) in [0,1], how much is edited of each pixel of a soft mask; None: all of it.

    Raises:
        ValueError: sizes that do not match, a mask that is empty or leaves the window, levels outside [0,1], feather
            below 0.
    """
    mask = flat_mask(mask)
    if not mask.any():
        raise ValueError("the mask is empty: there is nothing to finish")
    if not mask.shape == (picture.height, picture.width) == window.image_size:
        raise ValueError(f"picture {picture.size}, mask {mask.shape[::-1]} and {window} do not match")
    if len(x_method) != 1 or x_method.shape != x_ref.shape:
        raise ValueError(f"x_method and x_ref are {tuple(x_method.shape)} and {tuple(x_ref.shape)}, not one picture")
    feather = min(feather, _room(mask, window))
    alpha = feather_alpha(mask, feather)
    source = np.asarray(picture.convert("RGB"))
    box = mask_box(alpha > 0)
    new = alpha.copy()
    if levels is not None:
        new[box] *= _spread(_flat_levels(levels, mask.shape)[box], mask[box], feather)
    inside = tuple(
        slice(part.start - corner, part.stop - corner)
        for part, corner in zip(box, (window.top, window.left), strict=True)
    )
    method, ref = (
        resize_back(x.detach().cpu(), window)[0, :, inside[0], inside[1]].permute(1, 2, 0).numpy()  # (h,w,3)
        for x in (x_method, x_ref)
    )
    x, a, w = source[box] / np.float32(127.5) - 1, alpha[box][..., None], new[box][..., None]
    restored = method + (1 - w) * (x - ref)
    codes = _codes((x + a * (restored - x) + 1) * 127.5)
    result = source.copy()
    np.copyto(result[box], codes, where=a > 0)
    return Finished(Image.fromarray(result), alpha, new, feather)


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
    if not mask.any():
        return alpha
    box = _around(mask, int(feather))
    d = ndimage.distance_transform_edt(~mask[box])
    t = 1 - d / (feather + 1)
    alpha[box] = np.where(d <= feather, t * t * (3 - 2 * t), 0)
    return alpha


def measure(result: Image.Image, picture: Picture, mask: Tensor | np.ndarray, feather: float) -> Measures:
    """How a result of `deliver` differs from its input's file: nothing is taken for granted.

    Args:
        mask: (h,w) or (1,1,h,w), above 0 where the edit is.
        feather: the band's width in pixels, see `Finished`.
    """
    mask = flat_mask(mask)
    source, made = picture.own or picture.rgb, result.convert("RGB")
    difference = np.asarray(ImageChops.difference(made, source))
    alpha = feather_alpha(mask, feather)
    changes = difference[alpha == 0].max(initial=0)
    if picture.alpha is not None:
        changed = np.asarray(ImageChops.difference(result.getchannel("A"), picture.alpha))
        changes = max(changes, changed[alpha == 0].max(initial=0))
    return Measures(
        feather,
        int(changes),
        _psnr(difference[(alpha > 0) & ~mask]),
        seam_score(made, mask),
        seam_score(source, mask),
    )


def seam_score(image: Image.Image | np.ndarray, mask: np.ndarray) -> float:
    """How much more a picture jumps across the mask's border than beside it, in 8-bit levels.

    For each pair of neighbouring pixels that the border separates: the absolute difference across it, less the mean
    of the two differences next to it on the same line (one step further in, one further out; only the one there is
    where the image ends). The positive part, averaged over pairs and channels. 0 for a picture that is smooth across
    the border or has none, about the step for a pasted patch of another brightness; a texture has its own score.

    Args:
        image: RGB, or uint8 (h,w,3).
        mask: (h,w), bool.
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    jumps = np.concatenate([_jumps(pixels, mask), _jumps(pixels.swapaxes(0, 1), mask.T)])
    return float(jumps.mean()) if len(jumps) else 0.0


def deliver(finished: Finished, picture: Picture, strip: bool = False) -> Image.Image:
    """The result as its input's file was: in its colour space, with its profile, metadata (in `info`) and alpha.

    Where most of what was edited can hardly be seen, as a hole in a photograph, the edit is made opaque. Otherwise
    alpha stays: the outline of what has been cut out, a picture that fades out.

    Args:
        strip: leave out EXIF data and resolution. What decides how colours look stays: profile, gAMA and cHRM.
    """
    image = finished.image.copy()
    if picture.own is not None and picture.icc_profile is not None:
        image = to_profile(finished, picture.rgb, picture.own, picture.icc_profile)
    if picture.alpha is not None:
        image.putalpha(_filled(picture.alpha, finished.alpha))
    if picture.icc_profile is not None:
        image.info["icc_profile"] = picture.icc_profile
    image.info |= {key: value for key, value in picture.metadata.items() if not (strip and key in ("exif", "dpi"))}
    return image


def _filled(alpha: Image.Image, edited: np.ndarray) -> Image.Image:
    """Alpha (mode L); opaque where (h,w) `edited` is 1, if most of that was hardly visible; see `deliver`."""
    codes = np.asarray(alpha)
    if (codes[edited == 1] < _HARDLY_VISIBLE).mean() <= 0.5:
        return alpha
    return Image.fromarray(_codes(codes + edited * (255 - codes.astype(np.float32))))


def to_profile(finished: Finished, picture: Image.Image, own: Image.Image, profile: bytes) -> Image.Image:
    """The result in the colour space of its input's file: there its untouched pixels are the file's, bit for bit.

    sRGB holds fewer colours than a wide profile. What the conversion to it lost of the input, own - P(picture) with P
    from sRGB to the profile, is added back as in `finish`: P(result) + (1 - w)(own - P(picture)).

    Args:
        picture: the input, sRGB. own: the same pixels as the file has them, RGB in `profile`.
    """
    rows, columns = box = mask_box(finished.alpha > 0)
    area = (columns.start, rows.start, columns.stop, rows.stop)
    to_own = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"),
        ImageCms.getOpenProfile(BytesIO(profile)),
        "RGB",
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    new, old = (
        np.asarray(ImageCms.applyTransform(image.convert("RGB").crop(area), to_own)).astype(np.float32)
        for image in (finished.image, picture)
    )
    result, a, w = np.array(own), finished.alpha[box][..., None], finished.new[box][..., None]
    np.copyto(result[box], _codes(new + (1 - w) * (result[box] - old)), where=a > 0)
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
    """Pixels between the mask and those sides of the window beyond which there is more of the image."""
    gaps = [max(window.image_size)]
    for span, part, side in zip(mask_box(mask), window.in_image, window.image_size, strict=True):
        gaps += [span.start - part.start] * (part.start > 0) + [part.stop - span.stop] * (part.stop < side)
    if min(gaps) < 0:
        raise ValueError(f"the mask leaves {window}")
    return min(gaps)


def _around(mask: np.ndarray, reach: int) -> tuple[slice, slice]:
    """Rows and columns of a mask (h,w) that is not empty, with `reach` more on each side as far as there are."""
    rows, columns = mask_box(mask)
    return (
        slice(max(rows.start - reach, 0), min(rows.stop + reach, mask.shape[0])),
        slice(max(columns.start - reach, 0), min(columns.stop + reach, mask.shape[1])),
    )


def _flat_levels(levels: Tensor | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Levels (h,w) or (1,1,h,w) as float32 (h,w).

    Raises:
        ValueError: another size, or a level outside [0,1].
    """
    array = levels.detach().cpu().numpy() if isinstance(levels, Tensor) else np.asarray(levels)
    if array.shape[-2:] != size or array.size != size[0] * size[1] or not 0 <= array.min() <= array.max() <= 1:
        raise ValueError(f"levels are {size} in [0,1], not {array.shape} from {array.min()} to {array.max()}")
    return array.reshape(size).astype(np.float32)


def _spread(levels: np.ndarray, mask: np.ndarray, feather: float) -> np.ndarray:
    """Levels (h,w) without jumps: in the mask (h,w) they fall beside higher ones, and go on beyond it.

    They fall as 1 - (d / (feather + 1))^2 with the distance d (a dilation in grey, whose parabola is separable);
    each pixel outside the mask has the level of the mask's pixel nearest to it.
    """
    if (levels[mask] == 1).all():
        return np.ones_like(levels)
    parabola = -np.square(np.arange(-int(feather), int(feather) + 1) / (feather + 1))
    levels = ndimage.grey_dilation(levels, structure=parabola[None])
    levels = ndimage.grey_dilation(levels, structure=parabola[:, None])
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return levels[tuple(nearest)]


def _jumps(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(n,3): `seam_score`'s positive parts for the pairs of rows that the border of the mask separates."""
    row, column = np.nonzero(mask[1:] != mask[:-1])  # the pairs are pixels row, row + 1
    last = len(mask) - 2

    def step(row: np.ndarray) -> np.ndarray:
        return np.abs(pixels[row + 1, column].astype(np.int16) - pixels[row, column])

    before = np.where(row > 0, row - 1, np.minimum(row + 1, last))
    after = np.where(row < last, row + 1, np.maximum(row - 1, 0))
    return np.maximum(step(row) - (step(before) + step(after)) / 2, 0)
