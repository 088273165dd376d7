"""Whole processes of `scripts/text_editing.py`, from a cold start."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ldm.backbones import zoo
from ldm.benchmark.machine import Timing
from ldm.errors import UserError

# A process's record of memory begins with that of the one that starts it: a small one does, not this large one.
_STARTER = """
import os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(status != 0)
"""


def process(model: str, device: str, precision: str, samples: int, steps: int, repeats: int) -> Timing:
    """Seconds and peak resident memory of processes that edit the repository's own photograph.

    Raises:
        UserError: the process fails; its error is given on.
    """
    inputs = zoo.REPOSITORY / "inputs"
    seconds, peaks = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            words: list[str | Path] = ["--prompt", "a pink yarn ball", "--init_image", inputs / "img.png"]
            words += ["--mask", inputs / "mask.png"]
            words += ["--outdir", Path(folder) / "run", "--model", model, "--device", device, "--precision", precision]
            words += ["--n_samples", str(samples), "--ddim_steps", str(steps)]
            done = subprocess.run(
                [sys.executable, "-c", _STARTER, sys.executable, zoo.REPOSITORY / "scripts/text_editing.py", *words],
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": str(zoo.REPOSITORY)},
            )
        if done.returncode != 0:
            raise UserError(f"text_editing.py failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        took, peak = done.stdout.split()
        seconds.append(float(took))
        peaks.append(int(peak) * (1 if sys.platform == "darwin" else 1024))
    return Timing(tuple(seconds), max(peaks))
