"""The evaluation of a model of scenes: what it must reach, measured by an independent judge.

Every picture is kept as it comes: a run that was stopped resumes there.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.backbones.defaults import Defaults
from ldm.data.scenes.backgrounds import HELD_OUT, PHOTOS, Backgrounds, Photo
from ldm.data.scenes.render import SIZE
from ldm.data.scenes.scenes import render_scenes
from ldm.editing.edit import edit_image
from ldm.editing.ranking import CLIPRanker, find_ranker, rank
from ldm.editing.reconstruct import psnr
from ldm.editing.request import EditRequest
from ldm.errors import UserError
from ldm.evaluation import report
from ldm.evaluation.judging import judge_folder, judge_renders, load_judge, verdicts
from ldm.evaluation.paintings import Painter, Paintings, paint_all
from ldm.evaluation.report import OBJECT, Answer, Row
from ldm.evaluation.triples import Triple, background_triples, held_out_windows, object_triples, scribble_triples
from ldm.files import atomic_file, file_sha256
from ldm.imaging.images import load_image, save_png, to_pil
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.judge import Judge
from ldm.util import choose_device, choose_precision, peak_memory

ANSWERS = "answers.jsonl"  # the settings, then one answer a line
PREDICTIONS = 4  # of each triple
SCRIBBLE_SKIP = 0.4  # of the steps: keeps the place and the colour of a blob
ON_SHEET = {"edits": 16, "background": 8, "scribble": 8}  # the first triples of each part
RANKING = 20, 24  # prompts, predictions of each
RENDERS, RENDERS_SEED = 512, 4_000_037  # a seed of no training's nor validation's
PHOTOGRAPHS = 64  # windows of them

TARGETS: dict[str, dict[str, float | None]] = {
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
    ddim_steps, region, context: of every edit. workers: processes that paint, see `paint_all`. clip: the folder of
    another ranker than the model's.
    """

    outdir: Path
    model: str = "scenes"
    judge: str = "scenes"
    n_triples: int = 300
    parts: tuple[str, ...] = ("edits", "background", "scribble", "autoencoder", "judge", "ranking", "cost")
    seed: int = 0
    device: str = "auto"
    ddim_steps: int = 50
    region: str = "auto"
    context: float | None = None
    workers: int = 1
    clip: Path | None = None


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
    """A model, its ranker and the judge; what the model has painted, and the answers, on disk."""

    def __init__(self, job: Evaluation):
        self.job = job
        files = zoo.resolve(job.model)
        self.files = files if job.clip is None else replace(files, clip=job.clip)
        self.judge_folder = _judge_folder(job)
        self.device = choose_device(job.device)
        self.painter = Painter(job.model, job.device, job.region, job.context, job.ddim_steps)
        painted = self._painted()
        self.settings = painted | self._read_by()
        self.paintings = Paintings(job.outdir / "paintings", painted)
        self.answers: dict[str, list[Answer]] = _read_answers(job.outdir, self.settings)
        self._judge = load_judge(job.judge, self.device) if self.judge_folder else None
        self.ranker: CLIPRanker | None = find_ranker(self.files.clip, self.device)
        if self.ranker is not None and "ranking" in job.parts:
            report.require_plot()

    @cached_property
    def model(self) -> LatentDiffusion:
        return zoo.load_ours(self.files, self.device, choose_precision("auto", self.device))

    @property
    def judge(self) -> Judge:
        """The judge: `_judge_folder` raises where a part needs one and there is none."""
        assert self._judge is not None
        return self._judge

    @property
    def size(self) -> int:
        return self.model.image_size * self.model.factor

    def _painted(self) -> dict[str, Any]:
        """What two runs must share for their pictures to go into one table."""
        defaults = Defaults.of(self.files)
        context = defaults.context if self.job.context is None else self.job.context
        how = {"region": self.job.region} | asdict(defaults) | {"context": context}
        how["precision"] = str(choose_precision("auto", self.device)).removeprefix("torch.")
        what = {"model": self.files.name, "model_sha256": file_sha256(self.files.weights)}
        return what | {"seed": self.job.seed, "ddim_steps": self.job.ddim_steps} | how

    def _read_by(self) -> dict[str, str]:
        """Who looks at the pictures; others give other answers."""
        weights = {}
        if self.judge_folder:
            weights["judge"] = self.judge_folder / "model.safetensors"
        if isinstance(self.files.clip, Path):
            weights["clip"] = self.files.clip / "open_clip_model.safetensors"
        return {f"{name}_sha256": file_sha256(path) for name, path in weights.items()}

    def ask_all(
        self, part: str, series: Callable[[], Iterator[Triple]], count: int, n_iter: int = 1, skip_steps: int = 0
    ) -> list[Answer]:
        """The answers to the first `count` triples of a series; what was painted already is not painted again."""
        options = {"n_samples": PREDICTIONS, "n_iter": n_iter, "skip_steps": skip_steps}
        jobs = (
            (part, index, triple, options | {"seed": _first_seed(index)})
            for index, triple in enumerate(islice(series(), count))
            if not self.paintings.has(part, index)
        )
        done = sum(self.paintings.has(part, index) for index in range(count))
        with tqdm(total=count, initial=done, desc=part, unit="triple", disable=None) as bar:
            for failure in paint_all(self.painter, self.paintings, jobs, self.job.workers):
                if failure is not None:
                    raise failure.error
                bar.update()
        answers = [
            self._answer(part, index, triple, PREDICTIONS * n_iter)
            for index, triple in enumerate(islice(series(), count))
        ]
        self.answers[part] = answers
        return answers

    def _answer(self, part: str, index: int, triple: Triple, predictions: int) -> Answer:
        """Rank and judge what was painted; draw a row of the contact sheet."""
        painting = self.paintings.read(part, index, predictions)
        order = torch.arange(predictions)
        if self.ranker is not None:
            order = rank(self.ranker.distances(painting.x, painting.mask, triple.prompt))
        x = painting.x[order]
        answer = {
            "part": part,
            "index": index,
            "prompt": triple.prompt,
            "photo": triple.photo,
            "expected": triple.expected,
            "seeds": (_first_seed(index) + order).tolist(),
            "verdicts": verdicts(self.judge, x, None if "background" in triple.expected else painting.mask),
            "ranked": self.ranker is not None,
        }
        if index < ON_SHEET.get(part, 0):
            pictures = [to_pil(painting.source), to_pil(painting.mask.expand(-1, 3, -1, -1) * 2 - 1)]
            file = self.row_file(part, index)
            file.parent.mkdir(exist_ok=True)
            save_png(report.draw_row(answer, pictures + list(map(to_pil, x))), file)
        return answer

    def row_file(self, part: str, index: int) -> Path:
        return self.job.outdir / "rows" / f"{part}-{index:04d}.png"


