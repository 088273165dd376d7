"""What a run leaves on disk, and how the next step reads it.

    outdir/
      <prompt-slug>.png            the grid of the latest run of that prompt
      samples/                     one run, whole: replaced as one, never mixed with another
        run.json  latents.safetensors  videos/0000.mp4
        images/0000.png ...            predictions as the model paints them, at its size
        results/0000.png ...           the same in the input, at the input's size
        assets/                        input and mask as the model saw them, full_mask at the input's size, and
                                       the user's own files as original.* and original_mask.*
        reconstructed_<kind>/0000.png ...  reconstruction.json

A run is built in a hidden folder beside `samples` and swapped in by two renames. The grids of other prompts stay:
each is a picture with a name of its own, and together they are the diary of an output folder.
"""

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from ldm.checkpoint import save_safetensors
from ldm.errors import UserError
from ldm.files import atomic_file, write_error
from ldm.imaging.images import load_image, save_png
from ldm.runs.record import RunRecord, prompt_slug

logger = logging.getLogger(__name__)

_OLD = ".samples.old"
_NEW = ".samples.new-"


@dataclass(frozen=True)
class Run:
    """A run on disk: its record now, its pictures and latents when they are asked for."""

    path: Path
    record: RunRecord

    def __len__(self) -> int:
        """How many predictions there are."""
        return len(self.record.seeds)

    def check(self, index: int) -> int:
        """The index itself.

        Raises:
            UserError: there is no such prediction.
        """
        if not 0 <= index < len(self):
            there = f"are predictions 0 to {len(self) - 1}" if len(self) > 1 else "is prediction 0 alone"
            raise UserError(f'there is no prediction {index} in "{self.path}": there {there}')
        return index

    def image(self, index: int) -> Image.Image:
        """Prediction `index`, 0 is the best, as the model painted it."""
        return load_image(self.path / "images" / f"{self.check(index):04d}.png").rgb

    def asset(self, name: str) -> Path | None:
        """What `write_run` kept under `name` among its assets and originals; None if there is no such file."""
        return next(iter(sorted((self.path / "assets").glob(f"{name}.*"))), None)

    def z0(self, index: int) -> torch.Tensor | None:
        """Its latent (1,c,h,w), times the scale factor as the sampler left it; None for a run that kept none."""
        path = self.path / "latents.safetensors"
        self.check(index)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                return file.get_slice("z0")[index : index + 1]
        except (SafetensorError, OSError) as error:
            raise UserError(f'"{path}" is damaged ({error}): make the run again') from error

    @property
    def input(self) -> Image.Image:
        """The picture as the model saw it."""
        return load_image(self.path / "assets" / "input.png").rgb

    @property
    def mask(self) -> Image.Image:
        """The mask as used, mode L: white is what was edited, inversion already done."""
        return load_image(self.path / "assets" / "mask.png").rgb.convert("L")


def check_writable(outdir: str | os.PathLike) -> None:
    """Make sure, before any work is done, that `write_run` can do its part; leaves nothing behind.

    Raises:
        UserError: the folder cannot be made or written, or its `samples` is none of ours.
    """
    outdir = Path(outdir)
    _recover(outdir)
    _check_samples(outdir / "samples")
    nearest = next((p for p in (outdir, *outdir.absolute().parents) if p.exists()), outdir)
    probe = nearest / f".{uuid.uuid4().hex[:12]}.part"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise write_error(outdir, error) from error


