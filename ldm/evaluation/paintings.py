"""What is painted for the questions of an evaluation, on disk: it takes an hour, and judging it a minute.

A run that was stopped resumes there, and another judge or ranker is asked about the same pictures.
"""

import json
import logging
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ldm.backbones import zoo
from ldm.editing.editor import Editor
from ldm.errors import UserError
from ldm.evaluation.inputs import Input, painted_from
from ldm.evaluation.jobs import MethodChoice
from ldm.evaluation.methods import BlendedLatent, Edited, Method
from ldm.evaluation.registry import METHODS
from ldm.evaluation.triples import Triple
from ldm.files import atomic_file, write_error
from ldm.imaging.images import load_image, read_png_text, save_png, to_pil, to_tensor
from ldm.util import choose_device, choose_precision

SETTINGS = "settings.json"


ABOUT = "about"
"""Of a painting's PNG, the text chunk that says more of it."""


@dataclass(frozen=True)
class Painting:
    """The predictions for one question, each (H, W) as the method sees its window.

    source: (1, 3, H, W) in [-1, 1]; mask: (1, 1, H, W) in [0, 1]; x: (n, 3, H, W) in [-1, 1]. delivered: the same
    predictions in the whole picture, as far as the window shows them; (0, 3, H, W) where that is not asked for.
    about: what else is known of them, for JSON. best: the first prediction in the whole picture, for people.
    """

    source: Tensor
    mask: Tensor
    x: Tensor
    delivered: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    best: Image.Image | None = None


def best_file(folder: Path, part: str, index: int) -> Path:
    """Where `Paintings` of a folder keep the best prediction of a question, in the whole picture."""
    return folder / "best" / f"{part}-{index:04d}.png"


def about_painting(path: Path) -> dict[str, Any]:
    """What a painting says of itself; raises UserError where it is damaged."""
    try:
        about = json.loads(read_png_text(path).get(ABOUT, "{}"))
    except (UserError, ValueError) as error:
        raise UserError(f'"{path}" is damaged: remove it, and it is painted again') from error
    return about if isinstance(about, dict) else {}


class Paintings:
    """A folder of `Painting`s, each a PNG of its pictures side by side.

    Args:
        folder: made where there is none.
        settings: what all of its pictures share: the model, and how it is asked.

    Raises:
        UserError: the folder holds pictures of other settings, is damaged, or cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        path = folder / SETTINGS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except OSError as error:
            raise write_error(path, error) from error
        except ValueError as error:
            raise UserError(f'"{path}" is damaged: give another `outdir`, or remove "{folder}"') from error
        if found is None:
            with atomic_file(path) as file:
                file.write((json.dumps(settings, indent=2) + "\n").encode())
        elif changed := sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key)):
            what = ", ".join(changed)
            raise UserError(f'"{folder}" was painted with another {what}: give another `outdir`, or remove it')

    def _path(self, part: str, index: int) -> Path:
        return self.folder / f"{part}-{index:04d}.png"

    def has(self, part: str, index: int) -> bool:
        """Whether the triple `index` of a part has been painted."""
        return self._path(part, index).exists()

    def about(self, part: str, index: int) -> dict[str, Any]:
        """What else is known of a painting.

        Raises:
            UserError: the file is damaged.
        """
        return about_painting(self._path(part, index))

    def save(self, part: str, index: int, painting: Painting) -> None:
        """Keep a painting as the triple `index` of a part, rounded to 8 bits."""
        delivered = () if painting.delivered is None else painting.delivered.split(1)
        pictures = [painting.source, painting.mask.expand(-1, 3, -1, -1) * 2 - 1, *painting.x.split(1), *delivered]
        about = {ABOUT: json.dumps(dict(painting.about))} if painting.about else None
        if painting.best is not None:
            path = best_file(self.folder, part, index)
            path.parent.mkdir(exist_ok=True)
            save_png(painting.best, path)
        strip = to_pil(torch.cat([picture.float().cpu() for picture in pictures], dim=-1))
        save_png(strip, self._path(part, index), about)

    def read(self, part: str, index: int, predictions: int | None = None, delivered: bool = False) -> Painting:
        """What was saved, its values rounded to the 256 codes of a picture.

        Args:
            predictions: how many there are; None is as many as have seeds in `about`.
            delivered: whether the predictions stand there as delivered too.

        Raises:
            UserError: the file is damaged, or was painted with another number of predictions.
        """
        path = self._path(part, index)
        try:
            strip, about = to_tensor(load_image(path).rgb), self.about(part, index)
            predictions = len(about["seeds"]) if predictions is None else predictions
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f'"{path}" is damaged: remove it, and it is painted again') from error
        pictures = 2 + predictions * (1 + delivered)
        if strip.shape[-1] % pictures:
            raise UserError(f'"{path}" does not hold {predictions} predictions: remove it')
        source, mask, *x = strip.chunk(pictures, dim=-1)
        return Painting(
            source,
            (mask[:, :1] + 1) / 2,
            torch.cat(x[:predictions]),
            torch.cat(x[predictions:]) if delivered else None,
            about,
        )


class Artist(Protocol):
    """Who paints, in as many processes as are wanted."""

    def load(self) -> Any:
        """What one process needs to paint: a model."""

    def paint(self, tool: Any, question: Any, **options: Any) -> Painting:
        """The answer to one question, by what `load` gave."""


@dataclass(frozen=True)
class Painter:
    """Edits triples, unranked; all options are as `scripts/text_editing.py` has them."""

    model: str
    device: str
    region: str
    context: float | None
    ddim_steps: int

    def load(self) -> BlendedLatent:
        """The model, ready to edit."""
        own = {"ddim_steps": self.ddim_steps, "region": self.region, "context": self.context}
        files, device = zoo.resolve(self.model), choose_device(self.device)
        return BlendedLatent(Editor(zoo.load(files, device, choose_precision("auto", device)), None, files), own)

    def paint(self, tool: BlendedLatent, question: Triple, **options: Any) -> Painting:
        """options: those of `EditRequest`."""
        with silent():
            mask = (question.mask[0, 0] * 255).byte().numpy()
            result = tool.result(to_pil(question.x), mask, question.prompt, **options)
        return Painting(result.task.canvas.x_source, result.task.canvas.x_mask, result.x)


@dataclass(frozen=True)
class MethodPainter:
    """Edits the inputs of a benchmark by a method of `METHODS`; ranks as the method does."""

    method: str
    choice: MethodChoice

    def load(self) -> Method:
        """The method, ready to edit."""
        with silent():
            return METHODS[self.method].load(self.choice)

    def paint(self, tool: Method, question: Any, **options: Any) -> Painting:
        """question: an `Input`. options: n, seed."""
        with silent():
            start = time.perf_counter()
            edited = tool.edit(question.image, question.mask, question.prompt, **options)
            seconds = time.perf_counter() - start
        told = {"input": painted_from(question)} if isinstance(question, Input) else {}
        return painting_of(edited, {"seconds": round(seconds, 3), "threads": torch.get_num_threads(), **told})


def painting_of(edited: Edited, more: Mapping[str, Any]) -> Painting:
    """What is kept of an edit; `more` is said of it too."""
    frame = asdict(edited.frame)
    about = {
        "frame": frame,
        "seeds": list(edited.seeds),
        "distances": None if edited.distances is None else [round(one, 6) for one in edited.distances],
        "evaluations": edited.evaluations,
        "measures": [one.info() for one in edited.measures],
    }
    canvas = edited.canvas
    best = edited.delivered[0]
    return Painting(canvas.x_source, canvas.x_mask, edited.x, edited.delivered_window(), about | dict(more), best)


Job = tuple[str, int, Any, Mapping[str, Any]]
"""A part of the evaluation, the number of the question in it, the question, and options of the artist's `paint`."""


