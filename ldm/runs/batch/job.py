"""A batch from its rows to their run folders: what `scripts/batch_editing.py` does.

outdir/
  summary.jsonl  index.html       what has become of each row, kept as it goes; of a share summary-3-of-8.jsonl alone
  <name of the row>/              a run folder as of `scripts/text_editing.py`, and its marker, see `store`

A row is done when its run folder is whole and made of the same row; nothing else is remembered, so a batch may be
killed at any moment and started again.

Nothing of this imports torch, which takes half a gigabyte and seconds: only who makes rows, or looks into their
pictures, needs it.
"""

import logging
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

from ldm.backbones import zoo
from ldm.errors import UserError
from ldm.options import subset
from ldm.runs.batch.outcome import Outcome, Profile, outcome_of, quieten, summary_name
from ldm.runs.batch.page import PAGE
from ldm.runs.batch.progress import Progress, check_metrics
from ldm.runs.batch.remote import as_local, is_url, stem_of
from ldm.runs.batch.report import Summary, check_report
from ldm.runs.batch.rows import BadRow, Chunk, Row, Rows, Selection, good, plan, windows
from ldm.runs.batch.site import Files, Site
from ldm.runs.batch.store import LocalStore, Store
from ldm.runs.batch.workers import AUTO, run_workers
from ldm.runs.jobs import BatchJob, EditJob, ModelChoice

logger = logging.getLogger(__name__)

READERS = 8  # threads that look at files before the work


@dataclass(frozen=True)
class BatchResult:
    """How many rows were made now, were there already, and have failed; where it is told; and where the time went."""

    made: int
    found: int
    failed: int
    page: str
    profile: Profile

    def summary(self) -> str:
        """What to print at the end."""
        found = f", {self.found} were there already" if self.found else ""
        kind = "page" if self.page.endswith(PAGE) else "summary"
        return f"rows: {self.made} made, {self.failed} failed{found}\n{self.profile.summary()}\n{kind}: {self.page}"


def run_batch(job: BatchJob, options: Mapping[str, Any]) -> BatchResult:
    """Make the rows that are missing. What goes wrong with a row is reported, and the rest goes on.

    Args:
        options: of an `EditJob`, by name, for the rows that do not give their own.

    Raises:
        UserError: the rows cannot be read, a device cannot be used, the output folder cannot be written or is in use
            by another batch, or the disk is full. What is done stays.
    """
    devices = choose_devices(job.devices)
    selection = Selection.of(job.shard, job.where, job.limit)
    share = share_name(selection)
    check_source(job, share)
    check_metrics(job.metrics)
    rows, waiting = begin(job, options, selection)
    shared = bool(share) or job.engine == "ray" or is_url(as_local(job.outdir))
    site = Site(job.outdir, job.cache, shared, socket.gethostname())
    with _sigterm_as_exit(), site.opened() as files, files.store.held(share):
        check_desk(job, share, files.store)
        summary = Summary(files.store, stem_of(job.rows), share)
        if not share and isinstance(files.store, LocalStore):
            _clear(files.store.desk)
        batch = _Batch(job, files, rows, summary)
        with Progress(lambda: rows.total, job.metrics) as progress:
            batch.progress = progress
            try:
                profile = batch.make(devices, chain([waiting], windows(rows.rest)))
            except BaseException:
                with suppress(UserError):  # on a full disk the page cannot be written either
                    summary.total = max(rows.total, rows.wanted)
                    summary.finish(everything=False)
                raise
        summary.total = rows.wanted if selection.everything else summary.count("done") + summary.count("failed")
        summary.finish(selection.everything or bool(share and not selection.where and selection.limit is None))
    told = files.store.outdir.rstrip("/") + "/" + (summary_name(share) if share else PAGE)
    return BatchResult(progress.made, progress.found, progress.failed, told, profile)


def choose_devices(names: str) -> list[str]:
    """The devices of names with commas between, one for each worker; `AUTO` alone.

    Raises:
        UserError: an empty name.
    """
    devices = [name.strip() for name in names.split(",")]
    if devices != [AUTO] and AUTO in devices:
        raise UserError(f'`devices` "{names}" has {AUTO} among names: give {AUTO} alone, or names')
    if not all(devices):
        raise UserError(f'`devices` "{names}" has an empty name: give for example cuda:0,cuda:1')
    return devices


def check_engine(job: BatchJob) -> None:
    """Refuse what the engine takes no notice of.

    Raises:
        UserError: an option is another engine's.
    """
    if job.engine == "ray":
        if job.devices != AUTO:
            raise UserError(f"`devices={job.devices}` is of this machine: a Ray cluster's workers have a GPU or `cpus`")
        if job.workers == 0:
            raise UserError("`workers=0` makes the rows in this process: leave `engine=ray` out, or allow a worker")
        return
    for name in ("address", "cpus"):
        if (value := getattr(job, name)) is not None:
            raise UserError(f"`{name}={value}` is of a Ray cluster: give `engine=ray` with it, or leave it out")
    if job.workers:
        mend = "give `engine=ray` with it; on this machine there is a worker for each of `devices`, such as cpu,cpu"
        raise UserError(f"`workers={job.workers}` is of a Ray cluster: {mend}")
    if job.workers == 0 and "," in job.devices:
        raise UserError(f"`workers=0` makes the rows in this process, by one device: `devices={job.devices}` are more")


def share_name(selection: Selection) -> str:
    """What the files of a share of the rows have in their names; nothing for all rows."""
    share, shares = selection.shard
    return f"-{share}-of-{shares}" if shares > 1 else ""


