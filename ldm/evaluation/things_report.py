"""The table of an evaluation of everyday things, and the sheets that people look at."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.measures import Estimate, estimate
from ldm.files import atomic_file
from ldm.imaging.images import make_grid, save_png

ON_PAGE = 6
"""Pairs in a row of the contact sheet."""

YES, NO = {"yes", "y", "1"}, {"no", "n", "0"}


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    value: in `unit`, with its 95 % interval `low` to `high` where inputs were resampled; None where nothing was
    measured. target: at least that much. other: the same figure of another model's evaluation. note: what is to be
    said beside it.
    """

    part: str
    name: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    target: float | None = None
    other: float | None = None
    note: str = ""

    @classmethod
    def of(cls, part: str, name: str, unit: str, one: Estimate, scale: float = 1.0, **more) -> "Figure":
        """An estimate, multiplied by `scale`."""
        value, low, high = (None if end is None else end * scale for end in (one.value, one.low, one.high))
        return cls(part, name, unit, value, low, high, one.count, **more)

    @property
    def outcome(self) -> str:
        """pass, fail, not measured, or "" where there is no target."""
        if self.value is None:
            return "not measured"
        return "" if self.target is None else "pass" if self.value >= self.target else "fail"

    def cells(self) -> tuple[str, ...]:
        """The row: part, figure, value with its interval, target, the other model's, of how many, outcome."""
        digits = 2 if self.unit == "" else 1

        def shown(value: float | None) -> str:
            return "" if value is None else f"{value:.{digits}f}"

        spread = "" if self.low is None or self.count < 2 else f" [{shown(self.low)}, {shown(self.high)}]"
        value = "–" if self.value is None else f"{shown(self.value)}{spread} {self.unit}".strip()
        outcome = " ".join(part for part in (self.outcome, f"({self.note})" if self.note else "") if part)
        return self.part, self.name, value, shown(self.target), shown(self.other), str(self.count or ""), outcome


def markdown(figures: Sequence[Figure], notes: Sequence[str] = ()) -> str:
    """The table as Markdown; the columns of targets and of another model are left out where they are empty."""
    head = ("part", "what", "measured", "at least", "the other model", "of", "outcome")
    rows = [figure.cells() for figure in figures]
    kept = [i for i in range(len(head)) if i not in (3, 4) or any(row[i] for row in rows)]
    table = [head, tuple("---" for _ in head), *rows]
    lines = "".join("| " + " | ".join(row[i] for i in kept) + " |\n" for row in table)
    return lines + ("\n" + "".join(f"- {note}\n" for note in notes) if notes else "")


def draw_sheet(folder: Path, pairs: Sequence[tuple[Image.Image, Image.Image]], captions: Sequence[str]) -> None:
    """Write `contact_sheet.png`, and each pair of a photograph with its mask and the edit at full size in `sheet/`."""
    cells, texts = [], []
    for index, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        text = f"{index}: {caption}"
        (folder / "sheet").mkdir(parents=True, exist_ok=True)
        save_png(make_grid(pair, 2, [text, ""]), folder / "sheet" / f"{index:04d}.png")
        cells += [one.resize((256, 256), Image.Resampling.LANCZOS) for one in pair]
        texts += [text, ""]
    save_png(make_grid(cells, 2 * ON_PAGE, texts), folder / "contact_sheet.png")


def marked(picture: np.ndarray, mask: np.ndarray) -> Image.Image:
    """A picture (h, w, 3) uint8 that is dark where its mask (h, w) in [0, 1] is not set, so that the mask is seen."""
    light = 0.35 + 0.65 * mask[..., None]
    return Image.fromarray((picture * light).round().astype(np.uint8))


def write_form(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """An empty form for a pair of eyes, unless it is there: a line for each edit, with a column `keep` to be filled."""
    if path.exists():
        return
    file = io.StringIO()
    writer = csv.DictWriter(file, [*rows[0], "keep"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "keep": ""} for row in rows)
    with atomic_file(path) as out:
        out.write(file.getvalue().encode())


def read_forms(folder: Path, count: int) -> dict[str, Estimate]:
    """What each filled form of a folder says, by its name: the share of edits to keep.

    Args:
        folder: holds `eyes-NAME.csv`, copies of `eyes.csv` with yes or no in the column `keep`.

    Raises:
        UserError: a form has another word there, or has not all of the edits.
    """
    told = {}
    for path in sorted(folder.glob("eyes-*.csv")):
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        said = [str(row.get("keep") or "").strip().lower() for row in rows]
        wrong = next((i for i, word in enumerate(said) if word not in YES | NO), None)
        if wrong is not None:
            raise UserError(f'"{path}", edit {wrong}: keep is "{said[wrong]}": write yes or no')
        if len(said) != count:
            raise UserError(f'"{path}" has {len(said)} lines for {count} edits: fill a copy of eyes.csv')
        told[path.stem.removeprefix("eyes-")] = estimate([float(word in YES) for word in said])
    return told
