"""The table of the evaluation, and its pictures."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ldm.errors import MissingExtra
from ldm.files import atomic_file
from ldm.imaging.images import make_grid

OBJECT = ("shape", "material", "color")
RANKED = 5
"""Into how many parts the ranked predictions of a prompt are divided."""

Answer = Mapping[str, Any]
"""One triple's outcome: "prompt", "photo", "expected", "seeds", "verdicts" (both in rank order), "ranked"."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    reached, target: in `unit`; None where nothing was measured, or nothing asked for. at_least: whether more is
    better. count: of how many pictures or answers; note: why something was not measured.
    """

    part: str
    name: str
    unit: str
    reached: float | None
    target: float | None = None
    at_least: bool = True
    count: int | None = None
    note: str = ""

    @property
    def outcome(self) -> str:
        """In words: "pass", "fail", "not measured", or "" where there is no target."""
        if self.reached is None:
            return "not measured"
        if self.target is None:
            return ""
        return "pass" if (self.reached >= self.target if self.at_least else self.reached <= self.target) else "fail"

    def cells(self) -> tuple[str, ...]:
        """The row of the table: part, figure, target, what was reached, of how many, outcome."""
        target = (
            "" if self.target is None else f"at {'least' if self.at_least else 'most'} {self.target:.4g} {self.unit}"
        )
        reached = "–" if self.reached is None else f"{self.reached:.1f} {self.unit}"
        note = f" ({self.note})" if self.note else ""
        return self.part, self.name, target, reached, str(self.count or ""), self.outcome + note


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, its columns aligned."""
    table = [("part", "what", "target", "reached", "of", "outcome"), *(row.cells() for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(table[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "".join(f"| {line} |\n" for line in lines)


def is_right(expected: Mapping[str, str], verdict: Mapping[str, str], attribute: str = "all") -> bool:
    """Whether the judge saw what the prompt says of one attribute, or of all that it names."""
    return all(verdict[key] == name for key, name in expected.items() if attribute in (key, "all"))


def percent(answers: Sequence[Answer], attribute: str, best: bool = False) -> float:
    """How many of the first predictions, or of the best by CLIP, are right."""
    return 100 * sum(_right(answer, attribute, best) for answer in answers) / len(answers)


def by_class(answers: Sequence[Answer], attribute: str) -> dict[str, float]:
    """`percent` of the first predictions for each name that prompts ask for."""
    names = sorted({answer["expected"][attribute] for answer in answers})
    groups = {name: [answer for answer in answers if answer["expected"][attribute] == name] for name in names}
    return {name: round(percent(group, attribute), 1) for name, group in groups.items()}


def percent_by_rank(answers: Sequence[Answer], attribute: str, parts: int = RANKED) -> list[float]:
    """How many are right in each part of the ranking, the best part first."""
    result = []
    for part in range(parts):
        hits = []
        for answer in answers:
            n = len(answer["verdicts"])
            chosen = answer["verdicts"][round(part * n / parts) : round((part + 1) * n / parts)]
            hits += [is_right(answer["expected"], verdict, attribute) for verdict in chosen]
        result.append(100 * sum(hits) / len(hits))
    return result


def accuracy_rows(
    part: str, answers: Sequence[Answer], targets: Mapping[str, float | None], gain: float | None = None
) -> list[Row]:
    """Accuracies of the first prediction against `targets`, and of the best of all by CLIP.

    gain: by how many points the best is to be better than the first, for all attributes together.
    """
    n, chosen = len(answers), f"best of {len(answers[0]['verdicts'])} by CLIP"
    names = {attribute: "all three" if attribute == "all" else attribute for attribute in targets}
    first = {attribute: percent(answers, attribute) for attribute in targets}
    rows = [Row(part, f"first prediction, {names[key]}", "%", first[key], targets[key], count=n) for key in targets]
    goals = {"all": first["all"] + gain} if gain is not None else {}
    if not all(answer["ranked"] for answer in answers):
        return [*rows, Row(part, chosen, "%", None, goals.get("all"), note="no CLIP")]
    best = {attribute: percent(answers, attribute, best=True) for attribute in targets}
    return rows + [Row(part, f"{chosen}, {names[key]}", "%", best[key], goals.get(key), count=n) for key in targets]


def ranking_rows(answers: Sequence[Answer], target: float) -> list[Row]:
    """The best part of the ranking against the worst."""
    parts, n = percent_by_rank(answers, "all"), len(answers)
    names = [f"all three, {end} fifth of {len(answers[0]['verdicts'])} predictions" for end in ("top", "bottom")]
    ends = [Row("ranking", name, "%", parts[i], count=n) for i, name in ((0, names[0]), (-1, names[1]))]
    return [*ends, Row("ranking", "top less bottom", "points", parts[0] - parts[-1], target, count=n)]


def _right(answer: Answer, attribute: str, best: bool) -> bool:
    place = 0 if best else answer["seeds"].index(min(answer["seeds"]))
    return is_right(answer["expected"], answer["verdicts"][place], attribute)


def draw_row(answer: Answer, pictures: Sequence[Image.Image]) -> Image.Image:
    """Input, mask and predictions of one triple, under its prompt, with what the judge saw in their place."""
    captions = ["input", "mask"]
    for seed, verdict in zip(answer["seeds"], answer["verdicts"], strict=True):
        wrong = [verdict[key] for key, name in answer["expected"].items() if verdict[key] != name]
        first = "first: " if seed == min(answer["seeds"]) else ""
        captions.append(first + (", ".join(wrong) if wrong else "right"))
    grid = make_grid(pictures, len(pictures), captions)
    font = ImageFont.load_default(13)
    row = Image.new("RGB", (grid.width, grid.height + 20), "white")
    row.paste(grid, (0, 20))
    order = ", best first by CLIP" if answer["ranked"] else ""
    ImageDraw.Draw(row).text((4, 3), f'{answer["part"]}: "{answer["prompt"]}"{order}', fill="black", font=font)
    return row


def contact_sheet(rows: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Rows of `draw_row` beneath each other, in two columns."""
    return make_grid(rows, columns)


def require_plot() -> None:
    """Raise MissingExtra where matplotlib is missing: before the hours of work that its plot would end."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "train", "the plot of the ranking") from error


def plot_ranking(answers: Sequence[Answer], path: Path) -> None:
    """Accuracy over the fifths of the ranking, as figure 22 of the paper shows what its ranking is worth."""
    require_plot()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    figure = Figure((6, 3.6), layout="constrained")
    axes = figure.subplots()
    places = range(1, RANKED + 1)
    axes.bar(places, percent_by_rank(answers, "all"), color="0.8", label="all three")
    for attribute in OBJECT:
        axes.plot(places, percent_by_rank(answers, attribute), marker="o", label=attribute)
    axes.set(xlabel="fifth of the ranking, best first", ylabel="right, %", ylim=(0, 100), xticks=places)
    axes.set_title(f"{len(answers)} prompts, {len(answers[0]['verdicts'])} predictions each", fontsize="medium")
    axes.legend(ncols=2)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
