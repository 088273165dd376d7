"""The evaluation of a model of everyday things: by a classifier that nobody here trained, by measures, and by eyes.

`things`: nouns into photographs that no training has seen; of each, what EfficientNet-Lite2 sees in the mask, beside
the same thing pasted there by its own alpha, and how sharp the edit is beside it. On the split "val", which weights are
chosen by, the classifier is another one, EfficientNet-Lite0: nothing is selected on what the tables show.
`autoencoder`: what the first stage keeps. `shapes`: the evaluation of scenes, with the same prompts. `sheet`: edits
that nobody chose, for people to look at.

What is painted is kept, and so are the answers: a run that was stopped resumes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.backbones.defaults import Defaults
from ldm.data.things.cutouts import read_cutouts
from ldm.data.things.photographs import Photographs
from ldm.data.things.things import Things
from ldm.editing.editor import Editor
from ldm.editing.ranking import CLIPRanker, find_ranker, rank
from ldm.errors import UserError
from ldm.evaluation import things_report as report
from ldm.evaluation.answers import Answers
from ldm.evaluation.classifiers import Frame, load_classifier
from ldm.evaluation.evaluation import Evaluation, run_evaluation
from ldm.evaluation.inputs import Input
from ldm.evaluation.jobs import ThingsJob
from ldm.evaluation.measures import estimate, ratio
from ldm.evaluation.methods import BlendedLatent
from ldm.evaluation.paintings import Painting, Paintings, paint_all, silent
from ldm.evaluation.things_questions import (
    SIZE,
    Album,
    Question,
    nouns_of,
    sheet_questions,
    split_seed,
    thing_questions,
)
from ldm.evaluation.things_report import Figure
from ldm.files import atomic_file, files_hash, weights_hash
from ldm.imaging.images import to_pil, to_tensor
from ldm.models.autoencoder import AutoencoderKL
from ldm.training.autoencoder import AutoencoderTrainer, psnr
from ldm.training.export import export_checkpoint
from ldm.util import choose_device, choose_precision

PREDICTIONS = 4
ON_SHEET = 48
HELD_OUT = 64
"""Windows of photographs, and composites, that the first stage is measured on."""

CLASSIFIER = {"test": "efficientnet-lite2", "val": "efficientnet-lite0"}
SHAPES_LOSS = 2.0
"""Points by which shapes, colours and materials may be less often right than the other model's."""

MIN_SHARP, FIRST_SHARE, BEST_SHARE = 0.7, 60.0, 75.0
PHOTOGRAPHS_DB, COMPOSITES_DB = 28.0, 30.0


@dataclass(frozen=True)
class ThingsPainter:
    """Edits questions, unranked; options as `scripts/text_editing.py` has them."""

    model: str
    device: str
    precision: str
    options: Mapping[str, Any]

    def load(self) -> BlendedLatent:
        """The model, ready to edit."""
        files, device = zoo.resolve(self.model), choose_device(self.device)
        model = zoo.load(files, device, choose_precision(self.precision, device))
        return BlendedLatent(Editor(model, None, files), self.options)

    def paint(self, tool: BlendedLatent, question: Question, **options: Any) -> Painting:
        """The part of the photograph that is looked at, its mask, and the predictions there as delivered."""
        with silent():
            result = tool.result(Image.fromarray(question.image), question.mask, question.prompt, **options)
        x = [part_of(np.asarray(image.convert("RGB")), question) for image, _ in result.finished]
        about = {"seeds": list(result.seeds), "prompt": question.prompt, "photo": question.photo}
        return Painting(part_of(question.image, question), mask_of(question), torch.cat(x), about=about)


def part_of(picture: np.ndarray, question: Question) -> Tensor:
    """What is looked at of a whole picture (h, w, 3) uint8: (1, 3, S, S) in [-1, 1] at the question's size."""
    left, top, side = question.part
    crop = Image.fromarray(picture[top : top + side, left : left + side])
    return to_tensor(crop.resize((question.size,) * 2, Image.Resampling.BICUBIC))


def mask_of(question: Question) -> Tensor:
    """The mask of that part, (1, 1, S, S) in {0, 1}."""
    left, top, side = question.part
    crop = Image.fromarray(question.mask[top : top + side, left : left + side])
    scaled = np.asarray(crop.resize((question.size,) * 2, Image.Resampling.BOX))
    return torch.from_numpy((scaled > 127).astype(np.float32))[None, None]


