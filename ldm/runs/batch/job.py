"""A batch from its rows to their run folders: what `scripts/batch_editing.py` does.

outdir/
  summary.jsonl  index.html       what has become of each row, kept as it goes
  <name of the row>/              a run folder as of `scripts/text_editing.py`

A row is done when its run folder is whole and made of the same row; nothing else is remembered, so a batch may be
killed at any moment and started again.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ldm.backbones import zoo
from ldm.editing.editor import Editor
from ldm.errors import UserError
from ldm.files import write_error
from ldm.options import subset
from ldm.runs.batch.report import PAGE, Outcome, Summary, check_report, read_summary
from ldm.runs.batch.rows import BadRow, Row, good, plan, read_rows
from ldm.runs.batch.work import Profile, Worker, outline_editor, prepare_row, row_digest
from ldm.runs.batch.workers import run_workers
from ldm.runs.folder import Run, check_writable, read_run
from ldm.runs.jobs import BatchJob, EditJob, ModelChoice
from ldm.runs.places import locked
from ldm.runs.record import prompt_slug

logger = logging.getLogger(__name__)

_READERS = 4  # threads that look at files before the work


@dataclass(frozen=True)
class BatchResult:
    """How many rows were made now, were there already, and have failed; the page; and where the time went."""

    made: int
    found: int
    failed: int
    page: Path
    profile: Profile

    def summary(self) -> str:
        """What to print at the end."""
        found = f", {self.found} were there already" if self.found else ""
        return f"rows: {self.made} made, {self.failed} failed{found}\n{self.profile.summary()}\npage: {self.page}"


@dataclass(frozen=True)
class BatchCheck:
    """What a batch would do: its rows, the errors of the bad ones, how many are done, and how many batches to come."""

    rows: int
    errors: Sequence[str]
    found: int
    batches: int

    def summary(self) -> str:
        """What to print at the end."""
        todo = self.rows - self.found - len(self.errors)
        return f"rows: {todo} to make in {self.batches} batches, {self.found} done, {len(self.errors)} bad"


def run_batch(job: BatchJob, options: Mapping[str, Any]) -> BatchResult:
    """Make the rows that are missing. What goes wrong with a row is reported, and the rest goes on.

    Args:
        options: of an `EditJob`, by name, for the rows that do not give their own.

    Raises:
        UserError: the rows cannot be read, a device cannot be used, the output folder cannot be written or is in use
            by another batch, or the disk is full. What is done stays.
    """
    devices = choose_devices(job.devices)
    check_report(job.outdir, job.rows)
    rows = _read(job, options)
    with _held(job.outdir):
        found = find_done(rows)
        todo = [row for row in good(rows) if row.number not in found]
        _clear(job.outdir, todo)
        bad = [_bad(row) for row in rows if isinstance(row, BadRow)]
        summary = Summary(job.outdir, job.rows.name, len(rows), [*_known(job.outdir, rows, found), *bad])
        try:
            profile = _make(job, devices, todo, summary)
        except BaseException:
            with suppress(UserError):  # on a full disk the page cannot be written either
                summary.write_page()
            raise
        summary.write_page()
    failed = summary.count("failed")
    return BatchResult(summary.count("done") - len(found), len(found), failed, job.outdir / PAGE, profile)


def check_batch(job: BatchJob, options: Mapping[str, Any]) -> BatchCheck:
    """Look at all rows and their files as the batch would use them, without weights; writes nothing.

    Args:
        options: as of `run_batch`.

    Raises:
        UserError: the rows cannot be read.
    """
    rows = _read(job, options)
    found = find_done(rows)
    todo = [row for row in good(rows) if row.number not in found]
    outlines = {model: outline_editor(row) for model, row in {row.model: row for row in todo}.items()}
    with ThreadPoolExecutor(_READERS) as pool:
        looks = pool.map(lambda row: _look(outlines[row.model], row), todo)
        errors = {row.number: error for row, error in zip(todo, looks, strict=True)}
    fine = [row for row in todo if errors[row.number] is None]
    batches = sum(-(-sum(row.predictions for row in chunk) // job.batch_size) for chunk in plan(fine, job.batch_size))
    errors |= {row.number: row.error for row in rows if isinstance(row, BadRow)}
    lines = [f"row {number}: {error}" for number, error in sorted(errors.items()) if error is not None]
    return BatchCheck(len(rows), lines, len(found), batches)


def choose_devices(names: str) -> list[str]:
    """The devices of "auto" or of names with commas between, one for each worker.

    Raises:
        UserError: an empty name.
    """
    if names == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["auto"]
    devices = [name.strip() for name in names.split(",")]
    if not all(devices):
        raise UserError(f'`devices` "{names}" has an empty name: give for example cuda:0,cuda:1')
    return devices


def find_done(rows: Sequence[Row | BadRow]) -> dict[int, Run]:
    """The runs of the rows that have been made already, by the rows' numbers."""
    with ThreadPoolExecutor(_READERS) as pool:
        runs = pool.map(_run_of, good(rows))
        return {row.number: run for row, run in zip(good(rows), runs, strict=True) if run is not None}


