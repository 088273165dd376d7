"""What a run leaves on disk, and how the next step reads it.

    outdir/
      <prompt-slug>.png            the grid of the latest run of that prompt
      samples/                     the latest run, whole: never mixed with another
        run.json  latents.safetensors  videos/0000.mp4
        masks/0000.png ...             the mask of each prediction at the input's size, where any has been fitted
        images/0000.png ...            predictions as the model paints them, at its size
        results/0000.png ...           the same in the input, at the input's size
        assets/                        input and mask as the model saw them, full_mask at the input's size, and
                                       the user's own files as original.* and original_mask.*
        reconstructed_<kind>/0000.png ...  reconstruction.json
      samples.1/  samples.2/ ...   the run before, and the one before that

and of pictures from a prompt alone

    outdir/
      <prompt-slug>.png            the grid
      <prompt-slug>/               the latest run of that prompt
        0000.png ...  run.json  latents.safetensors

`ldm.runs.places` says how a run comes to its place.
"""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image
from safetensors import SafetensorError, safe_open

from ldm.errors import UserError
from ldm.files import atomic_file, write_error
from ldm.imaging.images import load_image, save_png
from ldm.runs.ownership import PICTURES, RUN, check_lock, check_png, run_id
from ldm.runs.places import LOCK, check_place, latest, openable, places, portable, replacing, writing
from ldm.runs.record import RunRecord, portable_path, prompt_slug

if TYPE_CHECKING:
    import torch  # by name alone: who looks for what is done does without

T = TypeVar("T")

_LOOKS = 5  # that a reader takes before a run is missing: it may be between two of a writer's renames


@dataclass(frozen=True)
class Run:
    """A run on disk: its record now, its pictures and latents when they are asked for.

    Attributes:
        path: where it was read; later runs into the same output folder move it on, see `find`.
        record: `config` and `weights` as paths that can be opened.
    """

    path: Path
    record: RunRecord

    def __len__(self) -> int:
        """How many predictions there are."""
        return len(self.record.seeds)

    def check(self, index: int) -> int:
        """The index itself: 0 is the best prediction; negative ones do not count from the end.

        Raises:
            UserError: there is no such prediction.
        """
        if not 0 <= index < len(self):
            there = f"are predictions 0 to {len(self) - 1}" if len(self) > 1 else "is prediction 0 alone"
            raise UserError(f'there is no prediction {index} in "{self.path}": there {there}')
        return index

    def find(self) -> Path:
        """Where the run is now.

        Raises:
            UserError: it has been replaced or removed.
        """
        for _ in range(_LOOKS):
            for place in (self.path, *places(latest(self.path))):
                if run_id(place) == self.record.run_id:
                    return place
            time.sleep(0.01)
        raise UserError(
            f'the run of "{self.record.prompt}" that was in "{self.path}" has been replaced or removed: make it again'
        )

    def read(self, what: Callable[[Path], T]) -> T:
        """What a function reads in the run's folder, and in no other that has come to its place meanwhile.

        Raises:
            UserError: the run has been replaced or removed; and whatever `what` raises.
        """
        while True:
            folder = self.find()
            try:
                value = what(folder)
            except (OSError, UserError):
                if run_id(folder) == self.record.run_id:
                    raise
            else:
                if run_id(folder) == self.record.run_id:
                    return value

    def image(self, index: int) -> Image.Image:
        """Prediction `index`, 0 is the best, as the model painted it."""
        name = f"{self.check(index):04d}.png"
        return self.read(lambda folder: load_image(_images(folder) / name).rgb)

    def asset(self, name: str) -> Path | None:
        """What `write_run` kept under `name` among its assets and originals; None if there is no such file.

        The path holds until a later run moves this one on: open it inside `read`.
        """
        return asset_in(self.find(), name)

    def fitted_mask(self, index: int) -> Path | None:
        """The mask that was fitted to prediction `index`, white where it was edited; None for a run that kept none."""
        path = self.find() / "masks" / f"{self.check(index):04d}.png"
        return path if path.is_file() else None

    def z0(self, index: int) -> "torch.Tensor | None":
        """Its latent (1,c,h,w), times the scale factor as the sampler left it; None for a run that kept none."""
        self.check(index)
        return self.read(lambda folder: _read_z0(folder / "latents.safetensors", index))

    @property
    def input(self) -> Image.Image:
        """The picture as the model saw it."""
        return self.read(lambda folder: load_image(folder / "assets" / "input.png").rgb)

    @property
    def mask(self) -> Image.Image:
        """The mask as used, mode L: white is what was edited, inversion already done."""
        return self.read(lambda folder: load_image(folder / "assets" / "mask.png").rgb.convert("L"))


