"""`ranked/`: results once more, under names that sort by their distance, as the public program leaves them."""

import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm.errors import UserError
from ldm.files import write_error
from ldm.imaging.images import save_png
from ldm.runs.ownership import check_png
from ldm.runs.places import writing

LONGEST = 200
"""Bytes of the stem in a name of `ranked`, so that the name is no longer than file systems take."""

NAME = re.compile(r"\d{5,}_.*_i_\d+_b_\d+\.png")
_STAGING = ".ranked.new-"
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")


def ranked_name(distance: float, stem: str, index: int, batch: int) -> str:
    """`<distance without its point>_<stem>_i_<iteration>_b_<place in the batch>.png` of prediction `index` of a run."""
    return f"{distance:.4f}".replace(".", "") + f"_{stem}_i_{index // batch}_b_{index % batch}.png"


def check_ranked(outdir: Path) -> None:
    """Make sure that all in `ranked` is ours, and so may be replaced.

    Raises:
        UserError: a file of the user's lies there.
    """
    folder = outdir / "ranked"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f'"{folder}" is no folder of this program: move it away or choose another `output_path`')
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in _LITTER:
            continue
        if not NAME.fullmatch(path.name):
            raise UserError(f'"{path}" was not made by this program: move it away or choose another `output_path`')
        check_png(path, "prediction")


def write_ranked(outdir: Path, named: Sequence[tuple[str, Image.Image, dict[str, str]]]) -> Path:
    """Write pictures with their text chunks as the whole content of `ranked`; what a run before left there goes.

    Raises:
        UserError: the folder cannot be written, or holds files of the user's.
    """
    check_ranked(outdir)
    folder, staging = outdir / "ranked", outdir / f"{_STAGING}{uuid.uuid4().hex[:12]}"
    try:
        with writing(outdir):
            for left in outdir.glob(f"{_STAGING}*"):  # by a run that was killed here
                shutil.rmtree(left, ignore_errors=True)
            staging.mkdir()
            try:
                for name, image, text in named:
                    save_png(image, staging / name, text)
                if folder.exists():
                    os.rename(folder, staging.with_suffix(".old"))
                os.rename(staging, folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                shutil.rmtree(staging.with_suffix(".old"), ignore_errors=True)
    except OSError as error:
        raise write_error(folder, error) from error
    return folder
