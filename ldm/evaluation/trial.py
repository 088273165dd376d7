"""What the experiments share: the model, the inputs, who looks, and how tables and figures are written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.editing.editor import Editor
from ldm.errors import UserError
from ldm.evaluation.classifiers import Frame
from ldm.evaluation.evaluate import Eyes, default_benchmark, eyes_for
from ldm.evaluation.inputs import Input, read_benchmark
from ldm.evaluation.jobs import EvaluationJob, ExperimentJob
from ldm.evaluation.measures import batch_precision
from ldm.evaluation.methods import BlendedLatent
from ldm.evaluation.paintings import silent
from ldm.files import atomic_file
from ldm.imaging.canvas import Canvas
from ldm.imaging.images import save_png, to_tensor
from ldm.imaging.masks import mask_from


@dataclass(frozen=True)
class Trial:
    """An experiment under way: what was asked, where it is written, how many inputs and predictions of each."""

    job: ExperimentJob
    outdir: Path
    count: int
    n_samples: int

    def editor(self) -> Editor:
        """The model, ready to edit."""
        job = self.job
        with silent():
            return Editor.load(job.model, device=job.device, precision=job.precision)

    @cached_property
    def method(self) -> BlendedLatent:
        """The same as a method, with the options of the job."""
        job = self.job
        return BlendedLatent(
            self.editor(), {"ddim_steps": job.ddim_steps, "region": job.region, "context": job.context}
        )

    @cached_property
    def inputs(self) -> list[Input]:
        """The first inputs of the benchmark.

        Raises:
            UserError: one of their files is not there: better now than after an hour.
        """
        job = self.job
        path = job.benchmark or default_benchmark(self.outdir, job.model, job.labels, job.seed)
        inputs = read_benchmark(path)[: self.count]
        for index, one in enumerate(inputs):
            for file in (one.image, one.mask):
                if not file.is_file():
                    raise UserError(f'input {index} of "{path}" names "{file}", which is not there: check the path')
        return inputs

    @cached_property
    def eyes(self) -> Eyes:
        """Who looks at what is painted."""
        names = ("model", "device", "classifier", "framing", "lpips")
        return eyes_for(EvaluationJob(**{name: getattr(self.job, name) for name in names}), self.inputs)

    def right(self, canvas: Canvas, x: Tensor, one: Input) -> float | None:
        """Of the predictions x (n, 3, H, W) of a canvas's window, the share of what the prompt names; None where the
        classifier does not know that."""
        if not self.eyes.classifier.knows(one):
            return None
        window = canvas.window
        frame = Frame(window.left, window.top, window.width, window.height, window.image_size)
        return batch_precision(self.eyes.classifier.right(x, canvas.x_mask, frame, one))

    def write(self, name: str, table: str, numbers: Mapping[str, Any], figure: Image.Image | None) -> str:
        """Write NAME.md, NAME.json and NAME.png; returns the table."""
        self.outdir.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.outdir / f"{name}.md") as file:
            file.write(table.encode())
        with atomic_file(self.outdir / f"{name}.json") as file:
            file.write((json.dumps(dict(numbers), indent=1, allow_nan=False) + "\n").encode())
        if figure is not None:
            save_png(figure, self.outdir / f"{name}.png")
        return table


def inside(image: Image.Image, mask: Tensor, size: int = 128) -> Tensor:
    """What a picture (w, h) shows in the box of a mask (1, 1, h, w), black outside the mask: (1, 3, size, size)."""
    x = torch.where(mask > 0, to_tensor(image.convert("RGB")), -torch.ones(1))
    rows, columns = (mask[0, 0].any(axis).nonzero().flatten() for axis in (1, 0))
    cut = x[..., int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    return torch.nn.functional.interpolate(cut, (size, size), mode="bilinear", antialias=True)


def own_mask(one: Input, size: tuple[int, int]) -> Tensor:
    """The mask of an input, (1, 1, h, w) in {0, 1}; size: (h, w)."""
    return mask_from(one.mask, size)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is of names."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
