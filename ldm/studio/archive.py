"""Runs and sessions as zip files, written as they are sent: none of them is ever held whole."""

import json
import zipfile
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

from ldm.studio.schema import Job, Session
from ldm.studio.store import Store

_PIECE = 1 << 20


class _Pipe(RawIOBase):
    """What `zipfile` writes to, and the reader takes away piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """What has been written since."""
        taken, self.pieces = b"".join(self.pieces), []
        return taken


def zipped(files: Iterator[tuple[str, Path | bytes]]) -> Iterator[bytes]:
    """A zip of files by their names in it; pictures are not compressed again."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[arg-type]  # asks for write alone
        for name, content in files:
            if isinstance(content, bytes):
                archive.writestr(name, content)
                continue
            with open(content, "rb") as source, archive.open(name, "w", force_zip64=True) as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    yield pipe.take()
    yield pipe.take()


def of_run(store: Store, job: Job, folder: str = "") -> Iterator[tuple[str, Path | bytes]]:
    """The files of a job's run: the grid and `samples`, as the command line leaves them."""
    root = store.folder(job.id)
    for path in sorted([*root.glob("*.png"), *(root / "samples").rglob("*")]):
        if path.is_file():
            yield f"{folder}{path.relative_to(root).as_posix()}", path


def of_session(store: Store, session: Session, jobs: dict[str, Job]) -> Iterator[tuple[str, Path | bytes]]:
    """The session as a folder: the photograph, each step's run in a folder of its own, and who came from whom."""
    told, numbers = [], {}
    for number, step in enumerate(session.steps):
        numbers[step.image] = number
        about: dict[str, Any] = {"step": number, "prompt": step.prompt}
        if step.parent is not None:
            about["from"] = numbers.get(step.parent)
        job = jobs.get(step.job or "")
        if job is None or not store.has_run(job.id):
            path = store.file("images", step.image)
            about["picture"] = f"{number:02d}-photograph{path.suffix}"
            yield about["picture"], path
        else:
            folder = f"{number:02d}-edit/"
            place = "results" if step.restored is None else f"reconstructed_{step.restored}"
            about |= {"run": f"{folder}samples", "picture": f"{folder}samples/{place}/{step.index or 0:04d}.png"}
            yield from of_run(store, job, folder)
        told.append(about)
    yield "session.json", (json.dumps({"steps": told}, indent=2, ensure_ascii=False) + "\n").encode()
