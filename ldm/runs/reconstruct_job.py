"""Reconstruction from a run folder to the same run folder: what `scripts/reconstruct.py` does."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.editing.editor import finish_reconstruction
from ldm.editing.reconstruct import (
    LEARNING_RATES,
    Reconstruction,
    ReconstructionOptions,
    ReconstructionStep,
    ReconstructionTask,
    decode_prediction,
    encode_prediction,
    learning_rate,
    psnr,
    reconstruct,
)
from ldm.errors import UserError
from ldm.imaging.canvas import Canvas
from ldm.imaging.finish import Measures
from ldm.imaging.images import load_image, to_tensor
from ldm.imaging.masks import load_mask, shown
from ldm.imaging.region import Window
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.runs.folder import Run, check_reconstruction, read_run, write_reconstruction
from ldm.util import choose_device

logger = logging.getLogger(__name__)

# Inside the mask, the decoded latent and the saved prediction differ by rounding and precision: 40 dB and more.
_SAME_PREDICTION = 25.0


@dataclass(frozen=True)
class ReconstructionJob:
    """Which predictions of which run to restore, and how.

    images_path: the run's `samples` folder. indices: of the predictions. kind: see `RECONSTRUCTIONS`.
    init_image, mask: None takes those that the run kept; `invert_mask` belongs to a mask that is given.
    size: (H, W), None in either place is the run's; it cannot be another. feather: None is the run's.
    learning_rate: None is the model's, from the section `reconstruction` of its config, or else the default.
    tuned_levels, precision: see `ReconstructionOptions`.
    model, config, ckpt: see `zoo.resolve`; all None is the model that made the run. device: see `ldm.util`.
    """

    images_path: Path
    indices: Sequence[int] = (0,)
    kind: str = "optimization"
    init_image: Path | None = None
    mask: Path | None = None
    invert_mask: bool = False
    size: tuple[int | None, int | None] = (None, None)
    feather: float | None = None
    optimization_steps: int = 75
    learning_rate: float | None = None
    tuned_levels: int | None = None
    precision: str = "float32"
    model: str | None = None
    config: Path | None = None
    ckpt: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Restored:
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


def run_reconstruction(job: ReconstructionJob) -> list[Restored]:
    """Restore the background of each prediction. All that can be wrong with the input is found before the first.

    Raises:
        UserError: no run, no such prediction, bad input, no model, or a folder that cannot be written.
    """
    run = read_run(job.images_path)
    indices = list(dict.fromkeys(run.check(index) for index in job.indices))
    options = ReconstructionOptions(
        job.optimization_steps, job.learning_rate, tuned_levels=job.tuned_levels, precision=job.precision
    )
    canvas = _canvas(job, run)
    check_reconstruction(run, job.kind, indices)
    optimizing = job.kind in LEARNING_RATES
    model = None  # the others need none: what they make of the prediction is of 8 bits anyway
    if optimizing or job.kind == "residual":
        device = choose_device(job.device)
        files = _model_files(job, run)
        rate = job.learning_rate or learning_rate(job.kind, zoo.read_config(files.config), files.config)
        options = replace(options, learning_rate=rate)
        # Only the first stage has work to do: the rest stays on the CPU, mapped from its file and not read.
        model = zoo.load(files, torch.device("cpu"), torch.float32)
        model.first_stage_model.to(device)
    tasks = [_task(run, index, canvas, model) for index in indices]

    restored = []
    for index, task in zip(indices, tasks, strict=True):
        hidden = None if optimizing else True  # None: where stderr is no terminal
        with tqdm(total=options.steps, desc=f"restoring {index:04d}", unit="step", disable=hidden) as bar:
            result = reconstruct(job.kind, task, options, _on_bar(bar))
        image, measures = finish_reconstruction(canvas, job.kind, task, result)
        info = _info(job, task, options, result, measures)
        path = write_reconstruction(run, job.kind, index, image, info)
        restored.append(Restored(path, info))
    return restored


def _canvas(job: ReconstructionJob, run: Run) -> Canvas:
    """The user's image and mask, or those that the run kept, with the run's window."""
    size = tuple(run.record.size)
    wanted = tuple(side or own for side, own in zip(job.size, size, strict=True))
    if wanted != size:
        raise UserError(
            f"--W {wanted[1]} --H {wanted[0]} is not the size of the run, {shown(size)}: leave them out, or "
            "make a run of that size"
        )
    if job.invert_mask and job.mask is None:
        raise UserError("--invert_mask needs --mask: the mask that the run kept is inverted already where it should be")
    record = run.record
    if record.window is None:
        raise UserError(f'the run in "{run.path}" edited no image: there is no background to restore')
    picture = load_image(job.init_image or _kept(run, "original", "--init_image"))
    image_size, window = (picture.rgb.height, picture.rgb.width), Window(**record.window)
    if (window.height, window.width) == window.image_size:
        window = Window(0, 0, *image_size[::-1], image_size)  # all of the image, so all of one of another size too
    elif window.image_size != image_size:
        raise UserError(
            f'"{picture.path}" is {shown(image_size)}, the image of the run was {shown(window.image_size)}: give '
            "that one by --init_image"
        )
    mask = load_mask(job.mask or _kept(run, "full_mask", "--mask"), image_size, job.invert_mask)
    return Canvas.at(picture, mask, window, size, record.feather if job.feather is None else job.feather)


def _kept(run: Run, name: str, option: str) -> Path:
    path = run.asset(name)
    if path is None:
        raise UserError(f'the run in "{run.path}" kept no {name}: give the file by {option}')
    return path


def _model_files(job: ReconstructionJob, run: Run) -> zoo.ModelFiles:
    """The model that the user names, else the one that made the run: where it lay, or under its name."""
    if job.model or job.config or job.ckpt:
        return zoo.resolve(job.model or "auto", job.config, job.ckpt)
    record = run.record
    missing = next((path for path in (record.config, record.weights) if not Path(path).is_file()), None)
    if missing is None:
        return replace(zoo.resolve(config=record.config, ckpt=record.weights), name=record.model)
    if record.model in zoo.MODELS:  # the run or the models have moved
        return zoo.resolve(record.model)
    raise UserError(
        f'"{missing}" of the model that made this run is missing: give it by --model, or --config and --ckpt'
    )


def _task(run: Run, index: int, canvas: Canvas, model: LatentDiffusion | None) -> ReconstructionTask:
    """Prediction `index` as exactly as it can be had: decoded from its latent, else from its 8-bit picture."""
    x_source, mask = canvas.x_source, canvas.x_mask
    if model is None:
        return ReconstructionTask(x_source, to_tensor(run.image(index), x_source.shape[2:]), mask)
    z0 = run.z0(index)
    if z0 is None:
        logger.warning('"%s" keeps no latents: prediction %d is encoded anew, which costs detail', run.path, index)
        x_hat = to_tensor(run.image(index), x_source.shape[2:])
        return ReconstructionTask(x_source, x_hat, mask, encode_prediction(model, x_hat), model)
    shape = (1, model.channels, *(side // model.factor for side in x_source.shape[2:]))
    if tuple(z0.shape) != shape:
        raise UserError(
            f'the latents in "{run.path}" are {tuple(z0.shape)[1:]}, the model\'s {shape[1:]}: give the model '
            "that made the run, by --model, or --config and --ckpt"
        )
    x_hat = decode_prediction(model, z0)
    if (run.path / "images" / f"{index:04d}.png").is_file():
        likeness = psnr(x_hat, to_tensor(run.image(index), x_source.shape[2:]), mask)
        if likeness is not None and likeness < _SAME_PREDICTION:
            logger.warning(
                "the model does not give prediction %d again (PSNR %.0f dB): is it the one that made the run?",
                index,
                likeness,
            )
    return ReconstructionTask(x_source, x_hat, mask, z0, model)


def _on_bar(bar: tqdm) -> Callable[[ReconstructionStep], None]:
    def show(now: ReconstructionStep) -> None:
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
    return finite | measures.info() | {name: str(path) for name, path in given.items() if path is not None}
