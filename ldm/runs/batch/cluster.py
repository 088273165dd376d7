"""The engine of a Ray cluster: an actor for each GPU, or for some CPUs, that holds one model and is handed chunks.

Scheduling, nodes that come and go, and the moving of rows are Ray's. Here is which rows go where, as on one machine
(`Dispatch`), and what is made of a death: a node that goes is nobody's fault, a worker's process that is killed may be
its rows'. Nothing of this imports torch but an actor, once it is in its place.
"""

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from ldm.errors import MissingExtra, UserError
from ldm.runs.batch.dispatch import DEPTH, Dispatch
from ldm.runs.batch.outcome import Outcome, Profile, quieten
from ldm.runs.batch.rows import Chunk
from ldm.runs.batch.site import Site
from ldm.runs.jobs import BatchJob

logger = logging.getLogger(__name__)

_LOOK = 1.0  # seconds between looks at who has died and who could be hired
_PATIENCE = 60.0  # seconds without any worker after which it is said that one is waited for
_STILLBORN = 8  # workers in a row that may die without having made anything
_GPU_WORKER_CPUS = 1  # beside its GPU


def run_cluster(job: BatchJob, site: Site, chunks: Iterator[Chunk], report: Callable[[Outcome], None]) -> Profile:
    """`Worker.run` on the workers of a Ray cluster; a chunk is sampled as one worker alone would sample it.

    Raises:
        UserError: there is no such cluster, none of its machines can have a worker, or the disk is full.
        MissingExtra: Ray is not installed.
    """
    ray = _connect(job.address or "auto")
    try:
        return _Crew(ray, job, site, Dispatch(chunks, report)).run()
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    """Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "cluster", "`engine=ray`") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        quiet["include_dashboard"] = False
    for last in (False, False, True):
        try:
            ray.init(address=address, **quiet)
            return ray
        except Exception as error:
            text = " ".join(str(error).split())
            ray.shutdown()
            if "timed out during startup" in text and not last:  # Ray gives a busy machine half a minute
                continue
            mend = 'start one by "ray start --head", or use `engine=local`'
            raise UserError(f"no Ray cluster at `address={address}` ({text}): {mend}") from error
    raise AssertionError("the last attempt returns or raises")


class Actor:
    """A worker that is asked to make chunks: each method runs in a thread of its own, beside that of the worker."""

    def __init__(self, device: str, batch_size: int, site: Site, folder: str | None):
        quieten()
        self.trouble: str | None = None
        try:
            if folder is not None:
                os.chdir(folder)  # relative paths are as in the command
        except OSError as error:
            self.trouble = f'"{folder}" is not on every machine ({error.strerror}): use a shared folder, or URLs alone'
        self.chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self.rows: dict[str, Future[Outcome]] = {}
        self.profile: Future[Profile] = Future()
        threading.Thread(target=self._work, args=(device, batch_size, site), daemon=True).start()

    def ready(self) -> str | None:
        """What is wrong with this machine; None for nothing."""
        return self.trouble

    def make(self, chunk: Chunk) -> list[Outcome]:
        """Make rows, beside others that are in hand.

        Raises:
            UserError: the worker cannot go on.
        """
        if self.trouble is not None:
            raise UserError(self.trouble)
        asked: list[Future[Outcome]] = [Future() for _ in chunk]
        self.rows |= {row.name: future for row, future in zip(chunk, asked, strict=True)}
        self.chunks.put(chunk)
        return [future.result() for future in asked]

    def finish(self) -> Profile:
        """End, with nothing in hand; where the time went."""
        self.chunks.put(None)
        return self.profile.result()

    def _work(self, device: str, batch_size: int, site: Site) -> None:
        def given() -> Iterator[Chunk]:
            while True:
                if self.chunks.empty():
                    yield ()  # nothing now: what is in hand is finished
                chunk = self.chunks.get()
                if chunk is None:
                    return
                yield chunk

        try:
            from ldm.runs.batch.work import Worker

            with site.opened() as files:
                worker = Worker(device, batch_size, files, lambda one: self.rows.pop(one.name).set_result(one))
                self.profile.set_result(worker.run(given()))
        except BaseException as error:
            self.trouble = str(error) or type(error).__name__
            self.profile.set_exception(error)
            for future in [*self.rows.values()]:
                future.set_exception(error)


def _node_name(host: str | None) -> str:
    """The machine as Ray's tools show it."""
    import ray

    context = ray.get_runtime_context()
    return f"{host or 'node'}/{context.get_node_id()[:8]}"


@dataclass
class _Hand:
    """An actor, whether Ray has found a place for it, and whether it can no longer be reached."""

    actor: Any
    placed: bool = False
    doubted: bool = False


