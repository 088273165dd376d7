"""Putting a run in its place beside the ones before, so that a kill at any moment loses none.

A run is built in a hidden folder, `.samples.new-...`, and comes to its place by renames: samples.1 -> samples.2,
samples -> samples.1, the new one -> samples. A process that is killed between two of them leaves a gap in the
numbers, which is where the next run's renames begin. To a reader the latest run is `samples`, or while there is none
`.samples.old` (which is being replaced) or the lowest number. Writers of a folder wait for one another (`.run.lock`);
readers never wait, and change nothing.
"""

import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, count, takewhile
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

from ldm.files import write_error
from ldm.imaging.images import save_png
from ldm.runs.ownership import check_folder, check_lock, check_png, is_free
from ldm.runs.record import FORMAT, RunRecord, prompt_slug

logger = logging.getLogger(__name__)

LOCK = ".run.lock"


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock, an empty file that stays; it goes with the process, however that ends.

    Args:
        path: its folder exists. timeout: seconds to wait for another holder; -1 waits until it is done.

    Raises:
        UserError: it cannot be written, or a file of the user's lies there.
        filelock.Timeout: another holds it.
    """
    check_lock(path)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(1 if timeout < 0 else timeout)
        except Timeout:
            if timeout >= 0:
                raise
            logger.warning('another program is writing to "%s": waiting until it is done', path.parent)
            lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(outdir: Path) -> Iterator[None]:
    """The runs of an output folder, for this writer alone."""
    outdir.mkdir(parents=True, exist_ok=True)
    with locked(outdir / LOCK):
        yield


@contextmanager
def replacing(
    folder: Path, layout: re.Pattern[str], record: RunRecord, grid: Image.Image, overwrite: bool
) -> Iterator[tuple[Path, RunRecord]]:
    """A new folder to be filled and the record as it is kept; when the block ends well it is the run in `folder`."""
    outdir, slug = folder.parent, prompt_slug(record.prompt)
    record = portable(record, folder)
    try:
        with writing(outdir):
            _sweep(folder)
            check_place(folder, layout, record.prompt, overwrite)
            staging = outdir / f"{_staging(folder)}{uuid.uuid4().hex[:12]}"
            try:
                new = staging / folder.name
                new.mkdir(parents=True)
                yield new, record
                save_png(grid, staging / "grid.png", record.grid_text())
                (new / "run.json").write_text(record.to_json(), encoding="utf-8", errors="replace")
                _swap(folder, new, overwrite)
                os.replace(staging / "grid.png", outdir / f"{slug}.png")
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise write_error(outdir, error) from error


def _swap(folder: Path, new: Path, overwrite: bool) -> None:
    """Move the runs of `folder` on, or the latest away, and the new one in. What goes wrong is undone."""
    if overwrite and not is_free(folder):
        moves = [(folder, _old(folder))]
    else:
        moves = [(run, _older(folder, number)) for number, run in enumerate(_chain(folder), 1)][::-1]
    moves.append((new, folder))
    free = moves[0][1]
    try:
        if free.is_dir():  # and empty, or it would be moved
            free.rmdir()
        for source, target in moves:
            os.rename(source, target)
    except BaseException:
        for source, target in reversed(moves):
            if target.exists() and not source.exists():
                os.rename(target, source)
        raise
    with suppress(OSError):  # nothing was replaced; or the next writer removes it
        os.rename(_old(folder), new)  # where all is removed at the end


def check_place(folder: Path, layout: re.Pattern[str], prompt: str, overwrite: bool) -> None:
    """Refuse to move or replace what we did not make."""
    check_lock(folder.parent / LOCK)
    check_png(folder.parent / f"{prompt_slug(prompt)}.png", "grid")
    for run in [folder] if overwrite else _chain(folder):
        check_folder(run, layout, whole=overwrite)


def _sweep(folder: Path) -> None:
    """Clear what a writer that was killed has left; there is none at work but the caller."""
    old = _old(folder)
    if old.is_dir() and is_free(folder):
        with suppress(FileNotFoundError):
            folder.rmdir()
        os.rename(old, folder)
        logger.warning('"%s" was being replaced when the program was stopped: the earlier run is back', folder)
    for left in (old, *folder.parent.glob(f"{_staging(folder)}*")):
        shutil.rmtree(left, ignore_errors=True)


# ---- the places of runs


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _staging(folder: Path) -> str:
    return f".{folder.name}.new-"


def _older(folder: Path, number: int) -> Path:
    return folder.with_name(f"{folder.name}.{number}")


def _chain(folder: Path) -> list[Path]:
    """`folder`, `folder.1` ..., up to the first that is free: what moves on when a run is added."""
    places = chain([folder], (_older(folder, number) for number in count(1)))
    return list(takewhile(lambda place: not is_free(place), places))


def latest(place: Path) -> Path:
    """The folder whose latest run a place was, or an older one."""
    match = re.fullmatch(r"\.(.+)\.old|(.+)\.[1-9]\d*", place.name)
    return place.with_name(match[1] or match[2]) if match else place


def places(folder: Path) -> Iterator[Path]:
    """Where the runs of `folder` may be, the latest first."""
    if not folder.name:  # the root
        return
    yield folder
    yield _old(folder)
    name = re.compile(re.escape(folder.name) + r"\.([1-9]\d*)")
    with suppress(OSError):
        found = (name.fullmatch(path.name) for path in folder.parent.iterdir())
        yield from (_older(folder, number) for number in sorted(int(match[1]) for match in found if match))


# ---- files of a model without a name


def portable(record: RunRecord, folder: Path) -> RunRecord:
    """The record with the model's files relative to the run's folder, as it may travel."""
    return replace(_with_files(record, lambda path: _relative(path, folder)), format=FORMAT)


def _with_files(record: RunRecord, place: Callable[[str], str]) -> RunRecord:
    """The record with its paths of the model's files, where it has any, given as `place` gives them."""
    config, weights = (place(path) if path else path for path in (record.config, record.weights))
    return replace(record, config=config, weights=weights)


def _relative(path: str, folder: Path) -> str:
    here, there = (Path(p).resolve() for p in (folder, path))
    try:
        common = Path(os.path.commonpath([here, there]))
    except ValueError:  # two drives
        return there.name
    home = Path.home()
    return there.name if common in home.parents else Path(os.path.relpath(there, here)).as_posix()


def openable(record: RunRecord, folder: Path) -> RunRecord:
    """The record with the model's files as paths from here; those of format 2 are as they are."""
    if record.format < FORMAT:
        return record
    return _with_files(record, lambda path: str((folder / path).resolve()))
