"""Training of the small model of pixels: from scenes by the scripts to a folder that the editor takes."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from ldm.backbones import zoo
from ldm.data.epochs import seeded
from ldm.data.scenes.scenes import render_scenes
from ldm.data.shards import SceneShards, write_shard
from ldm.errors import UserError
from ldm.training.folded import fold
from ldm.training.pixels import PixelTrainer, SmallScenes
from scripts import export_model, train
from tests.convert import randomise
from tests.tiny import normal
from tests.tiny_pixels import pixel_config

CONFIG = Path(__file__).parents[1] / "configs/pixels/diffusion.yaml"


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_shard(folder, 0, render_scenes(12, 3))
    return folder


def test_small_scenes_are_means_over_squares_and_mirrored_half_of_the_time(shards):
    scenes = SceneShards(shards)
    plain, mirrored = SmallScenes(scenes, 32, None), SmallScenes(scenes, 32, 1)
    places = [(e, i) for e in range(4) for i in range(12)]
    own, seen = plain.__getitems__(places), mirrored.__getitems__(places)
    means = F.avg_pool2d(scenes.stack(range(12)), 4)
    torch.testing.assert_close(own["x"][:12], means, atol=0.51 / 127.5, rtol=0)  # in 8 bits
    flipped = [torch.equal(one, x.flip(-1)) for one, x in zip(seen["x"], own["x"], strict=True)]
    kept = [torch.equal(one, x) for one, x in zip(seen["x"], own["x"], strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True)) and 12 < sum(flipped) < 36
    assert own["coverage"].shape == (48, 1, 32, 32) and 0 <= own["coverage"].min() <= own["coverage"].max() <= 1
    torch.testing.assert_close(mirrored.__getitems__(places[5:7])["x"], seen["x"][5:7])


@pytest.mark.parametrize("kind", ["eps", "v", "z0"])
def test_a_network_that_knows_the_answer_has_no_loss(kind):
    trainer = PixelTrainer(pixel_config(learn_sigma=False, parameterization=kind))
    batch = {"x": normal(3, 3, 16, 16), "coverage": torch.zeros(3, 1, 16, 16)}
    draws = seeded(0)
    t, noise = torch.randint(1000, (3,), generator=draws), torch.randn(3, 3, 16, 16, generator=draws)
    alpha = trainer.pixels.alphas_cumprod[t].view(-1, 1, 1, 1).float()
    answers = {"eps": noise, "v": alpha.sqrt() * noise - (1 - alpha).sqrt() * batch["x"], "z0": batch["x"]}
    answer = answers[kind]
    trainer.pixels.apply_model = lambda x, told: answer if torch.equal(told, t) else None
    assert trainer.loss(batch, seeded(0)).abs().max() == 0
    trainer.pixels.apply_model = lambda x, told: answer + 1
    off = (1 / (1 - alpha)).clamp(max=10).flatten() if kind == "z0" else torch.ones(3)
    torch.testing.assert_close(trainer.loss(batch, seeded(0)), 0.5 * off)  # the background's weight


def test_it_trains_no_variances():
    with pytest.raises(ValueError, match="variances"):
        PixelTrainer(pixel_config(learn_sigma=True))


@pytest.mark.parametrize("kind", ["v", "z0"])
def test_it_begins_with_another_training_but_for_the_last_layer_of_another_parameterization(kind, tmp_path):
    first = PixelTrainer(pixel_config(learn_sigma=False, parameterization="v"))
    randomise(first.pixels)
    content = {"state_dict": first.state_dict(), "hyper_parameters": dict(first.hparams)}
    torch.save(content, tmp_path / "last.ckpt")
    second = PixelTrainer(pixel_config(learn_sigma=False, parameterization=kind))
    second.begin_with_model(str(tmp_path / "last.ckpt"))
    own, given = second.pixels.state_dict(), first.pixels.state_dict()
    same = {key for key in own if torch.equal(own[key], given[key])}
    assert own.keys() - same == ({"out.2.weight", "out.2.bias"} if kind == "z0" else set())


@pytest.fixture(scope="module")
def scenes_model():
    return zoo.load_ours(zoo.resolve("scenes"), torch.device("cpu"), torch.float32)


def folded_config(**unet) -> dict:
    config = OmegaConf.to_container(OmegaConf.load(CONFIG).module.params.model)
    config["params"]["unet_config"]["params"].update(unet)
    return config


@torch.no_grad()
def test_patches_take_the_place_of_latents(shards, scenes_model):
    pixels = PixelTrainer(folded_config()).pixels
    x = SceneShards(shards).stack(range(12))
    fold(pixels.diffusion_model, scenes_model, x, F.interpolate(x, (64, 64), mode="area"))
    unet, latent = pixels.diffusion_model, scenes_model.model.diffusion_model
    # Of 2 and 2 blocks a level, and 3, 2 and 1: the second on the way down, what halves, the last on the way up.
    h, emb = normal(1, 64, 16, 16), normal(1, 256)
    for own, given in (("input_blocks.2", "input_blocks.2"), ("input_blocks.3", "input_blocks.4")):
        torch.testing.assert_close(unet.get_submodule(own)(h, emb, None), latent.get_submodule(given)(h, emb, None))
    h = normal(1, 128, 16, 16)
    torch.testing.assert_close(unet.output_blocks[5](h, emb, None), latent.output_blocks[8](h, emb, None))
    e = normal(1, 64)
    prompted = latent.time_embed(e) + latent.context_embed(scenes_model.condition([""]).contexts[0, 0])
    torch.testing.assert_close(unet.time_embed(e), prompted)
    patches = F.pixel_unshuffle(F.interpolate(x, (64, 64), mode="area"), 4)
    own, given = unet.input_blocks[0](patches, emb, None), latent.input_blocks[0](scenes_model.encode(x), emb, None)
    assert (own - given).square().mean() < 0.5 * given.var()  # the fresh part, a third of its size, among it


@pytest.mark.parametrize(
    "unet, says",
    [
        ({"patch_size": 2}, "32x32 patches cannot stand where 16x16 latents stood"),
        ({"num_res_blocks": [4, 2]}, r"\[3, 2, 1\] residual blocks a level has no beginning for one of \[4, 2\]"),
    ],
)
def test_what_cannot_take_their_place_is_told(unet, says, shards, scenes_model):
    x = SceneShards(shards).stack(range(4))
    pixels = PixelTrainer(folded_config(**unet)).pixels
    with pytest.raises(UserError, match=says):
        fold(pixels.diffusion_model, scenes_model, x, F.interpolate(x, (64, 64), mode="area"))


def test_from_scenes_to_a_model_that_the_editor_takes(shards, tmp_path):
    rundir = tmp_path / "run"
    unet = "module.params.model.params.unet_config.params"
    small = [f"{unet}.num_res_blocks=[1,1]"]
    data = [f"data.params.train={shards}", f"data.params.val={shards}", "data.params.batch_size=4"]
    steps = ["trainer.max_steps=3", "trainer.val_check_interval=2", "callbacks.1.params={every: 2, count: 2, steps: 2}"]
    train.main([str(CONFIG), *small, *data, *steps, "--rundir", str(rundir), "--threads", "1"])
    assert len(list((rundir / "grids").glob("*.png"))) == 1
    folder = tmp_path / "model"
    export_model.main([str(rundir / "last.ckpt"), str(folder), "--context", "0.2", "--clip_guidance_lambda", "300"])
    files = zoo.resolve(str(folder))
    model = zoo.load(files, torch.device("cpu"), torch.float32)
    assert model.native_size == (64, 64) and model.unit == 8 and model.guidance == "none"
    config = zoo.read_config(files.config)
    assert config["editing"] == {"context": 0.2} and config["guidance"] == {"clip_guidance_lambda": 300.0}
    assert json.dumps(config) and not any(parameter.isnan().any() for parameter in model.parameters())


def test_a_model_of_pixels_reads_no_prompt():
    from tests.tiny_pixels import pixel_model

    model = pixel_model()
    assert len(model.condition(["", ""])) == 2
    with pytest.raises(UserError, match="reads no prompt"):
        model.condition(["a red ball"])
    x = normal(1, 3, 16, 16)
    assert model.encode(x) is x and model.decode(x) is x and model.encode_exactly(x) is x
    assert model.tunable_decoder() is None and model.factor == 1
