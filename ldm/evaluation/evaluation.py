"""The evaluation of a model of scenes: what it must reach, measured by an independent judge.

Every answer is written as it comes: a run that was stopped goes on where it stopped.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm import zoo
from ldm.data.scenes.backgrounds import HELD_OUT, PHOTOS, Backgrounds, Photo
from ldm.data.scenes.render import SIZE
from ldm.data.scenes.scenes import render_scenes
from ldm.editing.canvas import Place
from ldm.editing.defaults import Defaults
from ldm.editing.edit import EditRequest, edit_image
from ldm.editing.editor import Editor
from ldm.editing.images import atomic_file, load_image, save_png, to_pil
from ldm.editing.ranking import CLIPRanker, find_ranker
from ldm.editing.reconstruct import psnr
from ldm.errors import UserError
from ldm.evaluation import report
from ldm.evaluation.answers import Answers
from ldm.evaluation.judging import judge_folder, judge_renders, load_judge, verdicts
from ldm.evaluation.report import OBJECT, Row
from ldm.evaluation.triples import Triple, background_triples, held_out_windows, object_triples, scribble_triples
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import choose_device, choose_precision, peak_memory

PREDICTIONS = 4  # of each triple
SCRIBBLE_SKIP = 0.4  # of the steps: keeps the place and the colour of a blob
ON_SHEET = {"edits": 16, "background": 8, "scribble": 8}  # the first triples of each part
RANKING = 20, 24  # prompts, predictions of each
RENDERS, RENDERS_SEED = 512, 4_000_037  # a seed of no training's nor validation's
PHOTOGRAPHS = 64  # windows of them

TARGETS = {
    "edits": {"color": 95.0, "shape": 85.0, "material": 75.0, "all": 65.0},
    "background": {"background": 80.0},
    "scribble": {"color": 80.0, "shape": 80.0, "material": None, "all": None},
}
BEST_GAIN = 10.0  # points, of the best of four over the first


@dataclass(frozen=True)
class Evaluation:
    """What to measure, and where to write it.

    model, device: as `scripts/text_editing.py` has them. judge: see `judge_folder`. n_triples: of the edits;
    backgrounds and scribbles take a third as many. parts: names of `PARTS`. seed: of the triples.
    ddim_steps, place: of every edit.
    """

    outdir: Path
    model: str = "scenes"
    judge: str = "scenes"
    n_triples: int = 300
    parts: tuple[str, ...] = ("edits", "background", "scribble", "autoencoder", "judge", "ranking", "cost")
    seed: int = 0
    device: str = "auto"
    ddim_steps: int = 50
    place: Place = field(default_factory=Place)


UNJUDGED = {"autoencoder", "cost"}
"""Parts that need no judge."""


def _judge_folder(job: Evaluation) -> Path | None:
    """Where the judge lies; None where there is none and no part needs one."""
    try:
        return judge_folder(job.judge)
    except UserError:
        if set(job.parts) - UNJUDGED:
            raise
        return None


class _Session:
    """A model, its ranker and the judge; and the answers so far, on disk."""

    def __init__(self, job: Evaluation):
        self.job = job
        self.files = zoo.resolve(job.model)
        self.judge_folder = _judge_folder(job)
        self.answers = Answers(job.outdir / "answers.jsonl", self._settings())
        self.device = choose_device(job.device)
        self.judge = load_judge(job.judge, self.device) if self.judge_folder else None
        self.ranker: CLIPRanker | None = find_ranker(self.files.clip, self.device)
        if self.ranker is not None and "ranking" in job.parts:
            report.require_plot()
        self.model: LatentDiffusion = zoo.load(self.files, self.device, choose_precision("auto", self.device))
        self.editor = Editor(self.model, self.ranker, self.files)
        self.size = self.model.image_size * self.model.factor

    def _settings(self) -> dict[str, Any]:
        """What two runs must share for their answers to go into one table."""
        clip = self.files.clip
        weights = {"model": self.files.weights}
        if self.judge_folder:
            weights["judge"] = self.judge_folder / "model.safetensors"
        if isinstance(clip, Path):
            weights["clip"] = clip / "open_clip_model.safetensors"
        digests = {f"{name}_sha256": _sha256(path) for name, path in weights.items()}
        defaults = Defaults.of(self.files)
        place = defaults.fill(self.job.place)
        how = {"region": place.region} | asdict(defaults) | {"context": place.context}
        return {"model": self.files.name, "seed": self.job.seed, "ddim_steps": self.job.ddim_steps} | how | digests

    def ask(self, part: str, index: int, triple: Triple, n_iter: int = 1, skip_steps: int = 0) -> None:
        """Edit, judge every prediction, and write down the answer; draw a row of the contact sheet."""
        request = EditRequest(
            triple.prompt,
            seed=1000 * index,
            n_samples=PREDICTIONS,
            n_iter=n_iter,
            ddim_steps=self.job.ddim_steps,
            skip_steps=skip_steps,
        )
        with _silent():
            mask = (triple.mask[0, 0] * 255).byte().numpy()
            task = self.editor.prepare(to_pil(triple.x), mask, request, self.job.place)
            (edited,) = self.editor.run([task])
        edit, canvas = edited.edit, task.canvas
        answer = {
            "part": part,
            "index": index,
            "prompt": triple.prompt,
            "photo": triple.photo,
            "expected": triple.expected,
            "seeds": edit.seeds,
            "verdicts": verdicts(self.judge, edit.x, None if "background" in triple.expected else canvas.x_mask),
            "ranked": edit.distances is not None,
        }
        if index < ON_SHEET.get(part, 0):
            self.row_file(part, index).parent.mkdir(exist_ok=True)
            pictures = [to_pil(canvas.x_source), to_pil(canvas.x_mask.expand(-1, 3, -1, -1) * 2 - 1)]
            pictures += map(to_pil, edit.x)
            save_png(report.draw_row(answer, pictures), self.row_file(part, index))
        self.answers.add(answer)

    def row_file(self, part: str, index: int) -> Path:
        return self.job.outdir / "rows" / f"{part}-{index:04d}.png"

    def ask_all(self, part: str, triples: Iterator[Triple], count: int, **options: int) -> list[dict[str, Any]]:
        """The answers to the first `count` triples; those that are there already are not asked again."""
        known = self.answers.of(part)
        with tqdm(total=count, desc=part, unit="triple", disable=None) as bar:
            for index, triple in enumerate(islice(triples, count)):
                if index not in known:
                    self.ask(part, index, triple, **options)
                bar.update()
        return [answer for index, answer in sorted(self.answers.of(part).items()) if index < count]


def run_evaluation(job: Evaluation) -> list[Row]:
    """Measure the parts of `job` and write the table, the answers and the pictures into `job.outdir`.

    Rows of parts that an earlier run of the same settings measured stay in the table.

    Raises:
        UserError: no model, no judge for parts that need one, a folder that cannot be written, or that holds an
            evaluation of other settings.
    """
    session = _Session(job)
    rows = _read_rows(job.outdir, session.answers.settings)
    for part, measure in PARTS.items():
        if part in job.parts:
            rows = [row for row in rows if row.part != part] + measure(session)
            rows.sort(key=lambda row: list(PARTS).index(row.part))
            _write(session, rows)
    return rows


@contextmanager
def _silent() -> Iterator[None]:
    """Without what one edit tells its user: here there are hundreds."""
    editing = logging.getLogger("ldm.editing")
    level = editing.level
    editing.setLevel(logging.WARNING)
    try:
        yield
    finally:
        editing.setLevel(level)


def _edits(session: _Session) -> list[Row]:
    triples = object_triples(session.job.seed)
    answers = session.ask_all("edits", triples, session.job.n_triples)
    return report.accuracy_rows("edits", answers, TARGETS["edits"], BEST_GAIN)


def _background(session: _Session) -> list[Row]:
    triples = background_triples(session.job.seed + 1)
    answers = session.ask_all("background", triples, _third(session))
    return report.accuracy_rows("background", answers, TARGETS["background"])


def _scribble(session: _Session) -> list[Row]:
    triples = scribble_triples(session.job.seed + 2)
    skip = round(SCRIBBLE_SKIP * session.job.ddim_steps)
    answers = session.ask_all("scribble", triples, _third(session), skip_steps=skip)
    return report.accuracy_rows("scribble", answers, TARGETS["scribble"])


def _third(session: _Session) -> int:
    return max(1, session.job.n_triples // 3)


def _autoencoder(session: _Session) -> list[Row]:
    photos = held_out_windows(PHOTOGRAPHS, session.job.seed + 3, session.size)
    rows = []
    for name, x, target in (("renders", _renders(session.size, PHOTOS)[0], 28.0), ("photographs", photos, 26.0)):
        values = [psnr(_decoded(session.model, one), one, torch.ones_like(one[:, :1])) for one in x.split(1)]
        mean = sum(values) / len(values)
        rows.append(Row("autoencoder", f"PSNR, held-out {name}", "dB", mean, target, count=len(values)))
    return rows


def _judge(session: _Session) -> list[Row]:
    """How far to believe the judge: on renders as they are, and as the autoencoder has them, the best to hope for."""
    photos = (*PHOTOS, *(Photo(file, weight=4.0) for file in HELD_OUT))  # those of the triples, half of the time
    x, attributes = _renders(session.size, photos)
    decoded = torch.cat([_decoded(session.model, one) for one in x.split(1)])
    scale = session.size / SIZE
    rows = []
    for name, pictures in (("renders", x), ("renders through the autoencoder", decoded)):
        for attribute, hits in judge_renders(session.judge, pictures, attributes, scale).items():
            target = 97.0 if name == "renders" and attribute in OBJECT else None
            share = 100 * sum(hits) / len(hits) if hits else None
            rows.append(Row("judge", f"held-out {name}, {attribute}", "%", share, target, count=len(hits)))
    return rows


def _renders(size: int, photos: tuple[Photo, ...]) -> tuple[Tensor, list[dict]]:
    """Renders (n, 3, size, size) in [-1, 1] before backgrounds of their own, and what they show."""
    scenes = render_scenes(RENDERS, RENDERS_SEED, Backgrounds(photos, allow_held_out=True))
    x = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True), scenes.attributes


@torch.no_grad()
def _decoded(model: LatentDiffusion, x: Tensor) -> Tensor:
    return model.decode_first_stage(model.encode_first_stage(x.to(model.device))).float().cpu()


def _ranking(session: _Session) -> list[Row]:
    if session.ranker is None:
        return [Row("ranking", "top less bottom", "points", None, 20.0, note="no CLIP")]
    prompts, predictions = RANKING
    triples = object_triples(session.job.seed + 4)
    answers = session.ask_all("ranking", triples, prompts, n_iter=predictions // PREDICTIONS)
    report.plot_ranking(answers, session.job.outdir / "ranking.png")
    return report.ranking_rows(answers, 20.0)


def _cost(session: _Session) -> list[Row]:
    """A process of its own does one edit, as a user's would; and the size of what ships."""
    job = session.job
    start = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        peak = executor.submit(four_predictions, job.model, job.device, job.ddim_steps).result()
    seconds = time.perf_counter() - start
    folders = [session.files.weights.parent, session.judge_folder, session.files.clip]
    folders = [folder for folder in folders if isinstance(folder, Path)]
    shipped = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    note = "" if session.ranker else "not ranked: no CLIP"
    threads = f"{torch.get_num_threads()} threads, {session.device.type}"
    edit = f"{PREDICTIONS} ranked predictions of {job.ddim_steps} steps"
    return [
        Row("cost", f"{edit}, from start to end, {threads}", "s", seconds, 20.0, at_least=False, note=note),
        Row("cost", f"{edit}, peak memory of the process", "GB", peak and peak / 1e9, 1.5, at_least=False, note=note),
        Row("cost", "everything shipped", "MB", shipped / 1e6, 60.0, at_least=False),
    ]