def write_run(
    outdir: str | os.PathLike,
    record: RunRecord,
    grid: Image.Image,
    images: Sequence[Image.Image],
    results: Sequence[Image.Image] | None,
    latents: torch.Tensor,
    assets: Mapping[str, Image.Image],
    originals: Mapping[str, str | os.PathLike] | None = None,
    videos: Sequence[str | os.PathLike] | None = None,
) -> Path:
    """Write a run and put it in the place of the one before, as a whole; until then that one stays as it is.

    Args:
        outdir: made if it is missing.
        record: with as many seeds as there are images.
        grid: goes to `<prompt-slug>.png`.
        images: the predictions in rank order, at the model's size.
        results: the same in their picture, at its size; None where there is no picture.
        latents: their z0 (n,c,h,w), in the same order.
        assets: pictures by name; `input` and `mask` are what `Run` reads.
        originals: files to be copied in beside them, by name without suffix.
        videos: files to be copied in, in the order of the predictions.

    Returns:
        The `samples` folder.

    Raises:
        UserError: the folder cannot be written or holds a `samples` that is none of ours.
        ValueError: the numbers of seeds, images, results, latents and videos differ.
    """
    optional = (images if part is None else part for part in (results, videos))
    counts = {*map(len, (record.seeds, images, latents, *optional))}
    if len(counts) != 1 or not images:
        raise ValueError(f"as many seeds, images, results, latents and videos are needed, not {sorted(counts)}")
    outdir = Path(outdir)
    check_writable(outdir)
    staging = outdir / f"{_NEW}{uuid.uuid4().hex[:12]}"
    try:
        new = staging / "samples"
        for folder, files in (("images", images), ("results", results), ("assets", (1,)), ("videos", videos)):
            if files:
                (new / folder).mkdir(parents=True)
        for folder, pictures in (("images", images), ("results", results or ())):
            for i, image in enumerate(pictures):
                save_png(image, new / folder / f"{i:04d}.png", record.png_text(i))
        for name, image in assets.items():
            save_png(image, new / "assets" / f"{name}.png")
        for name, path in (originals or {}).items():
            shutil.copyfile(path, new / "assets" / f"{name}{Path(path).suffix.lower()}")
        for i, video in enumerate(videos or ()):
            shutil.copyfile(video, new / "videos" / f"{i:04d}{Path(video).suffix}")
        save_safetensors({"z0": latents.detach().float().cpu().contiguous()}, new / "latents.safetensors")
        save_png(grid, staging / "grid.png", {"parameters": record.png_text(0)["parameters"]})
        (new / "run.json").write_text(record.to_json(), encoding="utf-8", errors="replace")
        _swap(outdir, new)
        os.replace(staging / "grid.png", outdir / f"{prompt_slug(record.prompt)}.png")
    except OSError as error:
        raise write_error(outdir, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return outdir / "samples"


def read_run(samples_path: str | os.PathLike) -> Run:
    """The run in a `samples` folder, or in the output folder above it.

    Raises:
        UserError: there is none, or its record is damaged or of a newer format.
    """
    path = Path(samples_path)
    _recover(path.parent if path.name == "samples" else path)
    found = next((p for p in (path, path / "samples") if (p / "run.json").is_file()), None)
    if found is None:
        raise UserError(
            f'no run in "{path}" (no run.json): make one with scripts/text_editing.py, or name its samples folder'
        )
    try:
        text = (found / "run.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'"{found / "run.json"}" cannot be read ({error}): make the run again') from error
    return Run(found, RunRecord.from_json(text, found / "run.json"))


def write_reconstruction(
    samples_path: str | os.PathLike, kind: str, index: int, image: Image.Image, info: Mapping[str, Any]
) -> Path:
    """Keep a reconstruction beside its run, under the index of its prediction.

    `info` joins those of the other indices in `reconstruction.json`, under "0005" for index 5.

    Returns:
        The picture's path, `reconstructed_<kind>/0005.png`.

    Raises:
        UserError: no run, no such prediction, or the folder cannot be written.
        ValueError: `kind` is no word of a-z and "_".
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", kind):
        raise ValueError(f"{kind!r} is no kind of reconstruction")
    run = read_run(samples_path)
    name = f"{run.check(index):04d}"
    folder = run.path / f"reconstructed_{kind}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    save_png(image, folder / f"{name}.png", run.record.png_text(index))
    notes = folder / "reconstruction.json"
    try:
        known = dict(json.loads(notes.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # the first one, or damaged: what we know now is what counts
        known = {}
    known = dict(sorted((known | {name: dict(info)}).items()))
    with atomic_file(notes) as file:
        file.write((json.dumps(known, indent=2, default=str) + "\n").encode())
    return folder / f"{name}.png"


def _check_samples(samples: Path) -> None:
    """Refuse to replace what we did not write: a folder of the user's that happens to be called samples."""
    if samples.is_symlink() or (samples.exists() and not samples.is_dir()):
        raise UserError(f'"{samples}" is no folder: move it away or choose another one with "--outdir"')
    if samples.is_dir() and any(samples.iterdir()) and not (samples / "run.json").is_file():
        raise UserError(
            f'"{samples}" holds files but no run.json, so no earlier run: move it away or choose another "--outdir"'
        )


def _swap(outdir: Path, new: Path) -> None:
    """The old samples out, the new ones in; whatever comes between, Ctrl-C too, brings the old ones back."""
    samples, old = outdir / "samples", outdir / _OLD
    try:
        if samples.exists():
            os.rename(samples, old)
        os.rename(new, samples)
    finally:
        if old.exists() and not samples.exists():
            os.rename(old, samples)
    shutil.rmtree(old, ignore_errors=True)


def _recover(outdir: Path) -> None:
    """Mend what a process that was killed has left: between the two renames, after them, or while it wrote."""
    old, samples = outdir / _OLD, outdir / "samples"
    try:
        if old.is_dir() and not samples.exists():
            os.rename(old, samples)
            logger.warning('"%s" was being replaced when the program was stopped: the earlier run is back', samples)
        elif old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        for part in outdir.glob(f"{_NEW}*"):
            if part.stat().st_mtime < time.time() - 3600:  # younger ones may be another process at work
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise write_error(outdir, error) from error
