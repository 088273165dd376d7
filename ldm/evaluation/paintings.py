"""What a model paints for the questions of an evaluation, on disk: it takes an hour, and judging it a minute.

A run that was stopped resumes there, and another judge or ranker is asked about the same pictures.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.backbones import zoo
from ldm.editing.editor import Editor
from ldm.editing.request import EditRequest
from ldm.errors import UserError
from ldm.evaluation.triples import Triple
from ldm.files import atomic_file, write_error
from ldm.imaging.images import load_image, save_png, to_pil, to_tensor
from ldm.util import choose_device, choose_precision

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Painting:
    """The predictions for one triple in the order of their seeds, each (H, W) as the model sees its window.

    source: (1, 3, H, W) in [-1, 1]; mask: (1, 1, H, W) in [0, 1]; x: (n, 3, H, W) in [-1, 1].
    """

    source: Tensor
    mask: Tensor
    x: Tensor


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

    def save(self, part: str, index: int, painting: Painting) -> None:
        """Keep a painting as the triple `index` of a part, rounded to 8 bits."""
        pictures = [painting.source, painting.mask.expand(-1, 3, -1, -1) * 2 - 1, *painting.x.split(1)]
        save_png(to_pil(torch.cat([picture.float().cpu() for picture in pictures], dim=-1)), self._path(part, index))

    def read(self, part: str, index: int, predictions: int) -> Painting:
        """What was saved, its values rounded to the 256 codes of a picture.

        Raises:
            UserError: the file is damaged, or was painted with another number of predictions.
        """
        path = self._path(part, index)
        strip = to_tensor(load_image(path).rgb)
        if strip.shape[-1] % (predictions + 2):
            raise UserError(f'"{path}" does not hold {predictions} predictions: remove it')
        source, mask, *x = strip.chunk(predictions + 2, dim=-1)
        return Painting(source, (mask[:, :1] + 1) / 2, torch.cat(x))


@dataclass(frozen=True)
class Painter:
    """Edits triples; all are as `scripts/text_editing.py` has them."""

    model: str
    device: str
    region: str
    context: float | None
    ddim_steps: int

    def load(self) -> Editor:
        """The model, ready to edit."""
        files, device = zoo.resolve(self.model), choose_device(self.device)
        return Editor(zoo.load_ours(files, device, choose_precision("auto", device)), None, files)

    def paint(self, editor: Editor, triple: Triple, **options: Any) -> Painting:
        """options: those of `EditRequest`."""
        own: dict[str, Any] = {"ddim_steps": self.ddim_steps, "region": self.region, "context": self.context}
        own["force"] = True
        own["fit_mask"] = "off"  # what it changes is measured by `ldm.evaluation.fitting`
        request = EditRequest(triple.prompt, **own, **options)
        with silent():
            mask = (triple.mask[0, 0] * 255).byte().numpy()
            task = editor.prepare(to_pil(triple.x), mask, request)
            (result,) = editor.run([task])
        return Painting(task.canvas.x_source, task.canvas.x_mask, result.x)


Job = tuple[str, int, Triple, dict[str, int]]
"""A part of the evaluation, the number of the triple in it, the triple, and options of `EditRequest`."""


def paint_all(painter: Painter, paintings: Paintings, jobs: Iterable[Job], workers: int = 1) -> Iterator[None]:
    """Paint and save; yields after each.

    workers: processes, each with a model of its own, that share this one's threads.
    """
    if workers == 1:
        editor = None
        for part, index, triple, options in jobs:
            editor = editor or painter.load()
            paintings.save(part, index, painter.paint(editor, triple, **options))
            yield
        return
    jobs, context, threads = iter(jobs), get_context("spawn"), max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, context, _start, (painter, paintings, threads)) as pool:
        running: set[Future] = set()
        while True:
            # A few at a time: a triple holds a whole photograph.
            running |= {pool.submit(_work, job) for job in islice(jobs, 2 * workers - len(running))}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                yield


_AT_WORK: list[tuple[Painter, Paintings, Editor]] = []
"""In a process of `paint_all`, its tools."""


def _start(painter: Painter, paintings: Paintings, threads: int) -> None:
    torch.set_num_threads(threads)
    _AT_WORK.append((painter, paintings, painter.load()))


def _work(job: Job) -> None:
    (painter, paintings, editor), (part, index, triple, options) = _AT_WORK[0], job
    paintings.save(part, index, painter.paint(editor, triple, **options))


@contextmanager
def silent() -> Iterator[None]:
    """Without what one edit tells its user: here there are hundreds."""
    editing = logging.getLogger("ldm.editing")
    level = editing.level
    editing.setLevel(logging.WARNING)
    try:
        yield
    finally:
        editing.setLevel(level)
