"""How fast each solver converges with the number of steps, with blending: tables and a plot.

With fresh background noise, trajectories of different lengths see different noise, and DDIM's pictures differ by that
however many steps they have. So every result is held against two of many steps and the same seed: DDIM's with shared
background noise, which does not depend on the number of steps, and its own solver's.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.backbones.guidance import guided_denoiser
from ldm.editing.latent_masks import auto_dilation, step_masks
from ldm.editing.ranking import CLIPRanker, find_ranker
from ldm.errors import MissingExtra, UserError
from ldm.evaluation.answers import Answers
from ldm.evaluation.triples import Triple, object_triples
from ldm.files import atomic_file
from ldm.models.diffusion.blending import blended_sample
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.levels import VariancePreserving, dpmpp_timesteps
from ldm.models.diffusion.sampling import NoiseSource, StepInfo
from ldm.models.diffusion.schedule import SamplingSchedule
from ldm.util import choose_device

PART = "solvers"


@dataclass(frozen=True)
class Variant:
    """A solver and how it is used.

    shared_noise: see `blended_sample`. power: of the timesteps, see `dpmpp_timesteps`; None takes the sampler's own.
    second_order: False leaves the second-order part out, which is DDIM on the same timesteps.
    """

    sampler: str = "dpmpp_2m"
    shared_noise: bool = True
    power: float | None = None
    second_order: bool = True

    def schedule(self, levels: VariancePreserving, steps: int) -> SamplingSchedule:
        """Its trajectory of so many steps along the levels of a model."""
        if self.power is None:
            schedule = levels.schedule(steps, sampler=self.sampler)
        else:
            schedule = levels.along(dpmpp_timesteps(steps, len(levels), power=self.power), self.sampler)
        return schedule if self.second_order else replace(schedule, second_order=(0.0,) * steps)


VARIANTS = {
    "ddim": Variant("ddim", shared_noise=False),  # the paper's
    "ddim, shared noise": Variant("ddim"),
    "dpmpp_2m": Variant(),
    "dpmpp_2m, first order": Variant(second_order=False),
    "dpmpp_2m, power 1": Variant(power=1.0),
    "dpmpp_2m, power 2": Variant(power=2.0),
}
REFERENCE = "ddim, shared noise"

MEASURES = ("to_reference", "to_own", "clip_distance")
"""Mean squared differences inside the mask, of pictures in [-1, 1], and CLIP's distance, None without a ranker."""


@dataclass(frozen=True)
class SolverComparison:
    """What to compare, and where to write it.

    solvers: names of `VARIANTS`. model, device: as `scripts/text_editing.py` has them. n_triples: photographs, masks
    and prompts, one prediction of each; seed: of them. steps: how many to compare; reference_steps: of the results that
    they are held against. scale: of guidance. mask_dilation_iterations: None lets each mask's thickness decide.
    """

    outdir: Path
    solvers: tuple[str, ...] = tuple(VARIANTS)
    model: str = "scenes"
    n_triples: int = 16
    steps: tuple[int, ...] = (5, 8, 10, 15, 20, 30, 50, 100)
    reference_steps: int = 200
    scale: float = 5.0
    mask_dilation_iterations: int | None = None
    seed: int = 0
    device: str = "auto"


def compare_solvers(job: SolverComparison) -> str:
    """Edit, and write `solvers.md`, `solvers.json` and `solvers.png` into `job.outdir`; returns the tables.

    A run that was stopped resumes where it stopped.

    Raises:
        UserError: no model, an unknown solver, steps out of range, or a folder that cannot be written or holds a
            comparison of other settings.
        MissingExtra: matplotlib is not installed.
    """
    if unknown := [name for name in job.solvers if name not in VARIANTS]:
        names = ", ".join(f'"{name}"' for name in VARIANTS)
        raise UserError(f'"{unknown[0]}" is no solver to compare: give some of {names}')
    _require_plot()
    files = zoo.resolve(job.model)
    device = choose_device(job.device)
    model = zoo.load_ours(files, device, torch.float32)  # half precision would end the convergence early
    for steps in (*job.steps, job.reference_steps):
        model.levels.schedule(steps)
    settings = {
        "model": files.name,
        "model_sha256": hashlib.sha256(files.weights.read_bytes()).hexdigest(),
        **{key: getattr(job, key) for key in ("reference_steps", "scale", "mask_dilation_iterations", "seed")},
        "steps": list(job.steps),
        "solvers": list(job.solvers),
    }
    answers = Answers(job.outdir / "answers.jsonl", settings)
    ranker = find_ranker(files.clip, device)
    triples = object_triples(job.seed, model.image_size * model.factor)
    evaluations = len(job.solvers) * sum(job.steps) + len({REFERENCE, *job.solvers}) * job.reference_steps
    with tqdm(total=evaluations * job.n_triples, desc="denoising", unit="step", disable=None) as bar:
        for index, triple in enumerate(islice(triples, job.n_triples)):
            if index in answers.of(PART):
                bar.update(evaluations)
                continue
            results = _measure(job, model, ranker, triple, index, bar)
            answers.add({"part": PART, "index": index, "prompt": triple.prompt, "results": results})
    found = [answer["results"] for index, answer in sorted(answers.of(PART).items()) if index < job.n_triples]
    means = _means(found)
    _write(job.outdir, settings | {"triples": len(found)}, means, tables := markdown(means, job.reference_steps))
    _plot(means, job, job.outdir / "solvers.png")
    return tables


