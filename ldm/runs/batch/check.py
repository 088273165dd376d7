"""A look at all rows and their files, as a batch would use them, without weights: what `--check` does."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ldm.errors import UserError
from ldm.runs.batch.job import READERS, begin
from ldm.runs.batch.rows import BadRow, Row, Selection, good, plan, windows
from ldm.runs.batch.site import Files, Site
from ldm.runs.batch.work import outline_of, prepare_row
from ldm.runs.jobs import BatchJob
from ldm.runs.program import Program


@dataclass(frozen=True)
class BatchCheck:
    """What a batch would do: its rows, how many of them are bad, how many are done, and how many batches to come."""

    rows: int
    bad: int
    found: int
    batches: int

    def summary(self) -> str:
        """What to print at the end."""
        todo = self.rows - self.found - self.bad
        return f"rows: {todo} to make in {self.batches} batches, {self.found} done, {self.bad} bad"


def check_batch(job: BatchJob, options: Mapping[str, Any], tell: Callable[[str], None]) -> BatchCheck:
    """Look at all rows and their files as the batch would use them, without weights; writes nothing.

    Args:
        options: as of `run_batch`. tell: is told what is wrong with each bad row, in their order, as it is found.

    Raises:
        UserError: the rows cannot be read.
    """
    rows, waiting = begin(job, options, Selection.of(job.shard, job.where, job.limit))
    bad = found = batches = 0
    outlines: dict[tuple[Any, ...], Program[Any] | UserError] = {}
    with Site(job.outdir, job.cache).opened() as files, ThreadPoolExecutor(READERS) as pool:
        for window in chain([waiting], windows(rows.rest)):
            known = list(pool.map(files.known, good(window)))
            todo = [row for row, marker in zip(good(window), known, strict=True) if marker is None]
            found += len(known) - len(todo)
            models = {row.model: row for row in todo}
            outlines = {model: outlines.get(model) or outline_of(row) for model, row in models.items()}
            looks = pool.map(lambda row, outlines=outlines: _look(files, outlines[row.model], row), todo)
            wrong = {row.number: error for row, error in zip(todo, looks, strict=True)}
            fine = [row for row in todo if wrong[row.number] is None]
            chunks = plan(fine, job.batch_size)
            batches += sum(-(-sum(row.predictions for row in chunk) // job.batch_size) for chunk in chunks)
            wrong |= {row.number: row.error for row in window if isinstance(row, BadRow)}
            for number, error in sorted(wrong.items()):
                if error is not None:
                    bad += 1
                    tell(f"row {number}: {error}")
    return BatchCheck(rows.wanted, bad, found, batches)


def _look(files: Files, outline: Program[Any] | UserError, row: Row) -> str | None:
    """What is wrong with a row; None for nothing."""
    try:
        local = files.take(row)
        try:
            prepare_row(files, outline, local)
        finally:
            files.give_back(row)
    except UserError as error:
        return str(error)
    return None
