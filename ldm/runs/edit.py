"""An edit from files to a run folder: what `scripts/text_editing.py` does."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.backbones import zoo
from ldm.editing.edit import Progress
from ldm.editing.editor import Editor, denoising_bar
from ldm.editing.mask_check import MaskReport
from ldm.editing.result import EditResult
from ldm.files import file_sha256
from ldm.imaging.images import save_png, to_pil
from ldm.options import recorded
from ldm.runs.folder import check_writable, write_run
from ldm.runs.grid import edit_grid
from ldm.runs.jobs import EditJob
from ldm.runs.ownership import check_png
from ldm.runs.program import Job, Prepared, Program, check_output, in_words_of
from ldm.runs.record import RunRecord, prompt_slug
from ldm.runs.video import decode_steps, write_video


@dataclass(frozen=True)
class SavedEdit:
    """Where a run is: its grid, and the `samples` folder; and what was made."""

    grid: Path
    samples: Path
    result: EditResult

    def summary(self) -> str:
        """How the best result sits in its picture, in a line."""
        best = self.result.measures[0]
        band = "" if best.band_psnr is None else f", PSNR of the {best.feather:g} px band {best.band_psnr:.1f} dB"
        return (
            f"background: largest difference {best.max_difference} of 255{band}, "
            f"seam {best.seam:.1f} (the input's own {best.source_seam:.1f})"
        )


def run_edit(job: EditJob) -> SavedEdit:
    """Edit, rank, and write the run folder as a whole. All that can be wrong with the input is found first.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    return run_program(EditProgram, job)


class EditProgram(Program[EditJob]):
    """The method of this project."""

    @classmethod
    def outline(cls, job: EditJob) -> "EditProgram":
        """See `Program`."""
        return cls(Editor.outline(zoo.resolve(**job.named)))

    def load(self, job: EditJob, device: str) -> "EditProgram":
        """See `Program`."""
        return EditProgram(Editor.load(**job.loading | self.files.given._asdict(), device=device))

    def prepare(self, job: EditJob, desk: Path) -> Prepared[EditJob]:
        """See `Program`."""
        return Prepared(job, job, self.editor.prepare(job.init_image, job.mask, job.request))

    def run(
        self, ready: Sequence[Prepared[EditJob]], batch_size: int | None = None, on_step: Progress | None = None
    ) -> list[EditResult]:
        """See `Program`."""
        keep_steps = any(one.edit.save_video for one in ready)
        return self.editor.run([one.task for one in ready], batch_size, on_step, keep_steps)


def run_program(method: type[Program[Job]], job: Job) -> SavedEdit:
    """Make a job alone, by an outline first, so that bad input is told of before a large model is loaded.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    with in_words_of(method.words), tempfile.TemporaryDirectory() as desk:
        check_output(job)
        outline = method.outline(job)
        one = outline.prepare(job, Path(desk))
        program = outline.load(job, job.device)
        program.editor.begin_identity()
        with denoising_bar(program.steps(one)) as see:
            (result,) = program.run([one], on_step=see)
        return write_result(one.edit, program.editor, result, program.notes(job))


def check_edit(job: EditJob) -> tuple[MaskReport, Path]:
    """Look at a job's image and mask as the edit would use them, without weights, and draw what is found.

    Returns:
        The report, and its picture, `<name of the mask>-check.png` in the output folder.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written.
    """
    check_writable(job.outdir)
    path = job.outdir / f"{job.mask.stem}-check.png"
    check_png(path, "check")
    files = zoo.resolve(**job.named)
    report = Editor.outline(files).check(job.init_image, job.mask, job.request)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(report.picture, path, {"ldm": json.dumps({"kind": "check"})})
    return report, path


def write_result(job: EditJob, editor: Editor, result: EditResult, notes: Mapping[str, Any] | None = None) -> SavedEdit:
    """Write what a job has made to its run folder, as a whole; `notes` join the options in its record.

    Raises:
        UserError: the folder cannot be written.
    """
    canvas, record = result.task.canvas, _record(job, editor, result, notes or {})
    assets = {"input": to_pil(canvas.x_source), "mask": _grey(canvas.x_mask), "full_mask": _grey(canvas.mask)}
    originals = {"original": job.init_image, "original_mask": job.mask}
    fitted = any(fit.fitted for fit in result.fits)
    masks = [one.mask for one in result.canvases] if fitted else None
    grid = edit_grid(
        canvas.picture.rgb,
        canvas.mask,
        canvas.window,
        result.results,
        result.latent_masks[-1:],
        result.seeds,
        result.distances,
        masks,
    )
    with _videos(job, editor, result) as videos:
        samples = write_run(
            job.outdir,
            record,
            grid,
            result.images,
            result.results,
            result.z0,
            assets,
            originals,
            videos,
            overwrite=job.overwrite,
            masks=None if masks is None else list(map(_grey, masks)),
        )
    return SavedEdit(job.outdir / f"{prompt_slug(record.prompt)}.png", samples, result)


def _record(job: EditJob, editor: Editor, result: EditResult, notes: Mapping[str, Any]) -> RunRecord:
    """What was asked for, and all that was used: every default is filled in."""
    request, canvas = result.task.request, result.task.canvas
    elsewhere = ("prompt", "seed", "invert_mask", "feather", "H", "W")
    options = recorded(job) | recorded(request) | dict(notes)
    return RunRecord(
        prompt=request.prompt,
        seed=request.seed,
        seeds=result.seeds,
        image=str(job.init_image),
        mask=str(job.mask),
        image_sha256=file_sha256(job.init_image),
        mask_sha256=file_sha256(job.mask),
        size=canvas.size,
        options={name: value for name, value in options.items() if name not in elsewhere},
        scores=result.distances,
        invert_mask=request.invert_mask,
        window=asdict(canvas.window),
        feather=canvas.feather,
        fits=_fits(result),
        measures=tuple(measures.info() for measures in result.measures),
        **editor.identity(),
    )


@contextmanager
def _videos(job: EditJob, editor: Editor, result: EditResult) -> Iterator[list[Path] | None]:
    """The videos of the predictions, in a temporary folder; None where none were asked for."""
    if not job.save_video:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:04d}.mp4" for i in range(len(result))]
        for path, z0_steps in zip(paths, result.z0_steps, strict=True):
            write_video(decode_steps(editor.model, z0_steps), path)
        yield paths


def _fits(result: EditResult) -> tuple[dict[str, Any], ...]:
    """For run.json, what has become of the mask of each prediction."""
    whole = float(result.task.canvas.mask.sum())
    kept = (float(canvas.mask.sum()) / whole for canvas in result.canvases)
    return tuple(
        {"fitted": fit.fitted, "kept": round(share, 4), "why": fit.why}
        for fit, share in zip(result.fits, kept, strict=True)
    )


def _grey(mask: Tensor) -> Image.Image:
    """A mask (1, 1, h, w) in {0, 1} as a grey picture."""
    return Image.fromarray((mask[0, 0] * 255).to(torch.uint8).numpy())
