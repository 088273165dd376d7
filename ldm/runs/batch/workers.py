"""The engine of this machine: a process for each device, which is handed rows as it takes them.

The process that hands them out imports no torch: it needs little memory, and has begun before a worker has.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait

from ldm import cli
from ldm.errors import UserError
from ldm.runs.batch.dispatch import DEPTH, Dispatch
from ldm.runs.batch.outcome import Outcome, Profile, quieten
from ldm.runs.batch.rows import Chunk
from ldm.runs.batch.site import Site

logger = logging.getLogger(__name__)

AUTO = "auto"
"""All CUDA devices there are, or the best other one: the first worker finds out."""

# What a worker says: first, which devices it has found; what became of a row; last of all, where its time went; or why
# all must stop.
_DEVICES, _ROW, _END, _STOP = "devices", "row", "end", "stop"
_STILLBORN = 3  # workers of a device that may die without having made a row


def run_workers(
    devices: Sequence[str], batch_size: int, site: Site, chunks: Iterator[Chunk], report: Callable[[Outcome], None]
) -> Profile:
    """`Worker.run` on several devices at once; a chunk is sampled as one worker alone would sample it.

    In the place of a worker that is killed comes another, see `Dispatch`.

    Args:
        devices: a worker for each; `AUTO` alone is all that there are.

    Raises:
        UserError: a device cannot be used, or the disk is full.
    """
    team = _Team(devices, batch_size, site, Dispatch(chunks, report))
    try:
        team.run()
    finally:
        team.stop()
    return team.profile


@dataclass
class _Member:
    """A worker's process, its device, and how many of the device's died before it without having made a row."""

    process: multiprocessing.process.BaseProcess
    device: str
    stillborn: int
    ending: bool = False


class _Team:
    """The workers' processes, each behind its pipe."""

    def __init__(self, devices: Sequence[str], batch_size: int, site: Site, dispatch: Dispatch):
        self.devices, self.batch_size, self.site, self.dispatch = devices, batch_size, site, dispatch
        self.members: dict[Connection, _Member] = {}
        self.profile = Profile()
        self.stopping = False

    def run(self) -> None:
        """Until everything has been done, or nobody is left to do it."""
        self._open(self.devices)
        while self.members:
            for link in self._speaking():
                self._hear(link)
        if not self.dispatch.over:
            self.dispatch.abandon(UserError("no worker is left to make it: start the batch again"))

    def _open(self, devices: Sequence[str]) -> None:
        """Start workers, each of which has one chunk before any has more."""
        for device in devices:
            if self.dispatch.waiting:
                self._give(self._start(device), most=1)
        if AUTO not in devices:  # else others may come
            for started in list(self.members):
                self._give(started)

    def stop(self) -> None:
        """End the workers that are left: they write what they have sampled, and what they say of it is passed on."""
        self.stopping = True
        for member in self.members.values():
            member.process.terminate()
        while self.members:
            for link in self._speaking():
                with suppress(UserError):
                    self._hear(link)

    def _start(self, device: str, stillborn: int = 0) -> Connection:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        share = max(1, self.devices.count("cpu"))  # of the processors' cores
        with _ignoring_ctrl_c():
            here, there = context.Pipe()
            arguments = (there, device, self.batch_size, self.site, share)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the pipe
        self.members[here] = _Member(process, device, stillborn)
        return here

    def _give(self, link: Connection, most: int = DEPTH) -> None:
        """Hand a worker what it can have; all end where there is nothing any more."""
        with suppress(ConnectionError):  # it has just died, which will be heard
            for chunk in islice(iter(lambda: self.dispatch.next(link), None), most):
                link.send(chunk)
            if self.dispatch.over:
                for other, member in self.members.items():
                    if not member.ending:
                        member.ending = True
                        with suppress(ConnectionError):
                            other.send(None)

    def _speaking(self) -> list[Connection]:
        """The workers that have something to say, once there are some."""
        ready = wait(list(self.members))
        return [link for link in self.members if link in ready]

    def _hear(self, link: Connection) -> None:
        member = self.members[link]
        try:
            kind, value = link.recv()
        except (EOFError, ConnectionError):
            self._part(link)
            return
        if kind == _DEVICES:
            member.device = value[0]
            self._open(value[1:])
        elif kind == _ROW:
            member.stillborn = 0
            self.dispatch.done(link, value)
            if not self.stopping:
                self._give(link)
        elif kind == _END:
            self.profile += value
        else:
            raise UserError(value)

    def _part(self, link: Connection) -> None:
        """A process has ended: as it should, or because it was killed."""
        member = self.members.pop(link)
        member.process.join()
        link.close()
        if member.ending or self.stopping:
            return
        reason = f"exit code {member.process.exitcode}, perhaps for want of memory"
        logger.warning("a worker on %s was killed (%s): another takes its place", member.device, reason)
        self.dispatch.lost(link, reason)
        if self.dispatch.waiting and member.stillborn < _STILLBORN:
            self._give(self._start(member.device, member.stillborn + 1))
        else:
            for other in list(self.members):
                self._give(other)  # what it had, or the end


def _work(link: Connection, device: str, batch_size: int, site: Site, share: int) -> None:
    """The life of a worker's process, which is one of `share` on the same processors."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # then what has been sampled is written
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def chunks() -> Iterator[Chunk]:
        while True:
            if not link.poll():
                yield ()  # nothing now: what is in hand is finished
            chunk = link.recv()
            if chunk is None:
                return
            yield chunk

    def work(_: Sequence[str]) -> None:
        quieten()
        try:
            import torch

            from ldm.runs.batch.work import Worker, devices_here

            torch.set_num_threads(max(1, torch.get_num_threads() // share))
            devices = devices_here() if device == AUTO else [device]
            link.send((_DEVICES, devices))
            with site.opened() as files:
                worker = Worker(devices[0], batch_size, files, lambda outcome: link.send((_ROW, outcome)))
                link.send((_END, worker.run(chunks())))
        except UserError as error:
            link.send((_STOP, str(error)))

    cli.run(work, ())


def _end_with_parent() -> None:
    """A killed parent cannot say so: without it, nobody may write below its output folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Processes that start here ignore Ctrl-C, which a terminal sends to all of them: the parent ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
