"""Making a prediction again: from one of its pictures to the options that made it."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from ldm.backbones import zoo
from ldm.errors import UserError
from ldm.files import file_sha256
from ldm.imaging.images import read_png_text
from ldm.options import subset
from ldm.runs.folder import Run, read_run
from ldm.runs.jobs import EditJob
from ldm.runs.record import RunRecord

OUTDIR = Path("outputs/again")
"""Where such a run goes unless told otherwise: the run that the picture is of shall stay."""


def options_of(picture: Path, given: Container[str] = ()) -> dict[str, Any]:
    """The options of an `EditJob`, by name, that make the prediction of a picture again, alone.

    Args:
        picture: a PNG of `samples/images`, `samples/results` or a reconstruction. Image and mask are the copies that
            its run folder keeps, and where the picture has left that folder, the files that it was made from.
        given: names of options that need not be found, since the user gives them.

    Raises:
        UserError: no picture of ours; or neither copies nor originals of its image and mask exist.
    """
    try:
        about = json.loads(read_png_text(picture)["ldm"])
        record = RunRecord.from_json(json.dumps(about["run"]), picture)
        seed = int(about["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'"{picture}" does not say how it was made: give a PNG of a run\'s samples/images or samples/results'
        ) from error
    if method := record.options.get("method"):
        raise UserError(f'"{picture}" was made by {method}, whose command makes it again: its options are in run.json')
    if record.window is None:
        raise UserError(f'"{picture}" was painted without an image: there is no edit to make again')
    run = _run_of(picture, record)
    record = record if run is None else run.record  # whose files of the model can be opened
    # Records of versions that fitted no masks do not say so.
    options = {"fit_mask": "off"} | subset(EditJob, record.options)
    options |= {
        "prompt": record.prompt,
        "seed": seed,
        "n_samples": 1,
        "n_iter": 1,
        "invert_mask": record.invert_mask,
        "feather": record.feather,
        "H": record.size[0],
        "W": record.size[1],
        "precision": record.precision or record.options.get("precision", "auto"),
        "device": "auto",
        "outdir": OUTDIR,
    }
    if "sampler" in given:  # the record has filled in what the other sampler takes
        del options["background_noise"]
    if "init_image" not in given:
        options["init_image"] = _file(picture, run, "original", "init_image", record.image, record.image_sha256)
    if "mask" not in given:
        options["mask"] = _file(picture, run, "original_mask", "mask", record.mask, record.mask_sha256)
    if not any(name in given for name in ("model", "config", "ckpt", "revision", "lora")):
        options |= model_of(record)
    else:
        options = {name: value for name, value in options.items() if name not in ("revision", "lora")}
    return options


def model_of(record: RunRecord) -> dict[str, Any]:
    """The arguments of `zoo.resolve` for the model that made a run: by its name where it has one.

    Raises:
        UserError: its files are gone.
    """
    names = ("revision", "lora")
    of_diffusers = {name: record.options[name] for name in names if record.options.get(name)}
    if record.model in zoo.MODELS:
        return {"model": record.model}
    if record.config is None or record.weights is None:
        return {"model": record.model} | of_diffusers
    for path in (record.config, record.weights):
        if not Path(path).exists():
            raise UserError(
                f'"{path}" of the model "{record.model}" is gone: give it by `model`, or `config` and `ckpt`'
            )
    if Path(record.weights).is_dir():
        return {"model": record.weights} | of_diffusers
    if Path(record.config).is_dir() or record.config == record.weights:
        config = None if record.config == record.weights else Path(record.config)
        return {"model": record.weights, "config": config} | of_diffusers
    return {"config": Path(record.config), "ckpt": Path(record.weights)}


def _file(picture: Path, run: Run | None, asset: str, option: str, given: str | None, digest: str | None) -> Path:
    """The copy in the picture's run folder, else the file as it was given, if that is still the same."""
    kept = None if run is None else run.asset(asset)
    path = kept or Path(given or "")
    if not path.is_file():
        raise UserError(f'"{path}", from which "{picture}" was made, is gone: give the file by `{option}`')
    if kept is None and digest is not None and file_sha256(path) != digest:
        raise UserError(f'"{path}" is not the file from which "{picture}" was made: give that one by `{option}`')
    return path


def _run_of(picture: Path, record: RunRecord) -> Run | None:
    """The run in the picture's folder, if that is still the one that made it."""
    try:
        run = read_run(picture.absolute().parents[1])
    except UserError:
        return None
    return run if run.record.run_id == record.run_id else None
