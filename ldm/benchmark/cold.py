"""Whole processes of `scripts/text_editing.py`, from a cold start."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ldm.backbones import zoo
from ldm.benchmark.machine import Timing
from ldm.errors import UserError

# A process's record of memory begins with that of the one that starts it: a small one does, not this large one.
_STARTER = """
import os, pathlib, subprocess, sys, time
start = time.monotonic()
child = subprocess.Popen(sys.argv[2:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
took = time.monotonic() - start
if status == 0:
    print(float(pathlib.Path(sys.argv[1]).read_text()) - start, took, usage.ru_maxrss)
sys.exit(status != 0)
"""

# The command as it is, but that the time of the denoiser's first call is written to a file.
_STAMPED = """
import pathlib, runpy, sys, time
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
def stamp(module, args):
    if type(module).__name__ == "UNetModel":
        hook.remove()
        pathlib.Path(path).write_text(str(time.monotonic()))
hook = register_module_forward_pre_hook(stamp)
path = sys.argv[1]
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class ColdTiming:
    """Wall seconds of processes from a cold start, and their peak resident memory.

    before: until the denoiser is first called. whole: until the process has ended.
    """

    before: Timing
    whole: Timing


def process(model: str, device: str, precision: str, samples: int, steps: int, repeats: int) -> ColdTiming:
    """Time processes that edit the repository's own photograph.

    Raises:
        UserError: the process fails; its error is given on.
    """
    inputs, script = zoo.REPOSITORY / "inputs", zoo.REPOSITORY / "scripts/text_editing.py"
    before, whole, peaks = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            stamp = Path(folder) / "first-step"
            edit = {"--init_image": inputs / "img.png", "--mask": inputs / "mask.png", "--outdir": f"{folder}/run"}
            edit |= {"--prompt": "a pink yarn ball", "--model": model, "--device": device, "--precision": precision}
            edit |= {"--n_samples": samples, "--ddim_steps": steps}
            options = [str(word) for option in edit.items() for word in option]
            done = subprocess.run(
                [sys.executable, "-c", _STARTER, stamp, sys.executable, "-c", _STAMPED, stamp, script, *options],
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": str(zoo.REPOSITORY)},
            )
        if done.returncode != 0:
            raise UserError(f"text_editing.py failed: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
        first, took, peak = done.stdout.split()
        before.append(float(first))
        whole.append(float(took))
        peaks.append(int(peak) * (1 if sys.platform == "darwin" else 1024))
    return ColdTiming(Timing(tuple(before), max(peaks)), Timing(tuple(whole), max(peaks)))
