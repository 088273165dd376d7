"""The tables of the paper: methods paint the inputs of a benchmark, a classifier looks, everything is measured.

What is painted is kept in `paintings/`, what it costs in `cost/`, what was measured in `answers-*.jsonl`: a run that
was stopped resumes, another classifier is asked about the same pictures, and a benchmark may grow.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.editing.ranking import CLIPRanker, find_ranker
from ldm.errors import UserError
from ldm.evaluation import tables
from ldm.evaluation.answers import Answers
from ldm.evaluation.ceiling import ceiling
from ldm.evaluation.classifiers import Classifier, Frame, load_classifier
from ldm.evaluation.costs import cost
from ldm.evaluation.inputs import Input, looked_for, make_benchmark, painted_from, read_benchmark
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
from ldm.evaluation.registry import METHODS, choose_methods
from ldm.evaluation.sheet import contact_sheet
from ldm.evaluation.summaries import Answer, fifths_table, summary
from ldm.files import atomic_file, file_sha256
from ldm.imaging.images import save_png
from ldm.runs.folder import check_writable
from ldm.runs.places import locked
from ldm.util import choose_device

logger = logging.getLogger(__name__)

DEFAULT_COUNT = 50
"""Inputs of the default benchmark, as many as the paper's."""

LOCK = ".evaluation.lock"
"""In `outdir`, held while an evaluation writes there."""


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
            holds another evaluation, or that another process is writing to. What goes wrong with one input alone is
            told, and left out.
        MissingExtra: a package is missing.
    """
    check_writable(job.outdir)
    job.outdir.mkdir(parents=True, exist_ok=True)
    try:
        with locked(job.outdir / LOCK, timeout=0):
            return _evaluate(job)
    except Timeout:
        raise UserError(
            f'another evaluation is writing to "{job.outdir}": wait until it is done, or give another `outdir`'
        ) from None


def _evaluate(job: EvaluationJob) -> Outcome:
    chosen, missing = choose_methods(job.methods, job.choice)
    for name, why in missing.items():
        logger.warning("%s is left out: %s", name, why)
    path = job.benchmark or default_benchmark(job.outdir, job.model, job.labels, job.seed)
    inputs = read_benchmark(path)[: job.count]
    eyes = eyes_for(job, inputs)
    shared = {"n_samples": job.n_samples, "seed": job.seed}
    places = {
        name: Paintings(job.outdir / "paintings" / name, {**settings, **shared}) for name, settings in chosen.items()
    }
    made_of = _made_of(inputs)
    for name, place in places.items():
        _check_same(path, name, place, made_of)
    failures = [failure for name in chosen for failure in _paint(job, name, places[name], inputs)]
    costs = _costs(job, chosen, places, inputs) if job.cost else {}
    answers = _look(job, places, inputs, made_of, eyes, shared, chosen)
    results = {name: summary(list(answers[name].values())) | costs.get(name, {}) for name in chosen}
    best = ceiling(eyes.classifier, [one for one in inputs if eyes.classifier.knows(one)], job.seed)
    limit = estimate([float(one) for one in best]) if best else None
    notes = _notes(job, inputs, eyes, chosen, missing, failures)
    text = tables.markdown(results, limit, notes) + fifths_table(answers)
    used = {"benchmark": Path(os.path.relpath(path, job.outdir)).as_posix(), "benchmark_sha256": file_sha256(path)}
    used |= {"classifier": eyes.classifier.name, "lpips": eyes.perceptual.name}
    _write(job, text, results, limit, {**shared, **used}, chosen, missing, failures)
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
    if name == "auto":  # whom most inputs have something for
        scenes, imagenet = (sum(bool(getattr(one, of)) for one in inputs) for of in ("expected", "classes"))
        name = "scenes" if scenes and scenes >= imagenet else "efficientnet-lite2"
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


def _made_of(inputs: Sequence[Input]) -> list[str | None]:
    """`painted_from` of each input."""
    known: dict[Path, str] = {}
    return [painted_from(one, known) for one in inputs]


def _check_same(path: Path, name: str, place: Paintings, made_of: Sequence[str | None]) -> None:
    """Make sure that what a method has painted is of these inputs; raises UserError for the first that is not."""
    for index, now in enumerate(made_of):
        if now is not None and place.has(name, index) and place.about(name, index).get("input") != now:
            raise UserError(
                f'input {index} of "{path}" has another photograph, mask or prompt than what {name} has painted in '
                f'"{place.folder}": give another `outdir`, or remove that'
            )


def _costs(
    job: EvaluationJob,
    chosen: Mapping[str, Mapping[str, Any]],
    places: Mapping[str, Paintings],
    inputs: Sequence[Input],
) -> dict[str, dict[str, Estimate]]:
    """What each method costs, on the first input that all of them could paint; else on the first of its own."""
    there = {name: [i for i in range(len(inputs)) if place.has(name, i)] for name, place in places.items()}
    common = sorted(set.intersection(*map(set, there.values())))
    return {
        name: cost(
            job.outdir / "cost" / f"{name}.json",
            name,
            settings,
            job.choice,
            inputs[(common or there[name])[0]],
            job.n_samples,
        )
        for name, settings in chosen.items()
        if there[name]
    }


def _look(
    job: EvaluationJob,
    places: Mapping[str, Paintings],
    inputs: Sequence[Input],
    made_of: Sequence[str | None],
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
        asked = [{"settings": of, "input": made_of[i], "looked_for": looked_for(one)} for i, one in enumerate(inputs)]
        known = {
            index: line
            for index, line in kept.of(name).items()
            if index < len(inputs) and all(line.get(key) == value for key, value in asked[index].items())
        }
        there = [index for index in range(len(inputs)) if place.has(name, index)]
        for index in tqdm([one for one in there if one not in known], desc=f"{name}: looking", disable=None):
            painting = place.read(name, index, delivered=True)
            line = {"part": name, "index": index, **asked[index], **look(painting, inputs[index], eyes)}
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
    answer["diversity"] = None
    if right and sum(right) > 1:  # of the correct ones alone: distances grow with the square
        correct = masked[torch.tensor(right)]
        answer["diversity"] = diversity(eyes.perceptual.pairwise(correct), [True] * len(correct))
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
    job: EvaluationJob,
    inputs: Sequence[Input],
    eyes: Eyes,
    chosen: Iterable[str],
    missing: Mapping[str, str],
    failures: Sequence[Failure],
) -> list[str]:
    known = sum(map(eyes.classifier.knows, inputs))
    unknown = "" if known == len(inputs) else f" Of {len(inputs)} inputs it knows what {known} ask for: the others say "
    unknown += "nothing of precision, diversity and ceiling." if unknown else ""
    notes = [
        f"{len(inputs)} inputs, {job.n_samples} predictions each, {job.ddim_steps} steps; in brackets 95 % "
        "intervals by the bootstrap over inputs.",
        f"classifier: {eyes.classifier.name}; distances: {eyes.perceptual.name}; "
        f"CLIP score: {'the ranker of ' + job.model if eyes.ranker else 'not measured, no CLIP here'}.{unknown}",
        "Diversity counts inputs with two correct predictions or more. As painted: the method's own picture of its "
        "window; as delivered: composed with the photograph, whose pixels are exact beyond the band at the border.",
    ]
    notes += [note for name in chosen if (note := METHODS[name].note(job.choice))]
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