def _read_z0(path: Path, index: int) -> "torch.Tensor | None":
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return file.get_slice("z0")[index : index + 1]
    except (SafetensorError, OSError) as error:
        raise UserError(f'"{path}" is damaged ({error}): make the run again') from error


def asset_in(folder: Path, name: str) -> Path | None:
    """The file that a run's folder keeps under a name, whatever its suffix: the user's own may have none."""
    return next((path for path in sorted((folder / "assets").glob(f"{name}*")) if path.stem == name), None)


def _images(folder: Path) -> Path:
    """Where a run keeps its predictions: of pictures from a prompt alone, beside the record."""
    return folder / "images" if (folder / "images").is_dir() else folder


def check_writable(outdir: str | os.PathLike) -> None:
    """Make sure, before any work is done, that a folder can be made and written; leaves nothing behind.

    Raises:
        UserError: it cannot.
    """
    outdir = Path(outdir)
    nearest = next((p for p in (outdir, *outdir.absolute().parents) if os.path.lexists(p)), outdir)
    probe = nearest / f".{uuid.uuid4().hex[:12]}.part"
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            outdir.lstat()  # of a name that is too long
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise write_error(outdir, error) from error


def check_run(outdir: str | os.PathLike, prompt: str, overwrite: bool = False) -> None:
    """Make sure, before any work is done, that `write_run` can do its part; leaves nothing behind.

    Raises:
        UserError: the folder cannot be made or written, or a file of the user's lies where the run or its grid goes.
    """
    check_writable(outdir)
    check_place(Path(outdir) / "samples", RUN, prompt, overwrite)


def check_pictures(outdir: str | os.PathLike, prompt: str, overwrite: bool = True) -> None:
    """As `check_run`, for `write_pictures`."""
    check_writable(outdir)
    check_place(Path(outdir) / prompt_slug(prompt), PICTURES, prompt, overwrite)


def check_reconstruction(run: Run, kind: str, indices: Sequence[int]) -> None:
    """Make sure, before any work is done, that `write_reconstruction` can do its part; leaves nothing behind.

    Raises:
        UserError: no such predictions, the run is gone, its folder cannot be written, or files of the user's lie there.
    """
    folder = run.find() / f"reconstructed_{kind}"
    for path in (folder, run.path.parent):
        check_writable(path)
    check_lock(run.path.parent / LOCK)
    for index in indices:
        check_png(folder / f"{run.check(index):04d}.png", "prediction")


def write_run(
    outdir: str | os.PathLike,
    record: RunRecord,
    grid: Image.Image,
    images: Sequence[Image.Image],
    results: Sequence[Image.Image],
    latents: "torch.Tensor",
    assets: Mapping[str, Image.Image],
    originals: Mapping[str, str | os.PathLike] | None = None,
    videos: Sequence[str | os.PathLike] | None = None,
    overwrite: bool = False,
    masks: Sequence[Image.Image] | None = None,
) -> Path:
    """Write a run as `samples`, as a whole; until then the one before stays as it is, and then is `samples.1`.

    Args:
        outdir: made if it is missing.
        record: with as many seeds as there are images. Its `config` and `weights` are those of a model without a name,
            and are kept relative to the run; where that would tell of the user's folders, their names alone.
        grid: goes to `<prompt-slug>.png`.
        images: the predictions in rank order, at the model's size.
        results: the same in their picture, at its size.
        latents: their z0 (n,c,h,w), in the same order.
        assets: pictures by name; `input` and `mask` are what `Run` reads.
        originals: files to be copied in beside them, by name without suffix.
        videos: files to be copied in, in the order of the predictions.
        overwrite: the run before is removed.
        masks: of each prediction, at the input's size, where they are not the same for all.

    Returns:
        The `samples` folder.

    Raises:
        UserError: the folder cannot be written, or holds files of the user's where the run goes.
        ValueError: the numbers of seeds, images, results, latents, videos and masks differ.
    """
    _check_counts(record.seeds, images, results, latents, *(some for some in (videos, masks) if some is not None))
    samples = Path(outdir) / "samples"
    with replacing(samples, RUN, record, grid, overwrite) as (new, record):
        for folder, pictures in (("images", images), ("results", results), ("masks", masks or ())):
            for i, image in enumerate(pictures):
                (new / folder).mkdir(exist_ok=True)
                save_png(image, new / folder / f"{i:04d}.png", record.png_text(i))
        (new / "assets").mkdir()
        for name, image in assets.items():
            save_png(image, new / "assets" / f"{name}.png")
        for name, path in (originals or {}).items():
            shutil.copyfile(path, new / "assets" / f"{name}{Path(path).suffix.lower()}")
        for i, video in enumerate(videos or ()):
            (new / "videos").mkdir(exist_ok=True)
            shutil.copyfile(video, new / "videos" / f"{i:04d}{Path(video).suffix}")
        _save_z0(latents, new)
    return samples


