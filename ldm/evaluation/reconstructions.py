"""All ways to restore the background, side by side on the same edits.

What is measured of an edit is kept as it comes, in `answers.jsonl`: a comparison that was stopped resumes.
"""

import hashlib
import importlib.util
import json
import logging
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from ldm.data.scenes.backgrounds import HELD_OUT, Photo, read_photo
from ldm.data.scenes.draw import integer
from ldm.editing.editor import Editor, Restored
from ldm.editing.reconstruct import RECONSTRUCTIONS
from ldm.editing.request import EditRequest, ReconstructionOptions
from ldm.editing.result import EditResult
from ldm.errors import MissingExtra, UserError
from ldm.evaluation.answers import Answers
from ldm.evaluation.inputs import Input
from ldm.evaluation.measures import EXACT, difference
from ldm.evaluation.paintings import silent
from ldm.evaluation.triples import draw_mask, object_triples
from ldm.files import atomic_file, weights_hash
from ldm.imaging.images import load_image, make_grid, save_png, to_pil
from ldm.imaging.masks import mask_from
from ldm.imaging.region import mask_box

logger = logging.getLogger(__name__)

PART = "reconstruction"

SIDE = 400
"""Shorter side that the photographs are brought to, in pixels: larger than what `scenes` sees of them."""


@dataclass(frozen=True)
class Case:
    """A photograph (h, w, 3) and a mask (h, w) of uint8, a prompt, and the seed of the one prediction."""

    photo: str
    image: np.ndarray
    mask: np.ndarray
    prompt: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What one way did to one edit.

    background_psnr: outside the mask at the model's size, before the exact composite, in dB. foreground_psnr: inside,
    against the prediction. band_psnr, seam: of the finished picture, see `ldm.imaging.finish.Measures`. None where the
    picture has no such part.
    """

    kind: str
    background_psnr: float | None
    foreground_psnr: float | None
    band_psnr: float | None
    seam: float
    source_seam: float
    max_difference: int
    seconds: float

    @classmethod
    def of(cls, kind: str, restored: Restored) -> "Outcome":
        """What was measured of one restored prediction."""
        made, measures = restored.reconstruction, restored.measures
        return cls(
            kind,
            made.background_psnr,
            made.foreground_psnr,
            measures.band_psnr,
            measures.seam,
            measures.source_seam,
            measures.max_difference,
            made.seconds,
        )


def cases(count: int, seed: int) -> Iterator[Case]:
    """Edits of held-out photographs in turn: the same series for the same seed, however many are taken."""
    generator = torch.Generator().manual_seed(seed)
    triples = object_triples(seed)
    for i in range(count):
        file, triple = HELD_OUT[i % len(HELD_OUT)], next(triples)
        x = read_photo(Photo(file, 1.0))
        scale = SIDE / min(x.shape[1:])
        x = F.interpolate(x[None], scale_factor=scale, mode="bicubic", antialias=True)[0].clamp(0, 1)
        height, width = x.shape[1:]
        patch = draw_mask(generator, SIDE * 3 // 5, ("ellipse", "box", "blob")[i % 3])[0, 0]
        top, left = (integer(generator, room - len(patch) + 1) for room in (height, width))
        mask = torch.zeros(height, width)
        mask[top : top + len(patch), left : left + len(patch)] = patch
        pixels = (x.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        yield Case(file, pixels, (mask * 255).to(torch.uint8).numpy(), triple.prompt, seed + i)


def cases_of(inputs: Iterable[Input], seed: int) -> Iterator[Case]:
    """The same of the inputs of a benchmark, in their photographs as they are."""
    for i, one in enumerate(inputs):
        image = np.asarray(load_image(one.image).rgb)
        mask = (mask_from(one.mask, image.shape[:2])[0, 0].numpy() * 255).astype(np.uint8)
        yield Case(one.name, image, mask, one.prompt, seed + i)


LAMBDAS = {f"weights, lambda {weight:g}": {"background_weight": weight} for weight in (1.0, 10.0, 1000.0)}
LAMBDAS["weights, no foreground"] = {"background_weight": 1e9}
"""Figure 20: the paper's lambda is 100. Adam does not see the scale of a loss: beside 1e9 the foreground is nothing."""


