"""What has become of a row of a batch: one schema for reports, markers and the summary."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.runs.batch.rows import Row

logger = logging.getLogger(__name__)


class _Once(logging.Filter):
    """Lets a notice through once: what is said of one row would be said of thousands."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is new; or an error, or of the batch itself."""
        text = record.getMessage()
        of_a_row = record.levelno <= logging.WARNING and not record.name.startswith("ldm.runs.batch.")
        new = not of_a_row or text not in self.said
        if new and len(self.said) < 1000:
            self.said.add(text)
        return new


def quieten() -> None:
    """Say of rows what is worth saying of many: no information of single edits, and each notice once."""
    log = logging.getLogger("ldm")
    log.setLevel(logging.WARNING)
    for handler in log.handlers:
        handler.addFilter(_Once())


@dataclass(frozen=True)
class Outcome:
    """What has become of a row; a line of the summary.

    Attributes:
        row, name: its number, and its folder below the output folder.
        status: "done" or "failed", which `error` explains.
        prompt, image, mask: as given.
        seeds, scores, measures: of its predictions, best first; see `RunRecord`.
        unknown_words: of its prompt, that the model does not know.
        seconds: `reading` and `writing` its files, which other rows' sampling hides; `waiting`, that the device
            waited for its files; `sampling`, its part of the batch's.
        device, node: where it was made.
        digest: of all that makes the row what it is, see `Files.digest`.
        thumbnails: width and height of its small pictures: input, mask, results.
        set_aside: it killed two workers, and is not tried again unasked.
    """

    row: int
    name: str
    status: str
    prompt: str | None = None
    image: str | None = None
    mask: str | None = None
    seeds: Sequence[int] = ()
    scores: Sequence[float] | None = None
    measures: Sequence[Mapping[str, Any]] = ()
    unknown_words: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    device: str | None = None
    node: str | None = None
    digest: str | None = None
    thumbnails: Sequence[Sequence[int]] = ()
    set_aside: bool = False
    error: str | None = None

    def line(self) -> bytes:
        """A line of the summary: JSON in UTF-8."""
        text = json.dumps(vars(self), ensure_ascii=False, default=str)
        return text.encode("utf-8", "replace") + b"\n"

    @classmethod
    def from_values(cls, values: Any) -> "Outcome | None":
        """The outcome of a line's values; None for what is none of ours."""
        with suppress(TypeError, AttributeError):
            names = {one.name for one in fields(cls)}
            outcome = cls(**{name: value for name, value in values.items() if name in names})
            return outcome if isinstance(outcome.row, int) and outcome.status in ("done", "failed") else None
        return None


def outcome_of(row: Row, status: str, **more: Any) -> Outcome:
    """The outcome of a row, with what it was given."""
    return Outcome(row.number, row.name, status, row.job.prompt, row.given("init_image"), row.given("mask"), **more)


def failure(row: Row, error: Exception, set_aside: bool = False) -> Outcome:
    """The outcome of a row that came to nothing. What is not the user's to mend is logged as a whole."""
    expected = isinstance(error, UserError)
    text = str(error) if expected else f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not expected:
        logger.error("an error that nobody has thought of, in row %d", row.number, exc_info=error)
    return outcome_of(row, "failed", error=text, set_aside=set_aside)


@dataclass
class Profile:
    """Where a worker's time went, in seconds.

    total: all of it, of which `loading` models, `waiting` for rows to be read or written, and `sampling`. `reading`
    and `writing` ran beside.
    """

    total: float = 0.0
    loading: float = 0.0
    waiting: float = 0.0
    sampling: float = 0.0
    reading: float = 0.0
    writing: float = 0.0

    def __add__(self, other: "Profile") -> "Profile":
        return Profile(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def summary(self) -> str:
        """What to print at the end."""
        at_work = self.total - self.loading
        share = self.sampling / at_work if at_work else 0.0
        return (
            f"loading {self.loading:.1f} s, then {at_work:.1f} s: sampling {share:.0%} of it, waiting for files "
            f"{self.waiting:.1f} s; beside it reading {self.reading:.1f} s, writing {self.writing:.1f} s"
        )


def summary_name(share: str) -> str:
    """The file of a share of the rows: of all ("") it is summary.jsonl."""
    return f"summary{share}.jsonl"


def read_lines(path: Path) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of a summary and where each line begins; what is torn or none of ours is left out."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        place = 0
        for line in file:
            with suppress(ValueError):
                outcome = Outcome.from_values(json.loads(line))
                if outcome is not None and line.endswith(b"\n"):
                    yield place, outcome
            place += len(line)
