"""Several workers of a batch, one process for each device; rows are handed out as they are wanted."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ldm import cli
from ldm.errors import UserError
from ldm.runs.batch.report import Outcome
from ldm.runs.batch.rows import Chunk, Row
from ldm.runs.batch.work import Profile, Worker, failure

# What a worker says: it wants a chunk; what became of a row; last of all, where its time went; or why all must stop.
_WANT, _ROW, _END, _STOP = "want", "row", "end", "stop"


def run_workers(
    devices: Sequence[str], batch_size: int, chunks: Sequence[Chunk], report: Callable[[Outcome], None]
) -> Profile:
    """`Worker.run` on several devices at once; a chunk is sampled as one worker alone would sample it.

    A worker that is killed takes only the rows that it had with it: they have failed.

    Raises:
        UserError: a device cannot be used, or the disk is full.
    """
    team, queue, profile = _Team(report), deque(chunks), Profile()
    try:
        team.start(devices, batch_size)
        for link, kind, value in team.messages():
            if kind == _WANT:
                team.give(link, queue.popleft() if queue else ())
            elif kind == _END:
                profile += value
            elif kind == _STOP:
                raise UserError(value)
    finally:
        team.stop()
    for row in (row for chunk in queue for row in chunk):
        report(failure(row, UserError("no worker is left to make it: start the batch again")))
    return profile


class _Team:
    """The workers' processes, each behind its pipe, and which rows it has."""

    def __init__(self, report: Callable[[Outcome], None]):
        self.report = report
        self.processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self.rows: dict[Connection, dict[int, Row]] = {}

    def start(self, devices: Sequence[str], batch_size: int) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        threads = max(1, torch.get_num_threads() // max(1, devices.count("cpu")))
        with _ignoring_ctrl_c():
            for device in devices:
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(there, device, batch_size, threads), daemon=True)
                process.start()
                there.close()  # so that the end of the process is the end of the pipe
                self.processes[here], self.rows[here] = process, {}

    def messages(self) -> Iterator[tuple[Connection, str, Any]]:
        """What the workers say, until all have ended; what became of rows is passed on by the way."""
        while self.processes:
            ready = wait(list(self.processes))
            for link in [link for link in self.processes if link in ready]:
                try:
                    kind, value = link.recv()
                except (EOFError, ConnectionError):
                    self._part(link)
                    continue
                if kind == _ROW:
                    self.rows[link].pop(value.row, None)
                    self.report(value)
                else:
                    yield link, kind, value

    def give(self, link: Connection, chunk: Chunk) -> None:
        """Hand rows to a worker; none tell it to end."""
        self.rows[link] |= {row.number: row for row in chunk}
        with suppress(ConnectionError):  # it has just died, which `messages` will notice
            link.send(chunk)

    def stop(self) -> None:
        """End the workers that are left: they write what they have sampled, and what they say of it is passed on."""
        for link, process in self.processes.items():
            self.rows[link].clear()  # not failed: left for another time
            process.terminate()
        deque(self.messages(), maxlen=0)

    def _part(self, link: Connection) -> None:
        process, rows = self.processes.pop(link), self.rows.pop(link)
        process.join()
        link.close()
        for row in rows.values():
            reason = f"its worker was killed (exit code {process.exitcode}), perhaps for want of memory"
            self.report(failure(row, UserError(f"{reason}: start the batch again, with a smaller `batch_size`")))


def _work(link: Connection, device: str, batch_size: int, threads: int) -> None:
    """The life of a worker's process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # then what has been sampled is written
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def chunks() -> Iterator[Chunk]:
        link.send((_WANT, None))
        while chunk := link.recv():
            yield chunk
            link.send((_WANT, None))

    def work(_: Sequence[str]) -> None:
        logging.getLogger("ldm").setLevel(logging.WARNING)
        try:
            worker = Worker(device, batch_size, lambda outcome: link.send((_ROW, outcome)))
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