def gradient_energy(x: Tensor, mask: Tensor) -> list[float]:
    """Mean squared difference of neighbouring pixels' luma inside a mask, of each picture (n, 3, H, W) in [-1, 1].

    Two pixels along the mask's border (1, 1, H, W) are left out, for the seam there is no detail of the edit.
    """
    inside = -F.max_pool2d(-F.pad(mask, (2, 2, 2, 2)), 5, stride=1)
    luma = torch.einsum("bchw,c->bhw", x, x.new_tensor([0.299, 0.587, 0.114]))[:, None]
    squares = luma.diff(dim=-1).square()[..., :-1, :] + luma.diff(dim=-2).square()[..., :-1]
    inside = inside[..., :-1, :-1]
    return (squares * inside).sum((1, 2, 3)).div(inside.sum().clamp(min=1)).tolist()


class Session:
    """A model, who ranks and who looks; what the model has painted and what was seen, on disk."""

    def __init__(self, job: ThingsJob):
        self.job = job
        self.device = choose_device(job.device)
        self.model = as_model(job.model, job.outdir / "model")
        self.first_stage_only = self.model is None

    @cached_property
    def files(self) -> zoo.ModelFiles:
        """The model's.

        Raises:
            UserError: there is but a first stage.
        """
        if self.model is None:
            raise UserError(f"{self.job.model} is a first stage: of it, only `parts=autoencoder` can be measured")
        return zoo.resolve(self.model)

    @cached_property
    def words(self) -> dict[str, str]:
        """See `nouns_of`."""
        return nouns_of(str(self.files.given.model))

    @cached_property
    def own_ranker(self) -> Path | None:
        """The folder of the ranker that was asked for; None leaves it to the model."""
        given = self.job.ranker
        if given is None or given.suffix != ".ckpt":
            return given
        folder = self.job.outdir / "ranker"
        folder.mkdir(exist_ok=True)
        return export_checkpoint(given, folder)

    @cached_property
    def ranker(self) -> CLIPRanker | None:
        """Who ranks."""
        return find_ranker(self._clip(), self.device)

    def _clip(self) -> Path | str | None:
        return self.files.clip if self.own_ranker is None else self.own_ranker

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What two runs must share for their pictures to go into one table."""
        job = self.job
        how = asdict(Defaults.of(self.files)) | {"ddim_steps": job.ddim_steps, "sampler": job.sampler}
        how |= {} if job.context is None else {"context": job.context}
        precision = str(choose_precision(job.precision, self.device)).removeprefix("torch.")
        what = {"model": self.files.name, "model_sha256": weights_hash(self.files.weights)}
        return what | how | {"precision": precision, "region": job.region, "seed": job.seed, "split": job.split}

    @property
    def options(self) -> dict[str, Any]:
        """Of every edit."""
        job = self.job
        own = {"ddim_steps": job.ddim_steps, "sampler": job.sampler, "region": job.region}
        return own | {"context": job.context}

    def paintings(self, part: str, series: Iterator[Question], count: int, **options: Any) -> Paintings:
        """What the model paints of the first `count` questions; what it has painted before is not painted again."""
        more = {"cutouts": _index_hash(self.job.data)} if part == "things" else {}
        folder = Paintings(self.job.outdir / "paintings" / part, self.settings | more | options)
        asked = options | {"n_samples": PREDICTIONS}
        jobs = (
            (part, index, question, asked | {"seed": split_seed(self.job.split, self.job.seed) + 1000 * index})
            for index, question in enumerate(islice(series, count))
            if not folder.has(part, index)
        )
        done = sum(folder.has(part, index) for index in range(count))
        painter = ThingsPainter(str(self.model), self.job.device, self.job.precision, self.options)
        with tqdm(total=count, initial=done, desc=part, unit="edit", disable=None) as bar:
            for failure in paint_all(painter, folder, jobs, self.job.workers):
                if failure is not None:
                    raise failure.error
                bar.update()
        return folder

    def order(self, painting: Painting, prompt: str) -> list[int]:
        """The predictions, best first; in their own order where nothing ranks."""
        if self.ranker is None:
            return list(range(len(painting.x)))
        return rank(self.ranker.distances(painting.x, painting.mask, prompt)).tolist()

    def ranked_by(self) -> str:
        """A hash of the ranker; "" where there is none."""
        clip = self._clip()
        if self.ranker is None:
            return ""
        return files_hash(clip, ["open_clip_model.safetensors"]) if isinstance(clip, Path) else str(clip)

    @cached_property
    def first_stage(self) -> AutoencoderKL:
        """In float32."""
        if self.first_stage_only:
            trainer = AutoencoderTrainer.load_from_checkpoint(_checkpoint(self.job.model), map_location="cpu")
            return trainer.first_stage_model.eval().to(self.device)
        return zoo.load_ours(self.files, self.device, torch.float32).first_stage_model

    @property
    def own_size(self) -> int:
        """Side in pixels that the model works at."""
        if self.first_stage_only:
            return SIZE
        outline: Any = zoo.outline(self.files)
        return int(outline.image_size) * int(outline.factor)


def _index_hash(data: Path) -> str:
    index = data / "cutouts" / "index.json"
    return hashlib.sha256(index.read_bytes()).hexdigest()[:16] if index.is_file() else ""


def _checkpoint(given: str) -> Path | None:
    """The checkpoint of `scripts/train.py` that a model's name means; None where it is a model already."""
    path = Path(given).expanduser()
    if path.is_dir() and not (path / "config.yaml").exists() and (path / "last.ckpt").is_file():
        return path / "last.ckpt"
    if path.suffix == ".ckpt" and path.is_file():
        return path
    return None


