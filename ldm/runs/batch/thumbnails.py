"""Small copies of a row's pictures, for the page."""

import base64
import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import UserError
from ldm.files import atomic_file
from ldm.imaging.images import as_picture

THUMBNAILS, STRIP = ".thumbnails.json", ".thumbnails.webp"
_SIDE = 192  # pixels of a thumbnail's longer side
_BEST = 4  # results that are shown


def check_thumbnails(folder: Path) -> None:
    """Make sure, before any work is done, that `save_thumbnails` replaces only what it wrote.

    Raises:
        UserError: a file of the user's lies there.
    """
    path = folder / THUMBNAILS
    if os.path.lexists(path) and not read_thumbnails(folder):
        raise UserError(f'"{path}" holds no thumbnails of a batch, so it stays: move it away')


def save_thumbnails(
    folder: Path, source: Image.Image, mask: Image.Image, results: Sequence[Image.Image]
) -> list[tuple[int, int]]:
    """Keep small copies for the page in a row's folder, so that it never reads large files.

    Twice: for a page that has all in itself, and side by side in one picture for a page that loads what is looked at.

    Returns:
        Width and height of each.

    Raises:
        UserError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [_small(image) for image in (source, mask, *results[:_BEST])]
    with atomic_file(folder / THUMBNAILS) as file:
        about = [{"src": _data_url(one), "width": one.width, "height": one.height} for one in pictures]
        file.write(json.dumps(about).encode())
    strip = Image.new("RGB", (sum(one.width for one in pictures), max(one.height for one in pictures)))
    left = 0
    for one in pictures:
        strip.paste(one, (left, 0))
        left += one.width
    with atomic_file(folder / STRIP) as file:
        file.write(_webp(strip))
    return [one.size for one in pictures]


def _small(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))
    return as_picture(image).rgb


def _data_url(image: Image.Image) -> str:
    return "data:image/webp;base64," + base64.b64encode(_webp(image)).decode()


def _webp(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "WEBP", quality=75)
    return file.getvalue()


def read_thumbnails(folder: Path) -> list[dict[str, Any]]:
    """What `save_thumbnails` wrote: pictures as data: URLs with width and height; nothing where it did not."""
    try:
        pictures = json.loads((folder / THUMBNAILS).read_bytes())
        return [{name: picture[name] for name in ("src", "width", "height")} for picture in pictures]
    except (OSError, ValueError, TypeError, LookupError):
        return []
