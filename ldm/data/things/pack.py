"""All that composites are made of in one archive that is small enough to carry to another machine.

Cut-outs become lossy WebP with alpha, photographs JPEG of at most `LONGEST` pixels; under their names, so that the
unpacked folder is what `scripts/make_things.py --compose_only` takes. Packages of Python are not needed there either.
"""

import io
import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from ldm.data.things.cutouts import read_cutouts
from ldm.data.things.photographs import PHOTOGRAPHS, find, read
from ldm.data.things.things import shown_of
from ldm.errors import UserError
from ldm.files import atomic_file

LONGEST = 720
"""Side of a packed photograph in pixels."""

VIEW = 224
"""Side of a packed cut-out in pixels."""


def pack(data: Path, file: Path, quality: int = 75, most: float = 64.0) -> int:
    """Write the archive of a folder of `scripts/make_things.py`; returns its size in bytes. What is "test" stays at
    home, and so do cut-outs that no composite shows.

    Args:
        quality: of WebP and JPEG. most: megabytes.

    Raises:
        UserError: there is nothing to pack, or it is larger than `most`.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        listed, cutouts = [], read_cutouts(data / "cutouts")
        shown = {cutout.file for split in ("train", "val") for cutout in shown_of(cutouts, split)}
        for cutout in (one for one in cutouts if one.file in shown):
            with Image.open(data / "cutouts" / cutout.file) as opened:
                picture = opened.convert("RGBA")
            picture.thumbnail((VIEW, VIEW))
            name = Path(cutout.file).with_suffix(".webp").name
            archive.writestr(f"cutouts/{name}", _encoded(picture, "WEBP", quality))
            listed.append(asdict(replace(cutout, file=name)))
        archive.writestr("cutouts/index.json", json.dumps(listed))
        for photograph in PHOTOGRAPHS:
            if photograph.split == "test":
                continue
            picture = Image.fromarray(read(find(photograph, data / "sources")))
            picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
            name = f"sources/{photograph.source}/packed/{photograph.file}"
            archive.writestr(name, _encoded(picture, "JPEG", quality))
    size = content.tell()
    if size > most * 1e6:
        raise UserError(f"the archive would be {size / 1e6:.0f} MB: lower --quality, or allow more by --most")
    with atomic_file(file) as out:
        out.write(content.getvalue())
    return size


def unpack(file: Path, data: Path) -> None:
    """Unpack an archive of `pack` where it is not unpacked yet.

    Raises:
        UserError: it is no such archive.
    """
    if (data / "cutouts" / "index.json").exists():
        return
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if "cutouts/index.json" not in names:
                raise UserError(f'"{file}" holds no cut-outs: write one with scripts/pack_things.py')
            archive.extractall(data, [name for name in names if name != "cutouts/index.json"])
            archive.extract("cutouts/index.json", data)  # last: where it is, all is
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f'"{file}" cannot be unpacked ({error}): write one with scripts/pack_things.py') from error


def _encoded(picture: Image.Image, kind: str, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=quality, **({"method": 2, "alpha_quality": quality} if kind == "WEBP" else {}))
    return file.getvalue()
