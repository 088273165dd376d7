"""The studio itself: the queue, the workers, and what becomes of each job. Belongs to one event loop."""

import asyncio
import base64
import importlib.metadata
import logging
import multiprocessing
import os
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, cast

from ldm.backbones import zoo
from ldm.editing.request import EditRequest, ReconstructionOptions
from ldm.errors import UserError
from ldm.options import declared
from ldm.studio.events import Event, Hub
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
from ldm.studio.schema import Health, Job, Model, Prediction, Progress, Worker, new_id, now
from ldm.studio.settings import StudioSettings
from ldm.studio.store import Kind, Missing, Store

logger = logging.getLogger(__name__)

_SHOWN_JOBS = 200  # of the finished ones, in the list and to a page that opens
_PATIENCE = 30.0  # seconds that a worker is given to end its step when the studio stops
_ATTEMPTS = 2  # to make a job during which the studio was killed: it may be the job's doing
_PRUNE_EVERY = 600.0  # seconds
_PATH = re.compile(r"(?<![\w.~])~?(?:/[^/\s\"'<>:]+)+/([^/\s\"'<>:]+)")
_QUOTED_PATH = re.compile(r'"~?/(?:[^"/\n]+/)*([^"/\n]+)"')  # may have spaces


class QueueFull(UserError):
    """More jobs wait than are taken."""


def without_paths(text: str) -> str:
    """A message as others may read it: of the machine's paths only the last part."""
    return _PATH.sub(r"\1", _QUOTED_PATH.sub(r'"\1"', text))


