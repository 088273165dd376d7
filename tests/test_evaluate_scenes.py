"""The evaluation: its questions, its arithmetic, its files, and a whole run with tiny models."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldm.backbones import zoo
from ldm.cli import run
from ldm.data.scenes.backgrounds import HELD_OUT, KINDS, Photo, read_photo
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.materials import MATERIALS
from ldm.data.scenes.shapes import SHAPES
from ldm.editing.editor import Editor
from ldm.errors import MissingExtra, UserError
from ldm.evaluation import evaluation, report
from ldm.evaluation.answers import Answers
from ldm.evaluation.evaluation import PARTS, Evaluation, run_evaluation
from ldm.evaluation.judging import load_judge, verdicts
from ldm.evaluation.paintings import Painter, Painting, Paintings
from ldm.evaluation.report import Row
from ldm.evaluation.triples import (
    MASKS,
    SCENIC,
    background_triples,
    draw_mask,
    held_out_windows,
    object_triples,
    scribble_triples,
)
from ldm.imaging.images import to_pil, to_tensor
from ldm.training.judge import JudgeTrainer, export
from scripts import evaluate_scenes
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[1]
SERIES = [object_triples, background_triples, scribble_triples]
BALL = {"shape": "ball", "material": "yarn", "color": "pink"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A models folder with a tiny judge, and a tiny model of its own."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        export(
            JudgeTrainer({"target": "ldm.models.judge.Judge", "params": {"widths": [8], "size": 16}}),
            folder / "judge" / "scenes",
        )
    (folder / "tiny").mkdir()
    save_tiny_model(folder / "tiny")
    return folder


@pytest.fixture
def job(models, tmp_path, monkeypatch):
    """Makes `Evaluation`s of the tiny model that take a blink."""
    monkeypatch.setenv("LDM_MODELS", str(models))
    monkeypatch.setattr(zoo, "OPENAI_CLIP", None)
    monkeypatch.setattr(evaluation, "RENDERS", 16)
    monkeypatch.setattr(evaluation, "PHOTOGRAPHS", 2)

    def make(*parts: str, n_triples: int = 2, **options) -> Evaluation:
        places = {"model": str(models / "tiny"), "outdir": tmp_path / "out", "device": "cpu", "ddim_steps": 2}
        return Evaluation(**{**places, "n_triples": n_triples, "parts": parts, **options})

    return make


def same(a, b) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.mask, b.mask) and (a.prompt, a.photo) == (b.prompt, b.photo)


@pytest.mark.parametrize("series", SERIES)
def test_the_triples_are_the_same_for_the_same_seed(series):
    few, more, others = (list(islice(series(seed), count)) for seed, count in ((7, 3), (7, 5), (8, 3)))
    assert all(same(a, b) for a, b in zip(few, more, strict=False))
    assert not any(same(a, b) for a, b in zip(few, others, strict=True))


@pytest.mark.parametrize("series", SERIES)
def test_a_triple_is_what_an_edit_takes(series):
    for triple in islice(series(0), 8):
        assert triple.photo in HELD_OUT
        whole = read_photo(Photo(triple.photo, 1.0)).shape[1:]
        assert triple.x.shape[2:] == whole or (series is background_triples and triple.x.shape[2] == triple.x.shape[3])
        assert triple.x.abs().max() <= 1.001
        assert triple.mask.shape == (1, 1, *triple.x.shape[2:]) and set(triple.mask.unique().tolist()) == {0, 1}


def test_masks_of_whole_photographs_are_those_of_their_parts():
    for whole, part in zip(islice(object_triples(3), 8), islice(object_triples(3, 64), 8), strict=True):
        assert part.x.shape == (1, 3, 64, 64) and part.mask.shape == (1, 1, 64, 64)
        assert (whole.prompt, whole.expected, whole.photo) == (part.prompt, part.expected, part.photo)
        (rows, columns), photo = ((whole.mask[0, 0] > 0).any(dim).nonzero() for dim in (1, 0)), whole.x
        seen = photo[..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        (rows, columns) = ((part.mask[0, 0] > 0).any(dim).nonzero() for dim in (1, 0))
        expected = part.x[..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        scaled = F.interpolate(seen, expected.shape[2:], mode="bilinear", antialias=True)
        assert (scaled - expected).abs().mean() < 0.2  # the mask's edge lies between pixels


def test_prompts_say_what_is_expected_and_deal_every_value_equally():
    triples = list(islice(object_triples(0, 32), 48))
    for triple in triples:
        shape, material, color = (triple.expected[key] for key in ("shape", "material", "color"))
        words = color, MATERIALS[material].adjectives[0], SHAPES[shape].words[0]
        assert triple.prompt.split(" ", 1)[1] == " ".join(words)
        assert material not in SHAPES[shape].avoids
    for key, table in (("shape", SHAPES), ("color", COLORS)):
        assert [sum(triple.expected[key] == name for triple in triples) for name in table] == [4] * 12
    assert {triple.expected["material"] for triple in triples} == set(MATERIALS)
    assert [sum(triple.photo == file for triple in triples) for file in HELD_OUT] == [12] * 4


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_inside_and_as_large_as_the_trainings_objects(kind):
    generator = torch.Generator().manual_seed(0)
    extents = []
    for _ in range(60):
        mask = draw_mask(generator, 128, kind)[0, 0]
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert min(rows.min(), columns.min()) >= 1 and max(rows.max(), columns.max()) <= 126
        extents += [rows.numel() / 2, columns.numel() / 2]
    assert 12 < min(extents) < 25 and 45 < max(extents) <= 58


def test_backgrounds_keep_the_middle():
    for triple in islice(background_triples(0), 16):
        name, middle = triple.expected["background"], triple.x.shape[-1] // 2
        assert triple.prompt == KINDS[name].words[0] and name in SCENIC
        assert triple.mask[0, 0, middle, middle] == 0 and triple.mask[0, 0, 0].all() and triple.mask[0, 0, :, 0].all()
        assert 0.5 < triple.mask.mean() < 0.9


def test_a_scribble_is_a_flat_blob_of_the_prompts_colour_inside_its_mask():
    scribbles = list(islice(scribble_triples(3), 4))
    for triple in scribbles:
        rgb = torch.tensor(COLORS[triple.expected["color"]].rgb).view(1, 3, 1, 1) * 2 - 1
        blob = (triple.x - rgb).abs().amax(1, keepdim=True) < 1e-6
        assert blob.sum() > 100
        assert (triple.mask[blob] == 1).all() and triple.mask.sum() > blob.sum()


def test_edits_are_made_at_the_place_that_was_asked_for(job, monkeypatch):
    tasks, edit = [], Editor.run
    monkeypatch.setattr(Editor, "run", lambda self, some, **more: tasks.extend(some) or edit(self, some, **more))
    for region in ("auto", "whole"):
        outdir = job("edits").outdir / region
        run_evaluation(job("edits", n_triples=1, region=region, context=0.1, outdir=outdir))
    auto, whole = (task.canvas.window for task in tasks)
    assert (whole.height, whole.width) == whole.image_size and auto.height < whole.height


def test_held_out_windows():
    assert held_out_windows(5, 0, 32).shape == (5, 3, 32, 32)
    assert torch.equal(held_out_windows(5, 0, 32)[:2], held_out_windows(2, 0, 32))


def answer(*right: str, ranked: bool = True, seeds: tuple[int, ...] | None = None) -> dict:
    """An answer whose predictions are right in the attributes that each of `right` names by its first letters."""
    names = {"s": "shape", "m": "material", "c": "color"}
    made = [{key: BALL[key] if letter in which else "?" for letter, key in names.items()} for which in right]
    seeds = seeds or tuple(range(len(right)))
    return {"part": "edits", "expected": BALL, "verdicts": made, "seeds": seeds, "ranked": ranked, "prompt": "a ball"}


def test_first_and_best():
    answers = [answer("smc", "", seeds=(5, 4)), answer("c", "sc", seeds=(9, 10))]  # the best of the first is seed 5
    assert [report.percent(answers, key) for key in ("color", "shape", "material", "all")] == [50, 0, 0, 0]
    assert [report.percent(answers, key, best=True) for key in ("color", "shape", "all")] == [100, 50, 50]
    rows = report.accuracy_rows("edits", answers, {"color": 50.0, "all": 65.0}, gain=10.0)
    assert [(row.name, row.reached, row.target, row.outcome) for row in rows] == [
        ("first prediction, color", 50, 50, "pass"),
        ("first prediction, all three", 0, 65, "fail"),
        ("best of 2 by CLIP, color", 100, None, ""),
        ("best of 2 by CLIP, all three", 50, 10, "pass"),
    ]


def test_without_a_clip_the_best_is_not_measured():
    rows = report.accuracy_rows("edits", [answer("smc", "", ranked=False)], {"all": 65.0}, gain=10.0)
    assert [(row.reached, row.outcome) for row in rows] == [(100, "pass"), (None, "not measured")]
    assert "no CLIP" in report.markdown(rows)


def test_fifths_of_a_ranking():
    answers = [answer(*["smc"] * 5, *["c"] * 14, *[""] * 5), answer(*["smc"] * 2, *["sm"] * 22)]
    assert report.percent_by_rank(answers, "all") == pytest.approx([70, 0, 0, 0, 0])
    assert report.percent_by_rank(answers, "shape") == pytest.approx([100, 50, 50, 50, 50])
    top, bottom, gap = report.ranking_rows(answers, 20.0)
    assert (top.reached, bottom.reached, gap.reached, gap.outcome) == (70, 0, 70, "pass")


def test_by_class():
    cube = answer("smc")
    cube["expected"] = BALL | {"shape": "cube"}
    assert report.by_class([answer("s"), answer(""), cube], "shape") == {"ball": 50.0, "cube": 0.0}


@pytest.mark.parametrize(
    ("reached", "target", "at_least", "outcome"),
    [
        (95.0, 95.0, True, "pass"),
        (94.9, 95.0, True, "fail"),
        (20.0, 20.0, False, "pass"),
        (20.1, 20.0, False, "fail"),
        (None, 20.0, False, "not measured"),
        (3.0, None, True, ""),
    ],
)
def test_outcomes(reached, target, at_least, outcome):
    row = Row("cost", "time", "s", reached, target, at_least)
    assert row.outcome == outcome
    cells = report.markdown([row]).splitlines()[2].split("|")
    assert cells[6].strip() == outcome
    assert cells[3].strip() == ("" if target is None else f"at {'least' if at_least else 'most'} {target:.4g} s")


def test_the_verdict_under_a_prediction(monkeypatch):
    seen = []
    monkeypatch.setattr(
        report, "make_grid", lambda pictures, columns, captions: seen.append(captions) or Image.new("RGB", (200, 40))
    )
    report.draw_row(answer("smc", "c", seeds=(3, 2)), [])
    assert seen == [["input", "mask", "right", "first: ?, ?"]]


def test_the_plot_of_the_ranking(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot_ranking([answer(*["smc"] * 5, *[""] * 5)], tmp_path / "ranking.png")
    with Image.open(tmp_path / "ranking.png") as picture:
        assert picture.width > 300 and len(picture.getcolors(1 << 20)) > 10


def test_a_missing_matplotlib_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match="matplotlib"):
        report.require_plot()


def test_answers_survive_and_belong_to_their_settings(tmp_path):
    path = tmp_path / "out" / "answers.jsonl"
    Answers(path, {"seed": 0}).add({"part": "edits", "index": 3})
    with path.open("a") as file:
        file.write('{"part": "edits", "ind')  # the power failed
    assert Answers(path, {"seed": 0}).of("edits") == {3: {"part": "edits", "index": 3}}
    Answers(path, {"seed": 0}).add({"part": "edits", "index": 4})
    assert list(Answers(path, {"seed": 0}).of("edits")) == [3, 4]
    with pytest.raises(UserError, match="another seed: give another `outdir`"):
        Answers(path, {"seed": 1})


def test_a_damaged_file_of_answers_is_told(tmp_path):
    (tmp_path / "answers.jsonl").write_text("nonsense\n")
    with pytest.raises(UserError, match="is damaged"):
        Answers(tmp_path / "answers.jsonl", {})


def test_a_run_answers_what_the_model_paints_and_resumes_where_it_stopped(job, models, tmp_path, monkeypatch):
    first = run_evaluation(job("edits", n_triples=1))
    assert [row.part for row in first] == ["edits"] * 5
    saved, save = [], Paintings.save
    monkeypatch.setattr(Paintings, "save", lambda self, *args: saved.append(args[:2]) or save(self, *args))
    rows = run_evaluation(job("edits", "background", "scribble", n_triples=2))
    assert saved == [("edits", 1), ("background", 0), ("scribble", 0)]
    counts = {row.part: row.count for row in rows if row.reached is not None}
    assert counts == {"edits": 2, "background": 1, "scribble": 1}

    out = tmp_path / "out"
    settings, *lines = map(json.loads, (out / "answers.jsonl").read_text().splitlines())
    assert settings["seed"] == 0 and len(settings["model_sha256"]) == 64
    triple = list(islice(object_triples(0), 2))[1]
    editor = Editor.load(str(models / "tiny"), device="cpu")
    mask = (triple.mask[0, 0] * 255).byte().numpy()
    edited = editor.edit(to_pil(triple.x), mask, triple.prompt, seed=1000, n_samples=4, ddim_steps=2)
    assert lines[1]["expected"] == triple.expected and lines[1]["seeds"] == [1000, 1001, 1002, 1003]
    x = torch.cat([to_tensor(to_pil(one)) for one in edited.x])
    assert lines[1]["verdicts"] == verdicts(load_judge(), x, edited.task.canvas.x_mask)

    saved = json.loads((out / "evaluation.json").read_text())
    assert [row["name"] for row in saved["rows"]] == [row.name for row in rows]
    assert set(saved["by_class"]) == {"shape", "material", "color"}
    assert (out / "evaluation.md").read_text() == report.markdown(rows)
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 800 and sheet.height > 200  # four rows, two by two

    written = (out / "answers.jsonl").read_text()
    run_evaluation(job("scribble", n_triples=2))
    assert (out / "answers.jsonl").read_text() == written  # those of the other parts stay


def test_the_parts_that_edit_nothing(job):
    rows = run_evaluation(job("autoencoder", "judge", "ranking"))
    assert [row.part for row in rows] == ["autoencoder"] * 2 + ["judge"] * 8 + ["ranking"]
    assert all(0 < row.reached < 100 for row in rows[:2])
    assert all(0 <= row.reached <= 100 for row in rows if row.part == "judge" and row.count)
    assert rows[-1].outcome == "not measured"
    again = run_evaluation(job("autoencoder"))
    assert again == rows  # the other parts stay in the table


class Backwards:
    """Ranks the last prediction best."""

    def distances(self, x, mask, prompt):
        return -torch.arange(len(x)).float()


def test_ranking(job, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(evaluation, "find_ranker", lambda *_: Backwards())
    monkeypatch.setattr(evaluation, "RANKING", (2, 8))
    rows = run_evaluation(job("ranking"))
    assert [row.count for row in rows] == [2, 2, 2] and rows[2].reached == rows[0].reached - rows[1].reached
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()[1:]]
    assert [answer["seeds"] for answer in answers] == [list(range(7, -1, -1)), list(range(1007, 999, -1))]
    assert all(len(answer["verdicts"]) == 8 and answer["ranked"] for answer in answers)
    assert (tmp_path / "out" / "ranking.png").is_file()


def test_another_ranker_is_asked_about_the_same_pictures(job, tmp_path, monkeypatch):
    """A file of weights of another digest is another ranker: the table is made anew, and nothing is painted again."""
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "open_clip_model.safetensors").write_bytes(b"one")
    resolve = zoo.resolve
    monkeypatch.setattr(zoo, "resolve", lambda *args: replace(resolve(*args), clip=clip))
    monkeypatch.setattr(evaluation, "find_ranker", lambda *_: Backwards())
    # A judge that sees in each prediction something else: its brightness.
    monkeypatch.setattr(
        evaluation, "verdicts", lambda _, x, mask: [dict.fromkeys(BALL, f"{one.mean():.6f}") for one in x]
    )

    def answers() -> list[dict]:
        _, *lines = map(json.loads, (tmp_path / "out" / "answers.jsonl").read_text().splitlines())
        return lines

    run_evaluation(job("edits", "scribble", n_triples=1))
    backwards = answers()[0]
    assert backwards["seeds"] == [3, 2, 1, 0]

    (clip / "open_clip_model.safetensors").write_bytes(b"two")
    monkeypatch.setattr(Backwards, "distances", lambda self, x, mask, prompt: torch.arange(len(x)).float())
    monkeypatch.setattr(Paintings, "save", None)
    rows = run_evaluation(job("edits", n_triples=1))
    assert {row.part for row in rows} == {"edits"}
    (forwards,) = answers()
    assert forwards["seeds"] == [0, 1, 2, 3]
    assert forwards["verdicts"] == backwards["verdicts"][::-1] and forwards["verdicts"][0] != forwards["verdicts"][3]


def test_several_workers_paint_what_one_does(job, tmp_path, monkeypatch):
    run_evaluation(job("edits", n_triples=3, outdir=tmp_path / "1"))
    monkeypatch.setattr(Painter, "paint", None)  # here, and not in other processes
    run_evaluation(job("edits", n_triples=3, workers=2, outdir=tmp_path / "2"))
    one, two = (sorted((tmp_path / f"{workers}" / "paintings").glob("*.png")) for workers in (1, 2))
    assert len(one) == 3 and [file.name for file in one] == [file.name for file in two]
    for a, b in zip(one, two, strict=True):
        a, b = (np.asarray(Image.open(file)).astype(int) for file in (a, b))
        assert abs(a - b).max() <= 1


def test_paintings_come_back_as_they_were(tmp_path):
    painting = Painting(torch.rand(1, 3, 8, 8) * 2 - 1, (torch.rand(1, 1, 8, 8) > 0.5).float(), torch.zeros(5, 3, 8, 8))
    paintings = Paintings(tmp_path, {"seed": 0})
    assert not paintings.has("edits", 7)
    paintings.save("edits", 7, painting)
    back = paintings.read("edits", 7, 5)
    assert paintings.has("edits", 7) and torch.equal(back.mask, painting.mask)
    for a, b in ((back.source, painting.source), (back.x, painting.x)):
        torch.testing.assert_close(a, b, atol=1 / 254, rtol=0)
    with pytest.raises(UserError, match="does not hold 4 predictions"):
        paintings.read("edits", 7, 4)


def test_paintings_of_a_damaged_folder_are_told(tmp_path):
    (tmp_path / "settings.json").write_text("nonsense")
    with pytest.raises(UserError, match="is damaged"):
        Paintings(tmp_path, {"seed": 0})


def test_cost(job, monkeypatch):
    class Here:
        """Runs in this process what would need a new one."""

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, call, *args):
            return type(
                "Done", (), {"result": staticmethod(lambda: 5e8 if call is evaluation.four_predictions else None)}
            )

    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", Here)
    seconds, memory, shipped = run_evaluation(job("cost"))
    assert seconds.unit == "s" and seconds.outcome == "pass"
    assert memory.reached == 0.5 and memory.outcome == "pass"
    assert 0 < shipped.reached < 60
    assert "no CLIP" in seconds.note


def test_other_settings_need_another_folder(job):
    run_evaluation(job())
    with pytest.raises(UserError, match="another seed"):
        run_evaluation(job(seed=1))


def test_the_precision_of_another_machine_needs_another_folder(job, monkeypatch):
    monkeypatch.setattr("ldm.util.has_fast_bfloat16", lambda: True)
    run_evaluation(job())
    monkeypatch.setattr("ldm.util.has_fast_bfloat16", lambda: False)
    with pytest.raises(UserError, match="another precision"):
        run_evaluation(job())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--parts", "edits,colours"], 'error: --parts "edits,colours": give some of edits,'),
        (["--parts", ","], 'error: --parts ",": give some of'),
        (["--model", "nobody"], 'error: model "nobody" is neither'),
    ],
)
def test_bad_options_are_one_line(options, said, capsys, tmp_path):
    assert run(evaluate_scenes.main, [*options, "--outdir", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_triples(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate_scenes.main(["--n_triples", "0"])
    assert stop.value.code == 2 and "at least 1" in capsys.readouterr().err


def test_the_script_prints_the_table(job, models, tmp_path, capsys):
    argv = [
        "--model",
        str(models / "tiny"),
        "--parts",
        "autoencoder",
        "--outdir",
        str(tmp_path / "o"),
        "--device",
        "cpu",
    ]
    assert run(evaluate_scenes.main, [*argv, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "| autoencoder | PSNR, held-out renders" in said and "at least 28 dB" in said


def test_the_script_knows_every_part():
    assert tuple(PARTS) == evaluate_scenes.PARTS