def write_pictures(
    outdir: str | os.PathLike,
    record: RunRecord,
    grid: Image.Image,
    images: Sequence[Image.Image],
    latents: "torch.Tensor",
    overwrite: bool = True,
) -> Path:
    """Write a run that edited nothing as `<prompt-slug>`, as a whole, in the place of that prompt's run before.

    Args:
        outdir, record, grid, images, latents: as of `write_run`.
        overwrite: False keeps the run before as `<prompt-slug>.1`.

    Returns:
        The folder of the pictures.

    Raises:
        UserError: the folder cannot be written, or holds files of the user's where the pictures go.
        ValueError: the numbers of seeds, images and latents differ.
    """
    _check_counts(record.seeds, images, latents)
    folder = Path(outdir) / prompt_slug(record.prompt)
    with replacing(folder, PICTURES, record, grid, overwrite) as (new, record):
        for i, image in enumerate(images):
            save_png(image, new / f"{i:04d}.png", record.png_text(i))
        _save_z0(latents, new)
    return folder


def read_run(samples_path: str | os.PathLike) -> Run:
    """The run in a `samples` folder, or the latest one in the output folder above it. Changes nothing.

    Raises:
        UserError: there is none, or its record is damaged or of a newer format.
    """
    path = Path(samples_path)
    if path.name in ("", "..") or path.is_symlink():  # so that its neighbours are the run's
        path = path.resolve()
    for look in range(_LOOKS):
        for folder in chain([path], places(path / "samples"), places(path)):
            try:
                text = (folder / "run.json").read_text(encoding="utf-8")
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f'"{folder / "run.json"}" cannot be read ({error}): make the run again') from error
            return Run(folder, openable(RunRecord.from_json(text, folder / "run.json"), folder))
        time.sleep(0.01 * look)
    raise UserError(
        f'no run in "{path}" (no run.json): make one with scripts/text_editing.py, or name its samples folder'
    )


def write_reconstruction(run: Run, kind: str, index: int, image: Image.Image, info: Mapping[str, Any]) -> Path:
    """Keep a reconstruction beside its run, wherever that is by now, under the index of its prediction.

    `info` joins those of the other indices in `reconstruction.json`, under "0005" for index 5; paths in it become
    portable ones.

    Returns:
        The picture's path, `reconstructed_<kind>/0005.png`.

    Raises:
        UserError: the run has been replaced or removed, there is no such prediction, or the folder cannot be written.
        ValueError: `kind` is no word of a-z and "_".
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", kind):
        raise ValueError(f"{kind!r} is no kind of reconstruction")
    name = f"{run.check(index):04d}"
    with writing(run.path.parent):
        folder = run.find() / f"reconstructed_{kind}"
        check_png(folder / f"{name}.png", "prediction")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        save_png(image, folder / f"{name}.png", portable(run.record, folder.parent).png_text(index))
        notes = folder / "reconstruction.json"
        try:
            known = dict(json.loads(notes.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # the first one, or damaged: what we know now is what counts
            known = {}
        known[name] = {key: portable_path(value) if isinstance(value, Path) else value for key, value in info.items()}
        with atomic_file(notes) as file:
            file.write((json.dumps(dict(sorted(known.items())), indent=2, default=str) + "\n").encode())
    return folder / f"{name}.png"


def _check_counts(*parts: "Sequence[Any] | torch.Tensor") -> None:
    counts = {*map(len, parts)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"as many seeds, images, results, latents and videos are needed, not {sorted(counts)}")


def _save_z0(latents: "torch.Tensor", folder: Path) -> None:
    from ldm.checkpoint import save_safetensors

    save_safetensors({"z0": latents.detach().float().cpu().contiguous()}, folder / "latents.safetensors")