class Studio:
    """Everything but the web: jobs come in, are queued, handed to workers, and told of.

    Args:
        settings: of the command.

    Raises:
        UserError: there is no such model, or the folder cannot be made.
    """

    def __init__(self, settings: StudioSettings):
        self.settings = settings
        self.store = Store(settings.outdir)
        self.hub = Hub()
        self.jobs: dict[str, Job] = {}
        self.waiting: deque[str] = deque()
        self.workers: list[_Worker] = []
        self.loaded: dict[str, Loaded] = {}  # by the model's name
        # The name of the studio's own model; of one that there is not, this is where it is told.
        self.own = zoo.resolve(**settings.named).name
        self.stopping = False
        self.ended: asyncio.Future[str | None] | None = None  # with an error, if no worker can be had at all
        self._tasks: list[asyncio.Task[None]] = []

    # ---- life

    def open(self) -> None:
        """Take up the queue where it was left, and start the workers; the event loop is running."""
        self.loop = asyncio.get_running_loop()
        self.ended = self.loop.create_future()
        for job in self.store.jobs():
            self._take_up(job)
        for device in self.settings.devices:
            worker = _Worker(self, device, len(self.settings.devices))
            self.workers.append(worker)
            worker.start()
        self._tasks.append(self.loop.create_task(self._prune_always()))

    def _take_up(self, job: Job) -> None:
        """A job of an earlier life of the studio. One that was running begins anew, unless it has been saved."""
        self.jobs[job.id] = job
        if job.has_ended:
            return
        if job.state == "running":
            if job.kind == "edit" and job.results and self.store.has_run(job.id):
                job.state, job.saved, job.progress, job.ended = "done", True, None, now()
                self._save(job)
                return
            if job.attempts >= _ATTEMPTS:
                self._end(job, "failed", "the studio was stopped twice while it was made: press run to try once more")
                return
        self._queue(job)

    def _queue(self, job: Job, first: bool = False) -> None:
        job.state, job.progress, job.started, job.results = "queued", None, None, []
        self.waiting.appendleft(job.id) if first else self.waiting.append(job.id)
        self._save(job)

    async def close(self) -> None:
        """End the running steps, and leave everything as the next start wants to find it."""
        self.stopping = True
        self.hub.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        for job in self.jobs.values():
            if job.state == "running":
                job.attempts = 0  # it was not the job's doing
                self._queue(job, first=True)

    # ---- jobs

    def submit_edit(self, body: Mapping[str, Any]) -> Job:
        """Queue an edit.

        Args:
            body: `image`, `mask`, and what else `EditBody` has.

        Raises:
            UserError: an option that there is not or out of its range, no such picture, or no room on the disk.
            QueueFull: see there.
        """
        given = dict(body)
        image, mask, session, model = (given.pop(name, None) for name in ("image", "mask", "session", "model"))
        given = {name: value for name, value in given.items() if value is not None}
        EditRequest(**given)
        for name, id in (("image", image), ("mask", mask)):
            if not isinstance(id, str) or not re.fullmatch("[0-9a-f]{16}", id):
                raise UserError(f'"{name}" is missing: send the file to {name}s, and give the id that is answered')
        self.store.file("images", str(image))
        self.store.file("masks", str(mask))
        if session is not None:
            self.session(session)
        chosen = self._model(model)
        return self._submit(
            Job(id=new_id(), kind="edit", image=image, mask=mask, session=session, model=chosen, options=given)
        )

    def submit_restore(self, of: str, body: Mapping[str, Any]) -> Job:
        """Queue the restoration of a prediction's background.

        Raises:
            UserError: as `submit_edit`; or the edit is not done.
        """
        given, edit = dict(body), self.job(of)
        index = given.pop("index", 0)
        given = {name: value for name, value in given.items() if value is not None}
        ReconstructionOptions(**given)
        if edit.kind != "edit" or not edit.saved:
            raise UserError("only the predictions of an edit that is done can be restored")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(edit.results):
            raise UserError(f"there is no such prediction: there are {len(edit.results)}, from 0")
        return self._submit(
            Job(
                id=new_id(),
                kind="restore",
                of=of,
                index=index,
                options=given,
                **{name: getattr(edit, name) for name in ("image", "mask", "session", "model", "window")},
            )
        )

    def _submit(self, job: Job) -> Job:
        if self.stopping:
            raise QueueFull("the studio is being stopped: try again when it is back")
        if len(self.waiting) >= self.settings.queue:
            raise QueueFull(f"{len(self.waiting)} jobs are waiting, and no more are taken: try again later")
        self.store.save_job(job)
        self.jobs[job.id] = job
        self.waiting.append(job.id)
        self._tell(job)
        self._dispatch()
        return self.seen(job)

    def job(self, id: str) -> Job:
        """A job as it is now.

        Raises:
            Missing: there is none.
        """
        if id not in self.jobs:
            raise Missing("there is no such job (any more)")
        return self.seen(self.jobs[id])

    def seen(self, job: Job) -> Job:
        """A job with its place in the queue."""
        if job.state == "queued":
            with suppress(ValueError):
                busy = sum(worker.job is not None for worker in self.workers)
                job.ahead = self.waiting.index(job.id) + busy
        else:
            job.ahead = None
        return job

    def listed(self) -> list[Job]:
        """The jobs that are not done, and the latest of the others; in the order of their coming."""
        ended = [job for job in self.jobs.values() if job.has_ended][-_SHOWN_JOBS:]
        shown = [*ended, *(job for job in self.jobs.values() if not job.has_ended)]
        return sorted(map(self.seen, shown), key=lambda job: (job.created, job.id))

    def cancel(self, id: str) -> Job:
        """End a job: at once where it waits, after its step where it runs. One that has ended stays as it is."""
        job = self.job(id)
        if job.state == "queued":
            self.waiting.remove(id)
            self._end(job, "cancelled")
            self._tell_places()
        elif job.state == "running":
            for worker in self.workers:
                if worker.job == id:
                    worker.send(Cancel(id))
        return self.seen(job)

    def forget(self, id: str) -> None:
        """Remove a job that has ended, and all that it made.

        Raises:
            UserError: it is queued or running.
        """
        if not self.job(id).has_ended:
            raise UserError("a job that waits or runs can be cancelled, and then removed")
        del self.jobs[id]
        self.store.forget_job(id)
        self.hub.tell(Event("gone", {"jobs": [id]}))

    def session(self, id: Any) -> Any:
        """A session.

        Raises:
            Missing: there is none.
        """
        if not isinstance(id, str) or not re.fullmatch("[0-9a-f]{16}", id):
            raise Missing("there is no such session (any more)")
        return self.store.session(id)

    # ---- how things stand

    def models(self) -> list[Model]:
        """The models with a name, and the studio's own."""
        names = dict.fromkeys([*zoo.MODELS, self.own])
        return [self._about(name) for name in names]

    def _about(self, name: str) -> Model:
        known, loaded = zoo.MODELS.get(name), self.loaded.get(name)
        available = name == self.own
        if not available:
            with suppress(UserError):
                zoo.resolve(name)
                available = True
        more = {} if loaded is None else {k: getattr(loaded, k) for k in ("vocabulary", "knows", "defaults")}
        about = known.about if known else "a model of your own"
        return Model(name=name, about=about, available=available, default=name == self.own, **more)

    def _model(self, name: Any) -> str:
        """A model's name as jobs have it.

        Raises:
            UserError: there is none, or it is not here. Paths are no names.
        """
        if name in (None, "", self.own):
            return ""
        if name not in zoo.MODELS:
            names = dict.fromkeys([self.own, *zoo.MODELS])
            raise UserError(f"`model` is none that there is: give one of {', '.join(names)}")
        zoo.resolve(name)
        return str(name)

    def health(self) -> Health:
        """How the studio is."""
        states = [worker.told() for worker in self.workers]
        ready = any(state.state in ("ready", "busy") for state in states)
        failed = all(state.state == "failed" for state in states)
        return Health(
            status="ready" if ready else "failed" if failed else "loading",
            version=_version(),
            workers=states,
            queued=len(self.waiting),
            room=self.settings.queue - len(self.waiting),
        )

    def snapshot(self) -> Event:
        """All that a page must know."""
        jobs = [job.model_dump(mode="json") for job in self.listed()]
        return Event("hello", {"jobs": jobs, "health": self.health().model_dump(mode="json")})

    # ---- what workers say

    def hear(self, worker: "_Worker", message: Any) -> None:
        """A worker's message."""
        if isinstance(message, Loaded):
            self.loaded[message.model] = message
            worker.is_there(message)
            self._tell_health()
            self._dispatch()
            return
        if isinstance(message, CannotLoad):
            worker.error = without_paths(message.error)
            if not any(one.was_there for one in self.workers) and self.ended and not self.ended.done():
                self.ended.set_result(message.error)
            return
        job = self.jobs.get(message.job)
        if job is None or worker.job != job.id:
            return
        if isinstance(message, At):
            left = None if message.seconds_left is None else round(message.seconds_left, 1)
            job.progress = Progress(stage=message.stage, step=message.step, total=message.total, seconds_left=left)
            lossy = 0 < message.step < message.total
            told = {"job": job.id, **job.progress.model_dump()}
            self.hub.tell(Event("progress", told, job.id, lossy))
        elif isinstance(message, WindowSeen):
            job.window = message.window
            self._tell(job)
        elif isinstance(message, Preview):
            told = {"job": job.id, "index": message.index, "step": message.step, "total": message.total}
            told["image"] = base64.b64encode(message.image).decode()
            self.hub.tell(Event("preview", told, job.id, lossy=True))
        elif isinstance(message, Results):
            job.results = [Prediction(**one) for one in message.results]
            self._save(job)
            self._tell(job)
        elif isinstance(message, Note):
            text = self._in_their_names(job, message.text)
            if text not in job.notes:
                job.notes.append(text)
                self._tell(job)
        elif isinstance(message, Ended):
            worker.job = None
            job.saved = message.state == "done"
            if message.state == "cancelled":
                job.results = []
            self._end(job, message.state, message.error and self._in_their_names(job, message.error))
            self._tell_health()
            self._dispatch()

    def _in_their_names(self, job: Job, text: str) -> str:
        """A message about a job, with its pictures called as their owner calls them."""
        text, kinds = without_paths(text), {"images": job.image, "masks": job.mask}
        for kind, id in kinds.items():
            with suppress(Missing):
                name = self.store.picture(cast(Kind, kind), id).name
                if not name:
                    text = re.sub(rf'(?<=the {kind[:-1]}) "{id}\.\w+"', "", text)
                named = f'"{name}"' if name else f"the {kind[:-1]}"
                text = re.sub(rf'"{id}\.\w+"', named, text)  # names have no backslashes
        return text

    def lost(self, worker: "_Worker") -> None:
        """A worker's process has ended, though nobody told it to."""
        job = self.jobs.get(worker.job or "")
        worker.job = None
        if self.stopping:
            return
        if job is not None and job.state == "running":
            job.results = []
            why = "the model's process was killed" if worker.was_killed else "the model's process broke down"
            mend = "perhaps for want of memory; it is being started again: make fewer predictions at a time"
            self._end(job, "failed", f"{why}, {mend}")
        self._tell_health()
        worker.start_again()

    def _dispatch(self) -> None:
        """Give the next jobs to workers that have none."""
        for worker in self.workers:
            if self.stopping or not self.waiting or not worker.is_free:
                continue
            job = self.jobs[self.waiting.popleft()]
            job.state, job.started, job.attempts = "running", now(), job.attempts + 1
            job.ahead, job.progress = None, Progress(stage="preparing")
            self._save(job)
            try:
                self._hand_out(worker, job)
            except Missing as error:
                self._end(job, "failed", str(error))
                continue
            self._tell(job)
            self._tell_health()
            self._tell_places()

    def _hand_out(self, worker: "_Worker", job: Job) -> None:
        if job.kind == "restore":
            folder = self.store.folder(str(job.of))
            told: Any = DoRestore(job.id, folder, int(job.index or 0), job.model, job.options)
        else:
            image, mask = self.store.file("images", job.image), self.store.file("masks", job.mask)
            told = DoEdit(job.id, image, mask, self.store.folder(job.id), job.model, job.options)
        worker.job = job.id
        worker.send(told)

    def _end(self, job: Job, state: Any, error: str | None = None) -> None:
        job.state, job.ended, job.progress = state, now(), None
        job.error = None if error is None else without_paths(error)
        self._save(job)
        self._tell(job)

    def _save(self, job: Job) -> None:
        """Write a job's state; where that fails, this process still knows it."""
        try:
            self.store.save_job(job)
        except UserError as error:
            logger.warning("%s", error)

    def _tell(self, job: Job) -> None:
        self.hub.tell(Event("job", self.seen(job).model_dump(mode="json"), job.id))

    def _tell_places(self) -> None:
        """The queue has moved on."""
        places = {id: self.seen(self.jobs[id]).ahead for id in self.waiting}
        self.hub.tell(Event("queue", places, lossy=True))

    def _tell_health(self) -> None:
        self.hub.tell(Event("health", self.health().model_dump(mode="json")))

    # ---- pruning

    async def _prune_always(self) -> None:
        while True:
            await self.prune()
            await asyncio.sleep(_PRUNE_EVERY)

    async def prune(self) -> None:
        """Remove what is old, or too much; see `Store.prune`."""
        jobs = [job.model_copy() for job in self.jobs.values()]
        gone = await asyncio.to_thread(self.store.prune, jobs, self.settings.keep_days, self.settings.keep_gb)
        for id in gone:
            self.jobs.pop(id, None)
        if gone:
            self.hub.tell(Event("gone", {"jobs": gone}))


