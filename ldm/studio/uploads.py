"""Files that others send: what is taken for a picture, and what is refused. Imports no torch."""

import re
import unicodedata
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features

from ldm.errors import UserError

SUFFIXES = {
    "PNG": "png",
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "AVIF": "avif",
    "GIF": "gif",
    "TIFF": "tif",
    "BMP": "bmp",
}
"""The kinds that are taken, by Pillow's name, and what their files are called here. No SVG: that is a program."""

MEDIA = {suffix: f"image/{suffix}" for suffix in SUFFIXES.values()} | {"jpg": "image/jpeg", "tif": "image/tiff"}

# An MPO is opened as JPEG. Pillow reads AVIF from 11.3 on, and fails at all files where it is asked in vain.
_FORMATS = [kind for kind in SUFFIXES if kind != "MPO" and (kind != "AVIF" or features.check("avif"))]
_SHOWN_AS_THEY_ARE = ("PNG", "JPEG", "MPO", "WEBP")
_ORIENTATION = 0x0112
_LONGEST_NAME = 120
_HEIC = re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)


class Looked(NamedTuple):
    """What a file turned out to be; width and height are those of the upright picture."""

    format: str
    width: int
    height: int
    plain: bool


def look_at(path: Path, max_megapixels: float) -> Looked:
    """Make sure that a file is a whole picture of a kind and a size that are taken.

    Size and kind are known before a pixel is decoded. The file's name and what its sender says of it do not count.

    Raises:
        UserError: it is not.
    """
    kinds = "give a PNG, JPEG, WebP, AVIF, GIF, TIFF or BMP"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                pixels = image.width * image.height
                if pixels > max_megapixels * 1e6:
                    raise UserError(
                        f"the picture has {pixels / 1e6:.1f} megapixels: make it smaller, {max_megapixels:g} are taken"
                    )
                image.load()
                if image.mode == "F" or (image.mode == "I" and not _fits_16_bits(image)):
                    raise UserError("the picture has 32 bits per channel: save it with 8 or 16")
                try:
                    turned = image.getexif().get(_ORIENTATION, 1)
                except Exception:  # damaged EXIF data, in as many ways as there are: `load_image` tells of it
                    turned = 1
                sides = image.size[::-1] if turned in (5, 6, 7, 8) else image.size
                upright = turned == 1 or image.format in ("JPEG", "MPO")
                # Browsers know profiles of RGB alone, and convert CMYK in their own way.
                coloured = image.mode in ("RGB", "RGBA", "P", "PA") or not image.info.get("icc_profile")
                plain = image.format in _SHOWN_AS_THEY_ARE and upright and image.mode != "CMYK" and coloured
                kind = image.format or ""
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"the picture has far more than the {max_megapixels:g} megapixels that are taken: make it smaller"
        ) from None
    except MemoryError:
        raise UserError("the picture needs more memory than there is: make it smaller") from None
    except Exception:  # whatever Pillow's parsers raise on what is no picture, or a damaged one
        with open(path, "rb") as file:
            if _HEIC.match(file.read(12)):
                raise UserError(f"HEIC is not read here: export the photograph as a JPEG, or {kinds}") from None
        raise UserError(f"the file is no picture that can be read: {kinds}") from None
    return Looked("JPEG" if kind == "MPO" else kind, sides[0], sides[1], plain)


def upright_png(path: Path, target: Path) -> None:
    """Write a picture as any browser shows it: an upright 8-bit PNG, with the colours that the run works with.

    Raises:
        UserError: it cannot be read.
    """
    _shown(path).save(target, "PNG", compress_level=1)


def thumbnail(path: Path, target: Path, side: int = 320) -> None:
    """Write a picture small and upright, as a PNG.

    Raises:
        UserError: it cannot be read.
    """
    small = _shown(path)
    small.thumbnail((side, side))
    small.save(target, "PNG")


def _shown(path: Path) -> Image.Image:
    """A picture as the command line reads it, so that what is seen is what is edited."""
    from ldm.imaging.images import load_image  # not at the start: it takes numpy along

    picture = load_image(path)
    image = (picture.own or picture.rgb).copy()
    if picture.alpha is not None:
        image.putalpha(picture.alpha)
    image.info = {"icc_profile": picture.icc_profile} if picture.icc_profile else {}
    return image


def _fits_16_bits(image: Image.Image) -> bool:
    low, high = image.getextrema()
    return low >= 0 and high <= 65535  # type: ignore[operator]  # of a picture of one channel


def label(name: str) -> str:
    """What an uploaded file may be called: a short line of text. It is shown, and never a part of a path.

    Raises:
        UserError: a path, or something that tries to be one.
    """
    text = unicodedata.normalize("NFC", name).strip()
    if not text:
        return ""
    if re.search(r"[/\\\x00-\x1f\x7f]", text) or text in (".", "..") or len(text) > _LONGEST_NAME:
        raise UserError(f"a file's name has no slashes, no control characters and at most {_LONGEST_NAME} letters")
    return text
