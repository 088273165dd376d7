"""Long masks in windows of the model's shape and of the mask's, on the same seeds: what is right, what it costs."""

import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ldm.data.scenes.draw import uniform
from ldm.editing.editor import Editor
from ldm.editing.request import EditRequest
from ldm.evaluation.judging import load_judge, verdicts
from ldm.evaluation.paintings import silent
from ldm.evaluation.triples import Triple, object_triples
from ldm.files import atomic_file
from ldm.imaging.images import make_grid, save_png, to_pil, to_tensor
from ldm.imaging.region import mask_box

ASPECTS: tuple[Literal["native", "mask"], ...] = ("native", "mask")
ATTRIBUTES = ("shape", "material", "color")
SHOWN = 8


@dataclass(frozen=True)
class Look:
    """One prediction as delivered. right: of the attributes that the prompt names, what the judge finds so.

    size: (H, W) that it was worked at; detail: pixels of the model for each of the photograph, a side; seam: see
    `Measures`; seconds: of the process, for sampling and finishing.
    """

    prompt: str
    aspect: str
    seed: int
    size: tuple[int, int]
    detail: float
    right: dict[str, bool]
    seam: float
    seconds: float


def long_triples(seed: int) -> Iterator[Triple]:
    """`object_triples` in whole photographs, with masks 2 to 3.5 times as long as wide, lying and standing in turns."""
    generator = Generator().manual_seed(seed + 1)
    for index, triple in enumerate(object_triples(seed)):
        height, width = triple.x.shape[2:]
        short = min(height, width)
        long_radius = uniform(generator, 0.25, 0.42) * short
        radii = long_radius, long_radius / uniform(generator, 2.0, 3.5)  # of x, y
        radii = radii if index % 2 else radii[::-1]
        center = [uniform(generator, r + 4, side - r - 4) for r, side in zip(radii, (width, height), strict=True)]
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        far = torch.stack([(x - center[0]).abs() / radii[0], (y - center[1]).abs() / radii[1]])
        inside = far.square().sum(0) <= 1 if index // 2 % 2 else far.amax(0) <= 1
        yield replace(triple, mask=inside.float()[None, None])


def compare(editor: Editor, count: int, seed: int, ddim_steps: int, n_samples: int, outdir: Path) -> list[Look]:
    """Edit `count` long masks both ways; writes windows.json, windows.md and windows.png into `outdir`.

    Raises:
        UserError: no judge, or the folder cannot be written.
    """
    judge = load_judge()
    outdir.mkdir(parents=True, exist_ok=True)
    looks, cells, captions = [], [], []
    with silent():
        for index, triple in enumerate(tqdm(islice(long_triples(seed), count), total=count, desc="windows")):
            for aspect in ASPECTS if index % 2 else ASPECTS[::-1]:  # which is first has a cold cache: in turns
                begun = time.process_time()
                request = EditRequest(
                    triple.prompt,
                    aspect=aspect,
                    fit_mask="off",
                    seed=1000 * index,
                    n_samples=n_samples,
                    ddim_steps=ddim_steps,
                    force=True,
                )
                mask = (triple.mask[0, 0] * 255).byte().numpy()
                result = editor.run([editor.prepare(to_pil(triple.x), mask, request)])[0]
                x = torch.cat([to_tensor(picture) for picture in result.results])
                seconds = (time.process_time() - begun) / n_samples
                canvas = result.task.canvas
                detail = math.sqrt(canvas.size[0] * canvas.size[1] / (canvas.window.height * canvas.window.width))
                found = zip(result.seeds, verdicts(judge, x, triple.mask), result.measures, strict=True)
                looks += [
                    Look(
                        triple.prompt,
                        aspect,
                        one,
                        canvas.size,
                        detail,
                        {name: verdict[name] == triple.expected[name] for name in ATTRIBUTES},
                        measures.seam,
                        seconds,
                    )
                    for one, verdict, measures in found
                ]
                if index < SHOWN:
                    cells += [to_pil(part) for part in (_around(x[:1], triple.mask), _around(x[1:2], triple.mask))]
                    captions += [triple.prompt, f"{aspect} {canvas.size[1]}x{canvas.size[0]}"]
    with atomic_file(outdir / "windows.json") as file:
        file.write((json.dumps([asdict(look) for look in looks], indent=1) + "\n").encode())
    with atomic_file(outdir / "windows.md") as file:
        file.write(table(looks).encode())
    save_png(make_grid(cells, 4, captions), outdir / "windows.png")
    return looks


def table(looks: list[Look]) -> str:
    """The looks as a table: how often each attribute is right, how much detail the window has, what it costs."""
    lines = [
        "| window | shape | material | colour | all three | detail | seam | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for aspect in ASPECTS:
        own = [look for look in looks if look.aspect == aspect]
        shares = [statistics.mean(look.right[name] for look in own) for name in ATTRIBUTES]
        shares.append(statistics.mean(all(look.right.values()) for look in own))
        detail, seam, seconds = (statistics.mean(getattr(look, name) for look in own) for name in _NUMBERS)
        told = " | ".join(f"{share:.0%}" for share in shares)
        lines.append(f"| {aspect} | {told} | {detail:.2f} | {seam:.1f} | {seconds:.1f} |")
    return "\n".join(lines) + "\n"


_NUMBERS = ("detail", "seam", "seconds")


def _around(x: Tensor, mask: Tensor) -> Tensor:
    """The square part of x (1, 3, h, w) around a mask, as a grid shows it."""
    rows, columns = mask_box(mask[0, 0].numpy() > 0)
    side = min(round(1.3 * max(rows.stop - rows.start, columns.stop - columns.start)), *x.shape[2:])
    top, left = (
        min(max((span.start + span.stop - side) // 2, 0), length - side)
        for span, length in zip((rows, columns), x.shape[2:], strict=True)
    )
    part = x[..., top : top + side, left : left + side]
    return torch.nn.functional.interpolate(part, (256, 256), mode="bicubic", antialias=True)
