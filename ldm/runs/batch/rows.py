"""The rows of a batch: from a JSONL, a CSV or a folder of pictures to jobs, and which of them are sampled together.

A row is an image, a mask, a prompt, a name if it likes, and any option of an edit by its name, see `COLUMNS`.
What a row does not say, the command line says. Relative paths are relative to the file that names them.
"""

import csv
import difflib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.backbones import zoo
from ldm.errors import UserError
from ldm.options import declared
from ldm.runs.jobs import EditJob
from ldm.runs.record import prompt_slug

logger = logging.getLogger(__name__)

_SHORT = {"image": "init_image"}
_PATHS = ("init_image", "mask", "config", "ckpt")
_MODEL = ("model", "config", "ckpt", "revision", "lora")
_NOT_A_ROWS = ("outdir", "overwrite", "device")
COLUMNS = ("name", *_SHORT, *(name for name in declared(EditJob) if name not in _NOT_A_ROWS))
"""What a row may hold."""


@dataclass(frozen=True)
class Row:
    """A row that is to be made.

    number: its place among the rows, from 1. name: of its output folder, which is the job's `outdir`.
    """

    number: int
    name: str
    job: EditJob

    @property
    def predictions(self) -> int:
        """How many it asks for."""
        return len(self.job.request.seeds)

    @property
    def model(self) -> tuple[Any, ...]:
        """What rows of one model have in common: the arguments of `Editor.load`, but for the device."""
        return tuple(self.job.loading.values())

    @property
    def settings(self) -> tuple:
        """What rows that are sampled together have in common."""
        return *self.model, self.job.request.batch_key, self.job.save_video


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be one: `error` says why, `given` is what it says."""

    number: int
    name: str
    given: Mapping[str, Any]
    error: str


Chunk = tuple[Row, ...]
"""Rows that are sampled together."""


def read_rows(source: Path, outdir: Path, defaults: Mapping[str, Any]) -> list[Row | BadRow]:
    """The rows of a file or folder, in its order; a bad one is a `BadRow` and does not spoil the rest.

    source: one of
        `edits.jsonl`: an object per line; null is the default.
        `edits.csv`: the names of the columns first; an empty cell is the default.
        a folder with `photo.jpg` and `photo_mask.png`, or with `images/photo.jpg` and `masks/photo.png`; the prompt
        is the text of `photo.txt` beside the image, if there is one.

    Args:
        outdir: each row has a folder of its own below it: its `name` (of a folder's row, the stem), else its number
            and prompt.
        defaults: the options of the command line.

    Raises:
        UserError: the file cannot be read or has no rows.
    """
    try:
        base = Path() if source.is_dir() else source.parent
        records = list(_read_folder(source) if source.is_dir() else _read_file(source))
    except UnicodeDecodeError as error:
        raise UserError(f'"{source}" is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8') from error
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f'"{source}" cannot be read as rows ({reason}): give a JSONL, a CSV or a folder') from error
    if not records:
        raise UserError(f'"{source}" has no rows: give at least one image with its mask')
    rows: list[Row | BadRow] = []
    taken: dict[str, int] = {}
    for number, given in enumerate(_known(records, source), 1):
        try:
            if isinstance(given, UserError):
                raise given
            options = _merged(defaults, _options(given, base))
            name = _name(number, given.get("name"), str(options.get("prompt", "")))
            if (first := taken.setdefault(name.lower(), number)) != number:
                raise UserError(f'the name "{name}" is that of row {first} already: give another')
            _check_complete(options)
            rows.append(Row(number, name, EditJob(**options | {"outdir": outdir / name, "overwrite": True})))
        except UserError as error:
            rows.append(BadRow(number, f"{number:04d}", given if isinstance(given, Mapping) else {}, str(error)))
    return rows


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


def _read_file(source: Path) -> Iterator[Mapping[str, Any] | UserError]:
    kind = source.suffix.lower()
    if kind not in (".jsonl", ".ndjson", ".csv"):
        raise UserError(f'"{source}" is neither a .jsonl, a .csv nor a folder')
    with open(source, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin with a byte order mark
        yield from _read_csv(file, source) if kind == ".csv" else map(_object, filter(str.strip, file))


def _object(line: str) -> Mapping[str, Any] | UserError:
    try:
        value = json.loads(line)
    except ValueError as error:
        return UserError(f"the line is no JSON ({error})")
    return value if isinstance(value, dict) else UserError("the line is no JSON object, such as {...}")


def _read_csv(file: Iterable[str], source: Path) -> Iterator[Mapping[str, Any] | UserError]:
    lines, header, above = iter(file), "", 0
    for header in lines:
        above += 1
        if header.strip():
            break
    delimiter = max(",;\t", key=header.count)  # spreadsheets write what their country uses
    dialect: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": True, "strict": True}
    columns = [name.strip() for name in next(csv.reader([header], **dialect), [])]
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise UserError(f'"{source}" has more than one column "{twice[0]}": leave one')
    if columns and not any(difflib.get_close_matches(name.lower(), COLUMNS, 1, 0.8) for name in columns):
        raise UserError(f'"{source}", line {above} names no column of a row: begin with image,mask,prompt')
    reader = csv.reader(lines, **dialect)
    while True:
        line = above + reader.line_num + 1  # of the file, from 1, in which the row begins
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f'"{source}", the row from line {line}: a quotation mark is not closed, or text follows it ({error})'
            ) from error
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(columns) and any(cells[len(columns) :]):
            yield UserError(f"there are {len(cells) - len(columns)} more cells than columns")
        else:
            yield {column: cell for column, cell in zip(columns, cells, strict=False) if cell.strip()}


def _known(records: Iterable[Mapping[str, Any] | UserError], source: Path) -> Iterator[Mapping[str, Any] | UserError]:
    """Records without what is no option, which is told once; what is nearly one makes its row a bad one."""
    told: set[str] = set()
    for given in records:
        if isinstance(given, UserError):
            yield given
            continue
        strange = [name for name in given if name not in COLUMNS]
        near = {name: difflib.get_close_matches(name.lower(), COLUMNS, 1, 0.8) for name in strange}
        typo = next((name for name in strange if near[name]), None)
        if typo is not None:
            yield UserError(f'there is no option "{typo}" for a row: is it "{near[typo][0]}"?')
            continue
        for name in strange:
            if name and name not in told:  # a column without a name is that of a spreadsheet's row numbers
                told.add(name)
                logger.warning('"%s": "%s" is no option of a row and is ignored', source, name)
        yield {name: value for name, value in given.items() if name in COLUMNS}


def _read_folder(folder: Path) -> Iterator[Mapping[str, Any] | UserError]:
    parted = (folder / "images").is_dir() and (folder / "masks").is_dir()
    images, mark = (folder / "images", "") if parted else (folder, "_mask")
    pictures = _pictures(images)
    masks: dict[str, list[Path]] = {}
    for path in _pictures(folder / "masks") if parted else pictures:
        if path.stem.endswith(mark):
            masks.setdefault(path.stem.removesuffix(mark), []).append(path)
    for path in pictures:
        if mark and path.stem.endswith(mark):
            continue
        found = masks.pop(path.stem, [])
        if len(found) > 1:
            yield UserError(f'"{path}" has more than one mask: {", ".join(mask.name for mask in found)}')
            continue
        row = {"name": path.stem, "init_image": path, **({"mask": found[0]} if found else {})}
        text = path.with_suffix(".txt")
        try:
            yield row | ({"prompt": text.read_text(encoding="utf-8-sig").strip()} if text.is_file() else {})
        except (OSError, UnicodeDecodeError) as error:
            yield UserError(f'the prompt "{text}" cannot be read ({error}): save it as UTF-8')
    for lonely in (path for paths in masks.values() for path in paths):
        logger.warning('"%s" is the mask of no image', lonely)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _suffixes() and path.name[0] != ".")


@cache
def _suffixes() -> frozenset[str]:
    """Of all kinds of picture that Pillow reads."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _options(given: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The options that a row gives, its paths seen from where they stand.

    Raises:
        UserError: one is given under two names.
    """
    options: dict[str, Any] = {}
    for name, value in given.items():
        option = _SHORT.get(name, name)
        if value is None or name == "name":
            continue
        if option in options:
            raise UserError(f'`{option}` is given twice, also as "image": leave one out')
        if option in _PATHS:
            value = base / str(value)
        elif option == "model" and value not in zoo.MODELS and os.path.isdir(base / str(value)):
            value = str(base / str(value))
        options[option] = value
    return options


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A row's own options before the command line's; a row that says which model leaves nothing of the other one."""
    other = _MODEL if any(name in own for name in _MODEL) else ()
    return {name: value for name, value in defaults.items() if name not in other} | dict(own)


def _check_complete(options: Mapping[str, Any]) -> None:
    for option, word in (("init_image", "image"), ("mask", "mask"), ("prompt", "prompt")):
        if options.get(option) is None:
            folder = " (in a folder: photo_mask.png beside photo.jpg, or masks/photo.png for images/photo.jpg)"
            hint = folder if option == "mask" else ""
            raise UserError(f"there is no {word}: give the row one, or all rows by `{option}`{hint}")


def _name(number: int, name: Any, prompt: str) -> str:
    """The name of a row's folder: its own where that is a safe one, else a safe one like it."""
    if name is None or name == "":
        return f"{number:04d}-{prompt_slug(prompt)}"
    return str(name) if re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,79}", str(name)) else prompt_slug(str(name))


def good(rows: Sequence[Row | BadRow]) -> list[Row]:
    """The rows that can be made."""
    return [row for row in rows if isinstance(row, Row)]