class _Worker:
    """A worker's process as the server sees it."""

    def __init__(self, studio: Studio, device: str, of: int):
        self.studio, self.device = studio, device
        self.threads = max(1, (os.cpu_count() or 1) // of) if of > 1 and device == "cpu" else None
        self.job: str | None = None
        self.model = ""
        self.error: str | None = None
        self.was_there = False  # whether it has ever loaded its model
        self.was_killed = False
        self.ready = False
        self.falls = 0  # without a success between
        self.process: Any = None
        self.link: Connection | None = None

    def start(self) -> None:
        """Start the process."""
        from ldm.studio.start import work

        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        here, there = context.Pipe()
        model = self.studio.settings.loading
        self.process = context.Process(target=work, args=(there, model, self.device, self.threads), daemon=True)
        self.process.start()
        there.close()  # so that the end of the process is the end of the pipe
        self.link, self.error = here, None
        threading.Thread(target=self._listen, args=(self.process, here), daemon=True).start()

    def _listen(self, process: Any, link: Connection) -> None:
        """In a thread: what the process says goes to the event loop."""
        loop = self.studio.loop
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            while True:
                try:
                    message = link.recv()
                except (EOFError, OSError):
                    break
                loop.call_soon_threadsafe(self.studio.hear, self, message)
            process.join()
            link.close()
            loop.call_soon_threadsafe(self._gone, process.exitcode)

    def _gone(self, exitcode: int) -> None:
        self.ready, self.was_killed, self.link = False, exitcode < 0, None
        self.studio.lost(self)

    def start_again(self) -> None:
        """Start another process, the later the more often it has fallen."""
        self.falls += 1
        pause = min(30.0, 0.5 * 2 ** (self.falls - 1))
        self.studio.loop.call_later(pause, self._start_if_wanted)

    def _start_if_wanted(self) -> None:
        if not self.studio.stopping:
            self.start()

    def is_there(self, loaded: Loaded) -> None:
        """A model has been loaded."""
        self.ready = self.was_there = True
        self.model, self.falls = loaded.model, 0

    def send(self, message: Any) -> None:
        """Say something to the process; one that has just died is noticed elsewhere."""
        if self.link is not None:
            with suppress(OSError):
                self.link.send(message)

    async def stop(self) -> None:
        """End the process after the step it is at."""
        process = self.process
        if process is None or not process.is_alive():
            return
        self.send(Stop())
        if not self.ready:  # it is loading, and does not listen
            process.terminate()
        until = time.monotonic() + _PATIENCE
        while process.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.02)
        if process.is_alive():
            process.kill()

    @property
    def is_free(self) -> bool:
        """Whether it can take a job."""
        return self.ready and self.job is None and self.link is not None

    def told(self) -> Worker:
        """How it is."""
        if self.ready:
            state: Any = "ready" if self.job is None else "busy"
        elif self.error:
            state = "failed"
        else:
            state = "restarting" if self.was_there else "loading"
        return Worker(device=self.device, state=state, model=self.model, job=self.job, error=self.error)


def _version() -> str:
    try:
        return importlib.metadata.version("blended-latent-diffusion")
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was not installed
        return "not installed"


assert not {"image", "mask", "session", "model"} & {*declared(EditRequest)}  # names of the API's own
