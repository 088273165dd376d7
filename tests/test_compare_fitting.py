"""The comparison of fitted masks with masks as given."""

import json
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from ldm.editing.editor import Editor
from ldm.evaluation.fitting import LABELLED, Pair, Report, compare, table, uncovered
from ldm.evaluation.triples import replacement_triples
from tests.tiny import tiny_model, tiny_picture

pytest.importorskip("skimage")


def test_what_both_predictions_paint_alike_is_the_thing():
    x_source, mask = tiny_picture(), torch.zeros(1, 1, 64, 64)
    mask[..., 8:56, 8:56] = 1
    x_fitted = x_source.clone()
    x_fitted[..., 20:40, 20:40] = 1.0
    x = x_fitted.clone()
    x[..., 42:54, 10:54] = -1.0  # a halo, which the fitted one has not
    free = uncovered(x, x_fitted, x_source, mask)
    assert (free <= mask).all() and not free[..., 23:37, 23:37].any() and free[..., 44:52, 12:52].all()


def test_things_to_be_replaced_lie_under_their_masks():
    for _, triple in zip(range(4), replacement_triples(3), strict=False):
        assert triple.x.shape == (1, 3, 128, 128) and 0.01 < triple.mask.mean() < 0.95
        assert set(triple.expected) == {"shape", "material", "color"}
    assert torch.equal(next(replacement_triples(3)).x, next(replacement_triples(3)).x)


def test_everything_is_asked_and_kept(tmp_path):
    report = compare(Editor(tiny_model()), 1, 1, 1, 0, 4, 2, tmp_path)
    assert len(report.pairs) == 2 and len(report.thin) == 1 and set(report.decisions) == set(LABELLED)
    assert json.loads((tmp_path / "fitting.json").read_text())["pairs"] == [asdict(pair) for pair in report.pairs]
    assert (tmp_path / "fitting.md").read_text() == table(report)
    assert Image.open(tmp_path / "fitting.png").width > 5 * 64


def test_the_table_has_differences_with_their_intervals():
    right, wrong = {"color": True, "shape": True}, {"color": True, "shape": False}
    pairs = [
        Pair("a ball", 1, True, 0.5, right, wrong, 10, 650.25, 65.025, True, True),
        Pair("a ball", 2, True, 0.7, wrong, wrong, 10, 650.25, 65.025, False, False),
    ]
    lines = table(Report(pairs, (10.0, 10.1), [], {"add": [("why", True), ("why", False)]}))
    assert "| judged right, shape | 50.0 % | 0.0 % | -50.0 ± 98.0 points |" in lines
    assert "| PSNR of what the thing leaves free, median | 20.0 dB | 30.0 dB | +10.0 dB |" in lines
    assert "| seconds of the processor | 10.0 | 10.1 | +1.0 % |" in lines and "| add | 1 of 2 |" in lines
    assert "2 of 2 predictions were fitted, to 60% of their masks." in lines