def _first_seed(index: int) -> int:
    """Of the predictions for triple `index`."""
    return 1000 * index


def run_evaluation(job: Evaluation) -> list[Row]:
    """Measure the parts of `job` and write the table, the answers and the pictures into `job.outdir`.

    Rows of parts that an earlier run of the same settings measured stay in the table.

    Raises:
        UserError: no model, no judge for parts that need one, a folder that cannot be written, or that holds an
            evaluation of other settings.
    """
    session = _Session(job)
    rows = _read_rows(job.outdir, session.settings)
    for part, measure in PARTS.items():
        if part in job.parts:
            rows = [row for row in rows if row.part != part] + measure(session)
            rows.sort(key=lambda row: list(PARTS).index(row.part))
            _write(session, rows)
    return rows


def _edits(session: _Session) -> list[Row]:
    triples = partial(object_triples, session.job.seed)
    answers = session.ask_all("edits", triples, session.job.n_triples)
    return report.accuracy_rows("edits", answers, TARGETS["edits"], BEST_GAIN)


def _background(session: _Session) -> list[Row]:
    triples = partial(background_triples, session.job.seed + 1)
    answers = session.ask_all("background", triples, _third(session))
    return report.accuracy_rows("background", answers, TARGETS["background"])


def _scribble(session: _Session) -> list[Row]:
    triples = partial(scribble_triples, session.job.seed + 2)
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
        mean = sum(value for value in values if value is not None) / len(values)
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
    return model.decode(model.encode(x.to(model.device))).float().cpu()


def _ranking(session: _Session) -> list[Row]:
    if session.ranker is None:
        return [Row("ranking", "top less bottom", "points", None, 20.0, note="no CLIP")]
    prompts, predictions = RANKING
    triples = partial(object_triples, session.job.seed + 4)
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
    parts = [session.files.weights.parent, session.judge_folder, session.files.clip]
    folders = [folder for folder in parts if isinstance(folder, Path)]
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
    network = zoo.load_ours(files, where, choose_precision("auto", where))
    triple = next(object_triples(0, network.image_size * network.factor))
    request = EditRequest(triple.prompt, n_samples=PREDICTIONS, ddim_steps=ddim_steps, fit_mask="off")
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
    """The rows that an earlier run of the same settings left."""
    try:
        content = json.loads((outdir / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if content["settings"] != settings:
        return []
    return [Row(**{key: row[key] for key in Row.__dataclass_fields__}) for row in content["rows"]]


def _read_answers(outdir: Path, settings: dict[str, Any]) -> dict[str, list[Answer]]:
    """The answers that an earlier run of the same settings left, by part."""
    answers: dict[str, list[Answer]] = {}
    try:
        found, *lines = map(json.loads, (outdir / ANSWERS).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return answers
    if found == settings:
        for line in lines:
            answers.setdefault(line["part"], []).append(line)
    return answers


def _write(session: _Session, rows: list[Row]) -> None:
    outdir = session.job.outdir
    edits = session.answers.get("edits", [])
    content = {
        "settings": session.settings,
        "rows": [asdict(row) | {"outcome": row.outcome} for row in rows],
        "by_class": {attribute: report.by_class(edits, attribute) for attribute in OBJECT if edits},
    }
    lines = [session.settings, *(answer for part in PARTS for answer in session.answers.get(part, []))]
    with atomic_file(outdir / ANSWERS) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    with atomic_file(outdir / "evaluation.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    with atomic_file(outdir / "evaluation.md") as file:
        file.write(report.markdown(rows).encode())
    shown = {part: count for part, count in ON_SHEET.items() if part in session.answers}
    drawn = [session.row_file(part, index) for part, count in shown.items() for index in range(count)]
    pictures: list[Image.Image] = [load_image(path).rgb for path in drawn if path.exists()]
    if pictures:
        save_png(report.contact_sheet(pictures), outdir / "contact_sheet.png")
