"""Files <-> tensors: pictures are read as their authors meant them, and written exactly as computed.

A file becomes an upright 8-bit sRGB picture with its alpha apart (`load_image`), a picture becomes a tensor
x (1,3,H,W) in [-1,1] (`to_tensor`), and the round trip is exact for all 256 codes.
"""

import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.ExifTags import IFD, Base
from PIL.ImageFile import ImageFile

from ldm.errors import UserError
from ldm.files import atomic_file

if TYPE_CHECKING:
    import torch  # by name alone: the studio's server reads pictures, and does without

logger = logging.getLogger(__name__)

# What Pillow's parsers raise on damaged files (found by flipping bytes of every format).
_DAMAGE: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError)
_DAMAGE += (ArithmeticError, RuntimeError, struct.error, zlib.error)

# Pillow reads only the high byte of the colours of a 16-bit PNG. The same bytes read in the other order give the
# low ones; grey with alpha (four bytes a pixel) is read as if it were 8-bit RGBA.
_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}

# Pillow's mode of the pixels -> the colour space that a profile for them declares (ICC.1:2010, table 19).
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}

# EXIF tags that describe the picture. The others describe how one file stores it (TIFF files hold many of those), or
# what is kept elsewhere: the resolution, the profile.
_DESCRIPTIVE: tuple[Base, ...] = (Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime)
_DESCRIPTIVE += (Base.Artist, Base.Copyright, Base.Rating)
_DESCRIPTIVE += (Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject)

# Entries of Pillow's `info` that say what the codes of a PNG look like, where it has no profile.
_COLOUR = ("gamma", "chromaticity", "srgb")


@dataclass(frozen=True)
class Picture:
    """A picture as its author meant it.

    Attributes:
        rgb: upright 8-bit sRGB; the colours of transparent pixels are those of the file.
        alpha: mode L, 255 is opaque; None for a file without transparency.
        icc_profile: the profile of a file of RGB pixels, which `rgb` has been converted *from*; else None.
        path: where it came from.
        own: upright RGB pixels as the file has them, in `icc_profile`; None where `rgb` has the same codes.
        metadata: what else is kept in files made from it, by the names of Pillow's `info`: `dpi`; `exif`, upright
            and without a thumbnail; `gamma`, `chromaticity` and `srgb` of a PNG.
    """

    rgb: Image.Image
    alpha: Image.Image | None
    icc_profile: bytes | None
    path: Path
    own: Image.Image | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


ImageLike = Picture | Image.Image | np.ndarray | str | os.PathLike


def load_image(path: str | os.PathLike) -> Picture:
    """Read a picture of any kind that Pillow knows.

    EXIF orientation is applied, alpha (also that of a palette) is kept apart, a colour profile is converted to sRGB
    (grey and CMYK too), 16 bits are scaled to 8 by 1/257 and rounded; 16-bit TIFFs in colour keep their high byte,
    as Pillow reads them. Of an animation the first frame is taken. Notices tell of 16 bits, of further frames, and
    of damaged EXIF data, which is left out.

    Raises:
        UserError: there is no such file, or it is empty, damaged, too large or not an image.
    """
    return _picture(*_open(Path(path)), Path(path))


def as_picture(image: ImageLike) -> Picture:
    """The picture of a path, of a PIL image of any mode, or of an array.

    Args:
        image: an array is (h,w), (h,w,3) or (h,w,4), of uint8 or of floats in [0,1].

    Raises:
        UserError: as `load_image`.
        ValueError: another kind of array or object, floats outside [0,1], or NaN.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | os.PathLike):
        return load_image(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_array_codes(image))
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image is a path, a PIL image or an array, not {type(image).__name__}")
    path = Path(getattr(image, "filename", "") or "image")
    return _picture(*_upright(image, _grey_codes(image, path), path), path)


def _array_codes(array: np.ndarray) -> np.ndarray:
    """The 8-bit codes of an image given as an array; see `as_picture`."""
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shaped or not array.size or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ValueError(
            "an image is an array (h,w), (h,w,3) or (h,w,4) of uint8 or of floats from 0 to 1, "
            f"not {array.shape} of {array.dtype}"
        )
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    if math.isnan(low):
        raise ValueError("the image has NaN in it: give floats from 0 to 1")
    if low < 0 or high > 1:
        raise ValueError(f"the floats of an image are from 0 to 1, not from {low:g} to {high:g}")
    return (array.astype(np.float32) * 255).round().astype(np.uint8)


def _picture(image: Image.Image, metadata: dict[str, Any], path: Path) -> Picture:
    """An upright image of 8 bits per channel, in whatever mode, as a picture."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    if image.mode not in _SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    rgb, known = _to_srgb(image, profile, path)
    own = image if known and image.mode == "RGB" and rgb is not image and rgb.tobytes() != image.tobytes() else None
    for part in (rgb, alpha, own):
        if part is not None:
            part.info = {}  # or the profile of the file would be written into our sRGB files
    if known and image.mode != "RGB":  # then the codes are sRGB now, whatever they were
        metadata = {key: value for key, value in metadata.items() if key not in _COLOUR}
    return Picture(rgb, alpha, profile if known and image.mode == "RGB" else None, path, own, metadata)


