"""The rows of a batch: from records to jobs, which of them are wanted, and which are sampled together.

A row is an image, a mask, a prompt, a name and a method if it likes, and any option of that method by its name, see
`COLUMNS`.
What a row does not say, the command line says. Relative paths are relative to the file that names them.

A row's name is its identity: what it is called, else what it says. So it stays the same when other rows come and go.
"""

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ldm.backbones import zoo
from ldm.errors import UserError
from ldm.options import declared
from ldm.runs.batch.records import COLUMNS, SHORT, Manifest, Record, known_columns, method_of
from ldm.runs.batch.remote import as_local, is_url, stem_of
from ldm.runs.jobs import EditJob, MethodOptions
from ldm.runs.methods import Method, method_named
from ldm.runs.record import prompt_slug

__all__ = ["COLUMNS", "BadRow", "Chunk", "Row", "Rows", "Selection", "good", "plan", "read_rows", "share_of", "windows"]

_INPUTS = ("init_image", "mask")
_PATHS = (*_INPUTS, "config", "ckpt")
_MODEL = ("model", "config", "ckpt", "revision", "lora")
_FOLDERS = ("model", "upsampler", "tokenizer")  # or a name that is known elsewhere
_FILES = {*_INPUTS, *_MODEL, *_FOLDERS}  # that name files
_SLUG, _DIGITS = 64, 12  # of the name of a row without one: letters of its prompt, digits of its hash

WINDOW = 1024
"""Rows that are looked at, and planned, at a time."""


@dataclass(frozen=True)
class Row:
    """A row that is to be made.

    number: its place among the rows, from 1. name: of its output folder. job: of a method, which its class tells.
    urls: the inputs that are behind URLs, by option; the job has their file names until a worker fetches them.
    """

    number: int
    name: str
    job: MethodOptions
    urls: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return getattr(self.job, self.job.outdir_option)

    @property
    def predictions(self) -> int:
        """How many it asks for."""
        return len(self.job.seeds)

    @property
    def model(self) -> tuple[Any, ...]:
        """What rows that one worker makes without loading anything between have in common."""
        return *self.job.loading.values(), type(self.job).__name__

    @property
    def settings(self) -> tuple:
        """What rows that are sampled together have in common."""
        return *self.model, self.job.together

    def given(self, option: str) -> str | None:
        """The image or mask as the row has it, a path or a URL; None for no mask."""
        path = getattr(self.job, option)
        return self.urls.get(option) or (None if path is None else str(path))

    def with_files(self, outdir: Path, inputs: Mapping[str, Path]) -> "Row":
        """The row with its folder, and its fetched inputs, where they are on this machine."""
        job: Any = self.job
        changes: dict[str, Any] = {self.job.outdir_option: outdir, **inputs}
        return replace(self, job=replace(job, **changes))


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be one: `error` says why, `given` is what it says."""

    number: int
    name: str
    given: Mapping[str, Any]
    error: str


Chunk = tuple[Row, ...]
"""Rows that are sampled together."""


@dataclass(frozen=True)
class Selection:
    """Which rows are wanted.

    shard: (i, n), from 1: the rows whose name's hash falls to the i-th of n. where: columns and the texts that they
    must have, "" for an empty cell or null. limit: of the rows that fit, the first so many.
    """

    shard: tuple[int, int] = (1, 1)
    where: tuple[tuple[str, str], ...] = ()
    limit: int | None = None

    @classmethod
    def of(cls, shard: str | None, where: Sequence[str], limit: int | None) -> "Selection":
        """What the options say; the share of a Slurm array's task where `shard` does not.

        Raises:
            UserError: one cannot be read.
        """
        pairs = []
        for text in where:
            column, equal, value = text.partition("=")
            if not (column.strip() and equal):
                raise UserError(f'`where` is "{text}": give a column and its text, such as split=test')
            pairs.append((column.strip(), value.strip()))
        return cls(_shard(shard) if shard is not None else _slurm_shard(), tuple(pairs), limit)

    @property
    def everything(self) -> bool:
        """Whether no row is left out."""
        return self == Selection()

    def fits(self, record: Record) -> bool:
        """Whether a record has the texts that are asked for."""
        return all(column in record and as_text(record[column]).strip() == text for column, text in self.where)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f'`shard` is "{text}": give I/N, from 1/8 to 8/8 for eight shares')
    return int(match[1]), int(match[2])


def _slurm_shard() -> tuple[int, int]:
    """The share of this task of a Slurm job array; all where there is none.

    Raises:
        UserError: the tasks' numbers have gaps, so that they do not say which share is whose.
    """
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    texts = {name: os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in names}
    if not (texts["ID"].isdigit() and texts["COUNT"].isdigit()):
        return 1, 1
    number, count = int(texts["ID"]), int(texts["COUNT"])
    low, step = int(texts["MIN"] or 0), int(texts["STEP"] or 1)
    high = int(texts["MAX"] or low + step * (count - 1))
    if (high - low) // step + 1 != count or not low <= number <= high:
        raise UserError(
            f"the job array's tasks from {low} to {high} are not {count}, so that they are no shares: "
            "give `shard=I/N` with the N of the whole array"
        )
    return (number - low) // step + 1, count


def share_of(name: str, count: int) -> int:
    """Which of `count` shares a name falls to, from 1; the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:8], "big") % count + 1