def choose_ways(names: str) -> dict[str, dict[str, Any]]:
    """The options of each way of a comma-separated list: the names of `RECONSTRUCTIONS`, and `lambda` for `LAMBDAS`.

    `all` is without lambda, and without those whose package is not installed.

    Raises:
        UserError: another name, or none at all.
        MissingExtra: one that is named needs a package that is not installed.
    """
    known = ", ".join([*RECONSTRUCTIONS, "lambda"])
    listed = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not listed:
        raise UserError(f'`ways` is "{names}": give some of {known}, or all')
    chosen: dict[str, dict[str, Any]] = {}
    for name in listed:
        if name == "all":
            kinds = list(RECONSTRUCTIONS)
            if not _has_opencv():
                logger.warning("poisson is left out: OpenCV is not installed (pip install opencv-python-headless)")
                kinds.remove("poisson")
            chosen |= {kind: ReconstructionOptions.way(kind) for kind in kinds}
        elif name == "lambda":
            chosen |= LAMBDAS
        elif name not in RECONSTRUCTIONS:
            raise UserError(f'`ways` names "{name}": give some of {known}, or all')
        elif name == "poisson" and not _has_opencv():
            raise MissingExtra("opencv-python-headless", "poisson", "`ways=poisson`")
        else:
            chosen[name] = ReconstructionOptions.way(name)
    return chosen


def compare(
    editor: Editor,
    count: int,
    seed: int,
    ddim_steps: int,
    outdir: Path,
    ways: str = "all",
    inputs: Sequence[Input] = (),
    **options: Any,
) -> dict[str, list[Outcome]]:
    """Edit each case once, restore it in every way, and write comparison.json, comparison.md and comparison.png.

    The picture is of the case whose border runs through the strongest texture. ways: see `choose_ways`.
    inputs: to edit instead of `cases`. The options are those of `ReconstructionOptions` but for the kind.

    Returns:
        The outcomes of each kind, in the order of the cases.

    Raises:
        UserError: the folder cannot be written, or holds a comparison of another model, seed, ways or options.
    """
    told = {name: options | way for name, way in choose_ways(ways).items()}
    weights = weights_hash(editor.files.weights) if editor.files else None
    settings = {"model_sha256": weights, "ddim_steps": ddim_steps, "options": told}
    kept = Answers(outdir / "answers.jsonl", settings)
    known = kept.of(PART)
    rows: list[dict[str, Any]] = []
    made = cases_of(inputs, seed) if inputs else cases(count, seed)
    for index, case in enumerate(tqdm(made, total=len(inputs) or count, desc="comparing", unit="edit", disable=None)):
        edit = {"photo": case.photo, "prompt": case.prompt, "seed": case.seed, "pixels": _digest(case)}
        row = known.get(index, {})
        if any(row.get(key) != value for key, value in edit.items()):
            with silent():
                edited, restored = _restore(editor, case, ddim_steps, told)
            row = {"part": PART, "index": index, **edit, "roughness": edited.measures[0].source_seam}
            row |= {name: asdict(Outcome.of(name, one)) for name, one in restored.items()}
            if row["roughness"] > max((before["roughness"] for before in rows), default=-math.inf):
                save_png(sheet(case, edited, restored), outdir / "comparison.png")
            kept.add(row)
        rows.append(row)
    outcomes = {name: [Outcome(**row[name]) for row in rows] for name in told}
    with atomic_file(outdir / "comparison.json") as file:
        file.write((json.dumps([_plain(row) for row in rows], indent=1, allow_nan=False) + "\n").encode())
    with atomic_file(outdir / "comparison.md") as file:
        file.write(table(outcomes).encode())
    return outcomes


