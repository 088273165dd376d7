"""An edit from files to a run folder: what `scripts/text_editing.py` does."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.backbones.defaults import Defaults
from ldm.backbones.words import tell_unknown_words
from ldm.editing.edit import Edit, EditRequest, check_size
from ldm.editing.editor import Edited, Editor
from ldm.editing.mask_check import MaskReport, check_mask
from ldm.imaging.canvas import Place, open_canvas
from ldm.imaging.images import load_image, make_grid, save_png, to_pil
from ldm.imaging.region import cut
from ldm.runs.folder import check_run, check_writable, write_run
from ldm.runs.record import RunRecord, prompt_slug
from ldm.runs.video import decode_steps, require_video_writer, write_video

_CELL = 512  # the longest side of a picture in the grid, in pixels


@dataclass(frozen=True)
class EditJob:
    """One run: files in, a run folder out.

    place: see `Place`. model, config, ckpt: see `ldm.backbones.zoo.resolve`. device, precision: see `ldm.util`.
    low_memory: see `Editor.load`.
    """

    request: EditRequest
    init_image: Path
    mask: Path
    outdir: Path
    place: Place = field(default_factory=Place)
    invert_mask: bool = False
    soft_mask: bool = False
    save_video: bool = False
    model: str = "auto"
    config: Path | None = None
    ckpt: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    low_memory: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "EditJob":
        """The job that a command's options ask for, under the names of `ldm.runs.options`."""
        request = EditRequest(**{name: options[name] for name in EditRequest.__dataclass_fields__})
        place = Place(options["region"], options["context"], (options["H"], options["W"]), options["feather"])
        names = (cls.__dataclass_fields__.keys() - {"request", "place"}) & options.keys()
        return cls(request, place=place, **{name: options[name] for name in names})


@dataclass(frozen=True)
class EditResult:
    """Where a run is: its grid, and the `samples` folder; and what was made."""

    grid: Path
    samples: Path
    edited: Edited

    def summary(self) -> str:
        """How the best result sits in its picture, in a line."""
        best = self.edited.measures[0]
        band = "" if best.band_psnr is None else f", PSNR of the {best.feather:g} px band {best.band_psnr:.1f} dB"
        return (
            f"background: largest difference {best.max_difference} of 255{band}, "
            f"seam {best.seam:.1f} (the input's own {best.source_seam:.1f})"
        )