class Rows:
    """The rows of a source that are wanted, in its order; a bad one is a `BadRow` and does not spoil the rest.

    Args:
        source: see `Manifest`.
        outdir: each row has a folder of its own below it: its `name` (of a folder's row, the stem), else words of its
            prompt and a hash of all that it says.
        defaults: the options of the command line, which are those of our method; see `_merged` for rows of others.

    Attributes:
        count: rows of the source so far; `wanted`: those of them that are wanted.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        outdir: Path,
        defaults: Mapping[str, Any],
        selection: Selection | None = None,
    ):
        self.manifest = Manifest(source)
        self.outdir, self.defaults = outdir, defaults
        self.selection = selection or Selection()
        self.count = self.wanted = 0

    @property
    def total(self) -> int:
        """How many rows are wanted, by what has been read of the source; exact once all of it has."""
        if self.manifest.fraction >= 1:
            return self.wanted
        guess = int(self.wanted / self.manifest.fraction) if self.manifest.fraction else self.wanted
        return max(self.wanted, min(guess, self.selection.limit or guess))

    def __iter__(self) -> Iterator[Row | BadRow]:
        """The rows.

        Raises:
            UserError: the source cannot be read (any further) or has no rows, or none of them fits `where`.
        """
        names, told, columns = _Names(), set[str](), {column: False for column, _ in self.selection.where}
        limit, fitting = self.selection.limit, 0
        self.count = self.wanted = 0
        for number, given in enumerate(self.manifest, 1):
            self.count = number
            if columns:
                if isinstance(given, UserError):
                    continue
                columns |= {column: True for column in columns if column in given}
                if not self.selection.fits(given):
                    continue
            fitting += 1
            row = self._row(number, given, names, told)
            if row is None:
                continue
            self.wanted += 1
            yield row
            if self.wanted == limit:
                self.manifest.fraction = 1.0
                return
        for column, there in columns.items():
            if not there:
                raise UserError(f'`where` asks for a column "{column}", which no row has: look at the first line')
        if not fitting:
            raise UserError("no row fits `where`: look at the texts of its columns")

    def _row(self, number: int, given: Record | UserError, names: "_Names", told: set[str]) -> Row | BadRow | None:
        """The row of a record; None for another shard's."""
        share, shares = self.selection.shard
        own: Record = {} if isinstance(given, UserError) else given
        name, ours = f"{number:04d}", False  # of a bad row
        try:
            if isinstance(given, UserError):
                raise given
            own = known_columns(given, self.manifest.source, told)
            called = own.get("name")
            prompt = own.get("prompt")
            identity = _name(own, str(self.defaults.get("prompt", "") if prompt is None else prompt))
            if shares > 1 and share_of(identity, shares) != share:
                return None
            ours = True
            first, times = names.note(identity, number)
            if times > 1:
                if called not in (None, ""):
                    raise UserError(f'the name "{identity}" is that of row {first} already: give another')
                identity = f"{identity}-{times}"  # the same row once more
            options, urls = _options(own, self.manifest.base)
            method = method_named(method_of(own))
            options = _merged(method, self.defaults, options)
            _check_complete(method, options)
            make: Any = method.job
            job = make(**options | {method.job.outdir_option: self.outdir / identity, "overwrite": True})
            return Row(number, identity, job, urls)
        except UserError as error:
            if shares > 1 and not ours and share_of(name, shares) != share:
                return None
            return BadRow(number, f"_{name}", own, str(error))  # which no row that can be made is called


def read_rows(
    source: str | os.PathLike, outdir: Path, defaults: Mapping[str, Any], selection: Selection | None = None
) -> Iterator[Row | BadRow]:
    """The rows of `Rows`, by themselves."""
    return iter(Rows(source, outdir, defaults, selection))


def windows(rows: Iterable[Row | BadRow], size: int = WINDOW) -> Iterator[list[Row | BadRow]]:
    """The rows, so many at a time."""
    rows = iter(rows)
    while window := list(islice(rows, size)):
        yield window