@torch.no_grad()
def _measure(
    job: SolverComparison, model: LatentDiffusion, ranker: CLIPRanker | None, triple: Triple, index: int, bar: tqdm
) -> dict[str, dict[int, dict[str, float | None]]]:
    """`MEASURES` of every variant and number of steps, for one triple."""
    iterations = job.mask_dilation_iterations
    if iterations is None:
        iterations, _ = auto_dilation(triple.mask, model.factor)
    denoiser = guided_denoiser(model, model.condition([triple.prompt, ""]), [0], [1], job.scale)
    z_source = model.encode(triple.x.to(model.device))

    def on_step(_: StepInfo) -> None:
        bar.update()

    def edit(variant: Variant, steps: int) -> Tensor:
        """x (1, 3, H, W) on the CPU."""
        schedule = variant.schedule(model.levels, steps)
        masks = step_masks(triple.mask, model.factor, schedule, iterations).to(model.device)[:, None]
        noise, shared = NoiseSource([index]), variant.shared_noise
        z = blended_sample(denoiser, schedule, z_source, masks, noise, shared_noise=shared, callback=on_step)
        return model.decode(z).cpu().clamp(-1, 1)

    def difference(x: Tensor, other: Tensor) -> float:
        return ((x - other).square().mean(1, keepdim=True) * triple.mask).sum().item() / triple.mask.sum().item()

    ends = {name: edit(VARIANTS[name], job.reference_steps) for name in {REFERENCE, *job.solvers}}
    results: dict[str, dict[int, dict[str, float | None]]] = {}
    for name in job.solvers:
        results[name] = {}
        for steps in (*job.steps, job.reference_steps):
            x = ends[name] if steps == job.reference_steps else edit(VARIANTS[name], steps)
            distance = None if ranker is None else ranker.distances(x, triple.mask, triple.prompt).item()
            measured = difference(x, ends[REFERENCE]), difference(x, ends[name]), distance
            results[name][steps] = dict(zip(MEASURES, measured, strict=True))
    return results


Means = dict[str, dict[int, dict[str, float | None]]]
"""Variant -> steps -> measure -> its mean over the triples."""


def _means(found: Sequence[dict[str, Any]]) -> Means:
    def mean(name: str, steps: str, measure: str) -> float | None:
        values = [results[name][steps][measure] for results in found]
        return None if None in values else fmean(values)

    return {
        name: {int(steps): {measure: mean(name, steps, measure) for measure in MEASURES} for steps in by_steps}
        for name, by_steps in found[0].items()
    }


def levels(squared: float) -> float:
    """The root of a mean squared difference of pictures in [-1, 1], in 8-bit levels."""
    return 127.5 * math.sqrt(squared)


def decibels(squared: float) -> float:
    """The PSNR of a mean squared difference of pictures in [-1, 1]."""
    return 10 * math.log10(4 / squared) if squared > 0 else math.inf


def markdown(means: Means, reference_steps: int) -> str:
    """One table for each measure: a row for each number of steps, a column for each variant."""
    distance = "RMSE inside the mask, 8-bit levels (PSNR, dB)"
    titles = {
        "to_reference": f"Distance to {reference_steps} steps of `{REFERENCE}`: {distance}",
        "to_own": f"Distance to {reference_steps} steps of the same column: {distance}",
        "clip_distance": "CLIP distance to the prompt, which ranks predictions",
    }
    blocks = []
    for measure, title in titles.items():
        if any(cell[measure] is None for by_steps in means.values() for cell in by_steps.values()):
            continue
        rows = [["steps", *means]]
        for steps in next(iter(means.values())):
            values = [by_steps[steps][measure] for by_steps in means.values()]
            if measure == "clip_distance":
                cells = [f"{value:.4f}" for value in values]
            else:
                cells = [f"{levels(value):.2f} ({decibels(value):.1f})" if value else "0" for value in values]
            rows.append([str(steps), *cells])
        rows.insert(1, ["---:"] * len(rows[0]))
        blocks.append(f"{title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    return "\n".join(blocks)


def _write(outdir: Path, settings: dict[str, Any], means: Means, tables: str) -> None:
    with atomic_file(outdir / "solvers.json") as file:
        file.write((json.dumps({"settings": settings, "means": means}, indent=2) + "\n").encode())
    with atomic_file(outdir / "solvers.md") as file:
        file.write(tables.encode())


def _require_plot() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "train", "the plot of the solvers") from error


def _plot(means: Means, job: SolverComparison, path: Path) -> None:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    titles = {
        "to_reference": f"to {job.reference_steps} steps of {REFERENCE}",
        "to_own": f"to {job.reference_steps} steps of its own",
        "clip_distance": "CLIP distance",
    }
    measures = [key for key in MEASURES if all(cell[key] is not None for cell in next(iter(means.values())).values())]
    figure = Figure((4.6 * len(measures), 4.2), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for name, by_steps in means.items():
            # Nothing is held against itself: a distance of 0 has no place on a logarithmic axis.
            points = {steps: value for steps, cell in by_steps.items() if (value := cell[measure])}
            values = [value if measure == "clip_distance" else levels(value) for value in points.values()]
            axes.plot(list(points), values, marker="o", markersize=4, label=name)
        axes.set(xscale="log", xlabel="steps", title=titles[measure])
        if measure != "clip_distance":
            axes.set(yscale="log", ylabel="RMSE inside the mask, 8-bit levels")
        ticks = [*job.steps, job.reference_steps]
        axes.set_xticks(ticks, labels=ticks)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
