"""All parts, in all ways, of some models: what `scripts/benchmark.py` does."""

import contextlib
import gc
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.benchmark.cold import process
from ldm.benchmark.machine import describe, matrix_rate, measure
from ldm.benchmark.parts import Part, Scene, Sizes, parts
from ldm.benchmark.report import Report, Row
from ldm.benchmark.subjects import FULL, PLAIN, Base, Subject, Way, load_base, ways
from ldm.benchmark.theirs import require_diffusers
from ldm.errors import UserError
from ldm.util import PRECISIONS, choose_device

logger = logging.getLogger(__name__)

PROCESS = "process"  # the part that needs no model in this process
QUICK = Sizes(batch=4, images=4, steps=3, tuning=3)


@dataclass(frozen=True)
class Benchmark:
    """What to measure.

    models: `full`, or what `zoo.resolve` takes. only: names of parts; empty is all. compare: with diffusers too.
    compiled: compiled forms too; None is on a GPU alone, since on a CPU compiling takes minutes. quick: small sizes
    and two repetitions, to see that all works.
    """

    models: Sequence[str] = (FULL, "scenes")
    only: Sequence[str] = ()
    device: str = "auto"
    precision: str = "auto"
    compare: bool = False
    compiled: bool | None = None
    repeats: int = 5
    quick: bool = False


def run_benchmark(job: Benchmark, on_way: Callable[[Report], object] = lambda report: None) -> Report:
    """Measure. What goes wrong in one way does not stop the others: it is among the report's failures.

    on_way: gets the report as it is after each way, so that a run which is cut off has not been for nothing.

    Raises:
        UserError: an unknown part, model or device, or diffusers is missing.
    """
    device = choose_device(job.device)
    known = [*parts(Sizes()), PROCESS]
    if unknown := set(job.only) - set(known):
        raise UserError(f"--parts {' '.join(sorted(unknown))}: the parts are {' '.join(known)}")
    if job.compare:
        require_diffusers()
    compiled = device.type == "cuda" if job.compiled is None else job.compiled
    chosen = ways(device, job.precision, job.compare, compiled)
    run = _Run(job, device, {way.precision: 0.0 for way in chosen}, on_way)
    with _exact_float32(), torch.no_grad():
        for precision in run.rates:
            run.rates[precision] = matrix_rate(device, PRECISIONS[precision])
        for name in job.models:
            run.model(name, chosen)
    return run.report()


class _Run:
    """What has been found so far."""

    def __init__(
        self, job: Benchmark, device: torch.device, rates: dict[str, float], on_way: Callable[[Report], object]
    ):
        self.job, self.device, self.rates, self.on_way = job, device, rates, on_way
        self.repeats = 2 if job.quick else job.repeats
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.notes: list[str] = []

    def report(self) -> Report:
        return Report(self.rows, self.failures, self.notes, self.rates, describe(self.device))

    def note(self, text: str) -> None:
        logger.info("%s", text)
        self.notes.append(text)

    def model(self, name: str, chosen: Sequence[Way]) -> None:
        base = load_base(name, self.device)
        selected = self._select(name, base)
        scene, plain = Scene.of(base.model), _Plain({}, {})
        for way in chosen if selected else ():
            with self._failing(f"{name}, {way.name}"):
                subject = Subject(base, way, self.device)
                for part in (part for part in selected if part.concerns(way)):
                    with self._failing(f"{name}, {way.name}, {part.name}"):
                        self._measure(name, subject, part, scene, plain)
                del subject
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.on_way(self.report())
        if PROCESS in (self.job.only or [PROCESS]):
            self._processes(name, base)

    def _select(self, name: str, base: Base) -> list[Part]:
        on_cpu = name == FULL and self.device.type == "cpu"
        single = 1 if name == FULL else 4
        sizes = QUICK if self.job.quick else Sizes(single=single, images=1 if on_cpu else 24)
        selected = [part for part in parts(sizes).values() if part.name in self.job.only or not self.job.only]
        if on_cpu and (left := [part.name for part in selected if part.long]):
            self.note(f"{name} on a CPU: single steps alone; left out: {' '.join(left)}")
            selected = [part for part in selected if not part.long]
        if base.ranker is None:
            self.note(f"{name} has no CLIP model here: its edits are not ranked, and the part clip is left out")
            selected = [part for part in selected if part.name != "clip"]
        return selected

    def _measure(self, name: str, subject: Subject, part: Part, scene: Scene, plain: "_Plain") -> None:
        way, call = subject.way, part.prepare(subject, scene)
        if way == PLAIN:
            with FlopCounterMode(display=False) as counter:
                plain.results[part.name] = call().float().cpu()
            plain.operations[part.name] = counter.get_total_flops()
        out = call().float().cpu()  # the first call warms up, and compiles
        timing = measure(call, self.device, self.repeats, warmup=2 if way.compiled else 0)
        operations = plain.operations.get(part.name)
        same = part.same or way.library == PLAIN.library
        error = _relative_error(out, plain.results.get(part.name)) if same else None
        if not torch.isfinite(out).all():
            self.failures.append(f"{name}, {way.name}, {part.name}: the result is no number")
        share = operations / timing.median / self.rates[way.precision] if operations else None
        row = Row(name, part.name, part.about, way.name, timing.seconds, timing.median, timing.peak)
        self.rows.append(Row(**(vars(row) | {"operations": operations, "share": share, "error": error})))
        logger.info("%s, %s, %s: %.3g s", name, way.name, part.about, timing.median)

    def _processes(self, name: str, base: Base) -> None:
        if base.files is None:
            self.note(f"{name} has random weights and no file: no process of it")
            return
        # One step of one prediction: hardly more than what comes before the first step.
        for samples, steps in ((1, 1), *([] if self.job.quick else [(4, 50)])):
            about = f"text_editing.py, cold, {samples} x {steps} step(s)"
            with self._failing(f"{name}, {about}"):
                cold = process(name, str(self.device), self.job.precision, samples, steps, self.repeats)
                for what, timing in ((f"{about}, until the first", cold.before), (about, cold.whole)):
                    self.rows.append(Row(name, PROCESS, what, "process", timing.seconds, timing.median, timing.peak))

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """One way's failure, memory or a compiler as a rule, is told at the end."""
        try:
            yield
        except Exception as error:  # of whatever kind: hours of other measurements must not be lost
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            self.failures.append(f"{what}: {type(error).__name__}: {reason}")
            logger.info("failed: %s", self.failures[-1])


@dataclass(frozen=True)
class _Plain:
    """The plain way's results and counts of operations, by part."""

    results: dict[str, Tensor]
    operations: dict[str, int]


def _relative_error(x: Tensor, reference: Tensor | None) -> float | None:
    """|x - reference| / |reference| in the 2-norm; not a number where x holds any."""
    if reference is None:
        return None
    error = ((x - reference).norm() / reference.norm()).item()
    return error if math.isfinite(error) else math.nan


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """float32 is float32 while this lasts, on GPUs that would shorten it too."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
