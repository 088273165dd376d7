"""One worker of a batch: reads, samples and writes rows on one device, the files beside the sampling."""

import errno
import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from time import perf_counter
from typing import Any

from PIL import Image

from ldm.backbones import zoo
from ldm.backbones.words import unknown_words
from ldm.editing.edit import edit_tasks
from ldm.editing.editor import Editor
from ldm.editing.result import EditResult, EditTask
from ldm.errors import OutOfMemory, UserError
from ldm.files import file_sha256
from ldm.runs.batch.report import Outcome, check_thumbnails, save_thumbnails
from ldm.runs.batch.rows import Chunk, Row
from ldm.runs.edit import write_result
from ldm.runs.folder import check_run
from ldm.runs.jobs import EditJob
from ldm.runs.video import require_video_writer
from ldm.util import choose_device

logger = logging.getLogger(__name__)

READERS, WRITERS = 2, 2  # threads; Pillow leaves the interpreter alone while it reads and compresses
UNWRITTEN = 4  # rows that have been sampled and may wait for a writer: their pictures are in memory


class DiskFullError(UserError):
    """No row can be written any more."""


@dataclass
class Profile:
    """Where a worker's time went, in seconds.

    total: all of it, of which `loading` models, `waiting` for rows to be read or written, and `sampling`. `reading`
    and `writing` ran beside.
    """

    total: float = 0.0
    loading: float = 0.0
    waiting: float = 0.0
    sampling: float = 0.0
    reading: float = 0.0
    writing: float = 0.0

    def __add__(self, other: "Profile") -> "Profile":
        return Profile(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def summary(self) -> str:
        """What to print at the end."""
        at_work = self.total - self.loading
        share = self.sampling / at_work if at_work else 0.0
        return (
            f"loading {self.loading:.1f} s, then {at_work:.1f} s: sampling {share:.0%} of it, waiting for files "
            f"{self.waiting:.1f} s; beside it reading {self.reading:.1f} s, writing {self.writing:.1f} s"
        )


@dataclass(frozen=True)
class _Ready:
    """A row whose files have been read."""

    row: Row
    task: EditTask
    digest: str
    seconds: float


def row_digest(job: EditJob) -> str:
    """SHA-256 of all that decides what a row's run holds: its options, the content of its files, and the weights.

    Not of paths and device: a batch may be moved.

    Raises:
        UserError: a file cannot be read, or there is no such model.
    """
    files = zoo.resolve(**job.named)
    elsewhere = ("init_image", "mask", "outdir", "overwrite", "model", "config", "ckpt", "device")
    settings = {name: value for name, value in asdict(job).items() if name not in elsewhere}
    try:
        content = [file_sha256(path) for path in (job.init_image, job.mask)]
    except OSError as error:
        raise UserError(f'"{error.filename}" cannot be read ({error.strerror}): check the path') from error
    about = [settings, files.digest(), content]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def failure(row: Row, error: Exception) -> Outcome:
    """The outcome of a row that came to nothing. What is not the user's to mend is logged as a whole."""
    expected = isinstance(error, UserError)
    text = str(error) if expected else f"{type(error).__name__}: {' '.join(str(error).split())}"
    logger.error("row %d: %s", row.number, text, exc_info=None if expected else error)
    return _outcome(row, "failed", error=text)


class Worker:
    """Makes rows on a device.

    Args:
        device: see `choose_device`. batch_size: predictions sampled at a time, halved where memory does not suffice.
        report: told of each row when it is on disk or has failed, in the thread that calls `run`.
    """

    def __init__(self, device: str, batch_size: int, report: Callable[[Outcome], None]):
        self.device = choose_device(device)
        self.batch_size, self.report = batch_size, report
        self.profile = Profile()
        self.editor: Editor | UserError | None = None
        self.unwritten: deque[tuple[Row, Future[Outcome]]] = deque()

    def run(self, chunks: Iterable[Chunk]) -> Profile:
        """Make the rows, those of a chunk together. A bad one is reported, and the rest goes on.

        Whatever ends it, Ctrl-C too: what has been sampled is written and reported.

        Raises:
            DiskFullError: then what has been reported is on disk, whole.
        """
        start = perf_counter()
        with ThreadPoolExecutor(READERS) as self.readers, ThreadPoolExecutor(WRITERS) as self.writers:
            try:
                for _, group in groupby(chunks, key=lambda chunk: chunk[0].model):
                    self._run_model(group)
            finally:
                self.readers.shutdown(wait=False, cancel_futures=True)
                self._collect(0)
        self.profile.total = perf_counter() - start
        return self.profile

    def _run_model(self, chunks: Iterator[Chunk]) -> None:
        """Make the rows of one model. It is loaded when the first row is ready: bad rows alone need none."""
        start, chunk = perf_counter(), next(chunks)
        outline, self.editor = outline_editor(chunk[0]), None
        self.profile.loading += perf_counter() - start
        ahead = self._read(outline, chunk)
        while ahead:
            rows, chunk = ahead, next(chunks, ())
            ahead = self._read(outline, chunk)  # while those before are sampled, or the model is loaded
            self._run_chunk(rows)

    def _read(self, outline: Editor | UserError, chunk: Chunk) -> list[tuple[Row, Future[_Ready]]]:
        return [(row, self.readers.submit(_read_row, outline, row)) for row in chunk]

    def _run_chunk(self, reading: Sequence[tuple[Row, Future[_Ready]]]) -> None:
        start = perf_counter()
        ready: list[_Ready] = []
        for row, future in reading:
            try:
                ready.append(future.result())
            except Exception as error:
                self.report(failure(row, error))
        waited = perf_counter() - start
        self.profile.waiting += waited
        self.profile.reading += sum(one.seconds for one in ready)
        if not ready:
            return
        if self.editor is None:
            self.editor = self._load(ready[0].row)
        if isinstance(self.editor, UserError):
            for one in ready:
                self.report(failure(one.row, self.editor))
            return
        sizes: dict[tuple[int, int], list[_Ready]] = {}  # of one, unless they are left to the masks
        for one in ready:
            sizes.setdefault(one.task.canvas.size, []).append(one)
        for group in sizes.values():
            self._sample(self.editor, group, waited / len(ready))

    def _load(self, row: Row) -> Editor | UserError:
        """The model of a row, or what is wrong with it, which need be found only once."""
        start = perf_counter()
        try:
            editor = Editor.load(**row.job.loading, device=str(self.device))
        except UserError as error:
            return error
        else:
            editor.begin_identity()
            return editor
        finally:
            self.profile.loading += perf_counter() - start

    def _sample(self, editor: Editor, ready: Sequence[_Ready], waited: float) -> None:
        start = perf_counter()
        try:
            results = self._edit(editor, ready)
        except Exception as error:
            if len(ready) == 1:
                self.report(failure(ready[0].row, error))
                return
            results = None
        seconds = perf_counter() - start
        self.profile.sampling += seconds
        if results is None:  # for one of the rows: each alone then
            for one in ready:
                self._sample(editor, [one], waited)
            return
        per_prediction = seconds / sum(one.row.predictions for one in ready)
        for one, result in zip(ready, results, strict=True):
            times = {"reading": one.seconds, "waiting": waited, "sampling": per_prediction * one.row.predictions}
            # Not in the writers' threads, whose tokenizer this one uses.
            unknown = unknown_words(editor.model, one.row.job.prompt)
            note = _outcome(
                one.row, "done", unknown_words=unknown, seconds=times, device=str(self.device), digest=one.digest
            )
            self._write(editor, one, result, note)

    def _edit(self, editor: Editor, ready: Sequence[_Ready]) -> list[EditResult]:
        """`edit_tasks`, with smaller batches where memory does not suffice: the pictures stay the same."""
        total, keep_steps = sum(one.row.predictions for one in ready), ready[0].row.job.save_video
        tasks = [one.task for one in ready]
        while True:
            size = min(self.batch_size, total)
            try:
                return edit_tasks(editor.model, tasks, size, editor.ranker, keep_steps=keep_steps)
            except OutOfMemory as error:
                reason = str(error)
            _free_memory()  # here the failed attempt's frames, which held what it had, are gone
            if size == 1:
                raise UserError(reason)
            self.batch_size = size // 2
            logger.warning("out of memory: from now on %d predictions at a time instead of %d", self.batch_size, size)

    def _write(self, editor: Editor, one: _Ready, result: EditResult, note: Outcome) -> None:
        start = perf_counter()
        self._collect(UNWRITTEN - 1)
        self.unwritten.append((one.row, self.writers.submit(_write_row, editor, one, result, note)))
        if one.row.job.save_video:  # its frames are decoded on the device, which would else be used by two threads
            self._collect(0)
        self.profile.waiting += perf_counter() - start

    def _collect(self, left: int) -> None:
        """Report rows that have been written, and wait until no more than `left` have not."""
        while self.unwritten and (len(self.unwritten) > left or self.unwritten[0][1].done()):
            row, future = self.unwritten[0]
            try:
                outcome = future.result()
            except Exception as error:
                if _disk_full(error):
                    raise DiskFullError(f"{error}; what is done stays: the same command goes on from there") from error
                outcome = failure(row, error)
            self.unwritten.popleft()  # now, and not before Ctrl-C could come while it was waited for
            self.profile.writing += outcome.seconds.get("writing", 0.0)
            self.report(outcome)


def outline_editor(row: Row) -> Editor | UserError:
    """What prepares the rows of a row's model, without weights; or what is wrong with that model."""
    try:
        return Editor.outline(zoo.resolve(**row.job.named))
    except UserError as error:
        return error


def prepare_row(outline: Editor | UserError, row: Row) -> EditTask:
    """Read a row's files; all that can be wrong with it is found here.

    Raises:
        UserError: what is wrong.
    """
    if isinstance(outline, UserError):
        raise outline
    job = row.job
    check_run(job.outdir, job.prompt, overwrite=True)
    check_thumbnails(job.outdir)
    if job.save_video:
        require_video_writer()
    return outline.prepare(job.init_image, job.mask, job.request)


def _read_row(outline: Editor | UserError, row: Row) -> _Ready:
    start = perf_counter()
    task = prepare_row(outline, row)
    return _Ready(row, task, row_digest(row.job), perf_counter() - start)


def _write_row(editor: Editor, one: _Ready, result: EditResult, note: Outcome) -> Outcome:
    start = perf_counter()
    canvas = one.task.canvas
    mask = Image.fromarray((canvas.mask[0, 0] * 255).byte().numpy())
    # Before the run itself, which is what tells that the row is done.
    save_thumbnails(one.row.job.outdir, canvas.picture.rgb, mask, result.results)
    write_result(one.row.job, editor, result, {"row": one.digest})
    times = {**note.seconds, "writing": perf_counter() - start}
    seconds = {name: round(time, 3) for name, time in times.items()}
    measures = [measures.info() for measures in result.measures]
    return replace(note, seeds=result.seeds, scores=result.distances, measures=measures, seconds=seconds)


def _outcome(row: Row, status: str, **more: Any) -> Outcome:
    job = row.job
    return Outcome(row.number, row.name, status, job.prompt, str(job.init_image), str(job.mask), **more)


def _free_memory() -> None:
    from pytorch_lightning.utilities.memory import garbage_collection_cuda  # a second to import, and seldom needed

    garbage_collection_cuda()


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error comes of a full disk; the writer of safetensors tells it by its text alone."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error):
            return True
        error = error.__cause__
    return False
