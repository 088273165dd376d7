"""The benchmark and its evaluation: inputs, methods, what is looked at, tables; whole runs with a tiny model."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.backbones import zoo
from ldm.cli import run
from ldm.editing.editor import Editor
from ldm.errors import UserError
from ldm.evaluation import evaluate, inputs, tables
from ldm.evaluation.answers import Answers
from ldm.evaluation.ceiling import THINGS, ceiling
from ldm.evaluation.classifiers import CLASSIFIERS, Frame, ImageNetClassifier, framed, load_classifier
from ldm.evaluation.costs import measure_cost
from ldm.evaluation.evaluate import evaluate_methods
from ldm.evaluation.inputs import Input, Label, make_benchmark, read_benchmark, rectangle
from ldm.evaluation.jobs import CLASSIFIERS as NAMES
from ldm.evaluation.jobs import EvaluationJob, MethodChoice
from ldm.evaluation.labels import imagenet_labels, scenes_labels
from ldm.evaluation.measures import Estimate, estimate
from ldm.evaluation.methods import BlendedLatent, Known, Pasted
from ldm.evaluation.paintings import Paintings, paint_all
from ldm.evaluation.registry import METHODS, choose_methods
from ldm.evaluation.summaries import fifths, fifths_table, summary
from ldm.imaging.images import load_image, to_tensor
from ldm.runs.batch.rows import good, read_rows
from ldm.runs.places import locked
from scripts import make_benchmark as script
from scripts.evaluate import main
from tests.tiny import save_tiny_model, tiny_model

pytest.importorskip("skimage")
pytest.importorskip("torchmetrics")
pytest.importorskip("efficientnet_lite_pytorch")

BALL = Label("a red ball", "ball", classes=(522, 574))
CUBE = Label("a blue cube", "cube", classes=(646,))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("evaluate") / "tiny")


@pytest.fixture
def job(model, tmp_path, monkeypatch):
    """Makes runs of the tiny model; the classifier is one that knows nothing."""
    monkeypatch.setattr(zoo, "OPENAI_CLIP", None)
    monkeypatch.setitem(CLASSIFIERS, "efficientnet-lite2", Stub)
    make_benchmark(None, tmp_path / "benchmark", 3, 0, [BALL, CUBE])

    def make(**options) -> EvaluationJob:
        own = {"outdir": tmp_path / "out", "benchmark": tmp_path / "benchmark" / inputs.FILE, "n_samples": 2}
        own |= {"model": str(model), "device": "cpu", "precision": "float32", "ddim_steps": 2, "cost": False}
        return EvaluationJob(**own | options)

    return make


class Stub:
    """Takes every second prediction for right."""

    name = "stub"

    def __init__(self, framing: str):
        self.framing = framing

    def knows(self, one: Input) -> bool:
        return bool(one.classes)

    def right(self, x, mask, frame, one):
        return [i % 2 == 0 for i in range(len(x))]


def test_a_rectangle_has_sides_of_a_fifth_to_a_half():
    generator = torch.Generator().manual_seed(0)
    sides = []
    for _ in range(200):
        mask = rectangle(generator, 60, 100)
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.shape == (60, 100) and set(np.unique(mask)) == {0, 255}
        assert (mask > 0).sum() == rows * columns  # a rectangle
        sides.append((int(rows), int(columns)))
    assert {min(rows for rows, _ in sides), max(rows for rows, _ in sides)} == {12, 30}
    assert {min(columns for _, columns in sides), max(columns for _, columns in sides)} == {20, 50}


def test_a_benchmark_is_a_series_that_the_batch_command_reads(tmp_path):
    few = read_benchmark(make_benchmark(None, tmp_path / "few", 3, 5, [BALL, CUBE]))
    more = read_benchmark(make_benchmark(None, tmp_path / "more", 6, 5, [BALL, CUBE]))
    for one, other in zip(few, more, strict=False):
        assert (one.name, one.prompt, one.classes, one.image.name) == (
            other.name,
            other.prompt,
            other.classes,
            other.image.name,
        )
        assert one.mask.read_bytes() == other.mask.read_bytes()
    assert {one.prompt for one in more} == {BALL.prompt, CUBE.prompt} and len({one.image for one in more}) == 4
    assert all(Image.open(one.mask).size == Image.open(one.image).size for one in more)
    rows = good(read_rows(tmp_path / "few" / inputs.FILE, tmp_path / "runs", {}))
    assert len(rows) == 3 and [row.job.prompt for row in rows] == [one.prompt for one in few]
    assert {photo.name for photo in inputs.package_photographs()} == set(inputs.LICENCES)


def test_photographs_of_a_folder_stay_where_they_are(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 40), "red").save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "readme.txt").write_text("no picture")
    path = make_benchmark(tmp_path / "photos", tmp_path / "out", 2, 0, [BALL])
    assert not (tmp_path / "out" / "images").exists()
    assert json.loads(path.read_text().splitlines()[0])["image"] == "../photos/a.png"
    assert [one.image.resolve() for one in read_benchmark(path)] == [(tmp_path / "photos" / "a.png").resolve()] * 2
    assert make_benchmark(tmp_path / "photos", tmp_path / "out", 2, 0, [BALL]) == path
    with pytest.raises(UserError, match="is another benchmark: give another `outdir`"):
        make_benchmark(tmp_path / "photos", tmp_path / "out", 2, 1, [BALL, CUBE])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "line 1 of .* is no input"),
        ('{"image": "a.png", "prompt": "a ball"}', "KeyError: 'mask'"),
        ("[]", "line 1 of .* is no input"),
        ("", "holds no input"),
    ],
)
def test_a_line_that_is_no_input_is_told(tmp_path, line, said):
    (tmp_path / "b.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=said):
        read_benchmark(tmp_path / "b.jsonl")


def test_a_benchmark_in_another_encoding_is_told(tmp_path):
    (tmp_path / "b.jsonl").write_bytes('{"prompt": "caf\u00e9"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match="is no text in UTF-8"):
        read_benchmark(tmp_path / "b.jsonl")


def test_photographs_that_cannot_be_read_are_left_out(tmp_path, caplog):
    folder = tmp_path / "photos"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"no picture in .*photos.* can be read"):
        make_benchmark(folder, tmp_path / "none", 2, 0, [BALL])
    Image.new("L", (5, 5)).save(folder / "tiny.png")
    found = read_benchmark(make_benchmark(folder, tmp_path / "some", 3, 0, [BALL]))
    assert {one.image.name for one in found} == {"tiny.png"} and len(found) == 3
    assert len([record for record in caplog.records if "left out: the image" in record.message]) >= 1
    assert all(0 < np.asarray(Image.open(one.mask)).astype(bool).sum() <= 4 for one in found)


def test_no_folder_no_pictures_no_labels(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        make_benchmark(tmp_path / "none", tmp_path / "o", 1, 0, [BALL])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no picture"):
        make_benchmark(tmp_path / "empty", tmp_path / "o", 1, 0, [BALL])
    with pytest.raises(UserError, match="no label to ask for"):
        make_benchmark(None, tmp_path / "o", 1, 0, [])
    assert not (tmp_path / "o").exists()


def test_labels_are_what_a_model_knows():
    names = ["coffee mug", "tennis ball", "golf ball", "meatball", "crane", "crane"]
    assert imagenet_labels(names, ["ball", "mug", "cube"]) == [
        Label("a ball", "ball", (1, 2)),
        Label("a mug", "mug", (0,)),
    ]
    assert [label.classes for label in imagenet_labels(names, None)] == [(0,), (1,), (2,), (3,), (4, 5)]
    assert all(set(label.expected) == {"shape", "material", "color"} for label in scenes_labels(0))


def test_the_masked_picture_is_placed_as_it_lies_in_the_photograph():
    x, mask = torch.ones(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1  # of a window of 100x100 at (60, 20) in a photograph of 200x100
    frame = Frame(60, 0, 100, 100, (100, 200))
    seen = framed(x, mask, frame, 200, "picture")[0, 0]
    rows, columns = ((seen > 0.5).any(dim).nonzero().flatten() for dim in (1, 0))
    assert (columns[0].item(), columns[-1].item()) == (85, 134)  # 60 + 25 .. 60 + 75
    assert (rows[0].item(), rows[-1].item()) == (75, 124)  # 50 above the oblong photograph
    square = framed(x, mask, frame, 60, "square")[0, 0]
    assert (
        square[30, 30] == 1 and square[0].max() == 0 and (square > 0.5).float().mean() == pytest.approx(0.69, abs=0.05)
    )


def test_a_squashed_window_is_a_square_again():
    x, mask = torch.ones(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[..., 24:40, 28:36] = 1  # a square in a photograph twice as wide as high
    seen = framed(x, mask, Frame(0, 0, 200, 100, (100, 200)), 60, "square")[0, 0] > 0.5
    assert seen.any(0).sum() == seen.any(1).sum()


def test_imagenet_classifiers_know_photographs():
    cat = Input("cat", inputs.package_photograph("chelsea.png"), Path("-"), "a cat", classes=(281, 282, 285))
    x = to_tensor(load_image(cat.image).rgb)
    frame = Frame(0, 0, x.shape[3], x.shape[2], (x.shape[2], x.shape[3]))
    for name in ("efficientnet-lite0", "efficientnet-lite2"):
        classifier = load_classifier(name, "square")
        assert classifier.right(x, torch.ones(1, 1, *x.shape[2:]), frame, cat) == [True]
        assert classifier.right(x, torch.ones(1, 1, *x.shape[2:]), frame, replace(cat, classes=(504,))) == [False]
        assert classifier.name == f"{name}, top 5, masked square"


def test_torchvision_is_asked_for_the_papers_classifier(monkeypatch):
    from torchvision import models

    def offline(name, weights):
        raise OSError("no network")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(UserError, match="take `classifier=efficientnet-lite2`"):
        load_classifier("efficientnet_b7")


def test_the_ceiling_is_of_real_things_of_the_masks_size(tmp_path):
    several = read_benchmark(make_benchmark(None, tmp_path, 5, 0, [BALL]))
    seen = []

    class Net:
        def __call__(self, pixels):
            seen.append(pixels)
            return torch.eye(1000)[[THINGS[len(seen) - 1].classes[0]]]

    classifier = ImageNetClassifier("stub", Net(), 64, lambda x: x, "picture")
    assert ceiling(classifier, several) == [True] * 5
    assert all(0.02 < (pixels > 0).float().mean() < 0.4 for pixels in seen)  # the rest is black
    assert ceiling(Stub("picture"), several) is None


def test_every_classifier_can_be_named():
    assert set(NAMES) == set(CLASSIFIERS)


def test_methods_by_name(monkeypatch, model):
    def gone(_):
        raise UserError("its weights are missing: download them")

    monkeypatch.setitem(METHODS, "glide", Known("a baseline", gone, gone))
    choice = MethodChoice(model=str(model), device="cpu")
    chosen, missing = choose_methods("all", choice)
    assert "blended_latent" in chosen and missing["glide"] == "its weights are missing: download them"
    with pytest.raises(UserError, match="weights are missing"):
        choose_methods("blended_latent,glide", choice)
    with pytest.raises(UserError, match='`methods` names "nobody": give some of blended_latent'):
        choose_methods("nobody", choice)


def test_a_method_gives_what_the_program_gives():
    editor, photo = Editor(tiny_model()), np.full((100, 120, 3), 90, np.uint8)
    mask = np.zeros((100, 120), np.uint8)
    mask[30:60, 40:80] = 255
    made = BlendedLatent(editor, {"ddim_steps": 3}).edit(photo, mask, "a red ball", 2, 7)
    alone = editor.edit(photo, mask, "a red ball", n_samples=2, seed=7, ddim_steps=3)
    assert torch.equal(made.x, alone.x) and made.seeds == (7, 8) and made.distances is None
    assert all(a.tobytes() == b.tobytes() for a, b in zip(made.delivered, alone.results, strict=True))
    assert made.evaluations == 2 * 2 * 3  # two predictions, both halves of guidance, three steps
    assert made.delivered_window().shape == made.x.shape and made.frame.image_size == (100, 120)
    assert BlendedLatent(editor).parameters == sum(p.numel() for p in tiny_model().parameters())


def test_what_is_pasted_does_not_depend_on_the_photograph():
    method = Pasted(Editor(tiny_model()), {"ddim_steps": 2, "region": "auto", "context": None, "force": True})
    mask = np.zeros((80, 80), np.uint8)
    mask[20:50, 20:50] = 255
    dark, light = (method.edit(np.full((80, 80, 3), level, np.uint8), mask, "a ball", 1, 0) for level in (20, 220))
    assert torch.equal(dark.x, light.x)
    a, b = (np.asarray(one.delivered[0]) for one in (dark, light))
    assert (a[mask > 0] == b[mask > 0]).all() and (a[mask == 0] == 20).all() and (b[mask == 0] == 220).all()


def test_a_run_ends_in_tables_resumes_and_asks_another_classifier(job, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = evaluate_methods(job(methods="blended_latent", count=2))
    assert first.results["blended_latent"]["precision"] == Estimate(0.5, 0.5, 0.5, 2) and not first.failures
    painted = sorted((out / "paintings" / "blended_latent").glob("*.png"))
    assert len(painted) == 2
    before = [path.stat().st_mtime_ns for path in painted]

    outcome = evaluate_methods(job())
    assert [path.stat().st_mtime_ns for path in painted] == before
    assert set(outcome.results) == {"blended_latent", "pasted"}
    of = outcome.results["blended_latent"]
    assert of["precision"].count == 3 and of["best"].value is None  # there is no ranker
    assert of["diversity"].value is None and of["diversity"].count == 0  # one of two is right
    assert of["psnr"].value < of["psnr_delivered"].value and of["lpips"].value > of["lpips_delivered"].value
    assert outcome.results["pasted"]["seam"].value > of["source_seam"].value
    assert "| batch precision | 50.0 [50.0, 50.0] % | 50.0 [50.0, 50.0] % | – |" in outcome.markdown
    for text in (outcome.markdown, (out / "evaluation.csv").read_text(), (out / "evaluation.json").read_text()):
        assert "nan" not in text.lower().split() and "inf" not in text.lower().split()
    saved = json.loads((out / "evaluation.json").read_text())
    assert saved["methods"]["pasted"]["precision"]["value"] == 0.5 and len(saved["settings"]["benchmark_sha256"]) == 64
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 5 * 64 and sheet.height > 3 * 64

    monkeypatch.setattr(evaluate, "paint_all", lambda *_: pytest.fail("painted again") if _[2] else [])
    monkeypatch.setattr(Stub, "name", "another stub")
    monkeypatch.setattr(Stub, "right", lambda self, x, *_: [True] * len(x))
    again = evaluate_methods(job())
    assert again.results["pasted"]["precision"].value == 1 and again.results["pasted"]["diversity"].count == 3
    with pytest.raises(UserError, match="painted with another seed"):
        evaluate_methods(job(seed=1))


def test_a_benchmark_may_grow_and_its_labels_be_mended_but_its_inputs_stay(job, tmp_path, monkeypatch):
    path = tmp_path / "benchmark" / inputs.FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0])
    assert evaluate_methods(job(methods="blended_latent")).results["blended_latent"]["precision"].count == 1
    painted = tmp_path / "out" / "paintings" / "blended_latent" / "blended_latent-0000.png"
    before = painted.stat().st_mtime_ns

    monkeypatch.setattr(Stub, "right", lambda self, x, mask, frame, one: [one.classes == (7,)] * len(x))
    path.write_text(json.dumps(json.loads(lines[0]) | {"classes": [7]}) + "\n" + lines[1])
    grown = evaluate_methods(job(methods="blended_latent"))
    assert painted.stat().st_mtime_ns == before
    assert grown.results["blended_latent"]["precision"].value == 0.5  # the first was asked again

    path.write_text(lines[1] + lines[0])
    with pytest.raises(
        UserError, match=r"input 0 of .* has another photograph, mask or prompt than what blended_latent"
    ):
        evaluate_methods(job(methods="blended_latent"))
    path.write_text(lines[0])
    Image.new("L", Image.open(tmp_path / "benchmark" / "masks" / "0000.png").size, 255).save(
        tmp_path / "benchmark" / "masks" / "0000.png"
    )
    with pytest.raises(UserError, match="input 0 of"):
        evaluate_methods(job(methods="blended_latent"))
    assert painted.stat().st_mtime_ns == before


def test_a_folder_has_one_evaluation_at_a_time(job, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / evaluate.LOCK), pytest.raises(UserError, match="another evaluation is writing to"):
        evaluate_methods(job())
    assert not (tmp_path / "out" / "paintings").exists()


def test_inputs_that_the_classifier_does_not_know_are_told(job, tmp_path):
    path = tmp_path / "benchmark" / inputs.FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[0]["classes"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = evaluate_methods(job(methods="blended_latent"))
    assert outcome.results["blended_latent"]["precision"].count == 2
    assert "Of 3 inputs it knows what 2 ask for" in outcome.markdown


def test_judges_know_their_own_words_alone():
    judge, imagenet = load_classifier("scenes"), load_classifier("efficientnet-lite0")
    plain = Input("0", Path("x.png"), Path("m.png"), "a ball")
    ball = {"shape": "ball", "material": "metal", "color": "red"}
    for expected, known in ((ball, True), ({"shape": "giraffe"}, False), ({"wings": "two"}, False), ({}, False)):
        assert judge.knows(replace(plain, expected=expected)) is known
    for classes, known in (((0, 999), True), ((1000,), False), ((-1,), False), ((), False)):
        assert imagenet.knows(replace(plain, classes=classes)) is known
    # No render without a shape.
    assert ceiling(judge, [replace(plain, expected={"color": "red"})]) == []


def test_a_damaged_painting_is_told(job, tmp_path):
    evaluate_methods(job(methods="blended_latent", count=1))
    path = tmp_path / "out" / "paintings" / "blended_latent" / "blended_latent-0000.png"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"blended_latent-0000\.png.* is damaged: remove it"):
        evaluate_methods(job(methods="blended_latent", count=1))


def test_answers_are_whole_or_asked_again(tmp_path):
    path = tmp_path / "answers.jsonl"
    kept = Answers(path, {"seed": 0})
    for index in range(2):
        kept.add({"part": "a", "index": index})
    path.write_text(path.read_text()[:-4])
    assert list(Answers(path, {"seed": 0}).of("a")) == [0]
    path.write_text('{"seed": 0}\n[1]\n')
    with pytest.raises(UserError, match="is damaged"):
        Answers(path, {"seed": 0})


@dataclass(frozen=True)
class Dying:
    """An artist whose process ends as one does that the system kills."""

    def load(self) -> None:
        """Nothing."""

    def paint(self, tool, question, **options):
        os._exit(1)


def test_a_process_that_dies_is_one_line(tmp_path):
    paintings = Paintings(tmp_path / "paintings", {})
    with pytest.raises(UserError, match="one of the 2 processes that paint has died"):
        list(paint_all(Dying(), paintings, [("a", 0, None, {})], workers=2))


def test_an_input_that_fails_is_left_out_and_told(job, tmp_path, caplog):
    (tmp_path / "benchmark" / "masks" / "0001.png").write_bytes(b"")
    outcome = evaluate_methods(job(methods="blended_latent"))
    assert [failure.index for failure in outcome.failures] == [1]
    assert outcome.results["blended_latent"]["precision"].count == 2
    assert "left out: blended_latent 1" in caplog.text and "could not be painted" in outcome.markdown
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["failures"]


def test_a_method_that_cannot_be_loaded_leaves_the_others_to_work(job, monkeypatch, caplog):
    def broken(_):
        raise RuntimeError("half a file")

    monkeypatch.setitem(METHODS, "glide", Known("a baseline", lambda _: {}, broken))
    outcome = evaluate_methods(job(methods="glide,blended_latent", count=2))
    assert [failure.part for failure in outcome.failures] == ["glide"] * 2
    assert outcome.results["glide"]["precision"].value is None and outcome.results["glide"]["psnr"].count == 0
    assert outcome.results["blended_latent"]["precision"].count == 2
    assert [record.message for record in caplog.records if "half a file" in record.message] == [
        "left out: glide 0: RuntimeError: half a file"
    ]


def test_what_a_method_costs(model, tmp_path):
    (one,) = read_benchmark(make_benchmark(None, tmp_path, 1, 0, [BALL]))
    choice = MethodChoice(model=str(model), device="cpu", precision="float32", ddim_steps=2)
    measured = measure_cost("blended_latent", choice, one, 3)
    assert measured["evaluations"] == 4 and measured["parameters"] > 1e5
    assert all(
        measured[key] > 0 for key in ("seconds_one", "seconds_batch", "cpu_one", "cpu_batch", "seconds_restored")
    )


def answer(right: list[bool], **more) -> dict:
    return dict.fromkeys(summary([]), None) | {"right": right, "ranked": True, **more}


def test_fifths_of_a_ranking():
    answers = [answer([True] * 3 + [False] * 7), answer([True] * 9 + [False])]
    each, gap = fifths(answers)
    assert [one.value for one in each] == [1.0, 0.75, 0.5, 0.5, 0.25]
    assert gap.value == 0.75 and gap.count == 2
    assert fifths([answer([True] * 4)]) is None and fifths([answer([True] * 5) | {"ranked": False}]) is None
    assert fifths_table({"a": {}}) == ""
    assert "| a | 100.0 [100.0, 100.0] % |" in fifths_table({"a": dict(enumerate(answers))})


def test_cells():
    precision, seconds = tables.OF["precision"], tables.OF["seconds_one"]
    assert tables.shown(estimate([0.25]), precision) == "25.0 %"
    assert tables.shown(Estimate(0.5, 0.4, 0.6, 9), precision) == "50.0 [40.0, 60.0] %"
    assert tables.shown(None, seconds) == tables.shown(estimate([]), seconds) == "–"
    assert "ceiling,precision,0.5,0.5,0.5,1" in tables.comma_separated({}, estimate([0.5]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "nobody"], '--methods names "nobody": give some of blended_latent,'),
        (["--benchmark", "none.jsonl"], 'error: the benchmark "none.jsonl" cannot be read'),
        (["--classifier", "eye"], '--classifier is "eye": give one of auto, efficientnet-lite0'),
        (["--lpips", "eye"], '--lpips is "eye": give one of'),
        (["--model", "nobody"], 'error: model "nobody" is neither'),
    ],
)
def test_bad_options_are_one_line(options, said, capsys, tmp_path, model):
    choice = [] if options[0] == "--model" else ["--model", str(model)]
    choice += [] if options[0] == "--methods" else ["--methods", "blended_latent"]
    assert run(main, [*choice, *options, "-o", str(tmp_path / "out"), "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") <= 2
    assert not (tmp_path / "out" / "evaluation.md").exists()


def test_the_scripts_print_where_things_are(job, model, tmp_path, capsys):
    assert run(script.main, ["--count", "2", "--labels", "scenes", "-o", str(tmp_path / "b")]) == 0
    assert f"2 inputs, of 144 labels: {tmp_path / 'b' / inputs.FILE}" in capsys.readouterr().out
    argv = ["--benchmark", str(tmp_path / "benchmark" / inputs.FILE), "--model", str(model), "--device", "cpu"]
    more = ["--quick", "--count", "1", "--ddim_steps", "2", "--no-cost", "-o", str(tmp_path / "q")]
    assert run(main, [*argv, *more, "--methods", "blended_latent"]) == 0
    assert "Table 1: what is painted" in capsys.readouterr().out
