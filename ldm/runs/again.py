"""Making a prediction again: from one of its pictures to the options that made it."""

import json
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.imaging.images import read_png_text
from ldm.runs.folder import Run, read_run
from ldm.runs.record import RunRecord

OUTDIR = Path("outputs/again")
"""Where such a run goes unless told otherwise: the run that the picture is of shall stay."""


def options_of(picture: Path) -> dict[str, Any]:
    """The options of `scripts/text_editing.py`, under their names, that make the prediction of a picture again, alone.

    Args:
        picture: a PNG of `samples/images`, `samples/results` or a reconstruction. Image and mask are the copies that
            its run folder keeps, and where the picture has left that folder, the paths that it was made from.

    Raises:
        UserError: no picture of ours, or neither copies nor originals of its image and mask exist.
    """
    try:
        about = json.loads(read_png_text(picture)["ldm"])
        record = RunRecord.from_json(json.dumps(about["run"]), picture)
        seed = int(about["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'"{picture}" does not say how it was made: give a PNG of a run\'s samples/images or samples/results'
        ) from error
    run = _run_of(picture, record)
    record = record if run is None else run.record  # whose files of the model can be opened
    options = {name: value for name, value in record.options.items() if name not in ("n_samples", "n_iter")}
    return options | {
        "prompt": record.prompt,
        "seed": seed,
        "n_samples": 1,
        "n_iter": 1,
        "init_image": _file(picture, run, "original", record.image),
        "mask": _file(picture, run, "original_mask", record.mask),
        "invert_mask": record.invert_mask,
        "feather": record.feather,
        "H": record.size[0],
        "W": record.size[1],
        "config": Path(record.config),
        "ckpt": Path(record.weights),
        "outdir": OUTDIR,
    }


def _file(picture: Path, run: Run | None, asset: str, given: str) -> Path:
    """The copy in the picture's run folder, else the file as it was given."""
    kept = None if run is None else run.asset(asset)
    path = kept or Path(given)
    if not path.is_file():
        raise UserError(f'"{path}", from which "{picture}" was made, is gone: give the file by --init_image or --mask')
    return path


def _run_of(picture: Path, record: RunRecord) -> Run | None:
    """The run in the picture's folder, if that is still the one that made it."""
    try:
        run = read_run(picture.absolute().parents[1])
    except UserError:
        return None
    return run if run.record.run_id == record.run_id else None
