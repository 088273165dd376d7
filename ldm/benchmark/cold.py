"""Whole processes of `scripts/text_editing.py`, from a cold start."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ldm import zoo
from ldm.benchmark.machine import Timing
from ldm.errors import UserError


def process(model: str, device: str, precision: str, samples: int, steps: int, repeats: int) -> Timing:
    """Seconds and peak resident memory of processes that edit the repository's own photograph.

    Raises:
        UserError: the process fails; its error is given on.
    """
    inputs = zoo.REPOSITORY / "inputs"
    seconds, peaks = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            words = ["--prompt", "a pink yarn ball", "--init_image", inputs / "img.png", "--mask", inputs / "mask.png"]
            words += ["--outdir", Path(folder) / "run", "--model", model, "--device", device, "--precision", precision]
            words += ["--n_samples", str(samples), "--ddim_steps", str(steps)]
            with (Path(folder) / "log").open("w+") as log:
                start = time.perf_counter()
                child = subprocess.Popen(
                    [sys.executable, zoo.REPOSITORY / "scripts/text_editing.py", *words],
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONPATH": str(zoo.REPOSITORY)},
                )
                _, status, usage = os.wait4(child.pid, 0)
                seconds.append(time.perf_counter() - start)
                child.returncode = os.waitstatus_to_exitcode(status)
                peaks.append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
                if child.returncode != 0:
                    log.seek(0)
                    raise UserError(f"text_editing.py failed: {(log.read().strip().splitlines() or ['no word'])[-1]}")
    return Timing(tuple(seconds), max(peaks))
