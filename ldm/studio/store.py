"""What the studio keeps on disk, so that nothing that was made is lost: pictures, jobs with their runs, sessions.

outdir/
  .studio.lock               one studio at a time
  images/<id>.png  <id>.json     photographs, and results that became inputs
  masks/<id>.png  <id>.json
  jobs/<id>/job.json         and the run as any other's: samples/, the grid
    view/0000.png ...            of each result the part of the picture that has changed
  sessions/<id>.json
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from ldm.errors import UserError
from ldm.files import atomic_file, write_error
from ldm.studio.schema import Job, Picture, Session, now
from ldm.studio.uploads import SUFFIXES

Kind = Literal["images", "masks"]
Kept = TypeVar("Kept", bound=BaseModel)


class Missing(UserError):
    """There is nothing of that id, or there is no more."""


class Store:
    """The folder of a studio.

    Ids come from `new_id`, or have been matched with its pattern by the API: they are safe as names of files.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, root: Path):
        self.root = root = root.absolute()
        try:
            for name in ("images", "masks", "jobs", "sessions", "incoming"):
                (root / name).mkdir(parents=True, exist_ok=True)
            for left in (root / "incoming").iterdir():  # of uploads that were cut off
                left.unlink()
        except OSError as error:
            raise write_error(error.filename or root, error) from error

    # ---- pictures

    def incoming(self, id: str) -> Path:
        """Where an upload is written to before it is looked at."""
        return self.root / "incoming" / id

    def keep(self, kind: Kind, picture: Picture, file: Path) -> None:
        """Take a file that has been looked at into the store."""
        os.replace(file, self._file(kind, picture))
        self._write(self.root / kind / f"{picture.id}.json", picture)

    def picture(self, kind: Kind, id: str) -> Picture:
        """What is known of a picture.

        Raises:
            Missing: there is none.
        """
        found = _read(self.root / kind / f"{id}.json", Picture)
        if found is None:
            raise Missing(f"there is no such {kind[:-1]} (any more): send it again")
        return found

    def file(self, kind: Kind, id: str) -> Path:
        """Its file.

        Raises:
            Missing: there is none.
        """
        path = self._file(kind, self.picture(kind, id))
        if not path.is_file():
            raise Missing(f"there is no such {kind[:-1]} (any more): send it again")
        return path

    def derived(self, id: str, name: str) -> Path:
        """Where a PNG goes that is made of a photograph."""
        return self.root / "images" / f"{id}.{name}.png"

    def _file(self, kind: Kind, picture: Picture) -> Path:
        return self.root / kind / f"{picture.id}.{SUFFIXES[picture.format]}"

    # ---- jobs

    def folder(self, id: str) -> Path:
        """The folder of a job, which is the output folder of its run."""
        return self.root / "jobs" / id

    def save_job(self, job: Job) -> None:
        """Write the state of a job.

        Raises:
            UserError: the disk is full, or the folder gone.
        """
        folder = self.folder(job.id)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"the job cannot be kept ({error.strerror}): free some space") from error
        self._write(folder / "job.json", job)

    def jobs(self) -> list[Job]:
        """All jobs, in the order in which they came. What is damaged is left out."""
        found = [_read(folder / "job.json", Job) for folder in (self.root / "jobs").iterdir()]
        return sorted((job for job in found if job is not None), key=lambda job: (job.created, job.id))

    def has_run(self, id: str) -> bool:
        """Whether a job's run folder has been written; that happens as a whole."""
        return (self.folder(id) / "samples" / "run.json").is_file()

    def result(self, job: Job, index: int, restored: str | None = None) -> Path:
        """The file of a prediction in its picture.

        Raises:
            Missing: it has not been made, or not yet saved.
        """
        place = "results" if restored is None else f"reconstructed_{restored}"
        path = self.folder(job.id) / "samples" / place / f"{index:04d}.png"
        if not path.is_file():
            raise Missing("that picture has not been saved (yet), or has been removed")
        return path

    def forget_job(self, id: str) -> None:
        """Remove a job and what it made."""
        shutil.rmtree(self.folder(id), ignore_errors=True)

    # ---- sessions

    def save_session(self, session: Session) -> None:
        """Write a session.

        Raises:
            UserError: the disk is full.
        """
        self._write(self.root / "sessions" / f"{session.id}.json", session)

    def session(self, id: str) -> Session:
        """A session.

        Raises:
            Missing: there is none.
        """
        found = _read(self.root / "sessions" / f"{id}.json", Session)
        if found is None:
            raise Missing("there is no such session (any more)")
        return found

    def sessions(self) -> list[Session]:
        """All sessions, the one used last first."""
        found = [_read(path, Session) for path in (self.root / "sessions").glob("*.json")]
        return sorted((one for one in found if one is not None), key=lambda one: one.used, reverse=True)

    # ---- pruning

    def prune(self, jobs: list[Job], keep_days: float, keep_gb: float) -> list[str]:
        """Remove what has not been used for long, and the oldest while there is too much.

        A session goes as a whole, with its pictures and jobs. What is queued or running stays.

        Returns:
            The ids of the jobs that are gone.
        """
        groups = self._groups(jobs)
        busy = {job.id for job in jobs if not job.has_ended}
        total = sum(group.size for group in groups)
        gone: list[str] = []
        for group in sorted(groups, key=lambda group: group.used):
            old = now() - group.used > keep_days * 86_400
            if busy & group.jobs or not (old or total > keep_gb * 1e9):
                continue
            for path in group.paths:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        path.unlink()
            total -= group.size
            gone += group.jobs
        return gone

    def _groups(self, jobs: list[Job]) -> list["_Group"]:
        """What is kept, in parts that go together."""
        sessions = {one.id: one for one in self.sessions()}
        groups: dict[str, _Group] = {}
        owner: dict[str, str] = {}  # of a picture
        for session in sessions.values():
            groups[session.id] = _Group(session.used, [self.root / "sessions" / f"{session.id}.json"])
            owner |= {step.image: session.id for step in session.steps}
        for job in jobs:
            name = job.session if job.session in groups else owner.get(job.image, job.id)
            group = groups.setdefault(name or job.id, _Group(0, []))
            group.used = max(group.used, job.ended or job.created)
            group.jobs.add(job.id)
            group.paths.append(self.folder(job.id))
            owner |= {picture: name or job.id for picture in (job.image, job.mask) if picture not in owner}
        for path in (*(self.root / "images").iterdir(), *(self.root / "masks").iterdir()):
            id = path.name.split(".")[0]
            with suppress(FileNotFoundError):
                group = groups.setdefault(owner.get(id, id), _Group(path.stat().st_mtime, []))
                group.paths.append(path)
        for group in groups.values():
            group.size = sum(map(_size, group.paths))
        return list(groups.values())

    def _write(self, path: Path, value: BaseModel) -> None:
        try:
            with atomic_file(path) as file:
                file.write(value.model_dump_json(indent=1).encode())
        except UserError as error:
            cause = getattr(error.__cause__, "strerror", None) or "it cannot be written"
            raise UserError(f"the studio's folder is not to be written ({cause}): free some space") from error


class _Group:
    """Files that go together, when they were last used, and whose jobs they are."""

    def __init__(self, used: float, paths: list[Path]):
        self.used, self.paths, self.size = used, paths, 0
        self.jobs: set[str] = set()


def copy_in(source: Path, target: BinaryIO) -> None:
    """The content of a file to one that is open."""
    with open(source, "rb") as file:
        shutil.copyfileobj(file, target, 1 << 20)


def _size(path: Path) -> int:
    return sum(_bytes(one) for one in _files(path))


def _files(path: Path) -> Iterator[Path]:
    return path.rglob("*") if path.is_dir() else iter([path])


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    """What a file holds; None where there is none, or nothing of the sort."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
