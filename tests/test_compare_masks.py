"""The comparison of downsamplings on thin masks."""

import json

import pytest
import torch
from PIL import Image

from ldm.backbones.defaults import Defaults
from ldm.editing.latent_masks import DOWNSAMPLING
from ldm.evaluation.thin_masks import KINDS, Answer, colour_way, compare, table, thin_mask
from tests.tiny import tiny_model

pytest.importorskip("skimage")


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_as_thin_as_they_say(kind):
    areas = []
    for width in (1, 4, 12):
        mask = thin_mask(torch.Generator().manual_seed(3), kind, width, 128)
        assert mask.shape == (1, 1, 128, 128) and set(mask.unique().tolist()) == {0.0, 1.0}
        areas.append(mask.sum().item())
    assert areas[1] == pytest.approx(4 * areas[0], rel=0.4) and areas[2] == pytest.approx(3 * areas[1], rel=0.3)


def test_the_way_from_the_input_to_the_colour():
    x_source, mask = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:6] = 1
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    for share in (0.0, 0.5, 1.0):
        x = torch.where(mask > 0, share * red + (1 - share) * x_source, torch.ones(1))
        assert colour_way(x, x_source, mask, (1.0, 0.0, 0.0)) == pytest.approx(share)
    assert colour_way(-red.expand(1, 3, 8, 8), x_source, mask, (1.0, 0.0, 0.0)) == pytest.approx(-1)


def test_every_way_is_tried_on_the_same_masks(tmp_path):
    answers = compare(tiny_model(), 3, 0, 4, 2, tmp_path)
    assert len(answers) == 3 * 2 * len(DOWNSAMPLING)
    assert {(a.kind, a.width) for a in answers if a.downsample == "area"} == {("line", 1), ("curve", 5), ("ring", 9)}
    assert [Answer(**one) for one in json.loads((tmp_path / "thin_masks.json").read_text())] == answers
    assert (tmp_path / "thin_masks.md").read_text() == table(answers)
    assert Image.open(tmp_path / "thin_masks.png").size[0] > 9 * 64


def test_the_table_counts_arrivals_by_width():
    ways = ((2, 0.1), (3, 0.9), (6, 0.6), (11, -0.2))
    lines = table([Answer("area", "with", "line", width, "red", way) for width, way in ways]).splitlines()
    assert lines[2] == "| area | with | 50 % | 100 % | 0 % | 50 % | 0.35 |"


def test_the_models_own_defaults_are_used(tmp_path):
    ways = [
        [answer.way for answer in compare(tiny_model(), 1, 0, 3, 2, tmp_path, defaults)]
        for defaults in (None, Defaults(), Defaults(scale=1.0), Defaults(background_noise="one"))
    ]
    assert ways[0] == ways[1] and ways[2] != ways[0] and ways[3] != ways[0]


def test_the_table_has_what_shrinking_brings_with_its_interval():
    ways = [(way, "with") for way in (0.9, 0.8, 0.2)] + [(way, "without") for way in (0.9, 0.1, 0.2)]
    lines = table([Answer("area", way, "line", 3, "red", far) for far, way in ways]).splitlines()
    assert lines[-1] == "| area | +33 [+0, +100] points |"
