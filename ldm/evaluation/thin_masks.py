"""Thin masks: how often the prompt's colour arrives, by downsampling, with and without progressive shrinking.

Section 4.3 of the paper, as numbers and as a figure.
"""

import json
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor
from tqdm import tqdm

from ldm.backbones.contract import Backbone
from ldm.backbones.defaults import Defaults
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.draw import integer, uniform
from ldm.editing.edit import edit_tasks
from ldm.editing.latent_masks import DOWNSAMPLING
from ldm.editing.request import EditRequest
from ldm.editing.result import EditTask
from ldm.evaluation.measures import difference
from ldm.evaluation.paintings import silent
from ldm.evaluation.triples import held_out_windows
from ldm.files import atomic_file
from ldm.imaging.canvas import Canvas
from ldm.imaging.images import make_grid, save_png, to_pil

KINDS = ("line", "curve", "ring")
WIDEST = 12
SHRINKING = {"without": 0, "with": 3}
VIVID = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "turquoise")
"""Colours that no photograph is full of."""

_FINE = 4  # masks are drawn so much larger, then brought down


@dataclass(frozen=True)
class Answer:
    """How far one edit went: 0 is the input's mean colour inside the mask, 1 is the colour that the prompt names."""

    downsample: str
    shrinking: str
    kind: str
    width: int
    color: str
    way: float

    @property
    def arrived(self) -> bool:
        """Whether it is nearer to the prompt's colour than to the input's."""
        return self.way >= 0.5


def thin_mask(generator: Generator, kind: str, width: int, size: int) -> Tensor:
    """A line, a curve or a ring of `width` pixels: (1, 1, size, size) in {0, 1}, never empty."""
    side = size * _FINE
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    if kind == "ring":
        radius, room = uniform(generator, 0.15, 0.35) * side, 0.4 * side
        x, y = (uniform(generator, room, side - room) for _ in range(2))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=255, width=width * _FINE)
    else:
        angle, bend = uniform(generator, 0, math.pi), uniform(generator, 0.08, 0.2) if kind == "curve" else 0.0
        t = np.linspace(-1, 1, 400)
        along, across = 0.36 * t, bend * np.sin(t * math.pi)
        xs = (0.5 + along * math.cos(angle) - across * math.sin(angle)) * side
        ys = (0.5 + along * math.sin(angle) + across * math.cos(angle)) * side
        reach = width * _FINE / 2
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    levels = np.asarray(image.resize((size, size), Image.Resampling.BOX))
    mask = torch.from_numpy(levels >= 128).float()[None, None]
    return mask if mask.any() else torch.from_numpy(levels > 0).float()[None, None]


def colour_way(x: Tensor, x_source: Tensor, mask: Tensor, rgb: Sequence[float]) -> float:
    """How far the mean colour inside a mask went from the input's towards `rgb` in [0, 1]; see `Answer`.

    x, x_source: (1, 3, H, W) in [-1, 1]; mask: (1, 1, H, W) in {0, 1}.
    """
    before, after = (((one + 1) / 2 * mask).sum((0, 2, 3)) / mask.sum() for one in (x_source, x.clamp(-1, 1)))
    path = torch.tensor(rgb) - before
    return ((after - before) @ path / path.square().sum().clamp(min=1e-6)).item()


