"""Reconstruction from a run folder to the same run folder: what `scripts/reconstruct.py` does."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.backbones.contract import Backbone
from ldm.editing.editor import finish_reconstruction
from ldm.editing.reconstruct import (
    LEARNING_RATES,
    OnStep,
    Reconstruction,
    ReconstructionStep,
    ReconstructionTask,
    decode_prediction,
    encode_prediction,
    learning_rate,
    psnr,
    reconstruct,
)
from ldm.editing.request import ReconstructionOptions
from ldm.errors import UserError
from ldm.imaging.canvas import Canvas
from ldm.imaging.finish import Measures
from ldm.imaging.images import load_image, to_tensor
from ldm.imaging.masks import mask_from, shown
from ldm.imaging.region import Window, flat_mask, mask_box
from ldm.runs.again import model_of
from ldm.runs.folder import Run, asset_in, check_reconstruction, read_run, write_reconstruction
from ldm.runs.jobs import ReconstructionJob
from ldm.runs.record import portable_path
from ldm.util import choose_device

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Inside the mask, the decoded latent and the saved prediction differ by rounding and precision: 40 dB and more.
_SAME_PREDICTION = 25.0


@dataclass(frozen=True)
class SavedReconstruction:
    """A reconstruction on disk, and what `reconstruction.json` says of it."""

    path: Path
    info: Mapping[str, Any]

    def summary(self) -> str:
        """The numbers that matter, in a line."""
        before, after = (_decibel(self.info[name]) for name in ("background_psnr_before", "background_psnr"))
        inside = _decibel(self.info["foreground_psnr"])
        return (
            f"PSNR background {before} -> {after} dB, foreground {inside} dB, {self.info['seconds']:.1f} s; "
            f"in the picture: largest difference {self.info['max_difference']}, seam {self.info['seam']:.1f} "
            f"(the input's own {self.info['source_seam']:.1f})"
        )


def run_reconstruction(job: ReconstructionJob, on_step: OnStep | None = None) -> list[SavedReconstruction]:
    """Restore the background of each prediction. All that can be wrong with the input is found before the first.

    Args:
        on_step: called before each step of an optimisation.

    Raises:
        UserError: no run, no such prediction, bad input, no model, or a folder that cannot be written.
    """
    run = read_run(job.images_path)
    wanted = range(len(run)) if job.selected_indices is None else job.selected_indices
    indices = list(dict.fromkeys(run.check(index) for index in wanted))
    options, canvas = job.options, _canvas(job, run)
    check_reconstruction(run, options.kind, indices)
    optimizing = options.kind in LEARNING_RATES
    model = None  # the others need none: what they make of the prediction is of 8 bits anyway
    if optimizing or options.kind == "residual":
        device = choose_device(job.device)
        files = _model_files(job, run)
        rate = options.learning_rate or learning_rate(options.kind, files.section("reconstruction"), files.config)
        options = replace(options, learning_rate=rate)
        model = zoo.load_first_stage(files, device)
    canvases = [canvas if job.mask else _fitted(run, index, canvas) for index in indices]
    tasks = [_task(run, index, canvas, model) for index, canvas in zip(indices, canvases, strict=True)]

    restored = []
    for index, canvas, task in zip(indices, canvases, tasks, strict=True):
        hidden = None if optimizing else True  # None: where stderr is no terminal
        with tqdm(total=options.optimization_steps, desc=f"restoring {index:04d}", unit="step", disable=hidden) as bar:
            result = reconstruct(task, options, _on_bar(bar, on_step))
        image, measures = finish_reconstruction(canvas, options.kind, task, result)
        info = _info(job, task, options, result, measures)
        path = write_reconstruction(run, options.kind, index, image, info)
        restored.append(SavedReconstruction(path, info))
    return restored


def _canvas(job: ReconstructionJob, run: Run) -> Canvas:
    """The user's image and mask, or those that the run kept, with the run's window."""
    record, size = run.record, run.record.size
    wanted = (job.H or size[0], job.W or size[1])
    if wanted != size:
        raise UserError(
            f"`W={wanted[1]}` `H={wanted[0]}` is not the size of the run, {shown(size)}: leave them out, or "
            "make a run of that size"
        )
    if job.invert_mask and job.mask is None:
        raise UserError("`invert_mask` needs `mask`: the mask that the run kept is inverted already where it should be")
    if record.window is None:
        raise UserError(f'the run in "{run.path}" edited no image: there is no background to restore')
    picture = load_image(job.init_image) if job.init_image else _kept(run, "original", "init_image", load_image)
    image_size, window = (picture.rgb.height, picture.rgb.width), Window(**record.window)
    if (window.height, window.width) == window.image_size:
        window = Window(0, 0, *image_size[::-1], image_size)  # all of the image, so all of one of another size too
    elif window.image_size != image_size:
        raise UserError(
            f'"{picture.path}" is {shown(image_size)}, the image of the run was {shown(window.image_size)}: give '
            "that one by `init_image`"
        )
    if job.mask is None:
        mask = _kept(run, "full_mask", "mask", lambda path: mask_from(path, image_size))
    else:
        mask = mask_from(job.mask, image_size, job.invert_mask)
        _check_inside(job.mask, mask, window)
    feather = record.feather if job.feather is None else job.feather
    strip = bool(record.options.get("strip", False))
    return Canvas.at(picture, mask, window, size, feather or 0.0, strip=strip)


def _fitted(run: Run, index: int, canvas: Canvas) -> Canvas:
    """The canvas with the mask that was fitted to prediction `index`, where the run has one."""
    path = run.fitted_mask(index)
    if path is None:
        return canvas
    mask = mask_from(path, (canvas.picture.rgb.height, canvas.picture.rgb.width))
    _check_inside(path, mask, canvas.window)
    size = (canvas.x_source.shape[2], canvas.x_source.shape[3])
    return Canvas.at(canvas.picture, mask, canvas.window, size, canvas.feather, strip=canvas.strip)


def _check_inside(path: Path, mask: Tensor, window: Window) -> None:
    """Refuse a mask that leaves the part of the image that the run worked on."""
    for span, part in zip(mask_box(flat_mask(mask)), window.in_image, strict=True):
        if span.start < part.start or span.stop > part.stop:
            raise UserError(
                f'the mask "{path}" leaves the window of the run, {window.width}x{window.height} from '
                f"({window.left}, {window.top}): give the mask of that run, or make a run with this one"
            )


def _kept(run: Run, name: str, option: str, load: Callable[[Path], T]) -> T:
    """What `load` makes of a file that the run kept, and no other run that comes to its place meanwhile."""

    def read(folder: Path) -> T:
        path = asset_in(folder, name)
        if path is None:
            raise UserError(f'the run in "{run.path}" kept no {name}: give the file by `{option}`')
        return load(path)

    return run.read(read)


def _model_files(job: ReconstructionJob, run: Run) -> zoo.ModelFiles:
    """The model that the user names, else the one that made the run."""
    if job.model != "auto" or job.config or job.ckpt:
        return zoo.resolve(**job.named)
    return zoo.resolve(**model_of(run.record))


def _task(run: Run, index: int, canvas: Canvas, model: Backbone | None) -> ReconstructionTask:
    """Prediction `index` as exactly as it can be had: decoded from its latent, else from its 8-bit picture."""
    x_source, mask, size = canvas.x_source, canvas.x_mask, canvas.size
    if model is None:
        return ReconstructionTask(x_source, to_tensor(run.image(index), size), mask)
    z0 = run.z0(index)
    if z0 is None:
        logger.warning('"%s" keeps no latents: prediction %d is encoded anew, which costs detail', run.path, index)
        x_hat = to_tensor(run.image(index), size)
        return ReconstructionTask(x_source, x_hat, mask, encode_prediction(model, x_hat), model)
    shape = (1, model.channels, *(side // model.factor for side in size))
    if tuple(z0.shape) != shape:
        raise UserError(
            f'the latents in "{run.path}" are {tuple(z0.shape)[1:]}, the model\'s {shape[1:]}: give the model '
            "that made the run, by `model`, or `config` and `ckpt`"
        )
    x_hat = decode_prediction(model, z0)
    if (run.path / "images" / f"{index:04d}.png").is_file():
        likeness = psnr(x_hat, to_tensor(run.image(index), size), mask)
        if likeness is not None and likeness < _SAME_PREDICTION:
            logger.warning(
                "the model does not give prediction %d again (PSNR %.0f dB): is it the one that made the run?",
                index,
                likeness,
            )
    return ReconstructionTask(x_source, x_hat, mask, z0, model)


def _on_bar(bar: tqdm, on_step: OnStep | None) -> OnStep:
    def show(now: ReconstructionStep) -> None:
        if on_step is not None:
            on_step(now)
        words = f"loss {now.loss:.4f}, PSNR background {_decibel(now.background_psnr)}, "
        bar.set_postfix_str(words + f"foreground {_decibel(now.foreground_psnr)}", refresh=False)
        bar.update()

    return show


def _decibel(value: float | str | None) -> str:
    return "-" if value is None else f"{float(value):.1f}"


def _info(
    job: ReconstructionJob,
    task: ReconstructionTask,
    options: ReconstructionOptions,
    result: Reconstruction,
    measures: Measures,
) -> dict[str, Any]:
    """What `reconstruction.json` keeps. JSON has no infinity: the PSNR of equal pictures is "inf"."""
    numbers = {
        "loss": result.loss,
        "background_psnr_before": psnr(task.x_hat, task.x_source, 1 - task.mask),
        "background_psnr": result.background_psnr,
        "foreground_psnr": result.foreground_psnr,
        "seconds": result.seconds,
    }
    if result.steps:
        numbers |= {"steps": result.steps, "learning_rate": options.learning_rate}
        numbers["background_weight"] = options.background_weight
    given = {"init_image": job.init_image, "mask": job.mask}
    finite = {name: "inf" if value == math.inf else value for name, value in numbers.items()}
    paths = {name: portable_path(path) for name, path in given.items() if path is not None}
    return finite | measures.info() | paths
