"""One worker of a batch: reads, samples and writes rows on one device, the files beside the sampling."""

import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from ldm.backbones.words import unknown_words
from ldm.editing.result import EditResult
from ldm.errors import OutOfMemory, UserError
from ldm.runs.baseline_jobs import BlendedDiffusionJob, GlideJob, PaintByWordJob
from ldm.runs.baselines import GlideProgram, PaintByWordProgram
from ldm.runs.batch.outcome import Outcome, Profile, failure, outcome_of
from ldm.runs.batch.rows import Chunk, Row
from ldm.runs.batch.site import Files, content_of, stamps_of
from ldm.runs.batch.store import Marker
from ldm.runs.batch.thumbnails import check_thumbnails, save_thumbnails
from ldm.runs.blended_diffusion import GuidedProgram
from ldm.runs.edit import EditProgram, write_result
from ldm.runs.jobs import EditJob
from ldm.runs.program import Prepared, Program, check_output, in_words_of
from ldm.util import choose_device

logger = logging.getLogger(__name__)

READERS, WRITERS = 2, 2  # threads; Pillow leaves the interpreter alone while it reads and compresses
UNWRITTEN = 4  # rows that have been sampled and may wait for a writer: their pictures are in memory


# What makes the jobs of each class.
PROGRAMS: Mapping[type, type[Program[Any]]] = {
    EditJob: EditProgram,
    BlendedDiffusionJob: GuidedProgram,
    GlideJob: GlideProgram,
    PaintByWordJob: PaintByWordProgram,
}


class DiskFullError(UserError):
    """No row can be written any more."""


@dataclass(frozen=True)
class _Ready:
    """A row whose files have been read; `row` has them on this machine, `asked` as it was given.

    outline: of the program that `prepared` it.
    """

    asked: Row
    row: Row
    outline: Program[Any]
    prepared: Prepared[Any]
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
        self.program: Program[Any] | UserError | None = None
        self.loaded: tuple | None = None  # the model that `program` has
        self.outlined: tuple[tuple | None, Program[Any] | UserError] = (None, UserError("no row yet"))
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

    def _outline(self, row: Row) -> Program[Any] | UserError:
        """What prepares the rows of a row's model; that of the row before, where it is the same."""
        if self.outlined[0] != row.model:
            self.outlined = row.model, outline_of(row)
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
            self.program = None  # before the next is loaded
            self.loaded, self.program = ready[0].row.model, self._load(ready[0])
        if isinstance(self.program, UserError):
            for one in ready:
                self._fail(one, self.program)
            return
        assert self.program is not None
        sizes: dict[tuple[int, int], list[_Ready]] = {}  # of one, unless they are left to the masks
        for one in ready:
            sizes.setdefault(one.prepared.task.canvas.size, []).append(one)
        for group in sizes.values():
            self._sample(self.program, group, waited / len(ready))

    def _fail(self, one: _Ready, error: Exception) -> None:
        self.files.give_back(one.asked)
        self.report(failure(one.asked, error))

    def _load(self, one: _Ready) -> Program[Any] | UserError:
        """The model of a row, or what is wrong with it, which need be found only once."""
        start = perf_counter()
        try:
            program = one.outline.load(one.row.job, str(self.device))
        except UserError as error:
            return error
        else:
            program.editor.begin_identity()
            return program
        finally:
            self.profile.loading += perf_counter() - start

    def _sample(self, program: Program[Any], ready: Sequence[_Ready], waited: float) -> None:
        start = perf_counter()
        try:
            results = self._edit(program, ready)
        except Exception as error:
            if len(ready) == 1:
                self._fail(ready[0], error)
                return
            results = None
        seconds = perf_counter() - start
        self.profile.sampling += seconds
        if results is None:  # for one of the rows: each alone then
            for one in ready:
                self._sample(program, [one], waited)
            return
        per_prediction = seconds / sum(one.row.predictions for one in ready)
        for one, result in zip(ready, results, strict=True):
            times = {"reading": one.seconds, "waiting": waited, "sampling": per_prediction * one.row.predictions}
            # Not in the writers' threads, whose tokenizer this one uses.
            unknown = unknown_words(program.editor.model, one.row.job.prompt)
            where = {"device": str(self.device), "node": self.files.site.node}
            note = outcome_of(one.asked, "done", unknown_words=unknown, seconds=times, digest=one.digest, **where)
            self._write(program, one, result, note)

    def _edit(self, program: Program[Any], ready: Sequence[_Ready]) -> list[EditResult]:
        """`Program.run`, with smaller batches where memory does not suffice: the pictures stay the same."""
        total, prepared = sum(one.row.predictions for one in ready), [one.prepared for one in ready]
        while True:
            size = min(self.batch_size, total)
            try:
                with in_words_of(program.words):
                    return program.run(prepared, size)
            except OutOfMemory as error:
                reason = str(error)
            _free_memory()  # here the failed attempt's frames, which held what it had, are gone
            if size == 1:
                raise UserError(reason)
            self.batch_size = size // 2
            logger.warning("out of memory: from now on %d predictions at a time instead of %d", self.batch_size, size)

    def _write(self, program: Program[Any], one: _Ready, result: EditResult, note: Outcome) -> None:
        start = perf_counter()
        self._collect(UNWRITTEN - 1)
        self.unwritten.append((one, self.writers.submit(_write_row, self.files, program, one, result, note)))
        if (
            one.prepared.edit.save_video
        ):  # its frames are decoded on the device, which would else be used by two threads
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


def outline_of(row: Row) -> Program[Any] | UserError:
    """What prepares the rows of a row's model, without weights; or what is wrong with that model."""
    try:
        return PROGRAMS[type(row.job)].outline(row.job)
    except UserError as error:
        return error


def prepare_row(files: Files, outline: Program[Any] | UserError, row: Row) -> Prepared[Any]:
    """Read a row's files; all that can be wrong with it is found here.

    Raises:
        UserError: what is wrong.
    """
    if isinstance(outline, UserError):
        raise outline
    check_output(row.job)
    check_thumbnails(row.folder)
    with in_words_of(outline.words):
        return outline.prepare(row.job, files.desk(row))


def _read_row(files: Files, outline: Program[Any] | UserError, row: Row) -> _Ready | Outcome:
    """A row that is ready to be made; or its outcome, where another worker has made it meanwhile."""
    start = perf_counter()
    local = files.take(row)
    try:
        files.store.begin(row.name)
        stamps = stamps_of(row)
        prepared = prepare_row(files, outline, local)
        assert isinstance(outline, Program)
        content = content_of(local.job)
        digest = files.digest(local.job, content)
        one = _Ready(row, local, outline, prepared, digest, content, stamps, perf_counter() - start)
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


def _write_row(files: Files, program: Program[Any], one: _Ready, result: EditResult, note: Outcome) -> Outcome:
    start = perf_counter()
    if (made := _made(files, one)) is not None:
        return made
    canvas, edit = one.prepared.task.canvas, one.prepared.edit
    mask = Image.fromarray((canvas.mask[0, 0] * 255).byte().numpy())
    # Before the run itself, which is what tells that the row is done.
    sizes = save_thumbnails(edit.outdir, canvas.picture.rgb, mask, result.results)
    write_result(edit, program.editor, result, {**program.notes(one.row.job), "row": one.digest})
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
