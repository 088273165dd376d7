"""The tables of the paper: methods paint the inputs of a benchmark, a classifier looks, everything is measured.

What is painted is kept in `paintings/`, what it costs in `cost/`, what was measured in `answers-*.jsonl`: a run that
was stopped resumes, and another classifier is asked about the same pictures.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.editing.ranking import CLIPRanker, find_ranker
from ldm.evaluation import tables
from ldm.evaluation.answers import Answers
from ldm.evaluation.ceiling import ceiling
from ldm.evaluation.classifiers import Classifier, Frame, load_classifier
from ldm.evaluation.costs import cost
from ldm.evaluation.inputs import Input, make_benchmark, read_benchmark
from ldm.evaluation.jobs import EvaluationJob
from ldm.evaluation.labels import labels
from ldm.evaluation.measures import (
    Estimate,
    background_psnr,
    background_ssim,
    batch_precision,
    clip_score,
    diversity,
    estimate,
    only_background,
)
from ldm.evaluation.paintings import Failure, MethodPainter, Painting, Paintings, paint_all
from ldm.evaluation.perceptual import Perceptual
from ldm.evaluation.registry import choose_methods
from ldm.evaluation.sheet import contact_sheet
from ldm.evaluation.summaries import Answer, fifths_table, summary
from ldm.files import atomic_file, file_sha256
from ldm.imaging.images import save_png
from ldm.util import choose_device

logger = logging.getLogger(__name__)

DEFAULT_COUNT = 50
"""Inputs of the default benchmark, as many as the paper's."""


@dataclass(frozen=True)
class Outcome:
    """What came out: the tables, what stands in them, what was measured of each input, what could not be painted."""

    markdown: str
    results: tables.Results
    answers: Mapping[str, Mapping[int, Answer]]
    failures: Sequence[Failure]


@dataclass(frozen=True)
class Eyes:
    """Who looks at the pictures."""

    classifier: Classifier
    perceptual: Perceptual
    ranker: CLIPRanker | None


def evaluate_methods(job: EvaluationJob) -> Outcome:
    """Paint, look, measure; write evaluation.md, .csv, .json and contact_sheet.png into `job.outdir`.

    Raises:
        UserError: a method, a classifier or a benchmark that is not here; a folder that cannot be written, or that
            holds another evaluation. What goes wrong with one input alone is told, and left out.
        MissingExtra: a package is missing.
    """
    chosen, missing = choose_methods(job.methods, job.choice)
    for name, why in missing.items():
        logger.warning("%s is left out: %s", name, why)
    path = job.benchmark or default_benchmark(job.outdir, job.model, job.labels, job.seed)
    inputs = read_benchmark(path)[: job.count]
    eyes = eyes_for(job, inputs)
    shared = {"benchmark_sha256": file_sha256(path), "n_samples": job.n_samples, "seed": job.seed}
    places = {
        name: Paintings(job.outdir / "paintings" / name, {**settings, **shared}) for name, settings in chosen.items()
    }
    failures = [failure for name in chosen for failure in _paint(job, name, places[name], inputs)]
    costs = {}
    if job.cost:
        for name, settings in chosen.items():
            costs[name] = cost(
                job.outdir / "cost" / f"{name}.json", name, settings, job.choice, inputs[0], job.n_samples
            )
    answers = _look(job, places, inputs, eyes, shared, chosen)
    results = {name: summary(list(answers[name].values())) | costs.get(name, {}) for name in chosen}
    best = ceiling(eyes.classifier, [one for one in inputs if eyes.classifier.knows(one)], job.seed)
    limit = estimate([float(one) for one in best]) if best else None
    notes = _notes(job, inputs, eyes, missing, failures)
    text = tables.markdown(results, limit, notes) + fifths_table(answers)
    _write(job, text, results, limit, shared, chosen, missing, failures)
    save_png(contact_sheet(places, inputs, answers, job.n_samples), job.outdir / "contact_sheet.png")
    return Outcome(text, results, answers, failures)


def default_benchmark(outdir: Path, model: str, kind: str = "auto", seed: int = 0) -> Path:
    """The file of the default benchmark, made in `outdir` where it is not there; kind: of labels, or "auto"."""
    if kind == "auto":
        kind = "scenes" if zoo.resolve(model).name == "scenes" else "imagenet"
    return make_benchmark(None, outdir / "benchmark", DEFAULT_COUNT, seed, labels(kind, model, seed))


def eyes_for(job: EvaluationJob, inputs: Sequence[Input]) -> Eyes:
    """Who looks at the predictions for some inputs."""
    name = job.classifier
    if name == "auto":
        name = "scenes" if all(one.expected for one in inputs) else "efficientnet-lite2"
    ranker = find_ranker(zoo.resolve(job.model).clip, choose_device(job.device))
    return Eyes(load_classifier(name, job.framing), Perceptual(job.lpips), ranker)


