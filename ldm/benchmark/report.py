"""What a benchmark found: rows, as one table and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.files import atomic_file


@dataclass(frozen=True)
class Row:
    """One part in one way.

    seconds: of each repetition. peak: of memory, bytes. operations: of the plain way, counted. share: of the measured
    matrix rate of the way's precision that these operations in this time are. error: relative, in the 2-norm, against
    plain float32; None where there is nothing to hold it against.
    """

    model: str
    part: str
    about: str
    way: str
    seconds: tuple[float, ...]
    median: float
    peak: int | None = None
    operations: int | None = None
    share: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Report:
    """Rows; what failed; what was left out and why; the matrix rates; and where it was measured, as what version."""

    rows: Sequence[Row]
    failures: Sequence[str]
    notes: Sequence[str]
    rates: dict[str, float]
    context: dict[str, Any]

    def table(self) -> str:
        """Markdown: one line a row; the last column is the plain way's time over this one's."""
        plain = {(row.model, row.part): row.median for row in reversed(self.rows)}  # the first way of each part wins
        lines = [
            "| model | part | way | median s | range s | memory GB | TFLOP | share | error | times plain |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            cells = [row.model, row.about, row.way, _number(row.median)]
            cells.append(f"{_number(min(row.seconds))} to {_number(max(row.seconds))}")
            cells.append("" if row.peak is None else f"{row.peak / 1e9:.2f}")
            cells.append("" if row.operations is None else _number(row.operations / 1e12))
            cells.append("" if row.share is None else f"{row.share:.0%}")
            cells.append("" if row.error is None else f"{row.error:.1e}")
            cells.append(f"{plain[row.model, row.part] / row.median:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """As JSON."""
        content = self.context | {"matrix_rates": self.rates, "failures": list(self.failures)}
        content["notes"] = list(self.notes)
        content["rows"] = [{k: _plain(v) for k, v in asdict(row).items()} for row in self.rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _plain(value: Any) -> Any:
    """JSON has no number for what is none."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