def to_tensor(image: Image.Image, size: tuple[int, int] | None = None) -> "torch.Tensor":
    """A picture as x (1,3,H,W), float32 in [-1,1]; `size` is (H,W), by default the picture's own.

    Resizing is Pillow's Lanczos, which is antialiased, and ends in 8 bits: so the input "as used" can be saved as a
    PNG that gives the same tensor again. Alpha is ignored.
    """
    import torch

    image = image.convert("RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H,W,3) -> (3,H,W)
    return pixels[None].float() / 127.5 - 1


def to_pil(x: "torch.Tensor") -> Image.Image:
    """x (3,h,w) or (1,3,h,w) as a PIL image, clipped to [-1,1] and rounded to the nearest of the 256 codes.

    Raises:
        ValueError: another shape.
    """
    import torch

    x = x[0] if x.ndim == 4 and len(x) == 1 else x
    if x.ndim != 3 or len(x) != 3:
        raise ValueError(f"a picture is a tensor of (3,h,w) or (1,3,h,w), not {tuple(x.shape)}")
    codes = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(codes.permute(1, 2, 0).cpu().contiguous().numpy())


def save_png(image: Image.Image, path: str | os.PathLike, text: Mapping[str, str] | None = None) -> None:
    """Write a PNG whole or not at all, with text chunks (tEXt for Latin-1, iTXt for the rest).

    Of `image.info` it writes the profile, and the entries that `Picture.metadata` may have.

    Raises:
        UserError: the folder is missing or cannot be written, or the disk is full.
    """
    chunks = PngImagePlugin.PngInfo()
    for name, data in _colour_chunks(image.info):
        chunks.add(name, data)
    for key, value in (text or {}).items():
        # A command line may hold bytes that are not UTF-8, which Python represents as lone surrogates.
        chunks.add_text(key, value.encode("utf-8", "replace").decode())
    with atomic_file(path) as file:
        # zlib's usual 6 takes nearly three times as long on a photograph of 12 megapixels, and saves 15 % of its size.
        level = 3 if image.width * image.height > 1e6 else 6
        kept = {key: image.info[key] for key in ("dpi", "exif") if key in image.info}
        image.save(file, "PNG", pnginfo=chunks, compress_level=level, **kept)


def _colour_chunks(info: Mapping[Any, Any]) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG that say what its codes look like (PNG specification, 11.3.2), as (name, data)."""
    if "gamma" in info:
        yield b"gAMA", struct.pack(">I", round(info["gamma"] * 100000))
    if "chromaticity" in info:
        yield b"cHRM", struct.pack(">8I", *(round(value * 100000) for value in info["chromaticity"]))
    if "srgb" in info:
        yield b"sRGB", struct.pack(">B", info["srgb"])


def read_png_text(path: str | os.PathLike) -> dict[str, str]:
    """The text chunks of a PNG; none for other kinds of image.

    Raises:
        UserError: as `load_image`.
    """
    with _reading(Path(path)) as file:
        file.load()  # chunks may stand behind the pixels
        return {key: str(value) for key, value in getattr(file, "text", {}).items()}


def make_grid(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Pictures in rows of `columns` with thin white gaps, each with its caption beneath it where there are any.

    All are brought to the largest one's size, by whole blocks, so that the cells of a small latent mask stay
    visible. A caption too long for its cell ends in an ellipsis.

    Raises:
        ValueError: no images, no columns, or as many captions as there are not images.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs images and columns, not {len(images)} and {columns}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    width, height = max(image.width for image in images), max(image.height for image in images)
    gap = max(2, round(width / 64))
    font = ImageFont.load_default(min(20, max(10, width // 14)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # as of any size
    strip = 0 if captions is None else sum(font.getmetrics()) + gap
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + strip + gap) + gap), "white")
    draw = ImageDraw.Draw(grid)
    for i, image in enumerate(images):
        left, top = gap + i % columns * (width + gap), gap + i // columns * (height + strip + gap)
        scale = min(width / image.width, height / image.height)
        cell = image.convert("RGB").resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.NEAREST
        )
        grid.paste(cell, (left + (width - cell.width) // 2, top + (height - cell.height) // 2))
        if captions is not None:
            draw.text((left, top + height + gap // 2), _fit(captions[i], font, width), fill=(60, 60, 60), font=font)
    return grid


@contextmanager
def _reading(path: Path) -> Iterator[ImageFile]:
    """The opened file, whose pixels are not yet read; whatever goes wrong in the block is a UserError."""
    try:
        # Pillow's warnings (corrupt EXIF, many pixels) do not help the user: what cannot be read raises.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.stat().st_size == 0:
                raise UserError(f'the image "{path}" is empty (0 bytes): give another file')
            with Image.open(path) as file:
                yield file
    except FileNotFoundError as error:
        raise UserError(f'there is no image "{path}": check the path') from error
    except IsADirectoryError as error:
        raise UserError(f'"{path}" is a folder: give an image file') from error
    except Image.DecompressionBombError as error:
        assert Image.MAX_IMAGE_PIXELS is not None  # or there would be no limit
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise UserError(f'the image "{path}" has more than {limit:.0f} million pixels: make it smaller') from error
    except UnidentifiedImageError as error:
        raise UserError(f'"{path}" is not an image of a known kind: give a PNG, JPEG, WebP or TIFF') from error
    except _DAMAGE as error:
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
        raise UserError(f'the image "{path}" cannot be read ({reason}): give another file or save it anew') from error


def _open(path: Path) -> tuple[Image.Image, dict[str, Any]]:
    """The first frame of a file: see `_upright`."""
    with _reading(path) as file:
        # The second frame of an MPO is the other eye's view or a preview: nobody misses it.
        frames = getattr(file, "n_frames", 1)
        if frames > 1 and file.format != "MPO":
            logger.warning('"%s" has %d frames: the first one is edited', path, frames)
            file.seek(0)
        return _upright(file, _deep_pixels(file, path), path)


def _upright(image: Image.Image, deep: np.ndarray | None, path: Path) -> tuple[Image.Image, dict[str, Any]]:
    """An upright copy of `image`, or of its 16-bit codes `deep` one of 8 bits; and its metadata, see `Picture`."""
    image.load()  # chunks of a PNG may stand behind the pixels; TIFFs are turned here by Pillow
    orientation, exif = _read_exif(image, path)
    metadata = _metadata(image.info)
    if "dpi" in metadata and orientation >= 5:
        metadata["dpi"] = metadata["dpi"][::-1]
    if exif is not None:
        metadata["exif"] = exif
    if deep is None:
        upright = image.copy()
    else:
        logger.warning('"%s" has 16 bits per channel: it is edited with 8', path)
        # Codes 0 to 65535 -> 0 to 255: 65535 = 257 * 255.
        upright = Image.fromarray(((deep.astype(np.uint32) + 128) // 257).astype(np.uint8))
        upright.info = {key: value for key, value in image.info.items() if key != "transparency"}  # that is 16-bit
    turn = Image.Exif()
    turn[Base.Orientation] = orientation
    upright.info["exif"] = turn.tobytes()  # that of the file may be damaged
    return ImageOps.exif_transpose(upright), metadata


def _read_exif(image: Image.Image, path: Path) -> tuple[int, bytes | None]:
    """The orientation of an image, 1 to 8, and its EXIF data as kept; a notice where some of it is damaged."""
    orientation, exif, damaged = 1, None, False
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = image.getexif()
            given = found.get(Base.Orientation, 1)
            orientation = int(given) if given in range(1, 9) else 1
            exif = _portable_exif(found, image.size if orientation < 5 else image.size[::-1])
            Image.Exif().load(image.info.get("exif", b""))  # of a JPEG, Pillow has hidden the damage before
        except _DAMAGE:
            damaged = True
    if damaged or told:
        logger.warning('the EXIF data of "%s" is damaged: what cannot be read of it is ignored', path)
    return orientation, exif


def _portable_exif(exif: Image.Exif, size: tuple[int, int]) -> bytes | None:
    """What EXIF data says of a picture, which is upright now and of `size` (w,h); None where it says nothing."""
    kept = Image.Exif()
    kept.endian = exif.endian  # the maker's note and comments depend on it
    for tag in _DESCRIPTIVE:
        if tag in exif:
            kept[tag] = exif[tag]
    for group in (IFD.Exif, IFD.GPSInfo):
        # A pointer to the interoperability tags would point into the old file.
        values = {tag: value for tag, value in exif.get_ifd(group).items() if tag != IFD.Interop}
        for tag, side in zip((Base.ExifImageWidth, Base.ExifImageHeight), size, strict=True):
            if tag in values:
                values[tag] = side
        if values:
            kept[group] = values
    if not kept:
        return None
    kept[Base.Orientation] = 1
    return kept.tobytes()


def _metadata(info: Mapping[Any, Any]) -> dict[str, Any]:
    """The entries of Pillow's `info` that are kept, where their values can be written into a PNG again."""
    dpi, gamma, white_and_primaries = info.get("dpi"), info.get("gamma"), info.get("chromaticity")
    metadata: dict[str, Any] = {}
    if dpi and all(0.02 < side < 1e7 for side in dpi):  # NaN is not
        metadata["dpi"] = tuple(float(side) for side in dpi)
    if gamma:
        metadata["gamma"] = gamma
    if white_and_primaries and len(white_and_primaries) == 8:
        metadata["chromaticity"] = white_and_primaries
    if info.get("srgb") in range(4):  # rendering intents
        metadata["srgb"] = info["srgb"]
    return metadata


def _grey_codes(image: Image.Image, path: Path) -> np.ndarray | None:
    """The 16-bit codes (h,w) of a grey image that has them, 0 is black; None for all others."""
    if image.mode.startswith("I;16"):
        codes = np.asarray(image)
        # Of TIFFs in which 0 is white, Pillow inverts those of 8 bits and fewer.
        return 65535 - codes if getattr(image, "tag_v2", {}).get(Base.PhotometricInterpretation) == 0 else codes
    if image.mode not in ("I", "F"):
        return None
    codes = np.asarray(image)
    if image.mode == "F" or codes.min() < 0 or codes.max() > 65535:
        raise UserError(f'"{path}" has 32 bits per channel: save it with 8 or 16')
    return codes


def _deep_pixels(file: ImageFile, path: Path) -> np.ndarray | None:
    """The 16-bit codes of a file that has them, (h,w) or (h,w,channels); None for 8-bit files."""
    grey = _grey_codes(file, path)
    if grey is not None:
        return grey
    rawmode = file.tile[0][3] if file.format == "PNG" and file.tile else None
    if rawmode not in _LOW_BYTES:
        if file.tile and isinstance(file.tile[0][3], tuple) and ";16" in str(file.tile[0][3][0]):
            logger.warning('"%s" has 16 bits per channel: it is edited with 8', path)
        return None
    high = np.asarray(file).astype(np.uint16)
    with Image.open(path) as again:
        codec, extents, offset, _ = again.tile[0]
        again.tile = [(codec, extents, offset, _LOW_BYTES[rawmode])]
        low = np.asarray(again).astype(np.uint16)
    if rawmode == "LA;16B":
        return low[..., 0::2] * 256 + low[..., 1::2]
    return high * 256 + low


def _to_srgb(image: Image.Image, profile: bytes | None, path: Path) -> tuple[Image.Image, bool]:
    """The picture as sRGB, and whether its profile could be used; without one, Pillow's plain conversion."""
    plain = image.convert("RGB")
    if not profile:
        return plain, False
    try:
        source = ImageCms.getOpenProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[image.mode]:
            return plain, False
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError) as error:
        logger.warning('the colour profile of "%s" cannot be used: its colours are taken as sRGB (%s)', path, error)
        return plain, False
    # Converting from the many profiles that are sRGB in all but name would only add rounding errors.
    assert converted is not None  # as it is only where a picture is converted in place
    change = np.asarray(ImageChops.difference(plain, converted)).max()
    return (plain if change <= 2 else converted), True


def _fit(caption: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The caption on one line, shortened until it is no wider than `width` pixels."""
    caption = " ".join(caption.split())
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(caption + "…") > width:
        caption = caption[:-1]
    return caption.rstrip() + "…"
