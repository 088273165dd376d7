"""Pictures from a prompt alone, ranked, and their files: what `scripts/txt2img.py` does."""

from dataclasses import dataclass
from pathlib import Path

from ldm.backbones import zoo
from ldm.editing.editor import Editor, denoising_bar
from ldm.editing.result import Predictions
from ldm.imaging.images import make_grid
from ldm.options import recorded
from ldm.runs.folder import check_pictures, write_pictures
from ldm.runs.jobs import GenerationJob
from ldm.runs.record import RunRecord


@dataclass(frozen=True)
class SavedPictures:
    """Where a run is: its grid, and the folder of its pictures; and what was made."""

    grid: Path
    images: Path
    made: Predictions


def run_generation(job: GenerationJob) -> SavedPictures:
    """Paint, rank, and write the pictures as a whole. All that can be wrong with the input is found first.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    check_pictures(job.outdir, job.prompt)
    files = zoo.resolve(**job.named)
    request = Editor.outline(files).prepare_generation(job.request)
    editor = Editor.load(**job.loading | files.given._asdict(), device=job.device)
    editor.begin_identity()
    with denoising_bar(request.steps) as see:
        made = editor.paint(request, see)
    options = recorded(job) | recorded(request)
    elsewhere = ("prompt", "seed", "H", "W")
    height, width = made.x.shape[2:]
    record = RunRecord(
        prompt=request.prompt,
        seed=request.seed,
        seeds=made.seeds,
        size=(height, width),
        options={name: value for name, value in options.items() if name not in elsewhere},
        scores=made.distances,
        **editor.identity(),
    )
    grid = make_grid(made.images, min(4, len(made)), made.captions())
    images = write_pictures(job.outdir, record, grid, made.images, made.z0)
    return SavedPictures(images.with_name(f"{images.name}.png"), images, made)
