"""Blended Diffusion from files to a run folder: what `scripts/blended_diffusion.py` does."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageChops

from ldm.backbones import zoo
from ldm.editing.clip_encoder import check_clip_words
from ldm.editing.edit import Progress
from ldm.editing.editor import Editor
from ldm.editing.guided import TRAIN_STEPS, guide_task, guided_schedule
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.ranking import CLIPRanker
from ldm.editing.result import EditResult
from ldm.errors import UserError
from ldm.imaging.extrapolate import extended
from ldm.imaging.images import as_picture
from ldm.imaging.masks import mask_from
from ldm.models.diffusion.loss_guidance import spherical_distance
from ldm.models.diffusion.respacing import space_timesteps
from ldm.options import subset
from ldm.runs.baseline_jobs import BlendedDiffusionJob
from ldm.runs.edit import SavedEdit, run_program
from ldm.runs.folder import read_run
from ldm.runs.jobs import EditJob
from ldm.runs.program import Prepared, Program
from ldm.runs.ranked import LONGEST, check_ranked, ranked_name, write_ranked

logger = logging.getLogger(__name__)

_QUIET = threading.RLock()


@dataclass(frozen=True)
class SavedRanked:
    """Where a run is: as `SavedEdit`, and the folder of results under names that sort by rank."""

    saved: SavedEdit
    ranked: Path


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Without the notices of a part of this package. Threads take turns: a level is of all of them."""
    told = logging.getLogger(name)
    with _QUIET:
        before = told.level
        told.setLevel(logging.ERROR)
        try:
            yield
        finally:
            told.setLevel(before)