class _Crew:
    """The actors, and what they are at."""

    def __init__(self, ray: Any, job: BatchJob, site: Site, dispatch: Dispatch):
        self.ray, self.job, self.site, self.dispatch = ray, job, site, dispatch
        self.hands: dict[int, _Hand] = {}
        self.calls: dict[Any, tuple[int, str]] = {}  # what each reference is of: a worker, and which of its methods
        self.numbers = count(1)
        self.stillborn = 0
        self.profile = Profile()
        here = job.address != "local" or ray.cluster_resources().get("GPU", 0) > 0  # another's may still come
        self.gpu = job.cpus is None and here
        self.asked = time.monotonic()  # when a worker was asked for that has no place yet

    def run(self) -> Profile:
        """Until everything has been done."""
        while not self.dispatch.over:
            self._hire()
            if not self.calls:  # nobody, or all are idle while what is left is another's
                time.sleep(_LOOK)
                continue
            ready, _ = self.ray.wait([*self.calls], num_returns=min(len(self.calls), 64), timeout=0.02)
            if not ready:
                ready, _ = self.ray.wait([*self.calls], num_returns=1, timeout=_LOOK)
            for reference in ready:
                self._hear(reference)
            if self.stillborn >= _STILLBORN:
                raise UserError("the cluster's workers die before they have made a row: look at Ray's logs of them")
        self._dismiss()
        return self.profile

    def _hire(self) -> None:
        """Ask for another worker, where there is work for it; one at a time, which an autoscaler sees and obeys."""
        if time.monotonic() - self.asked > _PATIENCE and not any(hand.placed for hand in self.hands.values()):
            what = (
                "GPU (`cpus` asks for workers without)" if self.gpu else f"machine with {self.job.cpus or 1} free CPUs"
            )
            logger.warning("the cluster has no %s yet: waiting for one", what)
            self.asked = time.monotonic()
        many = self.job.workers is not None and len(self.hands) >= self.job.workers
        if many or not all(hand.placed for hand in self.hands.values()) or not self.dispatch.waiting:
            return
        if self.gpu:
            options: dict[str, Any] = {"num_gpus": 1, "num_cpus": _GPU_WORKER_CPUS}
        else:
            options = {"num_cpus": self.job.cpus or 1}
        # Threads for what is in hand, and for `ready` and `finish`.
        options |= {"max_restarts": 0, "max_concurrency": DEPTH + 2}
        device = "cuda:0" if self.gpu else "cpu"
        remote = self.ray.remote(RayActor).options(**options)
        threads = 0 if self.gpu else self.job.cpus or 1
        actor = remote.remote(device, self.job.batch_size, self.site, os.getcwd(), threads)
        number = next(self.numbers)
        self.hands[number], self.asked = _Hand(actor), time.monotonic()
        self.calls[actor.ready.remote()] = number, "ready"

    def _give(self, number: int) -> None:
        if number in self.hands and self.hands[number].doubted:
            return
        while number in self.hands and (chunk := self.dispatch.next(number)) is not None:
            self.calls[self.hands[number].actor.make.remote(chunk)] = number, "make"

    def _hear(self, reference: Any) -> None:
        """What a call came to."""
        number, method = self.calls.pop(reference)
        errors = self.ray.exceptions
        try:
            value = self.ray.get(reference)
        except errors.ActorUnavailableError as error:
            self._doubt(number, method, error)
            return
        except errors.RayActorError as error:
            self._lost(number, error)
            return
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            raise UserError(f"{cause}") from error if not isinstance(cause, UserError) else None
        if method == "make":
            self.stillborn = 0
            for outcome in value:
                self.dispatch.done(number, outcome)
        elif method == "doubt":  # it is there, but its calls have failed
            self._lost(number, None)
        elif value is not None:
            raise UserError(value)
        elif number in self.hands:
            self.hands[number].placed = True
        self._give(number)

    def _doubt(self, number: int, method: str, error: Exception) -> None:
        """A worker cannot be reached: whether its machine is gone, or its process was killed, Ray will find out."""
        if method == "doubt":
            self._lost(number, error)
        elif number in self.hands and not self.hands[number].doubted:
            self.hands[number].doubted = True
            self.calls[self.hands[number].actor.ready.remote()] = number, "doubt"

    def _lost(self, number: int, error: Exception | None) -> None:
        """A worker is gone, or as good as that."""
        hand = self.hands.pop(number, None)
        if hand is None:
            return  # another of its calls has told
        with suppress(Exception):
            self.ray.kill(hand.actor)  # if it is only cut off, it must not come back
        text = str(error)
        killed = "worker process has died" in text and not re.search(r"\bnode\b[^.]*\b(died|dead|terminated)\b", text)
        self.stillborn += 1
        what = "its process was killed" if killed else "its machine is gone"
        logger.warning("worker %d is lost (%s): its rows go elsewhere", number, what)
        self.dispatch.lost(number, what, blame=killed)
        for other in [*self.hands]:
            if self.hands[other].placed:
                self._give(other)

    def _dismiss(self) -> None:
        """End the workers; those that have no place yet are not waited for."""
        ends = [hand.actor.finish.remote() for hand in self.hands.values() if hand.placed]
        done, _ = self.ray.wait(ends, num_returns=len(ends), timeout=30) if ends else ([], [])
        for reference in done:
            with suppress(Exception):
                self.profile += self.ray.get(reference)
        for hand in self.hands.values():
            self.ray.kill(hand.actor)


class RayActor(Actor):
    """An actor in a process of Ray's, with so many threads for its networks; 0 leaves that to torch."""

    def __init__(self, device: str, batch_size: int, site: Site, folder: str | None, threads: int):
        if threads:
            import torch

            torch.set_num_threads(threads)
        super().__init__(device, batch_size, replace(site, node=_node_name(site.node)), folder)
