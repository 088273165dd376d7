"""One worker of a batch: reads, samples and writes rows on one device, the files beside the sampling."""

import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from ldm.backbones import zoo
from ldm.backbones.words import unknown_words
from ldm.editing.edit import edit_tasks
from ldm.editing.editor import Editor
from ldm.editing.result import EditResult, EditTask
from ldm.errors import OutOfMemory, UserError
from ldm.runs.batch.outcome import Outcome, Profile, failure, outcome_of
from ldm.runs.batch.rows import Chunk, Row
from ldm.runs.batch.site import Files, content_of, digest_of, stamps_of
from ldm.runs.batch.store import Marker
from ldm.runs.batch.thumbnails import check_thumbnails, save_thumbnails
from ldm.runs.edit import write_result
from ldm.runs.folder import check_run
from ldm.runs.video import require_video_writer
from ldm.util import choose_device

logger = logging.getLogger(__name__)

READERS, WRITERS = 2, 2  # threads; Pillow leaves the interpreter alone while it reads and compresses
UNWRITTEN = 4  # rows that have been sampled and may wait for a writer: their pictures are in memory


class DiskFullError(UserError):
    """No row can be written any more."""


@dataclass(frozen=True)
class _Ready:
    """A row whose files have been read; `row` has them on this machine, `asked` as it was given."""

    asked: Row
    row: Row
    task: EditTask
    digest: str
    content: tuple[str, str]
    stamps: tuple[Any, Any]
    seconds: float


class Worker:
    """Makes rows on a device.

    Args:
        device: see `choose_device`. batch_size: predictions sampled at a time, halved where memory does not suffice.
        files: where rows are read from and written to.
        report: told of each row when it is on disk or has failed, in the thread that calls `run`.
    """

    def __init__(self, device: str, batch_size: int, files: Files, report: Callable[[Outcome], None]):
        self.device = choose_device(device)
        self.batch_size, self.files, self.report = batch_size, files, report
        self.profile = Profile()
        self.editor: Editor | UserError | None = None
        self.loaded: tuple | None = None  # the model that `editor` is
        self.outlined: tuple[tuple | None, Editor | UserError] = (None, UserError("no row yet"))
        self.unwritten: deque[tuple[_Ready, Future[Outcome]]] = deque()

    def run(self, chunks: Iterable[Chunk]) -> Profile:
        """Make the rows, those of a chunk together. A bad one is reported, and the rest goes on.

        An empty chunk says that there are no others yet: what is in hand is finished and reported.
        Whatever ends it, Ctrl-C too: what has been sampled is written and reported.

        Raises:
            DiskFullError: then what has been reported is on disk, whole.
        """
        start = perf_counter()
        with ThreadPoolExecutor(READERS) as self.readers, ThreadPoolExecutor(WRITERS) as self.writers:
            ahead: list[tuple[Row, Future[_Ready | Outcome]]] = []
            try:
                for chunk in chunks:
                    rows, ahead = ahead, self._read(chunk)  # while those before are sampled, or the model is loaded
                    self._run_chunk(rows)
                    if not chunk:
                        self._collect(0)
                self._run_chunk(ahead)
            finally:
                self.readers.shutdown(wait=False, cancel_futures=True)
                self._collect(0)
        self.profile.total = perf_counter() - start
        return self.profile

    def _read(self, chunk: Chunk) -> list[tuple[Row, Future[_Ready | Outcome]]]:
        start = perf_counter()
        outlines = [self._outline(row) for row in chunk[:1]]
        self.profile.loading += perf_counter() - start
        return [(row, self.readers.submit(_read_row, self.files, outlines[0], row)) for row in chunk]

    def _outline(self, row: Row) -> Editor | UserError:
        """What prepares the rows of a row's model; that of the row before, where it is the same."""
        if self.outlined[0] != row.model:
            self.outlined = row.model, outline_editor(row)
        return self.outlined[1]

    def _run_chunk(self, reading: Sequence[tuple[Row, Future[_Ready | Outcome]]]) -> None:
        """Make rows. The model is loaded when the first of them is ready: bad rows alone need none."""
        start = perf_counter()
        ready: list[_Ready] = []
        for row, future in reading:
            try:
                one = future.result()
            except Exception as error:
                self.report(failure(row, error))
                continue
            if isinstance(one, Outcome):  # another worker has made it
                self.report(one)
            else:
                ready.append(one)
        waited = perf_counter() - start
        self.profile.waiting += waited
        self.profile.reading += sum(one.seconds for one in ready)
        if not ready:
            return
        if self.loaded != ready[0].row.model:
            self.editor = None  # before the next is loaded
            self.loaded, self.editor = ready[0].row.model, self._load(ready[0].row)
        if isinstance(self.editor, UserError):
            for one in ready:
                self._fail(one, self.editor)
            return
        assert self.editor is not None
        sizes: dict[tuple[int, int], list[_Ready]] = {}  # of one, unless they are left to the masks
        for one in ready:
            sizes.setdefault(one.task.canvas.size, []).append(one)
        for group in sizes.values():
            self._sample(self.editor, group, waited / len(ready))

    def _fail(self, one: _Ready, error: Exception) -> None:
        self.files.give_back(one.asked)
        self.report(failure(one.asked, error))

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
                self._fail(ready[0], error)
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
            where = {"device": str(self.device), "node": self.files.site.node}
            note = outcome_of(one.asked, "done", unknown_words=unknown, seconds=times, digest=one.digest, **where)
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
        self.unwritten.append((one, self.writers.submit(_write_row, self.files, editor, one, result, note)))
        if one.row.job.save_video:  # its frames are decoded on the device, which would else be used by two threads
            self._collect(0)
        self.profile.waiting += perf_counter() - start

    def _collect(self, left: int) -> None:
        """Report rows that have been written, and wait until no more than `left` have not."""
        while self.unwritten and (len(self.unwritten) > left or self.unwritten[0][1].done()):
            one, future = self.unwritten[0]
            try:
                outcome = future.result()
            except Exception as error:
                if _disk_full(error):
                    raise DiskFullError(f"{error}; what is done stays: the same command goes on from there") from error
                outcome = failure(one.asked, error)
            self.unwritten.popleft()  # now, and not before Ctrl-C could come while it was waited for
            self.files.give_back(one.asked)
            self.profile.writing += outcome.seconds.get("writing", 0.0)
            self.report(outcome)