def as_model(given: str, folder: Path) -> str | None:
    """A model that `zoo.resolve` finds: a name or a folder as it is, a training's checkpoint or run folder exported to
    `folder`. None for the checkpoint of a first stage, which is no model by itself.

    Raises:
        UserError: a checkpoint that is of no training of ours.
    """
    path = _checkpoint(given)
    if path is None:
        return given
    try:
        keys = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"].keys()
    except Exception:  # not ours: a user's checkpoint of Stable Diffusion, or no checkpoint
        return given
    if any(key.startswith("first_stage_model.") for key in keys) and not any(key.startswith("ldm.") for key in keys):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return str(export_checkpoint(path, folder).resolve())


def evaluate_things(job: ThingsJob) -> list[Figure]:
    """Measure the parts of a job; write things.md and things.json into `job.outdir`, and the sheet's pictures.

    Figures of parts that an earlier run of the same settings measured stay in the table.

    Raises:
        UserError: no such model, data, or evaluation to compare with; a folder that holds another evaluation.
        MissingExtra: a package is missing.
    """
    try:
        job.outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'"{job.outdir}" cannot be made ({error.strerror}): give another `outdir`') from error
    session = Session(job)
    other = _read_figures(job.against / "things.json")[1] if job.against else []
    if job.against and not other:
        raise UserError(f'"{job.against}" holds no things.json: evaluate that model first')
    settings = {"model": job.model} if session.first_stage_only else session.settings
    known, figures = _read_figures(job.outdir / "things.json")
    figures = figures if known == settings else []
    for part in PARTS:
        if part in job.chosen:
            figures = [one for one in figures if one.part != part] + PARTS[part](session)
            figures.sort(key=lambda one: list(PARTS).index(one.part))
            figures = beside(figures, other)
            _write(job, settings, figures)
    return figures


def beside(figures: Sequence[Figure], other: Sequence[Figure]) -> list[Figure]:
    """The figures with those of another model, which are the target of the part `shapes`, less `SHAPES_LOSS`."""
    theirs = {(one.part, one.name): one.value for one in other}
    result = []
    for one in figures:
        value = theirs.get((one.part, one.name))
        more: dict[str, Any] = {"other": value}
        if one.part == "shapes" and value is not None:
            more["target"] = value - SHAPES_LOSS
        result.append(Figure(**asdict(one) | more) if value is not None else one)
    return result


def _things(session: Session) -> list[Figure]:
    job, who = session.job, CLASSIFIER[session.job.split]
    classifier = load_classifier(who)

    def series() -> Iterator[Question]:
        return thing_questions(job.split, job.seed, session.words, job.data)

    paintings = session.paintings("things", series(), job.count, fit_mask="off")
    shared = session.settings | {"classifier": classifier.name, "ranker": session.ranked_by()}
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]
    kept = Answers(job.outdir / f"answers-{digest}.jsonl", shared)
    known = kept.of("things")
    for index, question in enumerate(islice(series(), job.count)):
        if index not in known:
            painting = paintings.read("things", index, PREDICTIONS)
            kept.add({"part": "things", "index": index, **look(session, classifier, painting, question)})
    answers = [kept.of("things")[index] for index in range(job.count)]
    return thing_figures(answers, who, session.ranker is not None)