def compare(
    model: Backbone,
    count: int,
    seed: int,
    ddim_steps: int,
    batch_size: int,
    outdir: Path,
    defaults: Defaults | None = None,
) -> list[Answer]:
    """Edit `count` thin masks in every way; write thin_masks.json, thin_masks.md and thin_masks.png.

    Args:
        defaults: of guidance and noise, those of the model.

    Raises:
        UserError: the folder cannot be written.
    """
    defaults = defaults or Defaults()
    generator, size = Generator().manual_seed(seed), model.native_size[0]
    photos = held_out_windows(count, seed, size).split(1)
    masks, about = [], []
    for i in range(count):
        kind, width = KINDS[i % len(KINDS)], 1 + i * WIDEST // count
        masks.append(thin_mask(generator, kind, width, size))
        about.append((kind, width, VIVID[integer(generator, len(VIVID))]))
    ways = [(downsample, shrinking) for downsample in DOWNSAMPLING for shrinking in SHRINKING]
    answers = []
    pictures: dict[tuple[str, str], Sequence[Tensor]] = {}
    for downsample, shrinking in tqdm(ways, desc="comparing", unit="way", disable=None):
        tasks = [
            EditTask.of(
                Canvas.of_tensors(x, mask),
                defaults.fill(
                    EditRequest(
                        f"a {color} ball",
                        seed=seed + i,
                        n_samples=1,
                        ddim_steps=ddim_steps,
                        mask_dilation_iterations=SHRINKING[shrinking],
                        mask_downsample=downsample,
                        fit_mask="off",
                    )
                ),
                model.factor,
            )
            for i, (x, mask, (_, _, color)) in enumerate(zip(photos, masks, about, strict=True))
        ]
        with silent(logging.ERROR):  # that a mask is thin is the point
            edits = edit_tasks(model, tasks, batch_size)
        pictures[downsample, shrinking] = [edit.x for edit in edits]
        for x, mask, edit, (kind, width, color) in zip(photos, masks, edits, about, strict=True):
            way = colour_way(edit.x, x, mask, COLORS[color].rgb)
            answers.append(Answer(downsample, shrinking, kind, width, color, way))
    outdir.mkdir(parents=True, exist_ok=True)
    with atomic_file(outdir / "thin_masks.json") as file:
        file.write((json.dumps([asdict(answer) for answer in answers], indent=1) + "\n").encode())
    with atomic_file(outdir / "thin_masks.md") as file:
        file.write(table(answers).encode())
    save_png(_figure(photos, masks, about, pictures), outdir / "thin_masks.png")
    return answers


def table(answers: Sequence[Answer]) -> str:
    """How often the colour arrived, and how far it went in the median, as Markdown."""
    lines = ["| downsampling | shrinking | 1 to 4 px | 5 to 8 px | 9 to 12 px | all | median way |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for downsample, shrinking in dict.fromkeys((answer.downsample, answer.shrinking) for answer in answers):
        made = [answer for answer in answers if (answer.downsample, answer.shrinking) == (downsample, shrinking)]
        cells = [
            _percent([answer for answer in made if low <= answer.width <= high])
            for low, high in ((1, 4), (5, 8), (9, 12), (1, WIDEST))
        ]
        median = statistics.median(answer.way for answer in made)
        lines.append(f"| {downsample} | {shrinking} | {' | '.join(cells)} | {median:.2f} |")
    return "\n".join([*lines, *_gains(answers)]) + "\n"


def _gains(answers: Sequence[Answer]) -> list[str]:
    """By how much more often the colour arrives with shrinking than without, on the same masks, with the interval."""
    lines = ["", "| downsampling | arrived, with less without |", "|---|---:|"]
    for downsample in dict.fromkeys(answer.downsample for answer in answers):
        ways = [
            [float(answer.arrived) for answer in answers if (answer.downsample, answer.shrinking) == (downsample, way)]
            for way in ("with", "without")
        ]
        if len(ways[0]) == len(ways[1]):
            gap = difference(ways[0], ways[1])
            if gap.value is not None and gap.low is not None and gap.high is not None:
                low, value, high = (100 * one for one in (gap.low, gap.value, gap.high))
                lines.append(f"| {downsample} | {value:+.0f} [{low:+.0f}, {high:+.0f}] points |")
    return lines if len(lines) > 3 else []


def _percent(answers: Sequence[Answer]) -> str:
    return f"{100 * sum(answer.arrived for answer in answers) / len(answers):.0f} %" if answers else "–"


def _figure(
    photos: Sequence[Tensor],
    masks: Sequence[Tensor],
    about: Sequence[tuple[str, int, str]],
    pictures: dict[tuple[str, str], Sequence[Tensor]],
) -> Image.Image:
    """A row for some of the masks, thin to wide: the input with its mask, then what each way made of it."""
    rows = sorted({round(i * (len(photos) - 1) / 5) for i in range(6)})
    cells, captions = [], []
    for i in rows:
        kind, width, color = about[i]
        cells.append(to_pil(torch.where(masks[i] > 0, torch.ones(1), photos[i] * 0.6 - 0.2)))
        captions.append(f"{color}, {kind} of {width} px")
        for (downsample, shrinking), made in pictures.items():
            cells.append(to_pil(made[i]))
            captions.append(f"{downsample}, {shrinking}")
    return make_grid(cells, 1 + len(pictures), captions)
