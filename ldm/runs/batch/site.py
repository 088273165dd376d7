"""What a worker, or the batch itself, has of files: the output folder, what is done, and copies of remote inputs."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm.backbones import zoo
from ldm.errors import UserError
from ldm.files import file_sha256
from ldm.options import declared
from ldm.runs.batch.outcome import Outcome
from ldm.runs.batch.remote import InputCache, Remote
from ldm.runs.batch.rows import Row
from ldm.runs.batch.store import LocalStore, Marker, Store, open_store
from ldm.runs.folder import Run, read_run
from ldm.runs.jobs import MethodOptions
from ldm.runs.record import prompt_slug

INPUTS = ("init_image", "mask")
_ELSEWHERE = (*INPUTS, "overwrite", "model", "upsampler", "config", "ckpt", "device")  # what no digest has of a job
_FRESH = 5.0  # seconds for which the weights that were found of a model are believed to be those


@dataclass(frozen=True)
class Site:
    """What is to be opened in the process that needs it.

    outdir: path or URL. cache: gigabytes of copies. shared: others may make the same rows, so what is done is looked up
    again before a row is made. node: the name of the machine, for the summary.
    """

    outdir: str
    cache: float = 4.0
    shared: bool = False
    node: str | None = None

    @contextmanager
    def opened(self) -> Iterator["Files"]:
        """The files, whose copies go when the block ends."""
        with tempfile.TemporaryDirectory(prefix="bld-batch-", ignore_cleanup_errors=True) as folder:
            desk, inputs = Path(folder, "desk"), Path(folder, "inputs")
            desk.mkdir()
            store = open_store(self.outdir, desk)
            yield Files(self, store, InputCache(inputs, self.cache * 1e9), Path(folder, "made"))


@dataclass(frozen=True)
class Files:
    """A site that is open; threads may share it. `made` has what is made of rows' files, until `give_back`."""

    site: Site
    store: Store
    cache: InputCache
    made: Path
    weights: dict[Any, tuple[float, str]] = field(default_factory=dict)  # what was found of models, and when

    def desk(self, row: Row) -> Path:
        """A folder for what is made of a row's files; whoever makes something makes it."""
        return self.made / row.name

    def take(self, row: Row) -> Row:
        """The row with its files on this machine, until `give_back`.

        Raises:
            UserError: one cannot be had.
        """
        inputs: dict[str, Path] = {}
        try:
            for option, url in row.urls.items():
                inputs[option] = self.cache.take(url)
        except BaseException:
            for option in inputs:
                self.cache.give_back(row.urls[option])
            raise
        here = isinstance(self.store, LocalStore)
        return row if here and not inputs else row.with_files(self.store.folder(row.name), inputs)

    def give_back(self, row: Row) -> None:
        """The row's copies, and what was made of them, are no longer needed."""
        shutil.rmtree(self.desk(row), ignore_errors=True)
        for url in row.urls.values():
            self.cache.give_back(url)

    def known(self, row: Row) -> Marker | None:
        """What is known of a row that has been made of the same options, files and weights; None where it has not."""
        return self.look(row)[0]

    def look(self, row: Row) -> tuple[Marker | None, bool]:
        """The same; and whether its folder has what was made of others, which the row's run will replace."""
        marker, other = self.store.marker(row.name), False
        if isinstance(self.store, LocalStore) and not _whole(row):
            return None, False
        try:
            if marker is not None:
                stamps = stamps_of(row)
                unchanged = None not in stamps and list(stamps) == list(marker.stamps)
                content = marker.content if unchanged else self._content(row)
                if self.digest(row.job, content) == marker.digest:
                    return replace(marker, outcome=marker.outcome | {"row": row.number}), False
                other = True
            if isinstance(self.store, LocalStore):  # killed before it could put a marker
                content = self._content(row)
                marker = _marker_of(row, read_run(row.folder), content, self.digest(row.job, content))
                return marker, other and marker is None
        except UserError:  # no run, or its files cannot be read any more: the worker tells why
            pass
        return None, other

    def digest(self, job: MethodOptions, content: tuple[str, str]) -> str:
        """SHA-256 of all that decides what a row's run holds: its options, the content of its files, and the weights.

        Not of paths and device: a batch may be moved. Which files a model has is looked up every few seconds, not for
        each of thousands of rows.

        Raises:
            UserError: there is no such model.
        """
        weights = [self._weights(one) for one in job.models]
        elsewhere = (*_ELSEWHERE, job.outdir_option)
        settings = {name: getattr(job, name) for name in declared(type(job)) if name not in elsewhere}
        about = [settings, *weights, list(content)]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _weights(self, model: Mapping[str, Any]) -> str:
        key, now = tuple(model.items()), time.monotonic()
        found, weights = self.weights.get(key, (-_FRESH, ""))
        if not weights or now - found > _FRESH:
            weights = zoo.resolve(**model).digest()
            self.weights[key] = now, weights
        return weights

    def outcome(self, row: Row, marker: Marker) -> Outcome | None:
        """The outcome that a marker holds, under the row's number; None where it cannot be read."""
        return Outcome.from_values(marker.outcome | {"row": row.number})

    def _content(self, row: Row) -> tuple[str, str]:
        if not row.urls:
            return content_of(row.job)
        local = self.take(row)
        try:
            return content_of(local.job)
        finally:
            self.give_back(row)


def _whole(row: Row) -> bool:
    """Whether the run of a row that is here has all its parts; the grid comes last."""
    folder = row.folder
    return (folder / f"{prompt_slug(row.job.prompt)}.png").is_file() and (folder / "samples" / "run.json").is_file()


def _marker_of(row: Row, run: Run, content: tuple[str, str], digest: str) -> Marker | None:
    """What a run folder without a marker says; None where it is of something else."""
    record = run.record
    if record.options.get("row") != digest:
        return None
    values: dict[str, Any] = {"prompt": record.prompt, "image": row.given("init_image"), "mask": row.given("mask")}
    values |= {"seeds": record.seeds, "scores": record.scores, "measures": record.measures, "digest": digest}
    outcome = Outcome(row.number, row.name, "done", device=record.device, **values)
    return Marker(digest, content, (None, None), asdict(outcome))


def stamps_of(row: Row) -> tuple[Any, Any]:
    """What tells, without reading them, that a row's image and mask are as they were; None where nothing does.

    Raises:
        UserError: one is not there.
    """
    stamps: list[Any] = []
    for option in INPUTS:
        url, path = row.urls.get(option), getattr(row.job, option)
        try:
            if path is None:
                stamps.append([])
            elif url is not None:
                stamps.append(Remote(url).stamp())
            else:
                about = os.stat(path)
                stamps.append([str(path), about.st_size, about.st_mtime_ns])
        except OSError as error:
            raise UserError(f'"{url or path}" cannot be read ({error.strerror or "no such file"}): check it') from error
    return stamps[0], stamps[1]


def content_of(job: MethodOptions) -> tuple[str, str]:
    """SHA-256 of a job's image and mask; "" for no mask.

    Raises:
        UserError: one cannot be read.
    """
    try:
        return file_sha256(job.init_image), "" if job.mask is None else file_sha256(job.mask)
    except OSError as error:
        raise UserError(f'"{error.filename}" cannot be read ({error.strerror}): check the path') from error