def _paint(job: EvaluationJob, name: str, place: Paintings, inputs: Sequence[Input]) -> list[Failure]:
    options = {"n": job.n_samples}
    todo = [
        (name, index, one, options | {"seed": job.seed + 1000 * index})
        for index, one in enumerate(inputs)
        if not place.has(name, index)
    ]
    failures: list[Failure] = []
    done = len(inputs) - len(todo)
    with tqdm(total=len(inputs), initial=done, desc=name, unit="input", disable=None) as bar:
        for failure in paint_all(MethodPainter(name, job.choice), place, todo, job.workers):
            bar.update()
            if failure is not None:
                if str(failure.error) not in {str(before.error) for before in failures}:
                    logger.warning("left out: %s", failure)
                failures.append(failure)
    return failures


def _look(
    job: EvaluationJob,
    places: Mapping[str, Paintings],
    inputs: Sequence[Input],
    eyes: Eyes,
    shared: Mapping[str, Any],
    chosen: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[int, Answer]]:
    """Method -> number of the input -> what was measured; what is known already is not measured again."""
    who = {"classifier": eyes.classifier.name, "lpips": eyes.perceptual.name, "clip": eyes.ranker is not None}
    digest = hashlib.sha256(json.dumps(who).encode()).hexdigest()[:8]
    kept = Answers(job.outdir / f"answers-{digest}.jsonl", {**shared, **who})
    answers: dict[str, dict[int, Answer]] = {}
    for name, place in places.items():
        of = hashlib.sha256(json.dumps(chosen[name], sort_keys=True).encode()).hexdigest()[:8]
        known = {index: line for index, line in kept.of(name).items() if line["settings"] == of}
        there = [index for index in range(len(inputs)) if place.has(name, index)]
        for index in tqdm([one for one in there if one not in known], desc=f"{name}: looking", disable=None):
            painting = place.read(name, index, delivered=True)
            line = {"part": name, "index": index, "settings": of, **look(painting, inputs[index], eyes)}
            kept.add(line)
            known[index] = line
        answers[name] = {index: known[index] for index in there}
    return answers


@torch.no_grad()
def look(painting: Painting, one: Input, eyes: Eyes) -> dict[str, Any]:
    """The measures of one input's predictions: `right` of each, best first, and means over them."""
    about, mask, x, source = painting.about, (painting.mask > 0.5).float(), painting.x, painting.source
    assert painting.delivered is not None
    right = eyes.classifier.right(x, mask, Frame(**about["frame"]), one) if eyes.classifier.knows(one) else None
    masked = torch.where(mask > 0, x, -torch.ones(1))  # black outside
    answer: dict[str, Any] = {"right": right, "ranked": about["distances"] is not None}
    answer["precision"] = None if right is None else batch_precision(right)
    answer["best"] = float(right[0]) if right and answer["ranked"] else None
    answer["diversity"] = None if right is None else diversity(eyes.perceptual.pairwise(masked), right)
    answer["clip"] = None
    if eyes.ranker is not None:
        answer["clip"] = mean([clip_score(float(one)) for one in eyes.ranker.distances(x, mask, one.prompt)])
    for suffix, pictures in (("", x), ("_delivered", painting.delivered)):
        each = pictures.split(1)
        answer[f"psnr{suffix}"] = mean([background_psnr(picture, source, mask) for picture in each])
        answer[f"ssim{suffix}"] = mean([background_ssim(picture, source, mask) for picture in each])
        answer[f"lpips{suffix}"] = _background_lpips(eyes.perceptual, pictures, source, mask)
    for key in ("seam", "source_seam"):
        answer[key] = mean([measures[key] for measures in about["measures"]])
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in answer.items()}


def _background_lpips(perceptual: Perceptual, x: Tensor, source: Tensor, mask: Tensor) -> float | None:
    if not (mask <= 0).any():
        return None
    return float(perceptual.between(only_background(x, source, mask), source).mean())


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _notes(
    job: EvaluationJob, inputs: Sequence[Input], eyes: Eyes, missing: Mapping[str, str], failures: Sequence[Failure]
) -> list[str]:
    notes = [
        f"{len(inputs)} inputs, {job.n_samples} predictions each, {job.ddim_steps} steps; in brackets 95 % "
        "intervals by the bootstrap over inputs.",
        f"classifier: {eyes.classifier.name}; distances: {eyes.perceptual.name}; "
        f"CLIP score: {'the ranker of ' + job.model if eyes.ranker else 'not measured, no CLIP here'}.",
        "Diversity counts inputs with two correct predictions or more. As painted: the method's own picture of its "
        "window; as delivered: composed with the photograph, whose pixels are exact beyond the band at the border.",
    ]
    notes += [f"left out: {name} ({why})" for name, why in missing.items()]
    return notes + [f"could not be painted: {failure}" for failure in failures]


def _write(
    job: EvaluationJob,
    text: str,
    results: tables.Results,
    limit: Estimate | None,
    shared: Mapping[str, Any],
    chosen: Mapping[str, Mapping[str, Any]],
    missing: Mapping[str, str],
    failures: Sequence[Failure],
) -> None:
    content = {"settings": {**shared, "methods": chosen}, **tables.as_json(results, limit)}
    content |= {"left_out": dict(missing), "failures": [str(failure) for failure in failures]}
    files = {
        "evaluation.md": text,
        "evaluation.csv": tables.comma_separated(results, limit),
        "evaluation.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
    }
    for name, written in files.items():
        with atomic_file(job.outdir / name) as file:
            file.write(written.encode())