def plan(rows: Iterable[Row], batch_size: int) -> list[Chunk]:
    """Rows of the same settings together, up to `batch_size` predictions; a row of more is a chunk of its own.

    The order is that of the rows, but those of one model stand together: it is loaded once.
    """
    groups: dict[tuple, dict[tuple, list[Chunk]]] = {}
    for row in rows:
        chunks = groups.setdefault(row.model, {}).setdefault(row.settings, [()])
        if chunks[-1] and sum(other.predictions for other in chunks[-1]) + row.predictions > batch_size:
            chunks.append(())
        chunks[-1] += (row,)
    return [chunk for group in groups.values() for chunks in group.values() for chunk in chunks]


class _Names:
    """The names that have been given out: in a database of this process alone, on disk where they are many."""

    def __init__(self) -> None:
        self.db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for word in ("pragma journal_mode=off", "pragma synchronous=off", "pragma cache_size=-32000", "begin"):
            self.db.execute(word)
        self.db.execute("create table names (hash integer primary key, first integer, times integer)")

    def note(self, name: str, number: int) -> tuple[int, int]:
        """The row that had a name first, and how often it has been asked for, this time included."""
        key = int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:8], "big", signed=True)
        statement = "insert into names values (?, ?, 1) on conflict do update set times = times + 1"
        (row,) = self.db.execute(f"{statement} returning first, times", (key, number)).fetchall()
        return row


def _name(own: Record, prompt: str) -> str:
    """The name of a row's folder: its own where that is a safe one, else a safe one like it; else of what it says."""
    name = own.get("name")
    if name is None or name == "":
        said = sorted((SHORT.get(key, key), as_text(value)) for key, value in own.items() if value is not None)
        digest = hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).hexdigest()
        return f"{prompt_slug(prompt)[:_SLUG].strip('-')}-{digest[:_DIGITS]}"
    return str(name) if re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,79}", str(name)) else prompt_slug(str(name))


def as_text(value: Any) -> str:
    """A value as text, the same for all kinds of manifest: 7 and 7.0, true and True, [1, 2] and "1 2", None and ""."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value))
    return str(value)


def _options(given: Record, base: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The options that a row gives, its paths seen from where they stand; and those of them that are URLs.

    Raises:
        UserError: one is given under two names, as a URL that must be a path, or as what can be no path.
    """
    options: dict[str, Any] = {}
    urls: dict[str, str] = {}
    for name, value in given.items():
        option = SHORT.get(name, name)
        if value is None or name in ("name", "method"):
            continue
        if option in options:
            raise UserError(f'`{option}` is given twice, also as "image": leave one out')
        if option in _FILES:
            _check_path(option, as_text(value))
        if option in _PATHS:
            text = as_local(str(value))
            text = text if is_url(text) or os.path.isabs(text) else os.path.join(base, text)
            if is_url(text) and option not in _INPUTS:
                raise UserError(f'`{option}` is "{text}": give a path that every worker has')
            if is_url(text):
                urls[option] = text
            value = Path(stem_of(text) if is_url(text) else text)
        elif option in _FOLDERS and isinstance(value, str) and value not in zoo.MODELS and not is_url(base):
            folder = os.path.join(base, value)
            value = folder if os.path.isdir(folder) else value
        options[option] = value
    return options, urls


def _check_path(option: str, text: str) -> None:
    """Refuse what no file can be called, which the system would tell of in its own way wherever it comes up."""
    try:
        if b"\0" not in os.fsencode(text):
            return
    except UnicodeEncodeError:
        pass
    raise UserError(f"`{option}` is {text!r}, which can be no file's name: type it anew")


def _merged(method: Method, defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A row's own options before the command line's; a row that says which model leaves nothing of the other one.

    The command line's are of our method. A row of another one takes those that it has, too, but for the model.
    """
    ours = issubclass(method.job, EditJob)
    other = _MODEL if not ours or any(name in own for name in _MODEL) else ()
    taken = {name: value for name, value in defaults.items() if ours or name in declared(method.job)}
    return {name: value for name, value in taken.items() if name not in other} | {**method.preset, **own}


def _check_complete(method: Method, options: Mapping[str, Any]) -> None:
    for option, word in (("init_image", "image"), ("mask", "mask"), ("prompt", "prompt")):
        if options.get(option) is None and declared(method.job)[option].is_required():
            folder = " (in a folder: photo_mask.png beside photo.jpg, or masks/photo.png for images/photo.jpg)"
            hint = folder if option == "mask" else ""
            raise UserError(f"there is no {word}: give the row one, or all rows by `{option}`{hint}")


def good(rows: Iterable[Row | BadRow]) -> list[Row]:
    """The rows that can be made."""
    return [row for row in rows if isinstance(row, Row)]