@dataclass(frozen=True)
class Failure:
    """A question that could not be painted."""

    part: str
    index: int
    error: Exception

    def __str__(self) -> str:
        kind = "" if isinstance(self.error, UserError) else f"{type(self.error).__name__}: "
        return f"{self.part} {self.index}: {kind}{self.error}"


def paint_all(artist: Artist, paintings: Paintings, jobs: Iterable[Job], workers: int = 1) -> Iterator[Failure | None]:
    """Paint and save; yields after each what went wrong with it, or None.

    workers: processes, each with a model of its own, that share this one's threads.

    Raises:
        UserError: a process was ended by another hand, such as for want of memory; what was saved stays.
    """
    if workers == 1:
        tool = None
        for job in jobs:
            tool = tool or _load(artist)
            yield _paint(artist, paintings, tool, job)
        return
    jobs, context, threads = iter(jobs), get_context("spawn"), max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(workers, context, _start, (artist, paintings, threads))
    running: set[Future] = set()
    try:
        while True:
            # A few at a time: a triple holds a whole photograph.
            running |= {pool.submit(_work, job) for job in islice(jobs, 2 * workers - len(running))}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of the {workers} processes that paint has died, perhaps for want of memory: the same command goes on "
            "where it stood, give fewer `workers`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _load(artist: Artist) -> Any:
    """The artist's tool, or the error that it gave: each question is told to have failed by it."""
    try:
        return artist.load()
    except Exception as error:
        return error


def _paint(artist: Artist, paintings: Paintings, tool: Any, job: Job) -> Failure | None:
    part, index, question, options = job
    if isinstance(tool, Exception):
        return Failure(part, index, tool)
    try:
        paintings.save(part, index, artist.paint(tool, question, **options))
    except Exception as error:
        return Failure(part, index, error)
    return None


_AT_WORK: list[tuple[Artist, Paintings, Any]] = []
"""In a process of `paint_all`, its tools."""


def _start(artist: Artist, paintings: Paintings, threads: int) -> None:
    end_at_ctrl_c()
    torch.set_num_threads(threads)
    _AT_WORK.append((artist, paintings, _load(artist)))


def _work(job: Job) -> Failure | None:
    artist, paintings, tool = _AT_WORK[0]
    failure = _paint(artist, paintings, tool, job)
    # An error of a library may not come through the pipe between two processes.
    if failure is None or isinstance(failure.error, UserError):
        return failure
    return Failure(failure.part, failure.index, UserError(f"{type(failure.error).__name__}: {failure.error}"))


def end_at_ctrl_c() -> None:
    """In a process that works for another: Ctrl-C ends it at once, and without a traceback of its own."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def silent(level: int = logging.WARNING) -> Iterator[None]:
    """Without what one edit tells its user below a level: here there are hundreds."""
    told = [logging.getLogger(name) for name in ("ldm.editing", "ldm.backbones.words")]
    levels = [logger.level for logger in told]
    for logger in told:
        logger.setLevel(logging.ERROR if logger.name == "ldm.backbones.words" else level)
    try:
        yield
    finally:
        for logger, level in zip(told, levels, strict=True):
            logger.setLevel(level)
