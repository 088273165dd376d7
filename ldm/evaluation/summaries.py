"""What was measured of many inputs, summed up: means with intervals, and precision by fifths of the ranking."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.evaluation import tables
from ldm.evaluation.measures import Estimate, difference, estimate
from ldm.files import atomic_file

Answer = Mapping[str, Any]
"""What was measured of one input; see `ldm.evaluation.evaluate.look`."""

FIFTHS = 5
BACKGROUND = tuple(f"{key}{suffix}" for key in ("psnr", "ssim", "lpips") for suffix in ("", "_delivered"))
MEAN = ("precision", "best", "diversity", "clip", "seam", "source_seam", *BACKGROUND)


def summary(answers: Sequence[Answer]) -> dict[str, Estimate]:
    """Each measure's mean over the inputs, with its interval."""
    return {key: estimate([answer[key] for answer in answers]) for key in MEAN}


def fifths(answers: Sequence[Answer]) -> tuple[list[Estimate], Estimate] | None:
    """Precision in each fifth of the ranking, best first, and the top less the bottom (figure 22); None where inputs
    have fewer than five ranked predictions."""
    ranked = [answer["right"] for answer in answers if answer["ranked"] and answer["right"]]
    if not ranked or min(map(len, ranked)) < FIFTHS:
        return None

    def part(right: Sequence[bool], k: int) -> float:
        n = len(right)
        chosen = right[round(k * n / FIFTHS) : round((k + 1) * n / FIFTHS)]
        return sum(chosen) / len(chosen)

    shares = [[part(right, k) for right in ranked] for k in range(FIFTHS)]
    return [estimate(share) for share in shares], difference(shares[0], shares[-1])


def fifths_table(answers: Mapping[str, Mapping[int, Answer]]) -> str:
    """`fifths` of each method as Markdown; "" where there is nothing to show."""
    found = {name: fifths(list(of.values())) for name, of in answers.items()}
    known = {name: one for name, one in found.items() if one is not None}
    if not known:
        return ""
    share = tables.OF["precision"]
    names = ["top fifth", "second", "third", "fourth", "bottom fifth", "top less bottom"]
    lines = [["", *names], ["---", *["---:"] * len(names)]]
    lines += [[name, *(tables.shown(one, share) for one in (*each, gap))] for name, (each, gap) in known.items()]
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"\nFigure 22: precision by fifths of the ranking\n\n{rows}"


def plot_fifths(answers: Mapping[str, Mapping[int, Answer]], path: Path) -> None:
    """Precision over the fifths of the ranking, a line with its interval for each method."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    figure = Figure((6, 3.6), layout="constrained")
    axes = figure.subplots()
    places = list(range(1, FIFTHS + 1))
    for name, of in answers.items():
        found = fifths(list(of.values()))
        if found is None:
            continue
        known = [[100 * (value or 0) for value in (one.value, one.low, one.high)] for one in found[0]]
        middle, low, high = ([one[i] for one in known] for i in range(3))
        axes.plot(places, middle, marker="o", label=name)
        axes.fill_between(places, low, high, alpha=0.2)
    axes.set(xlabel="fifth of the ranking, best first", ylabel="precision, %", ylim=(0, 100), xticks=places)
    if axes.has_data():
        axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
