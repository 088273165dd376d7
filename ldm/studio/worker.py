"""A worker: a process that holds one `Editor`, makes one job after the other, and tells how each comes along.

It can be killed at any moment: the server tells the user of it and starts another.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from ldm import cli
from ldm.backbones.words import known_words
from ldm.backbones.zoo import ModelFiles
from ldm.editing.editor import Editor
from ldm.editing.reconstruct import ReconstructionStep
from ldm.editing.request import EditRequest
from ldm.editing.result import EditResult
from ldm.errors import UserError
from ldm.imaging.images import save_png, to_pil
from ldm.imaging.region import Window
from ldm.models.diffusion.sampling import StepInfo
from ldm.runs.edit import write_result
from ldm.runs.folder import read_run
from ldm.runs.jobs import EditJob, ReconstructionJob
from ldm.runs.reconstruct import run_reconstruction
from ldm.studio.messages import (
    At,
    Cancel,
    CannotLoad,
    DoEdit,
    DoRestore,
    Ended,
    Loaded,
    Note,
    Preview,
    Results,
    Stop,
    WindowSeen,
)

logger = logging.getLogger(__name__)

_PREVIEW_EVERY = 0.3  # seconds, at the least
_PREVIEW_SHARE = 0.2  # of the time, at the most
_PREVIEW_SIDE = 256  # pixels


class _Cancelled(Exception):
    """The user has thought better of it."""


class _Stopped(BaseException):
    """The process is to end."""


def work(link: Connection, model: dict[str, Any], device: str, threads: int | None) -> None:
    """The life of a worker's process.

    Args:
        model: arguments of `Editor.load` but `device`.
        threads: of torch; None leaves its own number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to all: the server ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)

    def serve(_: object) -> None:
        logging.getLogger("ldm").setLevel(logging.WARNING)
        with suppress(_Stopped, EOFError, ConnectionError):
            try:
                worker = _Worker(link, model, device)
            except UserError as error:
                link.send(CannotLoad(str(error)))
                return
            worker.run()

    cli.run(serve, ())


class _Worker:
    def __init__(self, link: Connection, model: dict[str, Any], device: str):
        self.link, self.own, self.device = link, model, device
        self.asked = model["model"]
        self.editor = self._load(model)

    def _load(self, model: dict[str, Any]) -> Editor:
        editor = Editor.load(**model, device=self.device)
        self.link.send(_loaded(editor))
        editor.begin_identity()
        return editor

    def run(self) -> None:
        """Do what is asked for until there is nobody to ask."""
        while True:
            message = self.link.recv()
            if isinstance(message, Stop):
                return
            if isinstance(message, DoEdit | DoRestore):
                self.link.send(self._do(message))

    def _do(self, message: DoEdit | DoRestore) -> Ended:
        with self._noting(message.job):
            try:
                if isinstance(message, DoEdit):
                    self._edit(message)
                else:
                    self._restore(message)
            except _Cancelled:
                return Ended(message.job, "cancelled")
            except UserError as error:
                return Ended(message.job, "failed", str(error))
            except OSError as error:
                return Ended(
                    message.job, "failed", f"{error.strerror or type(error).__name__}: free some space, try again"
                )
            except Exception as error:  # a bug of ours: the server's log has it, and the studio goes on
                logger.error("job %s: %s", message.job, traceback.format_exc())
                return Ended(message.job, "failed", f"the program has a fault ({type(error).__name__}): see its log")
            return Ended(message.job, "done")

    # ---- an edit

    def _edit(self, told: DoEdit) -> None:
        self._use(told)
        self._at(told.job, "preparing")
        job = EditJob(
            **told.options, model=self.asked, init_image=told.image, mask=told.mask, outdir=told.outdir, overwrite=True
        )
        task = self.editor.prepare(job.init_image, job.mask, job.request)
        self.link.send(WindowSeen(told.job, asdict(task.canvas.window)))
        watch = _Watch(self, told.job, task.request)
        watch.at(0)
        (result,) = self.editor.run([task], on_step=watch.see, keep_steps=job.save_video)
        self._at(told.job, "ranking")
        self.link.send(Results(told.job, self._show(result, told.outdir)))
        self._at(told.job, "saving")
        write_result(job, self.editor, result)

    def _use(self, told: DoEdit) -> None:
        """Have the model that a job asks for; the one before makes room."""
        wanted = told.model or self.own["model"]
        if wanted == self.asked:
            return
        self._at(told.job, "loading")
        del self.editor
        self.asked = self.own["model"]
        try:
            self.editor = self._load(self._named(wanted))
            self.asked = wanted
        except UserError:
            self.editor = self._load(self.own)
            raise

    def _named(self, model: str) -> dict[str, Any]:
        """The arguments of `Editor.load` for a model of another name."""
        return self.own | {"model": model, "config": None, "ckpt": None, "revision": None, "lora": ()}

    def _show(self, result: EditResult, outdir: Path) -> list[dict[str, Any]]:
        """Keep what has changed of the picture, which a page lays over the input; and what is known of each."""
        folder, told = outdir / "view", []
        folder.mkdir(exist_ok=True)
        rows, columns = result.task.canvas.window.in_image
        area = (columns.start, rows.start, columns.stop, rows.stop)
        for i, (image, measures) in enumerate(result.finished):
            save_png(image.crop(area), folder / f"{i:04d}.png")
            distance = None if result.distances is None else result.distances[i]
            told.append({"index": i, "seed": result.seeds[i], "distance": distance, "measures": measures.info()})
        return told

    # ---- a restoration

    def _restore(self, told: DoRestore) -> None:
        samples = told.outdir / "samples"
        named = self._named(told.model) if told.model else self.own
        own = {name: named[name] for name in ("model", "config", "ckpt", "revision", "lora")}
        job = ReconstructionJob(
            **told.options, **own, images_path=samples, selected_indices=(told.index,), device=self.device
        )
        begun = time.monotonic()
        self._at(told.job, "restoring", 0, job.optimization_steps)

        def see(now: ReconstructionStep) -> None:
            self.listen(told.job)
            spent = time.monotonic() - begun
            left = spent / now.step * (now.steps - now.step) if now.step else None
            self._at(told.job, "restoring", now.step, now.steps, left)

        (saved,) = run_reconstruction(job, on_step=see)
        self._at(told.job, "saving")
        record = read_run(samples).record
        assert record.window is not None  # or there had been no background to restore
        rows, columns = Window(**record.window).in_image
        with Image.open(saved.path) as image:
            part = image.crop((columns.start, rows.start, columns.stop, rows.stop))
        kind = saved.path.parent.name.removeprefix("reconstructed_")
        save_png(part, told.outdir / "view" / f"{kind}-{told.index:04d}.png")

    # ---- what is said meanwhile

    def listen(self, job: str) -> None:
        """Hear what the server has said since.

        Raises:
            _Cancelled: the job is not wanted any more. _Stopped: nor is this process.
        """
        while self.link.poll():
            message = self.link.recv()
            if isinstance(message, Stop):
                raise _Stopped
            if message == Cancel(job):
                raise _Cancelled

    def _at(self, job: str, stage: Any, step: int = 0, total: int = 0, left: float | None = None) -> None:
        self.listen(job)
        self.link.send(At(job, stage, step, total, left))

    @contextmanager
    def _noting(self, job: str) -> Any:
        """The notices of a job, which a command line shows, become its notes."""
        handler = _Notes(lambda text: self.link.send(Note(job, text)))
        logging.getLogger("ldm").addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger("ldm").removeHandler(handler)