def _restore(
    editor: Editor, case: Case, ddim_steps: int, ways: Mapping[str, Mapping[str, Any]]
) -> tuple[EditResult, dict[str, Restored]]:
    request = EditRequest(case.prompt, seed=case.seed, n_samples=1, ddim_steps=ddim_steps, fit_mask="off", force=True)
    (edited,) = editor.run([editor.prepare(case.image, case.mask, request)])
    return edited, {name: editor.reconstruct(edited, 0, **options) for name, options in ways.items()}


def _digest(case: Case) -> str:
    return hashlib.sha256(case.image.tobytes() + case.mask.tobytes()).hexdigest()[:16]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it, which knows no infinity: pictures that are equal have `EXACT` dB."""
    told = {key: value for key, value in row.items() if key not in ("part", "index", "pixels")}
    return {
        key: {name: EXACT if one == math.inf else one for name, one in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in told.items()
    }


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Medians over the edits, as Markdown; the last line is the input's own seam score."""
    columns = ("background_psnr", "band_psnr", "seam", "foreground_psnr", "seconds")
    head = ("type", "background, dB", "band, dB", "seam", "foreground, dB", "seconds")
    lines = [head, ("---", *["---:"] * len(columns))]
    for kind, made in outcomes.items():
        lines.append((kind, *(_median([getattr(one, column) for one in made]) for column in columns)))
    source = statistics.median(one.source_seam for one in next(iter(outcomes.values())))
    lines.append(("the input itself", "", "", _shown(source), "", ""))
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return text + _gains(outcomes)


GAINS = {"background_psnr": "background, dB", "band_psnr": "band, dB", "seam": "seam, levels"}


def _gains(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """By how much decoder weights are better than each other way: the mean over the edits, and its interval."""
    ours = outcomes.get("optimization")
    if ours is None or len(outcomes) == 1:
        return ""
    rows = [["decoder weights less", *GAINS.values()], ["---", *["---:"] * len(GAINS)]]
    for kind, made in outcomes.items():
        if kind == "optimization":
            continue
        gaps = [difference(_finite(ours, key), _finite(made, key)) for key in GAINS]
        rows.append(
            [
                kind,
                *("–" if one.value is None else f"{one.value:+.1f} [{one.low:+.1f}, {one.high:+.1f}]" for one in gaps),
            ]
        )
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _finite(made: Sequence[Outcome], key: str) -> list[float | None]:
    values = [getattr(one, key) for one in made]
    return [None if value is None else min(value, EXACT) for value in values]


def sheet(case: Case, edited: EditResult, restored: dict[str, Restored]) -> Image.Image:
    """The input, the prediction and each restored picture about the mask, and below them the border, enlarged."""
    canvas = edited.task.canvas
    rows, columns = mask_box(canvas.mask[0, 0].numpy() > 0)
    room = (rows.stop - rows.start) // 4
    height, width = case.mask.shape
    top, left = max(rows.start - room, 0), max(columns.start - room, 0)
    box = (left, top, min(columns.stop + room, width), min(rows.stop + room, height))
    middle, edge = (columns.start + columns.stop) // 2, rows.start
    border = (middle - 40, max(edge - 30, 0), middle + 40, max(edge - 30, 0) + 80)
    plain = Image.fromarray(case.image)
    painted = plain.copy()
    window = canvas.window
    prediction = to_pil(edited.x).resize((window.width, window.height), Image.Resampling.BICUBIC)
    painted.paste(prediction, (window.left, window.top))
    pictures = {"input": plain, f'the prediction, "{case.prompt}"': painted}
    pictures |= {kind: one.image for kind, one in restored.items()}
    size = (320, 320)
    whole = [picture.crop(box).resize(size, Image.Resampling.LANCZOS) for picture in pictures.values()]
    close = [picture.crop(border).resize(size, Image.Resampling.NEAREST) for picture in pictures.values()]
    return make_grid([*whole, *close], len(whole), [*pictures, *[f"{name}: the upper border" for name in pictures]])


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _shown(statistics.median(known)) if known else "–"


def _shown(value: float) -> str:
    return "inf" if value == math.inf else f"{value:.1f}"


def _has_opencv() -> bool:
    return importlib.util.find_spec("cv2") is not None