def four_predictions(model: str, device: str, ddim_steps: int) -> int | None:
    """Load the model and edit one triple; returns the peak memory of this process, see `peak_memory`."""
    logging.disable(logging.WARNING)  # the parent has said what there is to say
    files = zoo.resolve(model)
    where = choose_device(device)
    network = zoo.load(files, where, choose_precision("auto", where))
    triple = next(object_triples(0, network.image_size * network.factor))
    request = EditRequest(triple.prompt, n_samples=PREDICTIONS, ddim_steps=ddim_steps)
    edit_image(network, triple.x, triple.mask, request, find_ranker(files.clip, where))
    return peak_memory()


PARTS: dict[str, Callable[[_Session], list[Row]]] = {
    "edits": _edits,
    "background": _background,
    "scribble": _scribble,
    "autoencoder": _autoencoder,
    "judge": _judge,
    "ranking": _ranking,
    "cost": _cost,
}


def _read_rows(outdir: Path, settings: dict[str, Any]) -> list[Row]:
    try:
        content = json.loads((outdir / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if content["settings"] != settings:
        return []
    return [Row(**{key: row[key] for key in Row.__dataclass_fields__}) for row in content["rows"]]


def _write(session: _Session, rows: list[Row]) -> None:
    outdir = session.job.outdir
    edits = list(session.answers.of("edits").values())
    content = {
        "settings": session.answers.settings,
        "rows": [asdict(row) | {"outcome": row.outcome} for row in rows],
        "by_class": {attribute: report.by_class(edits, attribute) for attribute in OBJECT if edits},
    }
    with atomic_file(outdir / "evaluation.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    with atomic_file(outdir / "evaluation.md") as file:
        file.write(report.markdown(rows).encode())
    drawn = [session.row_file(part, index) for part, count in ON_SHEET.items() for index in range(count)]
    pictures: list[Image.Image] = [load_image(path).rgb for path in drawn if path.exists()]
    if pictures:
        save_png(report.contact_sheet(pictures), outdir / "contact_sheet.png")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
