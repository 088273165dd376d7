"""The default model, of everyday things: small, complete, it paints what it is told, and its ranker sees that."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.backbones import zoo
from ldm.data.things.captions import vocabulary
from ldm.editing.editor import Editor

ROOT = Path(__file__).parents[1]
PROMPTS = ("a strawberry", "a lemon", "a fire engine")


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor.load("things", device="cpu", precision="float32")


@pytest.fixture(scope="module")
def results(editor):
    quick = {"n_samples": 2, "sampler": "dpmpp_2m", "ddim_steps": 10, "seed": 0}
    photo, mask = ROOT / "inputs/img.png", ROOT / "inputs/mask.png"
    return {prompt: editor.edit(photo, mask, prompt, **quick) for prompt in PROMPTS}


def test_it_is_the_default_and_takes_at_most_60_megabytes_with_its_ranker():
    assert zoo.SMALL == "things" and next(iter(zoo.MODELS)) == "things"
    files = [path for part in ("ldm", "clip") for path in (ROOT / "models" / part / "things").rglob("*")]
    assert 30e6 < sum(path.stat().st_size for path in files if path.is_file()) <= 60e6


def test_it_and_its_ranker_know_the_words_of_its_captions(editor):
    words = " ".join(vocabulary())
    assert editor.model.tokenize.unknown_words(words) == []
    assert editor.ranker.tokenizer.unknown_words(words) == []
    assert editor.model.tokenize.unknown_words("a red armadillo") == ["armadillo"]


def test_its_ranker_sees_the_thing_that_the_prompt_named(editor, results):
    """Of each picture, the prompt that it was painted by is nearest."""
    mask = torch.from_numpy(np.asarray(Image.open(ROOT / "inputs/mask.png").convert("L"), np.float32) / 255)
    mask = (mask > 0.5).float()[None, None]
    for prompt, result in results.items():
        pixels = np.asarray(result.results[0].convert("RGB"), np.float32)
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        distances = {other: editor.ranker.distances(x, mask, other).item() for other in PROMPTS}
        assert min(distances, key=distances.get) == prompt


def test_outside_the_mask_the_photograph_is_as_it_was(results):
    assert all(measure.max_difference == 0 for result in results.values() for measure in result.measures)
