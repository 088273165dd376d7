"""VQGAN's quantiser and model, and PaintByWord++: codes are the nearest, gradients go straight through."""

import numpy as np
import pytest
import torch
from diffusers import VQModel as TheirModel
from PIL import Image

from ldm.editing.clip_encoder import Losses
from ldm.editing.guided_request import GuidanceOptions
from ldm.models.diffusion.loss_guidance import Guide
from ldm.models.paint_by_word import CLEAN, paint_by_word
from ldm.modules.vqvae.quantize import VectorQuantizer
from ldm.runs.folder import read_run
from ldm.util import instantiate_from_config
from scripts import paint_by_word as script
from tests.convert import autoencoder_to_diffusers, randomise
from tests.tiny import normal, tiny_picture
from tests.tiny_pixels import clip as tiny_clip
from tests.tiny_pixels import save_model, vq_config


@pytest.fixture(scope="module")
def vq():
    return randomise(instantiate_from_config(vq_config()["model"])).requires_grad_(False)


def test_each_position_takes_the_nearest_vector():
    quantize = VectorQuantizer(9, 4)
    torch.nn.init.normal_(quantize.embedding.weight, generator=torch.Generator().manual_seed(0))
    z = normal(2, 4, 3, 5)
    quantised, codes = quantize(z)
    distances = torch.cdist(z.movedim(1, -1).reshape(-1, 4), quantize.embedding.weight)
    assert torch.equal(codes.flatten(), distances.argmin(dim=1))
    torch.testing.assert_close(quantised, quantize.embed(codes))
    torch.testing.assert_close(quantize(quantised)[0], quantised)
    low, high = quantize.span
    assert (quantised >= low.view(1, 4, 1, 1) - 1e-6).all() and (quantised <= high.view(1, 4, 1, 1) + 1e-6).all()


def test_gradients_go_straight_through_the_quantiser():
    quantize, z = VectorQuantizer(9, 4), normal(1, 4, 2, 2).requires_grad_()
    weight = normal(1, 4, 2, 2, seed=2)
    (quantize(z)[0] * weight).sum().backward()
    assert torch.equal(z.grad, weight)


@torch.no_grad()
def test_the_model_equals_theirs(vq):
    """diffusers' VQModel with the same weights, encoder, quantiser and decoder."""
    theirs = TheirModel(
        block_out_channels=(32, 32, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=8,
        num_vq_embeddings=24,
        vq_embed_dim=8,
        norm_num_groups=32,
    ).eval()
    own = vq.state_dict()
    plain = {key: value for key, value in own.items() if not key.startswith("quantize")}
    converted = autoencoder_to_diffusers(plain, levels=3)
    converted["quantize.embedding.weight"] = own["quantize.embedding.weight"]
    theirs.load_state_dict(converted, strict=True)
    x = tiny_picture(16, 16).repeat(2, 1, 1, 1) + 0.1 * normal(2, 3, 16, 16)
    torch.testing.assert_close(vq.encode_unquantized(x), theirs.encode(x).latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vq(x)[0], theirs(x).sample, rtol=1e-4, atol=1e-4)
    assert vq.factor == 4 and vq(x)[1].shape == (2, 4, 4)


def test_a_model_of_means_and_variances_is_refused():
    from ldm.errors import UserError

    config = vq_config()["model"]
    config["params"]["ddconfig"]["double_z"] = True
    with pytest.raises(UserError, match="double_z"):
        instantiate_from_config(config)


def test_optimisation_goes_down_its_loss_within_the_codebooks_range(vq, tmp_path):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    told = GuidanceOptions(
        aug_num=2, background_preservation_loss=True, lpips_sim_lambda=0, l2_sim_lambda=1, range_lambda=0
    )
    x_source = tiny_picture(16, 16)
    losses = Losses(tiny_clip(tmp_path / "clip"), "a red ball", x_source, mask, told, 100.0)
    loss = losses.total([torch.Generator().manual_seed(0)])
    made = paint_by_word(vq, x_source, loss, steps=25, learning_rate=0.1)

    def value(x: torch.Tensor) -> float:
        return losses.total([torch.Generator().manual_seed(0)])(Guide(x, x, CLEAN, lambda x: x)).item()

    assert value(made) < value(vq(x_source)[0])
    assert made.shape == x_source.shape


def test_the_command_leaves_a_run_of_one(tmp_path):
    folder = save_model(tmp_path / "vq", vq_config())
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    area = np.zeros((24, 30), np.uint8)
    area[6:18, 8:22] = 255
    Image.fromarray(area).save(tmp_path / "mask.png")
    argv = ["-p", "a red ball", "-i", str(tmp_path / "in.png"), "--mask", str(tmp_path / "mask.png")]
    more = ["--size", "16", "--steps", "2", "--aug_num", "2", "--lpips_sim_lambda", "0", "--model", str(folder)]
    script.main([*argv, *more, "-o", str(tmp_path / "out")])
    run = read_run(tmp_path / "out")
    assert len(run) == 1 and run.record.options["method"] == "paint-by-word" and run.record.scores is not None
    assert run.record.options["steps"] == 2
