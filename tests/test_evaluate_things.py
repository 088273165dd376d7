"""The evaluation of everyday things: questions, arithmetic, forms, card, and a run with a tiny model."""

import csv
import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldm.backbones import zoo
from ldm.cli import run
from ldm.data.things import photographs
from ldm.data.things.cutouts import Cutout
from ldm.data.things.nouns import NOUNS
from ldm.data.things.photographs import PHOTOGRAPHS, Photograph
from ldm.errors import UserError
from ldm.evaluation import things, things_questions
from ldm.evaluation.jobs import ThingsJob
from ldm.evaluation.measures import ratio
from ldm.evaluation.things import as_model, beside, evaluate_things, gradient_energy, thing_figures
from ldm.evaluation.things_card import log_table, write_card
from ldm.evaluation.things_classes import CLASSES
from ldm.evaluation.things_questions import (
    MASKS,
    SHEET_MASKS,
    mask_around,
    nouns_of,
    sheet_mask,
    sheet_questions,
    thing_questions,
)
from ldm.evaluation.things_report import Figure, markdown, read_forms, write_form
from scripts import evaluate_things as script
from scripts import model_card
from tests.test_training import first_stage_checkpoint
from tests.tiny import save_tiny_model

WORDS = {"cup": "mug", "dog": "dog"}
FEW = (
    *(one for one in PHOTOGRAPHS if one.file in ("chelsea.png", "coffee.png")),
    Photograph("grass.png", "skimage", "val"),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Cut-outs of two nouns, as make_things.py leaves them."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "cutouts").mkdir()
    listed = []
    for i, (noun, split) in enumerate([("cup", "both"), ("dog", "val"), ("dog", "train")]):
        image = Image.new("RGBA", (60, 40))
        ImageDraw.Draw(image).ellipse((0, 0, 59, 39), fill=(200, 30 * i, 30, 255))
        image.save(folder / "cutouts" / f"{i}.png")
        listed.append(asdict(Cutout(f"{i}.png", noun, "fluent", f"object-{i}", "MIT", "Somebody", split)))
    (folder / "cutouts" / "index.json").write_text(json.dumps(listed))
    (folder / "CREDITS.md").write_text("| package | licence |\n| --- | --- |\n| pictures | MIT |\n")
    return folder


@pytest.fixture(autouse=True)
def few_photographs(monkeypatch):
    monkeypatch.setattr(things_questions, "PHOTOGRAPHS", FEW)
    monkeypatch.setattr(photographs, "PHOTOGRAPHS", FEW)


def test_every_class_is_one_of_imagenet_and_every_noun_has_one():
    assert len(CLASSES) > 60 and CLASSES.keys() <= NOUNS.keys()
    assert all(classes and classes[0] >= 0 and classes[-1] < 1000 for classes in CLASSES.values())
    assert CLASSES["hot dog"] == (934,) and 207 in CLASSES["dog"] and 934 not in CLASSES["dog"]


def test_a_model_is_asked_for_the_nouns_that_it_knows_as_things():
    words = nouns_of("scenes")
    assert words["cup"] == "mug" and words["dice"] == "die"
    assert "orange" not in words, "its orange is a colour"


def same(a, b) -> bool:
    return np.array_equal(a.mask, b.mask) and (a.prompt, a.photo, a.part) == (b.prompt, b.photo, b.part)


def test_questions_are_the_same_for_a_seed_and_others_for_another_split(data):
    few, more, others = (
        list(islice(thing_questions(split, 3, WORDS, data), count))
        for split, count in (("test", 3), ("test", 6), ("val", 3))
    )
    assert all(same(a, b) for a, b in zip(few, more, strict=False))
    assert {one.photo for one in more} == {"chelsea.png", "coffee.png"} and {one.photo for one in others} == {
        "grass.png"
    }
    assert {one.prompt for one in more} == {"a mug", "a dog"} and {one.kind for one in more} == set(MASKS)
    sheets = [list(islice(sheet_questions(split, 3, WORDS, data), 10)) for split in ("test", "val")]
    assert {one.kind for one in sheets[0]} == set(SHEET_MASKS)
    assert not {one.photo for one in sheets[0]} & {one.photo for one in sheets[1]}


def test_what_is_pasted_lies_in_the_mask_and_no_training_picture_is(data):
    for one in islice(thing_questions("test", 0, WORDS, data), 8):
        changed = (one.image != one.pasted).any(-1)
        assert changed.any() and not (changed & (one.mask == 0)).mean() > 0.002
        left, top, side = one.part
        assert changed[top : top + side, left : left + side].sum() == changed.sum()
        assert one.classes == CLASSES[one.noun]
        if one.noun == "dog":
            assert (one.pasted[changed][:, 1] < 60).mean() > 0.9, "the third cut-out is training's"


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_around_its_box(kind):
    for seed in range(5):
        mask = mask_around(generator(seed), (100, 120), (30, 40, 80, 70), kind)
        assert set(np.unique(mask)) == {0, 255}
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        assert columns[0] <= 31 and columns[-1] >= 78 and rows[0] <= 41 and rows[-1] >= 68


@pytest.mark.parametrize("kind", SHEET_MASKS)
def test_masks_of_the_sheet_are_what_they_are_called(kind):
    for seed in range(6):
        mask, (left, top, side) = sheet_mask(generator(seed), (300, 400), (50, 40, 200), kind)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        assert len(rows) and 0 <= left <= 400 - side and 0 <= top <= 300 - side
        touches = rows[-1] == 299 or columns[0] == 0 or columns[-1] == 399
        share = (mask > 0).sum() / (len(rows) * len(columns))
        if kind == "border":
            assert touches
        if kind == "thin":
            assert (mask > 0).sum() < 0.06 * side * side
        if kind == "person":
            assert len(rows) > 1.3 * len(columns) and share < 0.75
        if kind == "ellipse":
            assert share == pytest.approx(np.pi / 4, abs=0.03)


def test_gradient_energy_is_that_of_a_ramp_and_looks_at_no_border():
    x = torch.arange(20.0).mul(0.05).expand(1, 3, 20, 20).clone()
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 5:15, 5:15] = 1
    assert gradient_energy(x, mask) == pytest.approx([0.05**2], rel=1e-4)
    inside = x.clone()
    inside[..., :5, :] = 1  # a seam at the mask's border
    assert gradient_energy(inside, mask) == gradient_energy(x, mask)
    assert gradient_energy(torch.zeros(2, 3, 20, 20), mask) == [0, 0]