def _run_of(row: Row) -> Run | None:
    """The run of a row, where it is whole and of the same options and files."""
    grid = row.job.outdir / f"{prompt_slug(row.job.prompt)}.png"
    if not (grid.is_file() and row.job.outdir.joinpath("samples", "run.json").is_file()):
        return None
    try:
        run = read_run(row.job.outdir)
        return run if run.record.options.get("row") == row_digest(row.job) else None
    except UserError:  # no run, or its row cannot be read any more: the worker tells why
        return None


def _read(job: BatchJob, options: Mapping[str, Any]) -> list[Row | BadRow]:
    EditJob(**{"prompt": "", "init_image": job.rows, "mask": job.rows, **options})  # the command line's own mistakes
    rows = read_rows(job.rows, job.outdir, options)
    asked = ModelChoice(**subset(ModelChoice, options))
    if any(
        (row.job.model, row.job.config, row.job.ckpt) == (asked.model, asked.config, asked.ckpt) for row in good(rows)
    ):
        zoo.resolve(**asked.named)  # the command line's own mistake, and no row's
    logging.getLogger("ldm").setLevel(logging.WARNING)  # what is said of an edit alone would be said for each row
    return rows


@contextmanager
def _held(outdir: Path) -> Iterator[None]:
    """The output folder, for this process alone; the lock goes with the process, however that ends."""
    check_writable(outdir)
    try:
        outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(outdir, error) from error
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(outdir / ".lock", timeout=0))
        except Timeout as error:
            raise UserError(
                f'another batch is at work in "{outdir}": wait for its end or choose another `outdir`'
            ) from error
        yield


def _clear(outdir: Path, rows: Sequence[Row]) -> None:
    """Remove what a killed batch was writing."""
    for folder in (outdir, *(row.job.outdir for row in rows)):
        for path in folder.glob(".*") if folder.is_dir() else ():
            if not path.name.startswith(".samples.new-") and not re.fullmatch(r"\.[0-9a-f]{12}\.part", path.name):
                continue
            if path.is_dir():  # a run, or `check_writable`'s probe
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _known(outdir: Path, rows: Sequence[Row | BadRow], found: Mapping[int, Run]) -> Iterator[Outcome]:
    """The outcomes of the rows that are done: as they were noted, or where the note was lost, from the runs."""
    noted = {(one.name, one.digest): one for one in read_summary(outdir) if one.status == "done"}
    for row in good(rows):
        if row.number not in found:
            continue
        record = found[row.number].record
        values = {
            "prompt": record.prompt,
            "image": str(row.job.init_image),
            "mask": str(row.job.mask),
            "seeds": record.seeds,
            "scores": record.scores,
            "measures": record.measures,
            "digest": record.options["row"],
        }
        note = noted.get((row.name, values["digest"]))
        if note is not None:
            values |= {"unknown_words": note.unknown_words, "seconds": note.seconds, "device": note.device}
        yield Outcome(row.number, row.name, "done", **values)


def _bad(row: BadRow) -> Outcome:
    logger.error("row %d: %s", row.number, row.error)
    given = {name: row.given.get(name) for name in ("prompt", "image", "mask")}
    given["image"] = given["image"] or row.given.get("init_image")
    texts: dict[str, Any] = {name: None if value is None else str(value) for name, value in given.items()}
    return Outcome(row.number, row.name, "failed", **texts, error=row.error)


def _make(job: BatchJob, devices: Sequence[str], todo: Sequence[Row], summary: Summary) -> Profile:
    """Make rows by one worker here or by several elsewhere."""
    chunks = plan(todo, job.batch_size)
    if not chunks:
        return Profile()
    devices = devices[: len(chunks)]
    log = logging_redirect_tqdm([logging.getLogger("ldm")])
    with log, tqdm(total=len(todo), desc="rows", unit="row", disable=None) as bar:

        def report(outcome: Outcome) -> None:
            summary.add(outcome)
            bar.update()

        if len(devices) == 1:
            return Worker(devices[0], job.batch_size, report).run(chunks)
        return run_workers(devices, job.batch_size, chunks, report)


def _look(outline: Editor | UserError, row: Row) -> str | None:
    """What is wrong with a row; None for nothing."""
    try:
        prepare_row(outline, row)
    except UserError as error:
        return str(error)
    return None