class _Notes(logging.Handler):
    def __init__(self, say: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:  # errors are for the log
            self.say(record.getMessage())


class _Watch:
    """Sees each step of a run: progress, the time left, and now and then what the predictions look like."""

    def __init__(self, worker: _Worker, job: str, request: EditRequest):
        self.worker, self.job, self.request = worker, job, request
        self.done, self.total, self.batch = 0, request.steps, -1
        self.begun: float | None = None
        self.next_look = 0.0

    def see(self, info: StepInfo) -> None:
        """After a step."""
        self.worker.listen(self.job)
        self.done += 1
        self.batch += info.step == 0
        now = time.monotonic()
        if self.begun is None:  # the first step is slower than all others
            self.begun = now
        # The last step is not shown: the result is about to be.
        if now >= self.next_look and info.step + 1 < info.total:
            self._look(info)
            end = time.monotonic()
            self.next_look = end + max(_PREVIEW_EVERY, (end - now) * (1 / _PREVIEW_SHARE - 1))
        self.at(self.done)

    def at(self, done: int) -> None:
        """Tell how far the run is."""
        left = None
        if self.begun is not None and done > 1:
            left = (time.monotonic() - self.begun) / (done - 1) * (self.total - done)
        self.worker._at(self.job, "painting", done, self.total, left)

    @torch.no_grad()
    def _look(self, info: StepInfo) -> None:
        # One at a time, as the predictions are: a decoder wants much memory, and a user wants to see something.
        for row, z0 in enumerate(info.z0.split(1)):
            x = self.worker.editor.model.decode(z0)
            image = to_pil(x.nan_to_num(0).clamp(-1, 1))
            image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.BILINEAR)
            stream = BytesIO()
            image.save(stream, "WEBP", quality=80, method=0)
            index = self.batch * self.request.n_samples + row
            self.worker.link.send(Preview(self.job, index, info.step + 1, info.total, stream.getvalue()))


def _loaded(editor: Editor) -> Loaded:
    """What the page and the server want to know of a model."""
    files = cast(ModelFiles, editor.files)
    tokenize = editor.model.tokenize
    vocabulary = None
    if tokenize is not None and tokenize.is_closed:
        vocabulary = sorted(word for word in tokenize.tokenizer.get_vocab() if not word.startswith("["))
    knows = {str(kind): list(words) for kind, words in known_words(files).items()}
    defaults = {name: value for name, value in asdict(editor.defaults).items() if value is not None}
    return Loaded(files.name, str(editor.model.device), vocabulary, knows, defaults)


def _end_with_parent() -> None:
    """A killed server cannot say so: without it, nobody may work on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
