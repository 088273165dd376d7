"""The records of a manifest, one after the other: a JSONL, a CSV, a Parquet, or a folder of pictures.

None is read before it is asked for, so that a manifest of millions begins as quickly as one of ten, and needs no more
memory.
"""

import csv
import difflib
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ldm.errors import MissingExtra, UserError
from ldm.options import declared
from ldm.runs.batch.remote import Remote, as_local, is_url
from ldm.runs.methods import METHODS, OURS, method_named

logger = logging.getLogger(__name__)

SHORT = {"image": "init_image"}
_NOT_A_ROWS = ("outdir", "overwrite", "device", "output_path", "output_file", "export_assets")
COLUMNS = {
    method: ("name", "method", *SHORT, *(name for name in declared(known.job) if name not in _NOT_A_ROWS))
    for method, known in METHODS.items()
}
"""What a row may hold, by its method."""

_COLUMNS = {method: {*names} for method, names in COLUMNS.items()}
_KINDS = (".jsonl", ".ndjson", ".csv", ".parquet")

Record = Mapping[str, Any]


class Manifest:
    """The records of a source, each a mapping or what is wrong with it.

    source: a path or URL of
        `edits.jsonl`: an object per line; null is the default.
        `edits.csv`: the names of the columns first; an empty cell is None, the default.
        `edits.parquet`: a column for each; null and NaN are None, the default.
        or the path of a folder with `photo.jpg` and `photo_mask.png`, or with `images/photo.jpg` and
        `masks/photo.png`; the prompt is the text of `photo.txt` beside the image, if there is one.

    Attributes:
        base: what relative paths in it are relative to; a folder's are not.
        fraction: how much of it has been read, from 0 to 1.
    """

    def __init__(self, source: str | os.PathLike):
        self.source = as_local(os.fspath(source))
        folder = not is_url(self.source) and os.path.isdir(self.source)
        if is_url(self.source):
            self.base: str = self.source.rpartition("/")[0] + "/"
        else:
            self.base = "" if folder else os.path.dirname(self.source)
        self._folder = folder
        self.fraction = 0.0

    def __iter__(self) -> Iterator[Record | UserError]:
        """The records, in the source's order.

        Raises:
            UserError: the source cannot be read (any further), or has no rows.
        """
        some = False
        try:
            for record in _read_folder(Path(self.source)) if self._folder else self._read_file():
                some = True
                yield record
        except UnicodeDecodeError as error:
            raise UserError(
                f'"{self.source}" is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8'
            ) from error
        except (OSError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f'"{self.source}" cannot be read as rows ({reason}): give a JSONL, a CSV, a Parquet or a folder'
            ) from error
        except UserError:
            raise
        except Exception as error:
            if not is_url(self.source):
                raise
            text = " ".join(str(error).split()) or type(error).__name__  # of a store, whose errors are its own
            raise UserError(f'"{self.source}" cannot be read as rows ({text}): copy it here first') from error
        if not some:
            raise UserError(f'"{self.source}" has no rows: give at least one image with its mask')
        self.fraction = 1.0

    def _read_file(self) -> Iterator[Record | UserError]:
        kind = os.path.splitext(self.source)[1].lower()
        if kind not in _KINDS:
            raise UserError(f'"{self.source}" is neither a .jsonl, a .csv, a .parquet nor a folder')
        with Remote(self.source).open() if is_url(self.source) else open(self.source, "rb") as binary:
            if kind == ".parquet":
                yield from self._read_parquet(binary)
                return
            size = max(1, binary.seek(0, os.SEEK_END))
            binary.seek(0)
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin with a mark
                lines = _read_csv(file, self.source) if kind == ".csv" else map(_object, filter(str.strip, file))
                for number, record in enumerate(lines):
                    if number % 64 == 0:
                        self.fraction = min(1.0, binary.tell() / size)
                    yield record

    def _read_parquet(self, binary: BinaryIO) -> Iterator[Record | UserError]:
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise MissingExtra("pyarrow", "cluster", "a Parquet of rows") from None
        try:
            file, read = ParquetFile(binary), 0
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    # NaN, which pandas writes for no number, is the only value that is not itself.
                    yield {name: value if value == value else None for name, value in record.items()}
                read += batch.num_rows
                self.fraction = read / max(1, file.metadata.num_rows)
        except UnicodeDecodeError:
            raise
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the latter for times out of range
            text = " ".join(str(error).split())
            raise UserError(f'"{self.source}" cannot be read as a Parquet ({text}): write it anew') from error


def known_columns(record: Record, source: str, told: set[str]) -> Record:
    """A record without what is no option of its method, which is told once, and without the method where it is ours.

    Args:
        told: the names that have been told of; grows.

    Raises:
        UserError: a name that is nearly an option's, or of another method than the record says; or there is no such
            method.
    """
    method = method_of(record)
    own = _COLUMNS[method]
    if record.keys() <= own - {"method"}:
        return record
    strange = [name for name, value in record.items() if name not in own and value is not None]
    for name in strange:
        others = [other for other, names in _COLUMNS.items() if name in names]
        if others and "method" in record:
            raise UserError(f"`{name}` is an option of {others[0]}, and the row's method is {method}: leave it out")
        near = _near(name, method)
        if near is not None:
            raise UserError(f'there is no option "{name}" for a row: is it "{near}"?')
    for name in strange:
        if name and name not in told:  # a column without a name is that of a spreadsheet's row numbers
            told.add(name)
            logger.warning('"%s": "%s" is no option of a row and is ignored', source, name)
    without = {"method"} if method == OURS else set()
    return {name: value for name, value in record.items() if name in own - without}


def method_of(record: Record) -> str:
    """The name of a record's method.

    Raises:
        UserError: there is no such method.
    """
    name = str(record.get("method") or OURS).strip()
    method_named(name)
    return name


@cache
def _near(name: str, method: str = OURS) -> str | None:
    """The option that a name was probably meant to be."""
    return next(iter(difflib.get_close_matches(name.lower(), COLUMNS[method], 1, 0.8)), None)


def _object(line: str) -> Record | UserError:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return UserError(f"the line is no JSON ({error})")
    return value if isinstance(value, dict) else UserError("the line is no JSON object, such as {...}")


def _read_csv(file: Iterable[str], source: str) -> Iterator[Record | UserError]:
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
    if columns and not any(name in COLUMNS[OURS] or _near(name) for name in columns):
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
            cells += [""] * (len(columns) - len(cells))
            yield {column: cell if cell.strip() else None for column, cell in zip(columns, cells, strict=False)}


def _read_folder(folder: Path) -> Iterator[Record | UserError]:
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