def run_blended_diffusion(job: BlendedDiffusionJob) -> SavedRanked:
    """Edit under CLIP's guidance, rank, and write the run folder. All that can be wrong is found first.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    check_ranked(job.output_path)
    stem = _stem(job.output_file)
    saved = run_program(GuidedProgram, job)
    return SavedRanked(saved, _write_ranked(job, saved.result, stem))


class GuidedProgram(Program[BlendedDiffusionJob]):
    """Blended Diffusion, and local CLIP-guided diffusion, by any backbone that CLIP may guide."""

    method = "blended-diffusion"
    words: ClassVar[Mapping[str, str]] = {
        "H": "model_output_size",
        "n_samples": "batch_size",
        "n_iter": "iterations_num",
        "outdir": "output_path",
        "scale": "clip_guidance_lambda",
    }

    @classmethod
    def outline(cls, job: BlendedDiffusionJob) -> "GuidedProgram":
        """See `Program`."""
        return cls(Editor.outline(zoo.resolve(**job.named)))

    def load(self, job: BlendedDiffusionJob, device: str) -> "GuidedProgram":
        """See `Program`."""
        editor = Editor.load(**self.files.given._asdict(), device=device, precision=job.precision)
        require_clip(editor, self.files)
        return GuidedProgram(editor)

    def prepare(self, job: BlendedDiffusionJob, desk: Path) -> Prepared[BlendedDiffusionJob]:
        """See `Program`."""
        options = _guidance(job)
        if options.local_clip_guided_diffusion and not options.background_preservation_loss:
            logger.warning("without `background_preservation_loss` nothing holds the background")
        guided_schedule(self.editor.model, options)
        image, mask = _files(job, desk)
        edit = _edit_job(job, options, image, mask)
        # What can be said of a mask that is made here has been said of the user's.
        with quiet("ldm.imaging.masks") if mask != job.mask else nullcontext():
            return Prepared(job, edit, self.editor.prepare(image, mask, edit.request))

    def run(
        self,
        ready: Sequence[Prepared[BlendedDiffusionJob]],
        batch_size: int | None = None,
        on_step: Progress | None = None,
    ) -> list[EditResult]:
        """See `Program`."""
        return [self._run(one, batch_size, on_step) for one in ready]

    def _run(self, one: Prepared[BlendedDiffusionJob], batch_size: int | None, on_step: Progress | None) -> EditResult:
        clip = require_clip(self.editor, self.files)
        check_clip_words(clip, one.job.prompt)
        options, strength = _guidance(one.job), strength_of(self.files)
        model = self.editor.model
        return guide_task(model, one.task, options, clip, strength, on_step, one.edit.save_video, batch_size)

    def steps(self, one: Prepared[BlendedDiffusionJob]) -> int:
        """See `Program`."""
        return len(guided_schedule(self.editor.model, _guidance(one.job))) * one.job.iterations_num


def _guidance(job: BlendedDiffusionJob) -> GuidanceOptions:
    return GuidanceOptions(**subset(GuidanceOptions, vars(job)))


def require_clip(editor: Editor, files: zoo.ModelFiles) -> CLIPRanker:
    """The CLIP model that guides.

    Raises:
        UserError: there is none.
    """
    if editor.ranker is None:
        raise UserError(f'CLIP guides this method, and the weights of "{files.clip}" are not here: see the note above')
    return editor.ranker


def strength_of(files: zoo.ModelFiles) -> float | None:
    """`clip_guidance_lambda` in the section `guidance` of a model's config; None where it says none.

    Raises:
        UserError: the section holds something else.
    """
    section = files.section("guidance")
    if not isinstance(section, dict) or section.keys() - {"clip_guidance_lambda"}:
        raise UserError(f'{files.config}: the section "guidance" may hold clip_guidance_lambda alone')
    value = section.get("clip_guidance_lambda")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        raise UserError(f"{files.config}: guidance.clip_guidance_lambda is {value}: write a number of at least 0")
    return None if value is None else float(value)


def _stem(name: str) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f'`output_file` is "{name}": give a file\'s name alone, and the folder by `output_path`')
    stem = Path(name).stem
    if not stem.isprintable() or len(os.fsencode(stem)) > LONGEST:
        raise UserError(f"`output_file` is {name!a:.60}: give a printable name of at most {LONGEST} bytes")
    return stem


def _files(job: BlendedDiffusionJob, desk: Path) -> tuple[Path, Path]:
    """The image and the mask of a job as files: where none is given a white one, and both with the room around them.

    desk: a folder for what is made.
    """
    image, mask = job.init_image, job.mask
    if job.extrapolate is None and mask is not None:
        return image, mask
    desk.mkdir(parents=True, exist_ok=True)
    if job.extrapolate is not None:
        source = as_picture(image)
        picture = source.rgb.copy()
        if source.alpha is not None:
            picture.putalpha(source.alpha)
        larger, room = extended(picture, job.extrapolate)
        if mask is not None:
            own = mask_from(mask, (picture.height, picture.width), job.invert_mask)
            inner = Image.new("L", larger.size)
            levels = (own[0, 0] * 255).to(torch.uint8).numpy()
            inner.paste(Image.fromarray(levels), (job.extrapolate[0], job.extrapolate[1]))
            room = ImageChops.lighter(room, inner)
        image, mask = desk / f"{image.stem}_extended.png", desk / f"{image.stem}_extended_mask.png"
        larger.save(image)
        room.save(mask)
        return image, mask
    logger.info("without `mask` the whole image is edited")
    with quiet("ldm.imaging"):  # it is read again
        size = as_picture(image).rgb.size
    mask = desk / "whole_image_mask.png"
    Image.fromarray(np.full(size[::-1], 255, np.uint8)).save(mask)
    return image, mask


def _edit_job(job: BlendedDiffusionJob, options: GuidanceOptions, image: Path, mask: Path) -> EditJob:
    """The job in the words of all edits: what the window, the folder and the record are made of."""
    steps = len(space_timesteps(options.timestep_respacing, TRAIN_STEPS))
    if options.skip_timesteps >= steps:
        raise UserError(
            f"`skip_timesteps` is {options.skip_timesteps}: give 0 to {steps - 1} with "
            f"`timestep_respacing={options.timestep_respacing}`"
        )
    return EditJob(
        prompt=job.prompt,
        n_samples=job.batch_size,
        n_iter=job.iterations_num,
        seed=job.seed,
        ddim_steps=steps,
        ddim_eta=0.0 if options.ddim else 1.0,
        scale=1.0,
        skip_steps=options.skip_timesteps,
        H=job.model_output_size,
        W=job.model_output_size,
        region=job.region,
        context=job.context,
        feather=job.feather,
        mask_dilation_iterations=0,
        fit_mask="off",
        # Both are in the mask already, where one is made.
        invert_mask=job.invert_mask and job.mask is not None and job.extrapolate is None,
        init_image=image,
        mask=mask,
        outdir=job.output_path,
        overwrite=job.overwrite,
        save_video=job.vid,
    )


def _write_ranked(job: BlendedDiffusionJob, result: EditResult, stem: str) -> Path:
    record = read_run(job.output_path).record
    assert result.distances is not None
    named = []
    for i, (image, seed, distance) in enumerate(zip(result.results, result.seeds, result.distances, strict=True)):
        # Of unit vectors 1 - cos is half the square of their distance.
        chord = torch.tensor([(2 * max(distance, 0.0)) ** 0.5])
        name = ranked_name(float(spherical_distance(chord, torch.zeros(1))), stem, seed - job.seed, job.batch_size)
        named.append((name, image, record.png_text(i)))
    return write_ranked(job.output_path, named)
