"""The comparison of the ways to restore the background."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.editing.editor import Editor
from ldm.editing.reconstruct import RECONSTRUCTIONS
from ldm.errors import UserError
from ldm.evaluation.inputs import Label, make_benchmark, read_benchmark
from ldm.evaluation.reconstructions import LAMBDAS, Outcome, cases, choose_ways, compare, table
from tests.tiny import tiny_model

pytest.importorskip("skimage")
pytest.importorskip("cv2")


def test_cases_are_a_series():
    two, three = list(cases(2, 5)), list(cases(3, 5))
    for one, other in zip(two, three, strict=False):
        assert (one.image == other.image).all() and (one.mask == other.mask).all() and one.prompt == other.prompt
    assert len({case.photo for case in three}) == 3
    for case in three:
        assert case.image.shape == (*case.mask.shape, 3) and set(np.unique(case.mask)) == {0, 255}


def test_every_way_is_measured_on_the_same_edits(tmp_path):
    outcomes = compare(Editor(tiny_model()), 2, 0, 2, tmp_path, optimization_steps=4)
    assert outcomes.keys() == RECONSTRUCTIONS.keys()
    assert all(one.max_difference == 0 and one.seconds > 0 for made in outcomes.values() for one in made)
    assert all(one.background_psnr == float("inf") for one in outcomes["pixel"])
    assert all(one.foreground_psnr == float("inf") for one in outcomes["residual"] + outcomes["pixel"])
    assert all(1 < one.background_psnr < 99 for one in outcomes["optimization"] + outcomes["residual"])
    rows = json.loads((tmp_path / "comparison.json").read_text())
    assert len(rows) == 2 and rows[1]["pixel"]["kind"] == "pixel" and rows[0]["photo"]
    assert (tmp_path / "comparison.md").read_text() == table(outcomes)
    assert Image.open(tmp_path / "comparison.png").size[0] > 7 * 320


def test_a_comparison_that_was_stopped_resumes_and_takes_inputs_of_a_benchmark(tmp_path, monkeypatch):
    path = make_benchmark(None, tmp_path / "benchmark", 2, 0, [Label("a red ball", "ball")])
    editor, out, asked = Editor(tiny_model()), tmp_path / "out", read_benchmark(path)
    once = compare(editor, 1, 0, 2, out, inputs=asked[:1], optimization_steps=2)
    twice = compare(editor, 2, 0, 2, out, inputs=asked, optimization_steps=2)
    assert twice["optimization"][0] == once["optimization"][0] and len(twice["optimization"]) == 2
    monkeypatch.setattr("ldm.evaluation.reconstructions._restore", lambda *_: pytest.fail("restored again"))
    again = compare(editor, 2, 0, 2, out, inputs=asked, optimization_steps=2)
    assert again == twice and (out / "comparison.png").exists()
    assert "Infinity" not in (out / "comparison.json").read_text()
    with pytest.raises(UserError, match="another ddim_steps"):
        compare(editor, 2, 0, 3, out, inputs=asked, optimization_steps=2)


def test_ways_are_chosen_by_name(monkeypatch):
    assert list(choose_ways("all,lambda")) == [*RECONSTRUCTIONS, *LAMBDAS]
    assert choose_ways("poisson, optimization_latents") == {
        "poisson": {"reconstruction_type": "poisson"},
        "optimization_latents": {"reconstruction_type": "optimization", "optimization_mode": "latents"},
    }
    with pytest.raises(UserError, match=r'names "weights": give some of optimization, .*lambda, or all'):
        choose_ways("pixel,weights")
    with pytest.raises(UserError, match=r'is " ,": give some of'):
        choose_ways(" ,")
    monkeypatch.setattr("ldm.evaluation.reconstructions._has_opencv", lambda: False)
    assert list(choose_ways("all")) == [kind for kind in RECONSTRUCTIONS if kind != "poisson"]
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        choose_ways("poisson")


def test_the_table_has_medians():
    made = [Outcome("pixel", float("inf"), 30.0, band, 1.0, 3.0, 0, 0.1) for band in (10.0, 20.0, 60.0)]
    lines = table({"pixel": made}).splitlines()
    assert lines[2] == "| pixel | inf | 20.0 | 1.0 | 30.0 | 0.1 |" and "3.0" in lines[3]


def test_the_table_has_what_decoder_weights_bring_with_its_interval():
    ours = [Outcome("optimization", 40.0 + i, 30.0, 38.0, 1.0, 3.0, 0, 9.0) for i in range(3)]
    paste = [Outcome("pixel", float("inf"), 30.0, 36.0, 4.0, 3.0, 0, 0.1) for _ in range(3)]
    lines = table({"optimization": ours, "pixel": paste}).splitlines()
    assert lines[-1] == "| pixel | -59.0 [-60.0, -58.0] | +2.0 [+2.0, +2.0] | -3.0 [-3.0, -3.0] |"