def run_edit(job: EditJob) -> EditResult:
    """Edit, rank, and write the run folder as a whole. All that can be wrong with the input is found first.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    check_run(job.outdir, job.request.prompt)
    if job.save_video:
        require_video_writer()
    # A first look at the files, so that a bad one is told of before a large model is loaded.
    picture = load_image(job.init_image)
    load_image(job.mask)
    editor = Editor.load(job.model, job.config, job.ckpt, job.device, job.precision, job.low_memory)
    task = editor.prepare(picture, job.mask, job.request, job.place, job.invert_mask, job.soft_mask)
    tell_unknown_words(editor.model, editor.files, job.request.prompt)
    steps = (job.request.ddim_steps - job.request.skip_steps) * job.request.n_iter
    with tqdm(total=steps, desc="denoising", unit="step", disable=None) as bar:
        (edited,) = editor.run([task], on_step=lambda _: bar.update(), keep_steps=job.save_video)
    return write_edited(job, editor, edited)


def check_edit(job: EditJob) -> tuple[MaskReport, Path]:
    """Look at a job's image and mask as the edit would use them, without weights, and draw what is found.

    Returns:
        The report, and its picture, `<name of the mask>-check.png` in the output folder.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written.
    """
    check_writable(job.outdir)
    picture = load_image(job.init_image)
    files = zoo.resolve(job.model, job.config, job.ckpt)
    outline = zoo.outline(files)
    place = Defaults.of(files).fill(job.place)
    size = tuple(side or outline.image_size * outline.factor for side in job.place.size)
    check_size(outline, *size)
    canvas = open_canvas(picture, job.mask, place, size, outline.factor, job.invert_mask)
    request = job.request
    report = check_mask(
        picture,
        job.mask,
        size,
        outline.factor,
        job.invert_mask,
        request.mask_dilation_iterations,
        request.mask_downsample,
        canvas.window,
    )
    path = job.outdir / f"{job.mask.stem}-check.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(report.picture, path)
    return report, path


def write_edited(
    job: EditJob, editor: Editor, edited: Edited, notes: Mapping[str, Any] | None = None, overwrite: bool = False
) -> EditResult:
    """Write what a job has made to its run folder, as a whole; `notes` join the options in its record, and
    `overwrite` removes the run before.

    Raises:
        UserError: the folder cannot be written.
    """
    edit, record = edited.edit, _record(job, editor, edited, notes or {})
    images = [to_pil(x) for x in edit.x]
    canvas = edited.task.canvas
    assets = {"input": to_pil(canvas.x_source), "mask": _grey(canvas.x_mask), "full_mask": _grey(canvas.mask)}
    originals = {"original": job.init_image, "original_mask": job.mask}
    with _videos(job, editor, edit) as videos:
        grid = _grid(edited)
        samples = write_run(
            job.outdir, record, grid, images, edited.results, edit.z0, assets, originals, videos, overwrite
        )
    return EditResult(job.outdir / f"{prompt_slug(record.prompt)}.png", samples, edited)


def _record(job: EditJob, editor: Editor, edited: Edited, notes: Mapping[str, Any]) -> RunRecord:
    request, canvas, place = edited.task.input.request, edited.task.canvas, editor.defaults.fill(job.place)
    options = {name: value for name, value in asdict(request).items() if name not in ("prompt", "seed")}
    options |= {name: getattr(place, name) for name in ("region", "context")}
    options |= {"soft_mask": job.soft_mask, "device": job.device, "precision": job.precision, **notes}
    return RunRecord(
        prompt=request.prompt,
        model=editor.files.name,
        config=str(editor.files.config),
        weights=str(editor.files.weights),
        seed=request.seed,
        seeds=edited.edit.seeds,
        image=str(job.init_image),
        mask=str(job.mask),
        size=tuple(canvas.x_source.shape[2:]),
        options=options,
        scores=edited.scores,
        invert_mask=job.invert_mask,
        window=asdict(canvas.window),
        feather=canvas.feather,
        measures=[measures.info() for measures in edited.measures],
    )


@contextmanager
def _videos(job: EditJob, editor: Editor, edit: Edit) -> Iterator[list[Path] | None]:
    """The videos of the predictions, in a temporary folder; None where none were asked for."""
    if not job.save_video:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:04d}.mp4" for i in range(len(edit.x))]
        for path, z0_steps in zip(paths, edit.z0_steps, strict=True):
            write_video(decode_steps(editor.model, z0_steps), path)
        yield paths


def _grey(mask: Tensor) -> Image.Image:
    """A mask (1, 1, h, w) in {0, 1} as a grey picture."""
    return Image.fromarray((mask[0, 0] * 255).to(torch.uint8).numpy())


def _grid(edited: Edited) -> Image.Image:
    """The window of input, mask and results, best first, each with place, seed and CLIP distance; and the tight
    latent mask."""
    canvas, edit = edited.task.canvas, edited.edit
    height, width = canvas.window.height, canvas.window.width
    scale = min(1.0, _CELL / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    captions = ["input", "mask", "latent mask"]
    for i, seed in enumerate(edit.seeds):
        score = "" if edit.distances is None else f" · {edit.distances[i]:.3f}"
        captions.append(f"{i} · seed {seed}{score}")
    seen = [cut(image, canvas.window, size) for image in (canvas.picture.rgb, _grey(canvas.mask), *edited.results)]
    pictures = [*seen[:2], _grey(edit.latent_masks[-1:]), *seen[2:]]
    return make_grid(pictures, min(7, len(pictures)), captions)
