"""What commands and batches ask of a method: to prepare a job without weights, to load them, and to paint."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from ldm.backbones import zoo
from ldm.editing.edit import Progress
from ldm.editing.editor import Editor
from ldm.editing.result import EditResult, EditTask
from ldm.errors import UserError
from ldm.options import declared, recorded
from ldm.runs.folder import check_run
from ldm.runs.jobs import EditJob, MethodOptions
from ldm.runs.video import require_video_writer

Job = TypeVar("Job", bound=MethodOptions)


@dataclass(frozen=True)
class Prepared(Generic[Job]):
    """A job whose files have been read.

    edit: the job in the words of all edits, which its folder and its record are made of. task: at the model's size.
    """

    job: Job
    edit: EditJob
    task: EditTask


class Program(ABC, Generic[Job]):
    """A method at work: an outline, which has no weights and only prepares, or loaded.

    Args:
        editor: prepares and ranks; its model is what paints.
    """

    method: ClassVar[str | None] = None
    """What records call it; None for our own, whose record is of nothing else."""
    words: ClassVar[Mapping[str, str] | None] = None
    """See `in_words_of`; None for our own."""

    def __init__(self, editor: Editor):
        self.editor = editor

    @classmethod
    @abstractmethod
    def outline(cls, job: Job) -> "Program[Job]":
        """The program of a job and of all others with the same `loading`, without weights.

        Raises:
            UserError: there is no such model, or it is no model of this method.
        """

    @abstractmethod
    def load(self, job: Job, device: str) -> "Program[Job]":
        """The program that this is the outline of.

        Raises:
            UserError: the device or the weights cannot be used.
        """

    @abstractmethod
    def prepare(self, job: Job, desk: Path) -> Prepared[Job]:
        """Read a job's files; all that can be wrong with it is found here, but for what needs weights.

        Args:
            desk: of files that are made of the job's, where some are; they are there until it has been written.

        Raises:
            UserError: what is wrong.
        """

    @abstractmethod
    def run(
        self, ready: Sequence[Prepared[Job]], batch_size: int | None = None, on_step: Progress | None = None
    ) -> list[EditResult]:
        """Paint and rank the predictions of jobs that have `together` in common.

        Args:
            batch_size: the most predictions at a time; None is what the jobs say.

        Raises:
            OutOfMemory: smaller batches may fit.
            UserError: a prompt that the models cannot read.
        """

    def steps(self, one: Prepared[Job]) -> int:
        """How often `run` tells of a step."""
        return one.task.request.steps

    def notes(self, job: Job) -> Mapping[str, Any]:
        """For a run's record, the method and its own options; those of all edits are there already, filled in."""
        own = {name: value for name, value in recorded(job).items() if name not in declared(EditJob)}
        return {} if self.method is None else {"method": self.method, **own}

    @property
    def files(self) -> zoo.ModelFiles:
        """Of the model that paints, or of the first of them."""
        assert self.editor.files is not None
        return self.editor.files


@contextmanager
def in_words_of(words: Mapping[str, str] | None) -> Iterator[None]:
    """Errors of the core, which names its own options, in those of a command.

    Args:
        words: an option of all edits -> the command's; None changes nothing. `H` stands for both sides; without it
            there is no such choice.
    """

    try:
        yield
    except UserError as error:
        if words is not None:
            error.args = (_in_words(str(error), words),)
        raise


def _in_words(text: str, words: Mapping[str, str]) -> str:
    def word(match: re.Match[str]) -> str:
        return f"`{words.get(match[1], match[1])}{match[2]}`"

    text = re.sub(r"`W=(\d+)` `H=\d+`", r"`H=\1`", text)
    text = text.replace("a smaller `H` and `W`, or ", "a smaller `H`, or " if "H" in words else "")
    return re.sub(r"`(\w+)((?:=[^`]*)?)`", word, text)


def check_output(job: MethodOptions) -> None:
    """What is wrong with where a run shall go, before anything is read.

    Raises:
        UserError: it cannot be written.
        MissingExtra: nothing here can write videos.
    """
    check_run(getattr(job, job.outdir_option), job.prompt, job.overwrite)
    if job.video_option is not None and getattr(job, job.video_option):
        require_video_writer(job.video_option)
