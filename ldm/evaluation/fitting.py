"""Fitted masks against masks as given, on the same seeds: what is judged right, what comes back of the photograph, what
it costs, what it does to thin masks, and whether `fit_mask=auto` decides rightly."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Generator, Tensor
from tqdm import tqdm

from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.draw import integer
from ldm.editing.edit import sampling_schedule
from ldm.editing.editor import Editor
from ldm.editing.latent_masks import step_masks
from ldm.editing.mask_fit import plan_fit
from ldm.editing.request import EditRequest
from ldm.editing.result import EditResult, EditTask
from ldm.evaluation.judging import load_judge, verdicts
from ldm.evaluation.paintings import silent
from ldm.evaluation.thin_masks import KINDS, VIVID, WIDEST, colour_way, thin_mask
from ldm.evaluation.triples import (
    Triple,
    background_triples,
    held_out_windows,
    object_triples,
    replacement_triples,
)
from ldm.files import atomic_file
from ldm.imaging.images import make_grid, save_png, to_pil, to_tensor
from ldm.imaging.region import cut
from ldm.models.judge import Judge

T = TypeVar("T")
Way = Literal["auto", "off", "on"]
WAYS: tuple[Way, ...] = ("off", "on")
ALIKE = 16 / 127.5
"""Pictures that differ by less than 16 of 255 codes are taken for the same."""

PAIRS = 12
LABELLED: dict[str, tuple[Callable[[int], Iterator[Triple]], bool]] = {
    "add": (object_triples, True),
    "replace": (replacement_triples, False),
    "background": (background_triples, False),
}
"""Kind of edit -> its triples, and whether the mask holds background that is to stay."""


@dataclass(frozen=True)
class Pair:
    """One prediction with its mask as given and with the fitted one, both as delivered in the window.

    fitted: whether it was; kept: the part of the mask's pixels left. right, right_fitted: of shape, material and
    colour, what the judge finds as the prompt has it. uncovered: how many pixels of the mask hold no thing, see
    `uncovered`; error, error_fitted: their mean square difference from the photograph, in 8-bit codes.
    best: whether it is the first by rank, each with its own ranking.
    """

    prompt: str
    seed: int
    fitted: bool
    kept: float
    right: dict[str, bool]
    right_fitted: dict[str, bool]
    uncovered: int
    error: float
    error_fitted: float
    best: bool
    best_fitted: bool


@dataclass(frozen=True)
class Report:
    """What `compare` has found.

    seconds: of sampling and finishing, with masks as given and fitted. thin: of each thin mask how far the colour went,
    see `colour_way`, as given and fitted. decisions: kind of edit -> the reasons of `auto`, and whether each was right.
    """

    pairs: list[Pair]
    seconds: tuple[float, float]
    thin: list[tuple[float, float]]
    decisions: dict[str, list[tuple[str, bool]]]


def compare(
    editor: Editor, count: int, thin: int, labelled: int, seed: int, ddim_steps: int, n_samples: int, outdir: Path
) -> Report:
    """Edit `count` triples and `thin` thin masks both ways, and ask `auto` about `labelled` edits of each kind.

    Writes fitting.json, fitting.md and fitting.png into `outdir`.

    Raises:
        UserError: no judge, or the folder cannot be written.
    """
    judge = load_judge()
    outdir.mkdir(parents=True, exist_ok=True)
    with silent():
        pairs, seconds, pictures = _pairs(editor, judge, count, seed, ddim_steps, n_samples)
        report = Report(
            pairs, seconds, _thin(editor, thin, seed, ddim_steps), _decisions(editor, labelled, seed + 1, ddim_steps)
        )
    with atomic_file(outdir / "fitting.json") as file:
        file.write((json.dumps(asdict(report), indent=1) + "\n").encode())
    with atomic_file(outdir / "fitting.md") as file:
        file.write(table(report).encode())
    save_png(pictures, outdir / "fitting.png")
    return report


def uncovered(x: Tensor, x_fitted: Tensor, x_source: Tensor, mask: Tensor) -> Tensor:
    """The part of a mask (1, 1, H, W) that holds no thing: where both predictions are not alike, or are the source.

    What both paint alike, and otherwise than the source, is the thing.

    Args:
        x, x_fitted, x_source: (1, 3, H, W) in [-1, 1].
    """

    def alike(one: Tensor, other: Tensor) -> Tensor:
        difference = (one - other).abs().amax(1)[0].numpy()
        return torch.from_numpy(ndimage.gaussian_filter(difference, 1.5) < ALIKE)[None, None]

    thing = alike(x, x_fitted) & ~alike(x, x_source)
    return mask * ~thing


def _pairs(
    editor: Editor, judge: Judge, count: int, seed: int, ddim_steps: int, n_samples: int
) -> tuple[list[Pair], tuple[float, float], Image.Image]:
    pairs, cells, captions, seconds = [], [], [], [0.0, 0.0]
    for index, triple in enumerate(_each(object_triples(seed), count, "pairs")):
        made: dict[Way, EditResult] = {}
        for way in WAYS if index % 2 else WAYS[::-1]:  # which is first has a cold cache: in turns
            task = _task(editor, triple, way, 1000 * index, ddim_steps, n_samples)
            start = time.process_time()
            (result,) = editor.run([task])
            assert result.results
            seconds[way == "on"] += time.process_time() - start
            made[way] = result
        plain, fitted = made["off"], made["on"]
        here = [_compare(judge, triple, plain, fitted, one) for one in plain.task.request.seeds]
        pairs += [pair for pair, *_ in here]
        if index < PAIRS:
            canvas = plain.task.canvas
            _, x, x_fitted, x_mask = here[0]
            shown = [canvas.x_source, canvas.x_mask * 2 - 1, x, x_fitted, x_mask * 2 - 1]
            cells += [to_pil(one.expand(-1, 3, -1, -1)) for one in shown]
            captions += [triple.prompt, "mask", "as given", "fitted", f"{here[0][0].kept:.0%} of the mask"]
    return pairs, (seconds[0], seconds[1]), make_grid(cells, 10, captions)


def _task(editor: Editor, triple: Triple, way: Way, seed: int, ddim_steps: int, n_samples: int) -> EditTask:
    request = EditRequest(
        triple.prompt, seed=seed, n_samples=n_samples, ddim_steps=ddim_steps, fit_mask=way, force=True
    )
    return editor.prepare(to_pil(triple.x), (triple.mask[0, 0] * 255).byte().numpy(), request)


def _compare(
    judge: Judge, triple: Triple, plain: EditResult, fitted: EditResult, seed: int
) -> tuple[Pair, Tensor, Tensor, Tensor]:
    """A pair, both pictures in the window, and the mask that was fitted."""
    i, k = plain.seeds.index(seed), fitted.seeds.index(seed)
    canvas, own = plain.task.canvas, fitted.canvases[k]
    x, x_fitted = _in_window(plain, i), _in_window(fitted, k)
    right, right_fitted = (
        {name: verdict[name] == expected for name, expected in triple.expected.items()}
        for verdict in verdicts(judge, torch.cat([x, x_fitted]), canvas.x_mask)
    )
    free = uncovered(x, x_fitted, canvas.x_source, canvas.x_mask)[0].expand(3, -1, -1).bool()
    errors = [float(((one - canvas.x_source)[0][free] * 127.5).square().sum()) for one in (x, x_fitted)]
    pair = Pair(
        triple.prompt,
        seed,
        fitted.fits[k].fitted,
        float(own.x_mask.sum() / canvas.x_mask.sum()),
        right,
        right_fitted,
        int(free[0].sum()),
        errors[0] / max(1, int(free.sum())),
        errors[1] / max(1, int(free.sum())),
        i == 0,
        k == 0,
    )
    return pair, x, x_fitted, own.x_mask


def _in_window(result: EditResult, index: int) -> Tensor:
    """A result as delivered, as far as the window shows it, at the model's size: (1, 3, H, W) in [-1, 1]."""
    canvas = result.task.canvas
    size = (canvas.x_source.shape[2], canvas.x_source.shape[3])
    return to_tensor(cut(result.results[index].convert("RGB"), canvas.window, size))


