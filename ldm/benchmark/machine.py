"""What a machine is and can do: its description, its matrix rate, seconds and memory of a call."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ldm.backbones.zoo import REPOSITORY
from ldm.util import peak_memory

PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch")


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, and the peak of memory during them in bytes (None where it cannot be told).

    On a GPU the memory is what torch allocated there, on a CPU what the process had resident, all its weights included.
    """

    seconds: tuple[float, ...]
    peak: int | None

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return median(self.seconds)


def measure(call: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 1) -> Timing:
    """Run `call` `warmup` times, then `repeats` times with a clock."""
    for _ in range(warmup):
        call()
    synchronize(device)
    _reset_peak(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds), _peak(device))


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of this machine's best large matrix product in this precision: what a share is a share of."""
    n = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator).to(device, dtype) for _ in range(2))
    return 2 * n**3 / min(measure(lambda: a @ b, device, repeats=20, warmup=5).seconds)


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and commit, as the JSON has them."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine: dict[str, Any] = {"system": platform.platform(), "cpu": _cpu_name(), "cores": os.cpu_count()}
    machine |= {"threads": torch.get_num_threads(), "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory": properties.total_memory}
    return {"machine": machine, "versions": versions, "commit": _commit()}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # Linux alone
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


def _cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that is checked out, with `+` where files differ from it; None outside a repository."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        head, changed = (
            subprocess.run(["git", "-C", REPOSITORY, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
        return head + "+" * bool(changed)
    return None