def check_source(job: BatchJob, share: str) -> None:
    """Refuse, before anything is read, to replace files of the user's; see `check_report`."""
    if not is_url(as_local(job.outdir)):
        check_report(Path(as_local(job.outdir)), _source(job), share)


def check_desk(job: BatchJob, share: str, store: Store) -> None:
    """The same for an output folder behind a URL, whose summary and page this brings to the desk."""
    for name in (summary_name(share), PAGE):
        store.fetch(name)
    check_report(store.desk, _source(job), share)


def _source(job: BatchJob) -> Path:
    return Path() if is_url(as_local(job.rows)) else Path(as_local(job.rows))


def folder_of(job: BatchJob) -> Path:
    """The output folder; of one behind a URL, workers give each row a folder of their own."""
    outdir = as_local(job.outdir)
    return Path() if is_url(outdir) else Path(outdir)


class Rest(Rows):
    """Rows of which the first have been taken already."""

    rest: Iterator[Row | BadRow]


def begin(job: BatchJob, options: Mapping[str, Any], selection: Selection) -> tuple[Rest, list[Row | BadRow]]:
    """The rows, and the first window of them: the command line's own mistakes are found before anything is written."""
    check_engine(job)
    EditJob(**{"prompt": "", "init_image": Path("image"), "mask": Path("mask"), **options})
    rows = Rest(job.rows, folder_of(job), options, selection)
    rows.rest = iter(rows)
    first = next(windows(rows.rest), [])
    asked = ModelChoice(**subset(ModelChoice, options))
    if any(
        isinstance(edit := row.job, EditJob)
        and (edit.model, edit.config, edit.ckpt) == (asked.model, asked.config, asked.ckpt)
        for row in good(first)
    ):
        zoo.resolve(**asked.named)  # the command line's own mistake, and no row's
    quieten()
    return rows, first


class _Batch:
    """The rows that are being made."""

    progress: Progress

    def __init__(self, job: BatchJob, files: Files, rows: Rows, summary: Summary):
        self.job, self.files, self.rows, self.summary = job, files, rows, summary
        self.told = False  # that runs are replaced

    def make(self, devices: Sequence[str], waiting: Iterator[list[Row | BadRow]]) -> Profile:
        """Make rows by workers in processes of their own, or by one in this."""
        chunks = self._chunks(waiting)
        if (first := next(chunks, None)) is None:  # then no engine need be started
            return Profile()
        chunks = chain([first], chunks)
        site = self.files.site
        if self.job.engine == "ray":
            from ldm.runs.batch.cluster import run_cluster

            return run_cluster(self.job, site, chunks, self._report)
        if self.job.workers == 0:
            from ldm.runs.batch.work import Worker, devices_here

            device = devices_here()[0] if devices == [AUTO] else devices[0]
            return Worker(device, self.job.batch_size, self.files, self._report).run(chunks)
        return run_workers(devices, self.job.batch_size, site, chunks, self._report)

    def _chunks(self, waiting: Iterator[list[Row | BadRow]]) -> Iterator[Chunk]:
        """What there is to make, a window of rows at a time; what there is not is told by the way."""
        with ThreadPoolExecutor(READERS) as pool:
            for window in waiting:
                looks = list(pool.map(self.files.look, good(window)))
                known = {row.number: marker for row, (marker, _) in zip(good(window), looks, strict=True)}
                self._tell_of_others(row for row, (_, other) in zip(good(window), looks, strict=True) if other)
                todo: list[Row] = []
                for row in window:
                    if isinstance(row, BadRow):
                        self._report(_bad(row))
                    elif (marker := known[row.number]) and (outcome := self.files.outcome(row, marker)):
                        self._report(outcome, made=False)
                    elif row.name in self.summary.set_aside and not self.job.retry_failed:
                        self._report(_set_aside(row))
                    else:
                        todo.append(row)
                if isinstance(self.files.store, LocalStore):
                    for row in todo:
                        _clear(row.folder)
                yield from plan(todo, self.job.batch_size)

    def _tell_of_others(self, rows: Iterator[Row]) -> None:
        """Say it once, before it is done, where a run of other options, files or weights is replaced."""
        row = None if self.told else next(rows, None)
        if row is not None:
            self.told = True
            what = "was made of other options, files or weights, perhaps as others were"
            logger.warning("row %d %s: it is made again, in the place of what is there", row.number, what)

    def _report(self, outcome: Outcome, made: bool = True) -> None:
        if outcome.status == "failed":
            logger.error("row %d: %s", outcome.row, outcome.error)
        self.progress.note(outcome, made)
        self.summary.total = max(self.rows.total, self.rows.wanted)
        self.summary.add(outcome)


def _clear(folder: Path) -> None:
    """Remove what a killed batch was writing."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if not path.name.startswith(".samples.new-") and not re.fullmatch(r"\.[0-9a-f]{12}\.part", path.name):
            continue
        if path.is_dir():  # a run, or `check_writable`'s probe
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _bad(row: BadRow) -> Outcome:
    given = {name: row.given.get(name) for name in ("prompt", "image", "mask")}
    given["image"] = given["image"] or row.given.get("init_image")
    texts: dict[str, Any] = {name: None if value is None else str(value) for name, value in given.items()}
    return Outcome(row.number, row.name, "failed", **texts, error=row.error)


def _set_aside(row: Row) -> Outcome:
    error = "it has killed two workers, and was not tried again: `retry_failed` does"
    return outcome_of(row, "failed", error=error, set_aside=True)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """A schedulers' SIGTERM ends the batch as Ctrl-C does: what has been sampled is written, and the folder is free."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
