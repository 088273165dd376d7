"""The networks and the sampler equal an independent implementation, the `diffusers` library's, in float32.

`diffusers` is a development extra: without it these tests fail, and do not skip.
"""

import pytest
import torch
from diffusers import AutoencoderKL as TheirAutoencoder
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import Tensor, nn

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sampling import NoiseSource, sample
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.x_transformer import TransformerWrapper
from tests.convert import autoencoder_to_diffusers, randomise, text_encoder_to_diffusers, unet_to_diffusers
from tests.denoisers import guided, trajectory
from tests.tiny import normal

CONTEXT = 24  # width of the text in these tests


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-4, and large enough for that to mean something."""
    assert 0.1 < theirs.std() < 30
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def load(theirs: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


def both_unets(channel_mult=(1, 2), attention=(1, 2), blocks=(1, 1), depth=1, scale_shift=False, seed=0, **heads):
    """Our UNet and theirs with the same weights. `attention`: the downsampling factors that have transformers."""
    ours = UNetModel(
        image_size=8,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=blocks,
        attention_resolutions=attention,
        channel_mult=channel_mult,
        use_scale_shift_norm=scale_shift,
        transformer_depth=depth,
        context_dim=CONTEXT,
        **heads,
    )
    randomise(ours, seed)
    widths = [32 * m for m in channel_mult]
    kinds = ["CrossAttn" * (2**i in attention) for i in range(len(widths))]
    per_level = [heads.get("num_heads") or width // heads["num_head_channels"] for width in widths]
    theirs = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        cross_attention_dim=CONTEXT,
        attention_head_dim=per_level,  # in spite of its name, how many heads
        transformer_layers_per_block=depth,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
    )
    return ours, load(theirs, unet_to_diffusers(ours.state_dict(), blocks))


UNETS = {
    "the public model's shape": dict(channel_mult=(1, 2, 4, 4), attention=(4, 2, 1), blocks=(2,) * 4, num_heads=8),
    "the shape of scenes": dict(channel_mult=(1, 2, 3), attention=(2, 4), blocks=(3, 2, 1), num_head_channels=16),
    "attention at the top alone": dict(channel_mult=(1, 2, 2), attention=(1,), blocks=(1, 1, 1), num_heads=4),
    "attention in the middle alone": dict(channel_mult=(1, 2), attention=(), num_head_channels=32),
    "two transformers in a row": dict(depth=2, num_heads=2),
    "time as scale and shift": dict(scale_shift=True, num_heads=2),
}


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
@torch.no_grad()
def test_unet(config: dict):
    ours, theirs = both_unets(**config)
    z, t, context = normal(2, 4, 16, 8), torch.tensor([981, 3]), normal(2, 7, CONTEXT, seed=2)
    out = ours(z, t, context)
    assert_same(out, theirs(z, t, encoder_hidden_states=context).sample)
    assert not torch.allclose(out, ours(z, t, context.flip(1)[:, :5]), atol=1e-2), "the text has no effect"
    assert not torch.allclose(out, ours(z, t - 2, context), atol=1e-2), "the timestep has no effect"


AUTOENCODERS = {
    "the public model's shape": dict(ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[]),
    "attention at two resolutions": dict(ch_mult=[1, 2, 2], num_res_blocks=1, attn_resolutions=[32, 8]),
}


@pytest.mark.parametrize("config", AUTOENCODERS.values(), ids=AUTOENCODERS)
@torch.no_grad()
def test_autoencoder(config: dict):
    ddconfig = dict(ch=32, in_channels=3, out_ch=3, z_channels=4, resolution=32, double_z=True, dropout=0.0, **config)
    ours = randomise(AutoencoderKL(ddconfig, embed_dim=5))
    levels = len(config["ch_mult"])
    attends = ["Attn" * (32 // 2**i in config["attn_resolutions"]) for i in range(levels)]
    theirs = TheirAutoencoder(
        block_out_channels=[32 * m for m in config["ch_mult"]],
        layers_per_block=config["num_res_blocks"],
        down_block_types=[f"{kind}DownEncoderBlock2D" for kind in attends],
        up_block_types=[f"{kind}UpDecoderBlock2D" for kind in reversed(attends)],
        latent_channels=4,
    )
    # Ours may have another width of z than of the networks; theirs has one number for both.
    theirs.quant_conv, theirs.post_quant_conv = nn.Conv2d(8, 10, 1), nn.Conv2d(5, 4, 1)
    load(theirs, autoencoder_to_diffusers(ours.state_dict(), levels))

    x = normal(2, 3, 32, 48).clamp(-1, 1)
    posterior, expected = ours.encode(x), theirs.encode(x).latent_dist
    assert_same(posterior.mode(), expected.mode())
    assert_same(posterior.logvar, expected.logvar)
    torch.testing.assert_close(posterior.kl(), expected.kl(), rtol=1e-4, atol=1e-4)
    z = normal(2, 5, 4, 6)
    assert_same(ours.decode(z), theirs.decode(z).sample)
    moments = ours.encoder(x)
    assert_same(moments, theirs.encoder(x))
    assert_same(ours.decoder(moments[:, :4]), theirs.decoder(moments[:, :4]))


@torch.no_grad()
def test_text_encoder():
    ours = randomise(TransformerWrapper(num_tokens=50, max_seq_len=12, dim=48, depth=3))
    # Their defaults for the rest are the public model's: 8 heads of 64, whatever the width.
    config = LDMBertConfig(vocab_size=50, max_position_embeddings=12, encoder_layers=3, encoder_ffn_dim=192, d_model=48)
    theirs = load(LDMBertModel(config), text_encoder_to_diffusers(ours.state_dict(), depth=3))
    for length in (12, 7):
        ids = torch.randint(50, (2, length), generator=torch.Generator().manual_seed(length))
        ids[:, 5:] = 0  # padding, which the public model attends to
        assert_same(ours(ids), theirs(ids)[0])


class Toy(LatentDiffusion):
    """A LatentDiffusion of which only the denoiser is built; the other parts take no part in sampling."""

    def __init__(self, unet: nn.Module, parameterization: str):
        nothing = {"target": "torch.nn.Identity"}
        super().__init__(
            nothing, nothing, nothing, linear_start=0.00085, linear_end=0.012, parameterization=parameterization
        )
        self.model.diffusion_model = unet


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("parameterization", ["eps", "v"])
@torch.no_grad()
def test_ten_guided_ddim_steps(eta: float, parameterization: str, scale: float = 5.0):
    ours, theirs = both_unets(num_heads=4)
    for last in (ours.out[2], theirs.conv_out):
        last.weight.mul_(
            0.5
        )  # else guidance makes the trajectory chaotic: rounding alone would grow to 1e-2 in ten steps
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[parameterization],
    )
    scheduler.set_timesteps(10)
    start, (context, empty) = normal(2, 4, 8, 8), normal(2, 1, 7, CONTEXT, seed=2)
    noise, z, expected = NoiseSource([3, 4]), start, []
    for t in scheduler.timesteps:
        without, with_text = (theirs(z, t, encoder_hidden_states=c.expand(2, -1, -1)).sample for c in (empty, context))
        out = without + scale * (with_text - without)
        z = scheduler.step(out, t, z, eta=eta, variance_noise=noise.draw(z.shape[1:], z)).prev_sample
        expected.append(z)

    model = Toy(ours, parameterization)
    schedule = trajectory(model.alphas_cumprod, steps=10, eta=eta)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    denoiser, seen = guided(model, context, empty, scale), []
    z0 = sample(denoiser, schedule, start, NoiseSource([3, 4]), callback=lambda info: seen.append(info.z))
    assert len(seen) == 10 and torch.equal(z0, seen[-1])
    for ours_z, their_z in zip(seen, expected, strict=True):
        assert_same(ours_z, their_z)