@torch.no_grad()
def look(session: Session, classifier: Any, painting: Painting, question: Question) -> dict[str, Any]:
    """What is seen of one question's predictions, best first, and of the thing that is pasted there."""
    assert question.pasted is not None
    order = session.order(painting, question.prompt)
    size = question.size
    asked = Input("", Path(), Path(), question.prompt, question.noun, question.classes)
    pasted = part_of(question.pasted, question)
    x = torch.cat([painting.x[order], pasted])
    *right, known = classifier.right(x, painting.mask, Frame(0, 0, size, size, (size, size)), asked)
    *energy, reference = gradient_energy(x, painting.mask)
    return {
        "noun": question.noun,
        "prompt": question.prompt,
        "photo": question.photo,
        "mask": question.kind,
        "first": order.index(0),
        "right": right,
        "pasted": known,
        "energy": [round(one, 7) for one in energy],
        "pasted_energy": round(reference, 7),
    }


def thing_figures(answers: Sequence[Mapping[str, Any]], who: str, ranked: bool) -> list[Figure]:
    """The figures of the part `things`."""
    first = [float(one["right"][one["first"]]) for one in answers]
    best = [float(one["right"][0]) for one in answers]
    pasted = [float(one["pasted"]) for one in answers]
    of_any = [float(any(one["right"])) for one in answers]
    names = {"first": "the first prediction", "best": f"the best of {PREDICTIONS} by the ranker"}
    seen = f"top 5 of {who}"
    figures = [
        Figure.of("things", f"{names['first']}, {seen}", "%", estimate(first), 100),
        Figure.of("things", f"{names['best']}, {seen}", "%", estimate(best), 100, note="" if ranked else "no ranker"),
        Figure.of("things", f"any of the {PREDICTIONS}, {seen}", "%", estimate(of_any), 100),
        Figure.of("things", f"the same things pasted by their own alpha, {seen}", "%", estimate(pasted), 100),
        Figure.of("things", f"{names['first']}, of what is pasted", "%", ratio(first, pasted), 100, target=FIRST_SHARE),
        Figure.of("things", f"{names['best']}, of what is pasted", "%", ratio(best, pasted), 100, target=BEST_SHARE),
    ]
    energy = [one["energy"][one["first"]] for one in answers]
    sharp = ratio(energy, [one["pasted_energy"] for one in answers])
    return [
        *figures,
        Figure.of("things", "sharpness: gradient energy over the pasted thing's", "", sharp, target=MIN_SHARP),
    ]


def _autoencoder(session: Session) -> list[Figure]:
    job = session.job
    generator = torch.Generator().manual_seed(split_seed(job.split, job.seed) + 2)
    album = Album(job.split, job.data / "sources").deal(generator)
    photographs = []
    for file, picture, part in islice(album, HELD_OUT):
        photographs.append(part_of(picture, Question(picture, picture[..., 0], "", file, "", part)))
    figures = []
    sets = {"photographs": (torch.cat(photographs), PHOTOGRAPHS_DB), "composites": (_composites(job), COMPOSITES_DB)}
    for name, (x, target) in sets.items():
        values = _psnr(session, x, SIZE)
        title = f"first stage at {SIZE} pixels, {name}"
        figures.append(Figure.of("autoencoder", title, "dB", estimate(values), target=target))
        if session.own_size != SIZE:
            seen = estimate(_psnr(session, x, session.own_size))
            figures.append(Figure.of("autoencoder", f"at the model's {session.own_size} pixels, {name}", "dB", seen))
    return figures