def _thin(editor: Editor, count: int, seed: int, ddim_steps: int) -> list[tuple[float, float]]:
    """Thin masks with `on`: `auto` leaves them alone."""
    if not count:
        return []
    generator, size = Generator().manual_seed(seed), editor.model.native_size[0]
    ways = []
    for i, x in enumerate(_each(iter(held_out_windows(count, seed, size).split(1)), count, "thin masks")):
        mask = thin_mask(generator, KINDS[i % len(KINDS)], 1 + i * WIDEST // count, size)
        color = VIVID[integer(generator, len(VIVID))]
        triple = Triple(x, mask, f"a {color} ball", {}, "")
        way = []
        for one in WAYS:
            (result,) = editor.run([_task(editor, triple, one, seed + i, ddim_steps, 1)])
            canvas = result.task.canvas
            way.append(colour_way(_in_window(result, 0), canvas.x_source, canvas.x_mask, COLORS[color].rgb))
        ways.append((way[0], way[1]))
    return ways


@torch.no_grad()
def _decisions(editor: Editor, count: int, seed: int, ddim_steps: int) -> dict[str, list[tuple[str, bool]]]:
    decisions: dict[str, list[tuple[str, bool]]] = {kind: [] for kind in LABELLED}
    model = editor.model
    for kind, (series, wanted) in LABELLED.items():
        for triple in _each(series(seed), count, kind):
            task = _task(editor, triple, "auto", 0, ddim_steps, 1)
            z_source = model.encode(task.canvas.x_source.to(model.device))
            schedule = sampling_schedule(model, task.request)
            mask = step_masks(task.canvas.x_levels, model.factor, schedule, 0, task.request.mask_downsample)[-1:]
            plan = plan_fit(task.canvas, task.request, z_source, mask.to(z_source), model.factor)
            decisions[kind].append((plan.why, plan.wanted == wanted))
    return decisions


def _each(items: Iterator[T], count: int, name: str) -> Iterator[T]:
    return iter(tqdm(islice(items, count), desc=name, total=count, disable=None))


def table(report: Report) -> str:
    """The report as Markdown."""
    pairs, fitted = report.pairs, [pair for pair in report.pairs if pair.fitted]
    lines = ["| | as given | fitted | difference |", "|---|---:|---:|---:|"]
    for name in (*pairs[0].right, "all"):
        before, after = ([_right(one, name) for one in ways] for ways in _rights(pairs))
        lines.append(f"| judged right, {name} | {_share(before)} | {_share(after)} | {_interval(before, after)} |")
    firsts = [[_right(pair.right, "all") for pair in pairs if pair.best]]
    firsts.append([_right(pair.right_fitted, "all") for pair in pairs if pair.best_fitted])
    lines.append(f"| all of them, of the best by rank | {_share(firsts[0])} | {_share(firsts[1])} | |")
    free = [pair for pair in fitted if pair.uncovered]
    if free:
        given, gained = ([_psnr(getattr(pair, name)) for pair in free] for name in ("error", "error_fitted"))
        gain = statistics.median(b - a for a, b in zip(given, gained, strict=True))
        lines.append(
            f"| PSNR of what the thing leaves free, median | {statistics.median(given):.1f} dB | "
            f"{statistics.median(gained):.1f} dB | {gain:+.1f} dB |"
        )
    slower = 100 * (report.seconds[1] / report.seconds[0] - 1)
    lines.append(f"| seconds of the processor | {report.seconds[0]:.1f} | {report.seconds[1]:.1f} | {slower:+.1f} % |")
    if report.thin:
        arrived = [[way[k] >= 0.5 for way in report.thin] for k in (0, 1)]
        lines.append(
            f"| thin masks, colour arrived | {_share(arrived[0])} | {_share(arrived[1])} | {_interval(*arrived)} |"
        )
    kept = statistics.mean(pair.kept for pair in fitted) if fitted else 1.0
    lines += ["", f"{len(fitted)} of {len(pairs)} predictions were fitted, to {kept:.0%} of their masks.", ""]
    lines += ["| auto | decided rightly |", "|---|---:|"]
    for kind, answers in report.decisions.items():
        lines.append(f"| {kind} | {sum(right for _, right in answers)} of {len(answers)} |")
    return "\n".join(lines) + "\n"


def _rights(pairs: Sequence[Pair]) -> tuple[list[dict[str, bool]], list[dict[str, bool]]]:
    return [pair.right for pair in pairs], [pair.right_fitted for pair in pairs]


def _right(verdict: dict[str, bool], name: str) -> bool:
    return all(verdict.values()) if name == "all" else verdict[name]


def _share(answers: Sequence[bool]) -> str:
    return f"{100 * sum(answers) / len(answers):.1f} %" if answers else "–"


def _interval(before: Sequence[bool], after: Sequence[bool]) -> str:
    """The difference in points with its 95 % interval, by the paired differences."""
    difference = 100 * (np.array(after, float) - np.array(before, float))
    spread = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return f"{difference.mean():+.1f} ± {spread:.1f} points"


def _psnr(error: float) -> float:
    return 10 * math.log10(255**2 / max(error, 0.01))
