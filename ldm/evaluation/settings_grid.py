"""How many steps, and how much guidance: precision and CLIP score over both."""

import logging
import math

from tqdm import tqdm

from ldm.evaluation.measures import clip_score, estimate
from ldm.evaluation.paintings import silent
from ldm.evaluation.report import require_plot
from ldm.evaluation.tables import OF, shown
from ldm.evaluation.trial import Trial, markdown_table
from ldm.files import atomic_file

STEPS = (5, 10, 25, 50)
SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)


def run(trial: Trial) -> str:
    """Edit each input with every number of `STEPS` and every scale of `SCALES`; write a table and a figure."""
    require_plot()
    steps = [n for n in STEPS if n <= trial.job.ddim_steps] or [trial.job.ddim_steps]
    right: dict[tuple[int, float], list[float | None]] = {(n, scale): [] for n in steps for scale in SCALES}
    score: dict[tuple[int, float], list[float | None]] = {(n, scale): [] for n in steps for scale in SCALES}
    todo = [(index, one, *cell) for index, one in enumerate(trial.inputs) for cell in right]
    for index, one, n, scale in tqdm(todo, desc="steps and guidance", unit="edit", disable=None):
        seed = trial.job.seed + 1000 * index
        with silent():
            made = trial.method.edit(one.image, one.mask, one.prompt, trial.n_samples, seed, ddim_steps=n, scale=scale)
        right[n, scale].append(trial.right(made.canvas, made.x, one))
        known = made.distances
        score[n, scale].append(None if known is None else sum(map(clip_score, known)) / len(known))
    blocks = []
    for title, of, measure in (
        ("Batch precision", right, OF["precision"]),
        ("CLIP score inside the mask", score, OF["clip"]),
    ):
        rows = [[f"{n} steps", *(shown(estimate(of[n, scale]), measure) for scale in SCALES)] for n in steps]
        blocks.append(f"{title}\n\n" + markdown_table(["", *(f"scale {scale:g}" for scale in SCALES)], rows))
    _plot(trial, right, steps)
    numbers = {
        name: {f"{n} steps, scale {scale:g}": values for (n, scale), values in of.items()}
        for name, of in (("right", right), ("clip", score))
    }
    return trial.write("steps_guidance", "\n".join(blocks), numbers, None)


def _plot(trial: Trial, right: dict[tuple[int, float], list[float | None]], steps: list[int]) -> None:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    figure = Figure((6, 3.6), layout="constrained")
    axes = figure.subplots()
    for n in steps:
        each = [estimate(right[n, scale]) for scale in SCALES]
        values = [math.nan if one.value is None else 100 * one.value for one in each]  # which is left out
        axes.plot(SCALES, values, marker="o", markersize=4, label=f"{n} steps")
    axes.set(xlabel="scale of guidance", ylabel="batch precision, %", ylim=(0, 100))
    axes.legend()
    axes.grid(alpha=0.3)
    with atomic_file(trial.outdir / "steps_guidance.png") as file:
        figure.savefig(file, format="png", dpi=120)
