"""One summary and one page of what the shares of a batch have told, `--shard 1/8` to `--shard 8/8`.

A row is done if a share says so, or else its marker does.
"""

import json
import re
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

from ldm.errors import UserError
from ldm.runs.batch.job import check_desk, check_source, folder_of
from ldm.runs.batch.outcome import Outcome, read_lines
from ldm.runs.batch.page import PAGE
from ldm.runs.batch.remote import stem_of
from ldm.runs.batch.report import Summary
from ldm.runs.batch.rows import Row, Rows, Selection
from ldm.runs.batch.site import Files, Site
from ldm.runs.jobs import BatchJob


@dataclass(frozen=True)
class MergeResult:
    """How many rows are done, have failed, and have not been made by any share; of how many shares; and the page."""

    done: int
    failed: int
    missing: int
    shares: int
    page: str

    def summary(self) -> str:
        """What to print at the end."""
        missing = f", {self.missing} are missing" if self.missing else ""
        return f"rows: {self.done} done, {self.failed} failed{missing}, told by {self.shares} shares\npage: {self.page}"


def merge_batch(job: BatchJob, options: Mapping[str, Any]) -> MergeResult:
    """Write summary.jsonl and the page from those of the shares, and from the markers where a share was killed.

    Args:
        options: as of `run_batch`.

    Raises:
        UserError: there are no shares, one is at work, or the rows cannot be read.
    """
    check_source(job, "")
    rows = Rows(job.rows, folder_of(job), options, Selection.of("1/1", job.where, job.limit))
    with Site(job.outdir, job.cache, node=socket.gethostname()).opened() as files, ExitStack() as stack:
        names = [name for name in files.store.list("summary-") if re.fullmatch(r"summary-\d+-of-\d+\.jsonl", name)]
        if not names:
            raise UserError(f'"{job.outdir}" has no summary of a share: make them by `shard=1/8` to `shard=8/8`')
        stack.enter_context(files.store.held(""))
        check_desk(job, "", files.store)
        notes = _Notes(files, names, stack)
        summary = Summary(files.store, stem_of(job.rows))
        done = failed = 0  # of the rows asked for: the summary may know of others
        for row in rows:
            outcome = notes.find(row.name, row.number)
            if isinstance(row, Row) and (outcome is None or outcome.status == "failed"):
                outcome = _marked(files, row, outcome) or outcome
            if outcome is not None:
                summary.total = rows.total
                summary.add(outcome)
                done += outcome.status == "done"
                failed += outcome.status == "failed"
        everything = rows.selection.everything
        summary.total = rows.wanted if everything else summary.count("done") + summary.count("failed")
        summary.finish(everything)
        page = files.store.outdir.rstrip("/") + "/" + PAGE
        return MergeResult(done, failed, rows.wanted - done - failed, len(names), page)


def _marked(files: Files, row: Row, told: Outcome | None) -> Outcome | None:
    """What a row's marker says of it; what a share has told may be older, or all of it lost.

    Where a share has told of a failure, the marker must be of the row as it is now.
    """
    marker = files.store.marker(row.name) if told is None else files.known(row)
    return None if marker is None else files.outcome(row, marker)


class _Notes:
    """Where each row's best line is: done before failed, later before earlier."""

    def __init__(self, files: Files, names: list[str], stack: ExitStack):
        self.db = sqlite3.connect("")
        self.db.execute("create table notes (name text primary key, file integer, place integer, done integer)")
        self.files: list[BinaryIO] = []
        for number, name in enumerate(names):
            files.store.fetch(name)
            path = files.store.desk / name
            lines = ((one.name, number, place, one.status == "done") for place, one in read_lines(path))
            better = "on conflict do update set file = excluded.file, place = excluded.place, done = excluded.done"
            self.db.executemany(f"insert into notes values (?, ?, ?, ?) {better} where done <= excluded.done", lines)
            self.files.append(stack.enter_context(path.open("rb")))

    def find(self, name: str, row: int) -> Outcome | None:
        """The outcome of a row, under its number."""
        found = self.db.execute("select file, place from notes where name = ?", (name,)).fetchone()
        if found is None:
            return None
        file, place = found
        self.files[file].seek(place)
        return Outcome.from_values(json.loads(self.files[file].readline()) | {"row": row})