def devices_here() -> list[str]:
    """Every CUDA device of this machine; else what `choose_device` takes for "auto"."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["auto"]


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


def _read_row(files: Files, outline: Editor | UserError, row: Row) -> _Ready | Outcome:
    """A row that is ready to be made; or its outcome, where another worker has made it meanwhile."""
    start = perf_counter()
    local = files.take(row)
    try:
        files.store.begin(row.name)
        stamps = stamps_of(row)
        task = prepare_row(outline, local)
        content = content_of(local.job)
        one = _Ready(row, local, task, digest_of(local.job, content), content, stamps, perf_counter() - start)
        made = _made(files, one)
    except BaseException:
        files.give_back(row)
        raise
    if made is not None:
        files.give_back(row)
    return one if made is None else made


def _made(files: Files, one: _Ready) -> Outcome | None:
    """The outcome of a row that another worker has made."""
    if not files.site.shared:
        return None
    marker = files.store.marker(one.asked.name)
    return files.outcome(one.asked, marker) if marker is not None and marker.digest == one.digest else None


def _write_row(files: Files, editor: Editor, one: _Ready, result: EditResult, note: Outcome) -> Outcome:
    start = perf_counter()
    if (made := _made(files, one)) is not None:
        return made
    canvas, job = one.task.canvas, one.row.job
    mask = Image.fromarray((canvas.mask[0, 0] * 255).byte().numpy())
    # Before the run itself, which is what tells that the row is done.
    sizes = save_thumbnails(job.outdir, canvas.picture.rgb, mask, result.results)
    write_result(job, editor, result, {"row": one.digest})
    times = {**note.seconds, "writing": perf_counter() - start}
    seconds = {name: round(time, 3) for name, time in times.items()}
    measures = [measures.info() for measures in result.measures]
    found: dict[str, Any] = {
        "seeds": result.seeds,
        "scores": result.distances,
        "measures": measures,
        "thumbnails": sizes,
    }
    outcome = replace(note, seconds=seconds, **found)
    files.store.finish(one.asked.name, Marker(one.digest, one.content, one.stamps, asdict(outcome)))
    return outcome


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
