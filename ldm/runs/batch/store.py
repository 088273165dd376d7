"""Where a batch's run folders lie, here or behind a URL, and the marker of each row that is done.

outdir/<name of the row>/
  ...           the run, as `ldm.runs.folder` has it
  .row.json     the marker, written last: what was made, of which content of which files

Markers are what says that a row is done: a worker or a batch that is started twice finds them, wherever it runs.
"""

import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import Timeout

from ldm.errors import UserError
from ldm.files import atomic_file, write_error
from ldm.runs.batch.remote import Remote, as_local, is_url
from ldm.runs.folder import check_writable
from ldm.runs.ownership import RUN
from ldm.runs.places import LOCK, locked

logger = logging.getLogger(__name__)

MARKER = ".row.json"
BEAT, STALE = 10.0, 45.0  # seconds between signs of life of a batch behind a URL; without one for so long it is dead
SETTLED = 1.0  # seconds after which of two batches that begin at once each can see which of them the store has kept


@dataclass(frozen=True)
class Marker:
    """What is known of a row that is done.

    digest: of all that makes the row what it is, see `Files.digest`. content: SHA-256 of image and mask. stamps: of the
    same, what tells without reading them that they are as they were. outcome: the row's line in the summary.
    """

    digest: str
    content: tuple[str, str]
    stamps: tuple[Any, Any]
    outcome: dict[str, Any]

    def to_json(self) -> bytes:
        """The marker's file."""
        return json.dumps(vars(self), ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"

    @classmethod
    def from_json(cls, text: bytes | None) -> "Marker | None":
        """The marker of a file's content; None for no file, or one that is no marker."""
        try:
            values = json.loads(text or b"")
            content, stamps = ((one[0], one[1]) for one in (values["content"], values["stamps"]))
            return cls(str(values["digest"]), content, stamps, dict(values["outcome"]))
        except (ValueError, TypeError, LookupError):
            return None


class Store(Protocol):
    """An output folder.

    desk: a folder of this machine where summary and page are kept; the output folder itself, where that is here.
    """

    outdir: str
    desk: Path

    def folder(self, name: str) -> Path:
        """Where a worker writes a row's run."""
        ...

    def marker(self, name: str) -> Marker | None:
        """What is known of a row, None where it is not done."""
        ...

    def begin(self, name: str) -> None:
        """A row is about to be made."""
        ...

    def finish(self, name: str, marker: Marker) -> None:
        """A row's run lies in its folder: put it in its place, and the marker last."""
        ...

    def publish(self, files: Sequence[str]) -> None:
        """Put files from the desk in their place."""
        ...

    def fetch(self, file: str) -> None:
        """Bring a file to the desk, where it is not there."""
        ...

    def list(self, prefix: str) -> list[str]:
        """The names that begin so, of the files beside the rows' folders, in order."""
        ...

    def held(self, share: str) -> Any:
        """A context in which nobody else makes the same share of the rows here.

        Raises:
            UserError: somebody does.
        """
        ...


def open_store(outdir: str, desk: Path) -> Store:
    """The output folder of a path or URL; `desk` is a folder for the files of one that is not here."""
    outdir = as_local(outdir)
    if not is_url(outdir) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", outdir):
        raise UserError(f'`outdir` is "{outdir}": a URL begins as s3://, in small letters and with two slashes')
    return RemoteStore(outdir, desk) if is_url(outdir) else LocalStore(Path(outdir))


class LocalStore:
    """An output folder on a file system."""

    def __init__(self, outdir: Path):
        self.outdir, self.desk = str(outdir), outdir

    def folder(self, name: str) -> Path:
        """See `Store`."""
        return self.desk / name

    def marker(self, name: str) -> Marker | None:
        """See `Store`."""
        try:
            return Marker.from_json((self.folder(name) / MARKER).read_bytes())
        except OSError:
            return None

    def begin(self, name: str) -> None:
        """See `Store`: the new run and its marker replace the old ones each as a whole."""

    def finish(self, name: str, marker: Marker) -> None:
        """See `Store`."""
        with atomic_file(self.folder(name) / MARKER) as file:
            file.write(marker.to_json())

    def publish(self, files: Sequence[str]) -> None:
        """See `Store`: they are in their place."""

    def fetch(self, file: str) -> None:
        """See `Store`: it is there."""

    def list(self, prefix: str) -> list[str]:
        """See `Store`."""
        try:
            with os.scandir(self.desk) as entries:
                return sorted(one.name for one in entries if one.name.startswith(prefix) and one.is_file())
        except FileNotFoundError:
            return []

    @contextmanager
    def held(self, share: str) -> Iterator[None]:
        """See `Store`. The lock goes with the process, however that ends.

        Those who make all rows lock `.lock`; those who make a share, one of its own beside it.
        """
        check_writable(self.desk)
        try:
            self.desk.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.desk, error) from error
        own = self.desk / f".lock{share}"
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(own, timeout=0.5))  # another may look whether it is held
                for other in sorted(self.desk.glob(".lock*")):
                    count, others = share.rpartition("-")[2], other.name.rpartition("-")[2]
                    if other != own and count != others:  # shares of one size have no row in common
                        with locked(other, timeout=2):
                            pass
            except Timeout as error:
                raise UserError(
                    f'another batch is at work in "{self.desk}": wait for its end or choose another `outdir`'
                ) from error
            yield


