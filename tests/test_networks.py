"""The networks' own promises, beyond their numbers (tests/test_diffusers_parity.py) and keys (tests/test_keys.py)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.autoencoder import AutoencoderKL, DiagonalGaussian
from ldm.models.diffusion.ddpm import LatentDiffusion, TextConditioning
from ldm.modules.attention import CrossAttention, SpatialTransformer
from ldm.modules.diffusionmodules import openaimodel
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder, Encoder
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.modules.x_transformer import Attention
from tests.convert import randomise
from tests.denoisers import level_at
from tests.tiny import normal, tiny_model


def unet(**options) -> UNetModel:
    defaults = dict(
        image_size=8,
        in_channels=4,
        model_channels=32,
        out_channels=4,
        num_res_blocks=1,
        attention_resolutions=[1],
        channel_mult=[1, 2],
        num_heads=2,
        context_dim=8,
    )
    return randomise(UNetModel(**defaults | options))


# --- gradient checkpointing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("training", "gradients"), [(False, False), (False, True), (True, False)])
def test_no_gradient_checkpointing_but_in_training(monkeypatch, training: bool, gradients: bool):
    def refuse(*_, **__):
        raise AssertionError("activations would be computed twice")

    monkeypatch.setattr(openaimodel, "checkpoint", refuse)
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", refuse)
    with torch.set_grad_enabled(gradients):
        out = unet(use_checkpoint=True).train(training)(normal(1, 4, 8, 8), torch.tensor([5]), normal(1, 3, 8))
    assert out.requires_grad == gradients


def test_checkpointing_in_training_gives_the_same_gradients(monkeypatch):
    calls, checkpoint = [], openaimodel.checkpoint
    monkeypatch.setattr(openaimodel, "checkpoint", lambda *a, **k: (calls.append(1), checkpoint(*a, **k))[1])
    gradients = []
    for use_checkpoint in (False, True):
        network = unet(use_checkpoint=use_checkpoint).train()
        network(normal(1, 4, 8, 8), torch.tensor([5]), normal(1, 3, 8)).square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
        blocks = sum(isinstance(m, openaimodel.ResBlock) for m in network.modules())
        assert len(calls) == (blocks if use_checkpoint else 0)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-5, atol=1e-5), name


# --- the UNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [8, 9])
def test_timestep_embedding_is_cosines_then_sines(dim: int):
    embedding = timestep_embedding(torch.tensor([0, 1, 981]), dim)
    assert embedding.shape == (3, dim) and embedding.dtype == torch.float32
    for row, t in zip(embedding.tolist(), (0, 1, 981), strict=True):
        angles = [t * 10000 ** (-i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0.0] * (dim - 8)
        assert row == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_a_trained_unet_stays_as_it_was_when_it_gets_a_pooled_context():
    plain, pooling = unet(), unet(pooled_context=True)
    missing = pooling.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["context_embed.weight", "context_embed.bias"]
    z, t, context = normal(2, 4, 8, 8), torch.tensor([3, 700]), normal(2, 5, pooling.context_embed.in_features)
    with torch.no_grad():
        pooling.context_embed.weight.zero_(), pooling.context_embed.bias.zero_()
        assert torch.equal(plain(z, t, context), pooling(z, t, context))
        pooling.context_embed.weight.copy_(normal(*pooling.context_embed.weight.shape))
        assert not torch.allclose(plain(z, t, context), pooling(z, t, context))
    fresh = UNetModel(8, 4, 32, 4, 1, [1], channel_mult=[1, 2], num_heads=2, context_dim=8, pooled_context=True)
    assert not any(parameter.any() for parameter in fresh.context_embed.parameters())


def test_a_new_unet_predicts_nothing_and_a_new_transformer_changes_nothing():
    network = UNetModel(8, 4, 32, 4, 1, [1], channel_mult=[1, 2], num_heads=2, context_dim=8)
    assert not network(normal(2, 4, 8, 8), torch.tensor([1, 2]), normal(2, 3, 8)).any()
    h = normal(2, 32, 4, 6)
    assert torch.equal(SpatialTransformer(32, 2, 16, context_dim=8)(h, normal(2, 3, 8)), h)


@pytest.mark.parametrize("conv_resample", [True, False])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (16, 4)])
@torch.no_grad()
def test_unet_takes_latents_of_any_shape_that_fits(height: int, width: int, conv_resample: bool):
    network = unet(channel_mult=[1, 2, 2], conv_resample=conv_resample, out_channels=5)
    assert network.factor == 4
    z, t, context = normal(2, 4, height, width), torch.tensor([3, 700]), normal(2, 7, 8)
    out = network(z, t, context)
    assert out.shape == (2, 5, height, width) and out.std() > 0.1
    for i in range(2):  # rows of a batch do not mix
        alone = network(z[i : i + 1], t[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(alone[0], out[i], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        dict(dims=3),
        dict(use_fp16=True),
        dict(num_heads=-1),
        dict(num_head_channels=16),
        dict(num_res_blocks=[1, 2, 3]),
    ],
)
def test_values_that_the_unet_does_not_support_are_named(options: dict):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        unet(**options)


# --- attention -------------------------------------------------------------------------------------------------------


def naive(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, a head at a time; (b, n, heads * d) each."""
    split = (t.chunk(heads, dim=-1) for t in (q, k, v))
    done = [torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ v for q, k, v in zip(*split, strict=True)]
    return torch.cat(done, dim=-1)


