"""What the server and a worker's process say to each other, over a pipe. Imports nothing heavy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# ---- the server says


@dataclass(frozen=True)
class DoEdit:
    """Paint. Answered with news, and last of all with `Ended`."""

    job: str
    image: Path
    mask: Path
    outdir: Path
    model: str
    options: dict[str, Any]


@dataclass(frozen=True)
class DoRestore:
    """Restore the background of a prediction of the run in a job's folder. Answered as `DoEdit`."""

    job: str
    outdir: Path
    index: int
    model: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Cancel:
    """End a job after the step that it is at."""

    job: str


@dataclass(frozen=True)
class Stop:
    """End the process after the step that it is at; a job that it has is not finished."""


# ---- a worker says


@dataclass(frozen=True)
class Loaded:
    """A model is there. vocabulary: all its words, or None where it reads any."""

    model: str
    device: str
    vocabulary: list[str] | None
    knows: dict[str, list[str]]
    defaults: dict[str, Any]


@dataclass(frozen=True)
class CannotLoad:
    """The process ends: there is no such model or device."""

    error: str


@dataclass(frozen=True)
class At:
    """How far a job is."""

    job: str
    stage: Literal["loading", "preparing", "painting", "ranking", "saving", "restoring"]
    step: int = 0
    total: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True)
class WindowSeen:
    """The part of the image that a job works on, as `ldm.imaging.region.Window` has it."""

    job: str
    window: dict[str, Any]


@dataclass(frozen=True)
class Preview:
    """The x0 estimate of a prediction, in the order of the seeds, as a WebP file."""

    job: str
    index: int
    step: int
    total: int
    image: bytes = field(repr=False)


@dataclass(frozen=True)
class Results:
    """The predictions are ranked, and what has changed of the picture lies in `view`; the run is yet to be saved."""

    job: str
    results: list[dict[str, Any]]


@dataclass(frozen=True)
class Note:
    """What the user should know of a job."""

    job: str
    text: str


@dataclass(frozen=True)
class Ended:
    """What has become of a job. `error` is for the user."""

    job: str
    state: Literal["done", "failed", "cancelled"]
    error: str | None = None