def test_a_ratio_is_of_sums_and_its_interval_of_pairs():
    one = ratio([1, 0, 1, 0], [1, 1, 1, 1])
    assert one.value == 0.5 and one.low < 0.5 < one.high and one.count == 4
    same = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (same.value, same.low, same.high) == (2, 2, 2)
    assert ratio([0.0], [0.0]).value is None


def answer(right: list[bool], first: int, pasted: bool) -> dict:
    return {"right": right, "first": first, "pasted": pasted, "energy": [0.2] * len(right), "pasted_energy": 0.4}


def test_figures_are_of_the_first_the_best_and_the_ceiling():
    answers = [answer([True, False], 1, True), answer([True, True], 0, True)] * 2
    values = {one.name: one.value for one in thing_figures(answers, "lite2", True)}
    assert values["the first prediction, top 5 of lite2"] == 50
    assert values["the best of 4 by the ranker, of what is pasted"] == 100
    assert values["sharpness: gradient energy over the pasted thing's"] == 0.5


def test_another_model_stands_beside_and_is_the_target_of_shapes():
    ours = [Figure("shapes", "colour", "%", 93.0), Figure("things", "first", "%", 10.0)]
    shown = beside(ours, [replace(ours[0], value=96.0)])
    assert (shown[0].target, shown[0].outcome, shown[0].other) == (94.0, "fail", 96.0)
    assert shown[1] == ours[1] and "the other model" in markdown(shown) and "the other model" not in markdown(ours)


def test_forms_are_filled_by_hand_and_read(tmp_path):
    write_form(tmp_path / "eyes.csv", [{"number": i, "prompt": "a fox"} for i in range(4)])
    lines = (tmp_path / "eyes.csv").read_text().splitlines()
    (tmp_path / "eyes-anna.csv").write_text(
        "\n".join([lines[0], *(line + "yes" for line in lines[1:4]), lines[4] + "No"])
    )
    assert read_forms(tmp_path, 4)["anna"].value == 0.75
    (tmp_path / "eyes-bo.csv").write_text("\n".join([lines[0], lines[1] + "perhaps"]))
    with pytest.raises(UserError, match='edit 0: keep is "perhaps"'):
        read_forms(tmp_path, 4)


class Reddish:
    """A classifier that knows what is red."""

    name = "reddish"

    def right(self, x, mask, frame, one):
        return [bool(value > 0) for value in ((x[:, 0] - x[:, 2]) * mask[:, 0]).mean((1, 2))]


@pytest.fixture
def job(data, tmp_path, monkeypatch) -> ThingsJob:
    monkeypatch.setattr(zoo, "OPENAI_CLIP", None)
    monkeypatch.setattr(things, "load_classifier", lambda name: Reddish())
    monkeypatch.setattr(things, "ON_SHEET", 2)
    monkeypatch.setattr(things, "HELD_OUT", 2)
    (tmp_path / "tiny").mkdir()
    save_tiny_model(tmp_path / "tiny")
    return ThingsJob(
        model=str(tmp_path / "tiny"),
        parts="things,autoencoder,sheet",
        count=2,
        ddim_steps=2,
        device="cpu",
        data=data,
        outdir=tmp_path / "out",
    )