@pytest.fixture
def fused(monkeypatch) -> list:
    """One entry for each call of `scaled_dot_product_attention`."""
    calls, attend = [], F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
        calls.append(q.shape)
        return attend(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return calls


@torch.no_grad()
def test_cross_attention_equals_the_formula(fused: list):
    layer, x, context = randomise(CrossAttention(12, 10, heads=3, dim_head=5)), normal(2, 6, 12), normal(2, 4, 10)
    expected = layer.to_out(naive(layer.to_q(x), layer.to_k(context), layer.to_v(context), heads=3))
    torch.testing.assert_close(layer(x, context), expected, rtol=1e-5, atol=1e-5)
    itself = randomise(CrossAttention(12, heads=3, dim_head=5))
    expected = itself.to_out(naive(itself.to_q(x), itself.to_k(x), itself.to_v(x), heads=3))
    torch.testing.assert_close(itself(x), expected, rtol=1e-5, atol=1e-5)
    assert fused == [(2, 3, 6, 5), (2, 3, 6, 5)]


@torch.no_grad()
def test_text_and_autoencoder_attention_equal_the_formula(fused: list):
    text, x = randomise(Attention(12, heads=3, dim_head=5)), normal(2, 6, 12)
    expected = text.to_out(naive(text.to_q(x), text.to_k(x), text.to_v(x), heads=3))
    torch.testing.assert_close(text(x), expected, rtol=1e-5, atol=1e-5)
    block, h = randomise(AttnBlock(32)), normal(2, 32, 3, 5)
    q, k, v = (p(block.norm(h)).flatten(2).mT for p in (block.q, block.k, block.v))
    expected = h + block.proj_out(naive(q, k, v, heads=1).mT.unflatten(2, (3, 5)))
    torch.testing.assert_close(block(h), expected, rtol=1e-5, atol=1e-5)
    assert fused == [(2, 3, 6, 5), (2, 1, 15, 32)]


# --- the autoencoder -------------------------------------------------------------------------------------------------


def ddconfig(**options) -> dict:
    defaults = dict(ch=32, in_channels=3, out_ch=3, z_channels=4, resolution=64, num_res_blocks=1, ch_mult=[1, 2])
    return defaults | options


@pytest.mark.parametrize(("patch_size", "ch_mult", "factor"), [(1, [1, 1, 2, 2], 8), (4, [1, 2], 8), (2, [1], 2)])
@torch.no_grad()
def test_sizes_of_latents_also_where_pixels_are_folded(patch_size: int, ch_mult: list[int], factor: int):
    network = randomise(AutoencoderKL(ddconfig(patch_size=patch_size, ch_mult=ch_mult), embed_dim=5))
    assert network.factor == factor
    for height, width in ((32, 32), (16, 48)):
        posterior = network.encode(normal(2, 3, height, width))
        assert posterior.mean.shape == posterior.logvar.shape == (2, 5, height // factor, width // factor)
        assert network.decode(posterior.mode()).shape == (2, 3, height, width)


@torch.no_grad()
def test_folded_pixels_stay_where_they_were():
    """Without its network, each output pixel must answer to the input pixel of the same place."""
    encoder, decoder = Encoder(**ddconfig(patch_size=4)), Decoder(**ddconfig(patch_size=4))
    seen = []
    encoder.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder.conv_out.register_forward_hook(lambda *_: seen[0])
    x = normal(2, 3, 16, 24)
    encoder(x)
    assert seen[0].shape == (2, 48, 4, 6)
    assert torch.equal(decoder(normal(2, 4, 2, 3)), x)


def test_default_multipliers_give_their_factor():
    config = ddconfig(ch=32)
    del config["ch_mult"]
    with torch.device("meta"):
        assert AutoencoderKL(config, embed_dim=4).factor == 8


def test_an_autoencoder_without_variance_is_refused():
    with pytest.raises(ValueError, match="double_z"):
        AutoencoderKL(ddconfig(double_z=False), embed_dim=4)


@torch.no_grad()
def test_decoder_can_squash_and_can_give_its_features():
    plain, squashed, features = (
        randomise(Decoder(**ddconfig(**options))) for options in ({}, {"tanh_out": True}, {"give_pre_end": True})
    )
    z = normal(1, 4, 4, 4)
    assert torch.equal(squashed(z), torch.tanh(plain(z)))
    assert features(z).shape == (1, 32, 8, 8)


@torch.no_grad()
def test_a_posterior_sample_is_its_generator_s():
    network, x = randomise(AutoencoderKL(ddconfig(), embed_dim=4)), normal(2, 3, 16, 16)
    posterior, before = network.encode(x), torch.get_rng_state()

    def sample(seed: int) -> Tensor:
        return posterior.sample(torch.Generator().manual_seed(seed))

    assert torch.equal(sample(3), sample(3)) and not torch.allclose(sample(3), sample(4), atol=0.1)
    expected = posterior.mean + torch.exp(posterior.logvar / 2) * normal(2, 4, 8, 8, seed=3)
    torch.testing.assert_close(sample(3), expected, rtol=1e-6, atol=1e-6)
    x_hat, same = network(x, torch.Generator().manual_seed(3))
    assert torch.equal(x_hat, network.decode(sample(3))) and torch.equal(same.mean, posterior.mean)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"


def test_a_posterior_s_variance_is_bounded_and_its_kl_is_the_normal_s():
    moments = torch.cat([normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=2)], dim=1)
    posterior = DiagonalGaussian.from_moments(moments)
    ours = torch.distributions.Normal(posterior.mean, posterior.logvar.exp().sqrt())
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(posterior.kl(), expected, rtol=1e-5, atol=1e-5)
    extreme = DiagonalGaussian.from_moments(torch.tensor([0.0, 0.0, -1e9, 1e9]).view(1, 4, 1, 1))
    assert extreme.logvar.flatten().tolist() == [-30.0, 20.0]
    assert torch.isfinite(extreme.sample(torch.Generator().manual_seed(0))).all()


# --- the whole model -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_latents_are_the_posterior_s_mean_times_the_scale_factor():
    model, x = tiny_model(), normal(2, 3, 32, 48).clamp(-1, 1)
    mean = model.first_stage_model.encode(x).mean
    z = model.encode(x)
    assert model.scale_factor == 0.18215 and z.shape == (2, 4, 4, 6)
    torch.testing.assert_close(z, 0.18215 * mean)
    torch.testing.assert_close(model.decode(z), model.first_stage_model.decode(mean), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_eps_is_found_whatever_the_network_predicts():
    model = tiny_model()
    z_start, eps = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=2)
    for t in (0, 500, 999):
        level = level_at(model.alphas_cumprod, t)
        z = model.q_sample(z_start, torch.full((3,), t), eps)
        torch.testing.assert_close(z, level.a * z_start + level.s * eps, rtol=1e-5, atol=1e-5)
        truth = {"eps": eps, "v": level.a * eps - level.s * z_start}  # Salimans & Ho 2022
        for parameterization, out in truth.items():
            model.parameterization = parameterization
            model.apply_model = lambda *_, out=out: out
            made = model.predict(z, level, TextConditioning(model, normal(1, 7, 32)))
            torch.testing.assert_close(made.eps, eps, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(made.z0, z_start, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", [dict(parameterization="x0"), dict(conditioning_key="concat")])
def test_values_that_the_model_does_not_support_are_named(option: dict):
    nothing = {"target": "torch.nn.Identity"}
    with pytest.raises(ValueError, match=next(iter(option.values()))):
        LatentDiffusion(nothing, nothing, nothing, **option)


def test_the_model_is_a_plain_module():
    assert LatentDiffusion.__mro__[1] is AutoencoderKL.__mro__[1] is nn.Module
