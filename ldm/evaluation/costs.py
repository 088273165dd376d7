"""What a method costs: time, memory and size, each alone in a process of its own, on the same input."""

import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ldm.evaluation.inputs import Input
from ldm.evaluation.jobs import MethodChoice
from ldm.evaluation.measures import Estimate
from ldm.evaluation.methods import BlendedLatent
from ldm.evaluation.paintings import end_at_ctrl_c, silent
from ldm.evaluation.registry import METHODS
from ldm.files import atomic_file
from ldm.util import choose_device, peak_memory

logger = logging.getLogger(__name__)


def cost(
    path: Path, name: str, settings: Mapping[str, Any], choice: MethodChoice, one: Input, n_samples: int
) -> dict[str, Estimate]:
    """`measure_cost` in a process of its own, once: kept at `path`; nothing, after a notice, where it fails."""
    about = {**settings, "n_samples": n_samples, "threads": torch.get_num_threads()}
    about |= {"device": str(choose_device(choice.device)), "prompt": one.prompt}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        measured = found["measured"] if found["settings"] == about else None
    except (OSError, ValueError, KeyError):
        measured = None
    if measured is None:
        try:
            with ProcessPoolExecutor(1, get_context("spawn"), _quiet) as executor:
                measured = executor.submit(measure_cost, name, choice, one, n_samples).result()
        except Exception as error:  # isolated, as any input's
            logger.warning("the cost of %s cannot be measured: %s", name, error)
            return {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write((json.dumps({"settings": about, "measured": measured}, indent=1) + "\n").encode())
    return {key: Estimate(value, value, value, 1) for key, value in measured.items() if value is not None}


def _quiet() -> None:
    """What there is to tell of this edit was told when it was painted."""
    end_at_ctrl_c()
    logging.disable(logging.WARNING)


def measure_cost(name: str, choice: MethodChoice, one: Input, n: int) -> dict[str, float | None]:
    """Seconds for one prediction and for a batch after a first one, on a CPU those of the processor too; for restoring
    the background of one; evaluations, parameters, and peak memory in bytes, of the device where it is a GPU, else of
    this process."""
    device = choose_device(choice.device)
    with silent():
        method = METHODS[name].load(choice)
        method.edit(one.image, one.mask, one.prompt, 1, 0)  # what is done once only
        start, cpu = time.perf_counter(), time.process_time()
        edited = method.edit(one.image, one.mask, one.prompt, 1, 1)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        start, cpu = time.perf_counter(), time.process_time()
        method.edit(one.image, one.mask, one.prompt, n, 2)
        batch, cpu_batch = time.perf_counter() - start, time.process_time() - cpu
        restored = _restoring(method, one) if isinstance(method, BlendedLatent) else None
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    made: dict[str, float | None] = {"seconds_one": round(seconds, 3), "seconds_batch": round(batch, 3)}
    if device.type == "cpu":  # what a busy machine does not stretch
        made |= {"cpu_one": round(cpu_seconds, 3), "cpu_batch": round(cpu_batch, 3)}
    made["evaluations"] = edited.evaluations
    return made | {"seconds_restored": restored, "parameters": method.parameters or None, "peak": peak}


def _restoring(method: BlendedLatent, one: Input) -> float:
    """Seconds to fit the decoder to one prediction; the paper counts it apart: only the chosen one is restored."""
    result = method.result(one.image, one.mask, one.prompt, n_samples=1, seed=0)
    start = time.perf_counter()
    method.editor.reconstruct(result, 0)
    return round(time.perf_counter() - start, 3)