class RemoteStore:
    """An output folder behind a URL. What is made on the desk is put there file by file, each as a whole."""

    def __init__(self, outdir: str, desk: Path):
        self.outdir, self.desk = outdir, desk
        self.remote = Remote(outdir)

    def folder(self, name: str) -> Path:
        """See `Store`: on the desk."""
        return self.desk / name

    def marker(self, name: str) -> Marker | None:
        """See `Store`."""
        return Marker.from_json(self.remote.read(f"{name}/{MARKER}"))

    def begin(self, name: str) -> None:
        """See `Store`."""
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def finish(self, name: str, marker: Marker) -> None:
        """See `Store`. Nothing is kept on the desk."""
        folder = self.folder(name)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK]
        pairs = [(path, f"{name}/{path.relative_to(folder).as_posix()}") for path in paths]
        there = {f"{name}/{below}" for below in self.remote.files(name)}
        if f"{name}/{MARKER}" in there:
            self.remote.remove(f"{name}/{MARKER}")  # first: until the new one is there, the row is not done
        for below in there - {below for _, below in pairs}:
            if RUN.fullmatch(below.removeprefix(f"{name}/samples/")):  # of the run before, and no file of the user's
                self.remote.remove(below)
        self.remote.upload(pairs)
        self.remote.write(f"{name}/{MARKER}", marker.to_json())
        shutil.rmtree(folder, ignore_errors=True)

    def publish(self, files: Sequence[str]) -> None:
        """See `Store`."""
        self.remote.upload([(self.desk / file, file) for file in files])

    def fetch(self, file: str) -> None:
        """See `Store`."""
        path = self.desk / file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self.remote.download(file, path)

    def list(self, prefix: str) -> list[str]:
        """See `Store`."""
        return sorted(self.remote.names(prefix))

    @contextmanager
    def held(self, share: str) -> Iterator[None]:
        """See `Store`. A file there tells who is at work, and that it is alive; of the dead it is taken over.

        Two that begin within the second in which the store settles are told apart by which of them it keeps. Markers
        make it harmless where it does not: a row that is made twice is the same, and whole.
        """
        lease = _Lease(self.remote, f".lock{share}.json")
        lease.take()
        thread = threading.Thread(target=lease.beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            lease.over.set()
            thread.join()
            lease.release()


class _Lease:
    """The file that says who makes a share of the rows."""

    def __init__(self, remote: Remote, file: str):
        self.remote, self.file = remote, file
        self.me = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self.over = threading.Event()
        self.beats = 0

    def take(self) -> None:
        """Be the one.

        Raises:
            UserError: another is.
        """
        seen = self.remote.read(self.file)
        if seen is not None and not self._dead(seen):
            logger.warning('"%s" is said to be at work: waiting to see whether it is alive', self._who(seen))
            for _ in range(int(STALE)):
                time.sleep(1)
                if (now := self.remote.read(self.file)) != seen:
                    if now is None:
                        break
                    raise UserError(
                        f'{self._who(now)} is at work on the same rows in "{self.remote.url}": wait for its end or '
                        "choose another `outdir`"
                    )
        self._write()
        time.sleep(SETTLED)
        if not self._mine():
            raise UserError(
                f'another batch has just begun in "{self.remote.url}": wait for its end or choose another `outdir`'
            )

    def beat(self) -> None:
        """Tell from time to time that we are alive, until it is over."""
        while not self.over.wait(BEAT):
            with suppress(UserError):  # the next may come through
                if not self._mine():
                    logger.error("another batch has taken over these rows, believing this one dead: it stops here")
                    os.kill(os.getpid(), 15)
                    return
                self._write()

    def release(self) -> None:
        """Leave it to the next."""
        with suppress(UserError):
            if self._mine():
                self.remote.remove(self.file)

    def _write(self) -> None:
        self.beats += 1
        self.remote.write(self.file, json.dumps(self.me | {"beats": self.beats}).encode())

    def _mine(self) -> bool:
        return self._of(self.remote.read(self.file)).get("id") == self.me["id"]

    def _dead(self, content: bytes) -> bool:
        """Whether its process was on this machine, and is no more."""
        about = self._of(content)
        if about.get("host") != self.me["host"] or not isinstance(about.get("pid"), int):
            return False
        try:
            os.kill(about["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False

    @staticmethod
    def _of(content: bytes | None) -> dict[str, Any]:
        try:
            return dict(json.loads(content or b"{}"))
        except (ValueError, TypeError):
            return {}

    def _who(self, content: bytes) -> str:
        about = self._of(content)
        return f"process {about.get('pid')} of {about.get('host')}"
