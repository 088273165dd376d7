"""What has become of the rows of a batch: `summary.jsonl`, a line for each, and the page."""

import json
import os
import re
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ldm.errors import UserError
from ldm.files import atomic_file, write_error
from ldm.runs.batch import page
from ldm.runs.batch.outcome import Outcome, read_lines, summary_name
from ldm.runs.batch.store import LocalStore, Store

_LINE = re.compile(rb'\{"row": (\d+), "name": "([\w-]*)", "status": "(done|failed)"')
_SHARE = 20  # the page is written again when this many times the time has gone by that it took to write
_PUBLISH = 60.0  # seconds between puts of the summary where it is kept behind a URL; more where they take long
_NONE, _DONE, _FAILED, _EARLIER = 0, 1, 2, 4  # what is known of a row; and that it was not this run that found out


def check_report(outdir: Path, source: Path, share: str = "") -> None:
    """Make sure, before any work is done, that our files replace only what an earlier batch wrote.

    Args:
        outdir: the output folder, or the desk of one behind a URL. source: the batch's rows.

    Raises:
        UserError: a file of the user's lies there; or it is the rows.
    """
    checks = {summary_name(share): _is_summary, page.PAGE: page.is_page}
    for name, is_ours in checks.items():
        path = outdir / name
        try:
            ours = not os.path.lexists(path) or (not path.is_symlink() and is_ours(_beginning(path)))
        except OSError:  # a folder, or nothing that we may read
            ours = False
        if not ours:
            raise UserError(f'"{path}" is no {name} of a batch, so it stays: move it away or choose another `outdir`')
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f'"{path}" would be replaced while its rows are read: copy it or choose another `outdir`')


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 16)


def _is_summary(content: bytes) -> bool:
    first, _, more = content.partition(b"\n")
    torn = not more and b'{"row": '.startswith(first[:8]) and not first.endswith(b"}")  # a batch was killed
    return not content.strip() or torn or _LINE.match(first) is not None


class Summary:
    """The summary and the page, kept as rows are finished: a line is added at once, the page written now and then.

    Of a row it keeps a place in the file and a byte, whatever is in its line.

    Args:
        store: whose desk exists. title: of the page. share: of the rows, part of the summary's name; it has no page.

    Raises:
        UserError: a file cannot be written; so do the methods.

    Attributes:
        total: how many rows there are, as far as is known.
        set_aside: the rows that earlier runs have set aside, by name.
    """

    def __init__(self, store: Store, title: str, share: str = ""):
        self.store, self.title, self.share = store, title, share
        self.path = store.desk / summary_name(share)
        self.total = 0
        self.places, self.states = array("q"), bytearray()
        self.counts = {"done": 0, "failed": 0}
        self.set_aside: dict[str, Outcome] = {}
        self.changed: set[int] = set()
        self.due = self.publish_due = 0.0
        self._mend()
        for place, outcome in read_lines(self.path):
            self._note(outcome, place, _EARLIER)
            if outcome.set_aside:
                self.set_aside[outcome.name] = outcome
            else:
                self.set_aside.pop(outcome.name, None)

    def add(self, outcome: Outcome) -> None:
        """Note what has become of a row, in place of what was known of it."""
        line = outcome.line()
        if outcome.status != "done" or not self._noted(outcome):
            try:
                with open(self.path, "ab") as file:
                    place = file.tell()
                    file.write(line)
            except OSError as error:
                raise write_error(self.path, error) from error
        else:
            place = self.places[outcome.row]
        self._note(outcome, place)
        now = time.monotonic()
        if now >= self.due and not self.share:
            self.write_page()
        if now >= self.publish_due:
            self.publish()

    def outcomes(self, first: int = 0, last: int | None = None) -> Iterator[Outcome]:
        """What is known of the rows `first` to `last`, in their order."""
        with suppress(FileNotFoundError), open(self.path, "rb") as file:
            for number in range(first, min(len(self.states), len(self.states) if last is None else last + 1)):
                if self.states[number]:
                    file.seek(self.places[number])
                    outcome = Outcome.from_values(json.loads(file.readline()))
                    assert outcome is not None  # we wrote it
                    yield replace(outcome, row=number)

    def finish(self, everything: bool) -> None:
        """Put the lines in the order of the rows, one for each, and write the page.

        Args:
            everything: all rows have been seen, so that what is only known of earlier is of rows that are no more.
        """
        if everything:
            for number, state in enumerate(self.states):
                if state & _EARLIER:
                    self._forget(number)
        places = array("q", [-1]) * len(self.places)
        with atomic_file(self.path) as file:
            for outcome in self.outcomes():
                places[outcome.row] = file.tell()
                file.write(outcome.line())
        self.places = places
        if not self.share:
            self.write_page()
        self.publish()

    def write_page(self) -> None:
        """Write the page anew, as a whole; of many rows, those of its parts that have changed."""
        start = time.monotonic()
        files = page.write(self, self.changed)
        self.changed.clear()
        self.store.publish(files)
        now = time.monotonic()
        self.due = now + _SHARE * (now - start)

    def publish(self) -> None:
        """Put the summary in its place, where that is not here."""
        start = time.monotonic()
        self.store.publish([self.path.name])
        now = time.monotonic()
        self.publish_due = now + max(_PUBLISH, _SHARE * (now - start))

    def count(self, status: str) -> int:
        """How many rows have a status, "done" or "failed"."""
        return self.counts[status]

    def failures(self) -> Iterator[int]:
        """The numbers of the rows that have failed."""
        return (number for number, state in enumerate(self.states) if state & _FAILED)

    def _noted(self, outcome: Outcome) -> bool:
        """Whether the file has the line of a row that is done."""
        if outcome.row >= len(self.states) or not self.states[outcome.row] & _DONE:
            return False
        (known,) = self.outcomes(outcome.row, outcome.row)
        return (known.name, known.digest) == (outcome.name, outcome.digest) and known.seeds == list(outcome.seeds)

    def _note(self, outcome: Outcome, place: int, earlier: int = 0) -> None:
        number = outcome.row
        if number >= len(self.states):
            more = max(number + 1 - len(self.states), 1024)
            self.places.extend([-1] * more)
            self.states.extend(bytes(more))
        self._forget(number)
        self.places[number], self.states[number] = place, (_DONE if outcome.status == "done" else _FAILED) | earlier
        self.counts[outcome.status] += 1
        self.changed.add(page.page_of(number))

    def _forget(self, number: int) -> None:
        state = self.states[number] & ~_EARLIER
        if state:
            self.counts["done" if state == _DONE else "failed"] -= 1
        self.states[number] = _NONE

    def _mend(self) -> None:
        """End a line that a kill has torn, or the next one would be torn too."""
        with suppress(FileNotFoundError), open(self.path, "r+b") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b"\n":
                file.write(b"\n")
        if not self.path.exists():
            with atomic_file(self.path):
                pass


def read_summary(outdir: Path, share: str = "") -> list[Outcome]:
    """The outcomes of a summary that is here, each row's last, in the order of the rows."""
    return list(Summary(LocalStore(outdir), "", share).outcomes()) if (outdir / summary_name(share)).exists() else []
