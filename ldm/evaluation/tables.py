"""The tables of an evaluation: every measure of every method with its interval, as Markdown, CSV and JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ldm.evaluation.measures import Estimate


@dataclass(frozen=True)
class Measure:
    """A row of a table. scale: of the stored number to the shown one. better: "high", "low" or "" for neither."""

    key: str
    title: str
    table: str
    unit: str = ""
    digits: int = 1
    scale: float = 1.0
    better: str = ""


EDITS, BACKGROUND, TIME, SIZE = (
    "Table 1: what is painted",
    "The background",
    "Table 2: time",
    "Table 3: size",
)
MEASURES = (
    Measure("precision", "batch precision", EDITS, "%", 1, 100, "high"),
    Measure("best", "precision of the best-ranked", EDITS, "%", 1, 100, "high"),
    Measure("diversity", "batch diversity", EDITS, "", 3, 1, "high"),
    Measure("clip", "CLIP score inside the mask", EDITS, "", 1, 1, "high"),
    Measure("seam", "seam score", EDITS, "levels", 2, 1, "low"),
    Measure("source_seam", "the photograph's own seam score there", EDITS, "levels", 2),
    Measure("psnr", "PSNR outside the mask, as painted", BACKGROUND, "dB", 1, 1, "high"),
    Measure("psnr_delivered", "PSNR outside the mask, as delivered", BACKGROUND, "dB", 1, 1, "high"),
    Measure("ssim", "SSIM outside the mask, as painted", BACKGROUND, "", 3, 1, "high"),
    Measure("ssim_delivered", "SSIM outside the mask, as delivered", BACKGROUND, "", 3, 1, "high"),
    Measure("lpips", "LPIPS outside the mask, as painted", BACKGROUND, "", 3, 1, "low"),
    Measure("lpips_delivered", "LPIPS outside the mask, as delivered", BACKGROUND, "", 3, 1, "low"),
    Measure("seconds_one", "seconds, one prediction", TIME, "s", 2, 1, "low"),
    Measure("seconds_batch", "seconds, the batch", TIME, "s", 1, 1, "low"),
    Measure("cpu_one", "processor seconds, one prediction", TIME, "s", 2, 1, "low"),
    Measure("cpu_batch", "processor seconds, the batch", TIME, "s", 1, 1, "low"),
    Measure("seconds_restored", "seconds, the background of one restored", TIME, "s", 1, 1, "low"),
    Measure("evaluations", "network evaluations a prediction", TIME, "", 0, 1, "low"),
    Measure("parameters", "parameters of the networks", SIZE, "M", 1, 1e-6),
    Measure("peak", "peak memory", SIZE, "GB", 2, 1e-9, "low"),
)
OF = {measure.key: measure for measure in MEASURES}

Results = Mapping[str, Mapping[str, Estimate]]
"""Method -> key of a measure -> what was measured."""


def shown(one: Estimate | None, measure: Measure) -> str:
    """A cell: the mean, and its interval where there are several inputs; a dash where nothing was measured."""
    if one is None or one.value is None or one.low is None or one.high is None:
        return "–"

    def number(value: float) -> str:
        return f"{value * measure.scale:.{measure.digits}f}"

    unit = f" {measure.unit}" if measure.unit else ""
    interval = f" [{number(one.low)}, {number(one.high)}]" if one.count > 1 else ""
    return f"{number(one.value)}{interval}{unit}"


def markdown(results: Results, ceiling: Estimate | None, notes: Sequence[str] = ()) -> str:
    """The tables, a column for each method; what the classifier reaches at best stands beside the precision."""
    blocks = []
    for title in dict.fromkeys(measure.table for measure in MEASURES):
        rows = [measure for measure in MEASURES if measure.table == title]
        head = ["", *results, *(["ceiling"] if title == EDITS else [])]
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for measure in rows:
            cells = [shown(of.get(measure.key), measure) for of in results.values()]
            if title == EDITS:
                cells.append(shown(ceiling, measure) if measure.key == "precision" else "")
            lines.append([measure.title, *cells])
        blocks.append(f"{title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    if notes:
        blocks.append("".join(f"- {note}\n" for note in notes))
    return "\n".join(blocks)


def comma_separated(results: Results, ceiling: Estimate | None) -> str:
    """One line a method and measure: the numbers as they are stored, without a unit's factor."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["method", "measure", "value", "low", "high", "inputs"])
    everything = [(name, key, one) for name, of in results.items() for key, one in of.items()]
    everything += [("ceiling", "precision", ceiling)] if ceiling else []
    for name, key, one in everything:
        writer.writerow(
            [name, key, *("" if part is None else part for part in (one.value, one.low, one.high)), one.count]
        )
    return file.getvalue()


def as_json(results: Results, ceiling: Estimate | None) -> dict[str, Any]:
    """The same for JSON, which has null where nothing was measured."""
    known = {name: {key: asdict(one) for key, one in of.items()} for name, of in results.items()}
    return {"methods": known, "ceiling": asdict(ceiling) if ceiling else None}
