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
from ldm.evaluation.classifiers import Frame
from ldm.evaluation.evaluate import Eyes, default_benchmark, eyes_for
from ldm.evaluation.inputs import Input, read_benchmark
from ldm.evaluation.jobs import EvaluationJob, ExperimentJob
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
        """The first inputs of the default benchmark."""
        return read_benchmark(default_benchmark(self.outdir, self.job.model, seed=self.job.seed))[: self.count]

    @cached_property
    def eyes(self) -> Eyes:
        """Who looks at what is painted."""
        return eyes_for(EvaluationJob(model=self.job.model, classifier=self.job.classifier), self.inputs)

    def right(self, canvas: Canvas, x: Tensor, one: Input) -> list[bool]:
        """Of each prediction x (n, 3, H, W) of a canvas's window, whether it is what the prompt names."""
        window = canvas.window
        frame = Frame(window.left, window.top, window.width, window.height, window.image_size)
        return self.eyes.classifier.right(x, canvas.x_mask, frame, one)

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