def test_a_run_writes_its_table_its_sheet_and_its_form_and_resumes(job, monkeypatch, capsys):
    figures = evaluate_things(job)
    assert [one.part for one in figures] == ["things"] * 7 + ["autoencoder"] * 4 + ["sheet"]
    ceiling = next(one for one in figures if "pasted by their own alpha" in one.name)
    assert ceiling.value == 100, "what is pasted is red"
    assert all(one.note == "no ranker" for one in figures if one.name.startswith("the best of 4 by the ranker, top"))
    out = job.outdir
    assert (out / "contact_sheet.png").exists() and len(list((out / "sheet").iterdir())) == 2
    assert len(list(csv.DictReader((out / "eyes.csv").open()))) == 2
    assert "| things | the first prediction" in (out / "things.md").read_text()
    monkeypatch.setattr(things.ThingsPainter, "paint", lambda *_, **__: pytest.fail("painted again"))
    (out / "eyes-me.csv").write_text((out / "eyes.csv").read_text().replace(".png,\n", ".png,yes\n"))
    argv = ["--model", job.model, "--parts", "sheet", "--ddim_steps", "2", "--device", "cpu", "--data", str(job.data)]
    assert run(script.main, [*argv, "-o", str(out)]) == 0
    assert "would you keep it? me | 100.0" in capsys.readouterr().out
    assert run(script.main, [*argv[:5], "3", *argv[6:], "-o", str(out)]) == 2
    assert "painted with another ddim_steps" in capsys.readouterr().err


def test_validation_looks_through_another_classifier_and_says_so(job, monkeypatch):
    asked = []
    monkeypatch.setattr(things, "load_classifier", lambda name: asked.append(name) or Reddish())
    for split in ("test", "val"):
        evaluate_things(replace(job, parts="things", count=1, split=split, outdir=job.outdir / split))
    assert asked == ["efficientnet-lite2", "efficientnet-lite0"]
    assert "no figure for a table" in (job.outdir / "val" / "things.md").read_text()


def test_of_a_first_stage_alone_its_own_part_is_measured(job, tmp_path, data):
    stage = first_stage_checkpoint(tmp_path / "last.ckpt")
    assert as_model(str(stage), tmp_path / "m") is None and as_model("scenes", tmp_path / "m") == "scenes"
    own = replace(job, model=str(tmp_path), parts="autoencoder", outdir=tmp_path / "stage")
    assert evaluate_things(own)[0].name == "first stage at 256 pixels, photographs"
    with pytest.raises(UserError, match="is a first stage"):
        evaluate_things(replace(own, parts="things"))


def test_what_cannot_be_is_refused(job):
    for changed, message in (
        ({"parts": "colours"}, "give some of things"),
        ({"against": job.outdir / "none"}, "holds no things.json"),
        ({"data": job.outdir / "none"}, "make them with scripts/make_things.py"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_things(replace(job, **{"parts": "things", **changed}))


def test_a_card_takes_its_figures_from_the_evaluation_and_refuses_others(job, data, tmp_path, capsys):
    log = tmp_path / "runs" / "things-decoder" / "csv" / "version_0"
    log.mkdir(parents=True)
    (log / "metrics.csv").write_text("epoch,step,train/loss,val/psnr\n0,9,0.5,\n0,99,,25.5\n0,199,,27.25\n")
    assert "| 200 | 27.25 |" in log_table(log.parents[1])
    alone = tmp_path / "runs" / "alone" / "csv" / "version_0"
    alone.mkdir(parents=True)
    (alone / "metrics.csv").write_text("epoch,step,train/loss\n0,9,0.5\n0,99,0.25\n")
    assert "on training composites" in log_table(alone.parents[1]) and "| 100 | 0.25 |" in log_table(alone.parents[1])
    credits = data / "CREDITS.md"
    text = write_card(job.model, credits, logs=[log.parents[1]], name="things")
    assert "Not measured yet" in text and "| pictures | MIT |" in text
    evaluate_things(replace(job, parts="autoencoder"))
    figures = json.loads((job.outdir / "things.json").read_text())["figures"]
    argv = [job.model, "--credits", str(credits), "--evaluation", str(job.outdir)]
    assert run(model_card.main, argv) == 0
    text = (Path(job.model) / "README.md").read_text()
    assert f"{figures[0]['value']:.1f} [" in text
    evaluate_things(replace(job, parts="autoencoder", split="val", outdir=job.outdir / "val"))
    assert run(model_card.main, [*argv[:-1], str(job.outdir / "val")]) == 2
    assert "validation split" in capsys.readouterr().err
