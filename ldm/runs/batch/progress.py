"""How far a batch is: for the terminal, for a log, and for Prometheus."""

import logging
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ldm.errors import UserError
from ldm.files import atomic_file, write_error
from ldm.runs.batch.outcome import Outcome

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)  # what others say of single edits is not wanted; this is

_SPAN = 300.0  # seconds over which the rate is taken
_LOG, _METRICS = 60.0, 5.0  # seconds between lines of a log, between two writes of the metrics

_HEAD = "# HELP bld_batch_"  # what our file of counters begins with


def check_metrics(path: Path | None) -> None:
    """Make sure, before any work is done, that the counters can be written and replace none but earlier ones.

    Raises:
        UserError: a file of the user's lies there, or its folder cannot be written.
    """
    if path is None:
        return
    try:
        if os.path.lexists(path):
            with open(path, "rb") as file:
                ours = file.read(len(_HEAD)) in (b"", _HEAD.encode())
        else:
            ours = True
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        raise write_error(path, error) from error
    if not ours:
        raise UserError(f'"{path}" holds no counters of a batch, so it stays: choose another file for `metrics`')


class Progress:
    """Counts rows.

    Args:
        total: of the rows that are wanted, asked again and again: a manifest that is being read may have more.
        metrics: a file in Prometheus's text format, as its node exporter's textfile collector takes it.
    """

    def __init__(self, total: Callable[[], int], metrics: Path | None = None):
        self.total, self.metrics = total, metrics
        self.begun = time.monotonic()
        self.made = self.found = self.failed = 0
        self.recent: deque[tuple[float, int]] = deque([(self.begun, 0)])
        self.busy: dict[str, dict[str, float]] = {}  # seconds of sampling, by node and device
        self.logged = self.begun
        self.written = 0.0
        self.bar = tqdm(desc="rows", unit="row", disable=None)
        self.redirect = logging_redirect_tqdm([logging.getLogger("ldm")])

    def __enter__(self) -> "Progress":
        self.redirect.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.redirect.__exit__(kind, error, trace)
        self.bar.close()
        self._write()

    def note(self, outcome: Outcome, made: bool = True) -> None:
        """A row is finished; or was found to be so, which tells nothing of how fast it goes."""
        if outcome.status == "failed":
            self.failed += 1
        elif made:
            self.made += 1
            where = self.busy.setdefault(outcome.node or "here", {})
            device = outcome.device or "device"
            where[device] = where.get(device, 0.0) + outcome.seconds.get("sampling", 0.0)
        else:
            self.found += 1
        now = time.monotonic()
        if made:
            self.recent.append((now, self.made + self.failed))
            while len(self.recent) > 2 and (now - self.recent[0][0] > _SPAN or len(self.recent) > 10_000):
                self.recent.popleft()
        self.bar.total = self.total()
        self.bar.update()
        if now - self.logged >= _LOG and not sys.stderr.isatty():
            self.logged = now
            logger.info(self.line())
        if now - self.written >= _METRICS:
            self._write()

    @property
    def rate(self) -> float:
        """Rows a second, of the last minutes."""
        (since, before), (now, count) = self.recent[0], self.recent[-1]
        return (count - before) / (now - since) if now > since else 0.0

    @property
    def left(self) -> int:
        """Rows to come, as far as is known."""
        return max(0, self.total() - self.made - self.found - self.failed)

    def shares(self) -> Iterator[tuple[str, float]]:
        """The nodes, and the share of the time that has gone by in which their devices sampled."""
        elapsed = max(1e-9, time.monotonic() - self.begun)
        for node, devices in sorted(self.busy.items()):
            yield node, min(1.0, sum(devices.values()) / len(devices) / elapsed)

    def line(self) -> str:
        """How far it is, in a line."""
        rate = self.rate
        left = f", {_duration(self.left / rate)} left" if rate and self.left else ""
        busy = "; busy: " + ", ".join(f"{node} {share:.0%}" for node, share in self.shares()) if self.busy else ""
        done = self.made + self.found
        return f"rows: {done} done, {self.failed} failed of {self.total()}, {rate:.2f} a second{left}{busy}"

    def exposition(self) -> str:
        """The counters in Prometheus's text format."""
        rate = self.rate
        text = "# HELP bld_batch_rows Rows by what has become of them.\n# TYPE bld_batch_rows gauge\n"
        counts = {"made": self.made, "found": self.found, "failed": self.failed, "left": self.left}
        text += "".join(f'bld_batch_rows{{status="{name}"}} {count}\n' for name, count in counts.items())
        gauges = {
            "rows_per_second": ("Rows made a second, of the last minutes.", rate),
            "seconds_left": ("Time until all rows are made.", self.left / rate if rate else float("nan")),
            "seconds": ("Time since the batch began.", time.monotonic() - self.begun),
        }
        for name, (help, value) in gauges.items():
            text += f"# HELP bld_batch_{name} {help}\n# TYPE bld_batch_{name} gauge\n"
            text += f"bld_batch_{name} {'NaN' if value != value else f'{value:.6g}'}\n"
        text += (
            "# HELP bld_batch_busy Share of the time in which a node's devices sampled.\n# TYPE bld_batch_busy gauge\n"
        )
        for node, share in self.shares():
            label = node.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
            text += f'bld_batch_busy{{node="{label}"}} {share:.6g}\n'
        return text

    def _write(self) -> None:
        self.written = time.monotonic()
        if self.metrics is not None:
            with atomic_file(self.metrics) as file:
                file.write(self.exposition().encode())


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
