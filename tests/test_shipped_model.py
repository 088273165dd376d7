"""The model that comes with the repository: small, complete, and it paints what it is told."""

from pathlib import Path

import pytest
import torch

from ldm.backbones import zoo
from ldm.editing.edit import edit_image
from ldm.editing.request import EditRequest
from ldm.imaging.images import load_image, to_tensor
from ldm.imaging.masks import mask_from

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "models" / "ldm" / "scenes"


@pytest.fixture(scope="module")
def model():
    return zoo.load(zoo.resolve("scenes"), torch.device("cpu"), torch.float32)


def test_it_its_ranker_and_its_judge_take_at_most_60_megabytes():
    folders = {path.parent.name for path in (ROOT / "models").glob("*/scenes")}
    assert folders == {"ldm", "clip", "judge", "pixels"}  # the last is small by itself: tests/test_shipped_pixels.py
    files = [path for part in folders - {"pixels"} for path in (ROOT / "models" / part / "scenes").rglob("*")]
    files = [path for path in files if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6


def test_it_knows_the_words_of_its_captions(model):
    from ldm.data.scenes.captions import vocabulary

    tokenize = model.cond_stage_model.tokenize
    assert tokenize.unknown_words(" ".join(vocabulary())) == []
    assert tokenize.unknown_words("a pink yarn armadillo") == ["armadillo"]


def test_the_prompted_colour_appears_in_the_photograph(model):
    x = to_tensor(load_image(ROOT / "inputs" / "img.png").rgb, (128, 128))
    mask = mask_from(ROOT / "inputs" / "mask.png", (128, 128))
    inside = mask.bool().expand(1, 3, -1, -1)

    def mean_colour(prompt: str) -> torch.Tensor:
        edit = edit_image(model, x, mask, EditRequest(prompt, n_samples=2, ddim_steps=20))
        return torch.stack([one[None][inside].view(3, -1).mean(dim=1) for one in edit.x]).mean(dim=0)

    red, green, blue = (mean_colour(f"a {colour} ball") for colour in ("red", "green", "blue"))
    assert red[0] > green[0] + 0.2 and red[0] > blue[0] + 0.2
    assert green[1] > red[1] + 0.2
    assert blue[2] > red[2] + 0.2


def test_bfloat16_paints_the_same_picture(model):
    x = to_tensor(load_image(ROOT / "inputs" / "img.png").rgb, (128, 128))
    mask = mask_from(ROOT / "inputs" / "mask.png", (128, 128))
    request = EditRequest("a pink yarn ball", n_samples=2, ddim_steps=10)
    half = zoo.load(zoo.resolve("scenes"), torch.device("cpu"), torch.bfloat16)
    exact, edit = (edit_image(one, x, mask, request).x.clamp(-1, 1) for one in (model, half))
    assert (exact - edit).square().mean().sqrt() * 127.5 < 1.5  # 8-bit levels; one is what rounding may cost