def _composites(job: ThingsJob) -> Tensor:
    """Composites (n, 3, 256, 256) in [-1, 1] before photographs of the split, of cut-outs that training has not."""
    folder = job.data / "cutouts"
    chosen = [cutout for cutout in read_cutouts(folder) if cutout.split != "train"]
    things = Things(chosen, folder, Photographs.of(job.split, job.data / "sources"))
    images = things.render(HELD_OUT, split_seed(job.split, job.seed) + 3, 0).images
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _psnr(session: Session, x: Tensor, size: int) -> list[float]:
    """Of each picture, through the first stage at a side of `size` pixels and back."""
    values = []
    for one in x.split(1):
        small = one if size == SIZE else F.interpolate(one, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        stage = session.first_stage
        back = stage.decode(stage.encode(small.to(session.device)).mode()).float().cpu()
        values.append(float(psnr(back if size == SIZE else F.interpolate(back, one.shape[2:], mode="bicubic"), one)))
    return values


def _shapes(session: Session) -> list[Figure]:
    job = session.job
    if job.sampler != "ddim":
        raise UserError("shapes are measured as the first model's were: `parts=shapes` needs `sampler=ddim`")
    where = job.outdir / "shapes"
    run_evaluation(
        Evaluation(
            where,
            str(session.model),
            n_triples=job.n_triples,
            parts=("edits",),
            seed=split_seed(job.split, job.seed),
            device=job.device,
            ddim_steps=job.ddim_steps,
            region=job.region,
            context=job.context,
            workers=job.workers,
            clip=session.own_ranker,
        )
    )
    lines = (where / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    answers = [line for line in map(json.loads, lines) if line["part"] == "edits"]
    figures = []
    for ranked in (False, True):
        title = f"the best of {PREDICTIONS} by the ranker" if ranked else "the first prediction"
        for attribute in ("color", "shape", "material", "all"):
            hits = estimate([float(_is_right(one, attribute, ranked)) for one in answers])
            name = {"all": "all three", "color": "colour"}.get(attribute, attribute)
            note = "no ranker" if ranked and not answers[0]["ranked"] else ""
            figures.append(Figure.of("shapes", f"{title}, {name}", "%", hits, 100, note=note))
    return figures


def _is_right(answer: Mapping[str, Any], attribute: str, ranked: bool) -> bool:
    verdict = answer["verdicts"][0 if ranked else answer["seeds"].index(min(answer["seeds"]))]
    return all(verdict[key] == name for key, name in answer["expected"].items() if attribute in (key, "all"))


def _sheet(session: Session) -> list[Figure]:
    job = session.job

    def series() -> Iterator[Question]:
        return sheet_questions(job.split, job.seed, session.words, job.data / "sources")

    paintings = session.paintings("sheet", series(), ON_SHEET)
    pairs, captions, rows = [], [], []
    for index, question in enumerate(islice(series(), ON_SHEET)):
        painting = paintings.read("sheet", index, PREDICTIONS)
        best = session.order(painting, question.prompt)[0]
        before = np.asarray(to_pil(painting.source))
        pairs.append((report.marked(before, painting.mask[0, 0].numpy()), to_pil(painting.x[best : best + 1])))
        captions.append(f"{question.prompt}, {question.kind}")
        rows.append({"number": index, "prompt": question.prompt, "mask": question.kind, "photo": question.photo})
    report.draw_sheet(job.outdir, pairs, captions)
    report.write_form(job.outdir / "eyes.csv", rows)
    told = report.read_forms(job.outdir, len(rows))
    if not told:
        note = "look at sheet/, and fill copies of eyes.csv: eyes-1.csv, eyes-2.csv"
        return [Figure("sheet", "would you keep it?", "%", None, count=len(rows), note=note)]
    return [Figure.of("sheet", f"would you keep it? {name}", "%", one, 100) for name, one in told.items()]


PARTS: dict[str, Callable[[Session], list[Figure]]] = {
    "things": _things,
    "autoencoder": _autoencoder,
    "shapes": _shapes,
    "sheet": _sheet,
}


def _read_figures(path: Path) -> tuple[dict[str, Any] | None, list[Figure]]:
    """The settings and figures of an earlier run; none where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, []
    names = Figure.__dataclass_fields__
    return content["settings"], [Figure(**{name: row[name] for name in names}) for row in content["figures"]]


def _write(job: ThingsJob, settings: Mapping[str, Any], figures: Sequence[Figure]) -> None:
    rows = [asdict(figure) | {"outcome": figure.outcome} for figure in figures]
    with atomic_file(job.outdir / "things.json") as file:
        file.write((json.dumps({"settings": settings, "figures": rows}, indent=1) + "\n").encode())
    notes = ["in brackets 95 % intervals by the bootstrap over inputs"]
    if job.split == "val":
        notes.insert(0, "validation: what weights are chosen by, and no figure for a table")
    with atomic_file(job.outdir / "things.md") as file:
        file.write(report.markdown(figures, notes).encode())
