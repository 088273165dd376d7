"""Files that others send: what is taken for a picture, and what is refused. Imports no torch."""

import re
import unicodedata
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from ldm.errors import UserError

SUFFIXES = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
"""The kinds that are taken, by Pillow's name, and what their files are called here. No SVG: that is a program."""

MEDIA = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "tif": "image/tiff", "bmp": "image/bmp"}

_FORMATS = [kind for kind in SUFFIXES if kind != "MPO"]  # which is opened as JPEG
_SHOWN_AS_THEY_ARE = ("PNG", "JPEG", "MPO", "WEBP")
_ORIENTATION = 0x0112
_LONGEST_NAME = 120


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
    kinds = "give a PNG, JPEG, WebP, TIFF or BMP"
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
                try:
                    turned = image.getexif().get(_ORIENTATION, 1)
                except Exception:  # damaged EXIF data, in as many ways as there are: `load_image` tells of it
                    turned = 1
                sides = image.size[::-1] if turned in (5, 6, 7, 8) else image.size
                upright = turned == 1 or image.format in ("JPEG", "MPO")
                plain = image.format in _SHOWN_AS_THEY_ARE and upright and image.mode not in ("CMYK", "YCCK")
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
        raise UserError(f"the file is no picture that can be read: {kinds}") from None
    return Looked("JPEG" if kind == "MPO" else kind, sides[0], sides[1], plain)


def upright_png(path: Path, target: Path) -> None:
    """Write a picture as any browser shows it: an upright 8-bit PNG."""
    with Image.open(path, formats=_FORMATS) as image:
        image.load()
        deep = image.mode.startswith("I;16")
        shown = image.point(lambda code: code / 257).convert("L") if deep else image
        shown = ImageOps.exif_transpose(shown)
        shown.convert("RGBA" if "A" in shown.getbands() else "RGB").save(target, "PNG", compress_level=1)


def thumbnail(path: Path, target: Path, side: int = 320) -> None:
    """Write a picture small and upright, as a PNG."""
    with Image.open(path, formats=_FORMATS) as image:
        image.draft("RGB", (side * 2, side * 2))  # of a JPEG, a small version is decoded at once
        small = ImageOps.exif_transpose(image.convert("RGBA" if "A" in image.getbands() else "RGB"))
        small.thumbnail((side, side))
        small.save(target, "PNG")


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
