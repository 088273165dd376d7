"""The baselines as rows of the evaluation, on tiny models of their classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.backbones import zoo
from ldm.checkpoint import load_model
from ldm.editing.editor import Editor
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.ranking import find_ranker
from ldm.errors import UserError
from ldm.evaluation import baselines
from ldm.evaluation.baselines import GlideFilled, Guided, PaintedByWord
from ldm.evaluation.jobs import MethodChoice
from ldm.evaluation.registry import METHODS
from ldm.models.diffusion.glide import GlideSampling
from ldm.models.paint_by_word import Painter
from ldm.runs.baselines import byte_pairs, load_glide
from tests.tiny_pixels import glide_config, save_byte_pairs, save_model, save_pixel_model, vq_config

PHOTO = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
MASK = np.zeros((40, 40), np.uint8)
MASK[10:25, 10:25] = 255
PLACE = {"region": "whole", "context": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_pixel_model(tmp_path_factory.mktemp("baselines") / "pixels")


def guided(folder: Path, **options) -> Guided:
    told = GuidanceOptions(timestep_respacing="4", skip_timesteps=1, aug_num=2, **options)
    return Guided(Editor.load(str(folder), device="cpu", precision="float32"), zoo.resolve(str(folder)), told, PLACE)


def test_blended_diffusion_is_a_method(folder):
    made = guided(folder).edit(PHOTO, MASK, "a red ball", 2, 5)
    assert made.x.shape == (2, 3, 16, 16) and sorted(made.seeds) == [5, 6] and made.evaluations == 2 * 3
    assert made.distances[0] <= made.distances[1]
    assert all(one.max_difference == 0 for one in made.measures)  # the background is the photograph's


def test_local_guidance_delivers_what_it_painted(folder):
    made = guided(folder, local_clip_guided_diffusion=True).edit(PHOTO, MASK, "a red ball", 1, 5)
    delivered = np.asarray(made.delivered[0])
    assert (delivered[:5] != PHOTO[:5]).any() and made.canvas.x_mask.mean() < 0.5  # judged inside the mask alone


def test_glide_is_a_method(tmp_path):
    folders = [save_model(tmp_path / name, glide_config(low), clip=not low) for name, low in (("base", 0), ("up", 1))]
    files, above = (zoo.resolve(str(one)) for one in folders)
    pairs = byte_pairs(str(save_byte_pairs(tmp_path / "bytes")))
    model = load_glide(files, above, torch.device("cpu"), torch.float32, pairs)
    method = GlideFilled(Editor(model, None, files), GlideSampling(2.0, "3", "2"), PLACE)
    made = method.edit(PHOTO, MASK, "red", 2, 1)
    assert made.x.shape == (2, 3, 16, 16) and made.evaluations == 2 * (2 * 3 + 2) and method.parameters > 1e4


def test_paint_by_word_is_a_method_of_one_picture(tmp_path):
    files = zoo.resolve(str(save_model(tmp_path / "vq", vq_config())))
    device = torch.device("cpu")
    vq = load_model(zoo.read_config(files.config), files.weights, device=device, dtype=torch.float32)
    editor = Editor(Painter(vq, 16).eval(), find_ranker(files.clip), files)
    own = {"aug_num": 2, "lpips_sim_lambda": 0.0, "l2_sim_lambda": 10.0, "clip_guidance_lambda": 10.0}
    method = PaintedByWord(editor, files, own | {"steps": 2, "learning_rate": 0.1}, PLACE)
    made = method.edit(PHOTO, MASK, "a red ball", 4, 3)
    assert len(made.x) == len(made.delivered) == 1 and made.seeds == (3,) and made.evaluations == 2


def test_baselines_whose_weights_are_not_here_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_MODELS", str(tmp_path))
    for name in ("glide", "paint_by_word", "blended_diffusion", "local_clip_guided"):
        with pytest.raises(UserError, match="is missing: "):
            METHODS[name].find(MethodChoice(model="text2img-large", device="cpu"))


def test_steps_are_those_of_the_public_program_beside_our_default():
    for steps, respacing, skipped in ((50, "100", 25), (10, "20", 5), (1000, "1000", 250)):
        told = baselines.guidance("blended_diffusion", MethodChoice(ddim_steps=steps))
        assert (told.timestep_respacing, told.skip_timesteps) == (respacing, skipped)
    assert baselines.guidance("local_clip_guided", MethodChoice()).background_preservation_loss


def test_beside_the_small_pixel_model_the_background_is_kept_without_a_download():
    small, public = MethodChoice(model="scenes"), MethodChoice(model="text2img-large")
    told = baselines.guidance("local_clip_guided", small)
    assert told.background_preservation_loss and told.lpips_sim_lambda == 0 < told.l2_sim_lambda
    assert "by its L2 loss alone" in METHODS["local_clip_guided"].note(small)
    assert baselines.guidance("local_clip_guided", public).lpips_sim_lambda > 0
    assert "L2" not in METHODS["local_clip_guided"].note(public) and not METHODS["blended_diffusion"].note(small)


def test_the_small_pixel_model_stands_beside_scenes():
    assert baselines.pixel_model(MethodChoice(model="scenes")) == "pixels"
    assert baselines.pixel_model(MethodChoice(model="text2img-large")) == "blended-diffusion-256"
