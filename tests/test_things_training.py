"""What training at twice the side needs: patches and a thin level, shifted noise levels, its data."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from ldm.checkpoint import read_state_dict
from ldm.cli import run
from ldm.data.scenes.scenes import Scenes, render_scenes
from ldm.data.shards import write_shard
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import schedule_buffers
from ldm.models.diffusion.levels import make_beta_schedule, shift_log_snr
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.training.export import export_checkpoint
from ldm.training.features import FeatureLoss
from scripts import train as train_model

ROOT = Path(__file__).parents[1]
UNET = {
    "image_size": 8,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
}
UNET |= {"num_head_channels": 16, "context_dim": 24, "pooled_context": True}


def unet(channels: int, **changes) -> UNetModel:
    torch.manual_seed(0)
    model = UNetModel(in_channels=channels, out_channels=channels, **{**UNET, **changes})
    for parameter in model.parameters():  # the last layers start at zero
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@torch.no_grad()
def test_patches_are_the_same_network_on_folded_latents():
    folded, plain = unet(3, patch_size=2), unet(12)
    plain.load_state_dict(folded.state_dict())
    z, t, context = torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 24)
    expected = F.pixel_shuffle(plain(F.pixel_unshuffle(z, 2), t, context), 2)
    assert torch.equal(folded(z, t, context), expected)
    assert folded.factor == 4 and plain.factor == 2


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_thin_level_is_trained_and_knows_the_noise_level(blocks):
    model = unet(3, patch_size=2, fine_channels=32, fine_blocks=blocks)
    z, context = torch.randn(1, 3, 8, 8), torch.randn(1, 5, 24)
    out = model(z, torch.tensor([3]), context)
    assert out.shape == z.shape
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for n, p in model.named_parameters() if "fine" in n)
    with torch.no_grad():
        assert torch.equal(model(z, torch.tensor([3]), model.prepare_context(context)), out)


def test_more_blocks_of_the_thin_level_change_nothing_at_first():
    level = {"in_channels": 3, "out_channels": 3, "patch_size": 2, "fine_channels": 32}
    thin, grown = unet(3, patch_size=2, fine_channels=32), UNetModel(**UNET, **level, fine_blocks=3).eval()
    assert (len(grown.fine_in), len(grown.fine_out)) == (4, 3), "a convolution and three blocks, three blocks"
    grown.load_state_dict(thin.state_dict(), strict=False)
    z, t, context = torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 24)
    assert torch.equal(grown(z, t, context), thin(z, t, context))


def test_a_thin_level_needs_patches():
    with pytest.raises(ValueError, match="fine_channels 32 needs a patch_size above 1"):
        unet(3, fine_channels=32)


def log_snr(betas: torch.Tensor) -> torch.Tensor:
    a = torch.cumprod(1 - betas, 0)
    return 0.5 * torch.log(a / (1 - a))


def test_noise_levels_shift_by_what_is_asked_at_every_timestep():
    betas = make_beta_schedule("linear", 1000, 0.00085, 0.012)
    shifted = shift_log_snr(betas, -0.6931)
    torch.testing.assert_close(log_snr(shifted), log_snr(betas) - 0.6931)
    assert shifted.min() > 0 and shifted.max() < 1
    assert shift_log_snr(betas, 0.0) is betas
    buffers = schedule_buffers(shifted)
    assert all(torch.isfinite(value).all() for value in buffers.values())


@pytest.fixture(scope="module")
def features() -> FeatureLoss:
    torch.manual_seed(2)
    weights = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    return FeatureLoss({str(i): value for i, value in enumerate(weights.values())}, size=32)


def test_the_perceptual_loss_is_zero_for_the_same_and_grows_with_blur(features):
    x = torch.rand(2, 3, 48, 48) * 2 - 1
    blurred, more = (F.interpolate(F.avg_pool2d(x, k), x.shape[2:], mode="bilinear") for k in (2, 4))
    same, near, far = (features(one, x, torch.Generator().manual_seed(0)) for one in (x, blurred, more))
    assert same == 0 and 0 < near < far
    assert not features.train().stem[1].training and not any(p.requires_grad for p in features.parameters())


def test_the_perceptual_loss_looks_at_a_part_and_teaches_that_part_in_float32(features):
    x = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = features(x, torch.zeros_like(x), torch.Generator().manual_seed(1))
    assert loss.dtype == torch.float32
    loss.backward()
    rows = (x.grad.abs().sum(dim=(0, 1, 3)) > 0).nonzero()
    assert 24 <= len(rows) <= 32


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError):
        FeatureLoss({"conv": torch.zeros(3)})


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Composites of things, as far as the training sees them: small pictures at eight pixels a cell."""
    folder = tmp_path_factory.mktemp("things")
    scenes = render_scenes(10, 0)
    attributes = [{"noun": "fox", "color": None, "box": [1, 2, 30, 40], "count": 1}] * 9
    attributes.append({"noun": None, "color": None, "box": None, "count": 0})
    composites = Scenes(scenes.images, ["a red fox on grass"] * 10, scenes.coverage, attributes)
    for split in ("train", "val"):
        write_shard(folder / split, 0, composites)
    return folder


def train(config: str, folder: Path, *overrides: str) -> int:
    argv = [str(ROOT / "configs/things" / f"{config}.yaml"), "--rundir", str(folder / config)]
    data = [f"data.params.train={folder / 'train'}", f"data.params.val={folder / 'val'}", "data.params.batch_size=4"]
    quiet = ["trainer.limit_val_batches=1", "trainer.accelerator=cpu", "trainer.max_steps=2"]
    return run(train_model.main, [*argv, *data, *quiet, "trainer.val_check_interval=2", *overrides])


@pytest.fixture(scope="module")
def trained(shards) -> Path:
    """The same, with a decoder's checkpoint and a denoiser's of its latents."""
    small = ["params.ddconfig.ch=32", "params.ddconfig.ch_mult=[1,1]"]
    model = "module.params.model"
    first = [f"{model}.{one}" for one in small]
    alone = ["module.params.begin=null", "module.params.perceptual_weight=0", "data.params.crop=32"]
    assert train("decoder", shards, *first, *alone) == 0
    net = f"{model}.params.unet_config.params"
    widths = [f"{net}.fine_channels=32", f"{net}.num_res_blocks=[1,1,1]"]
    widths += ["module.params.begin=null", "module.params.folded=scenes"]
    files = [f"data.params.first_stage={shards / 'decoder/last.ckpt'}", f"data.params.cache={shards / 'latents'}"]
    files.append(f"data.params.tokenizer={shards / 'tokenizer'}")
    widths += [f"{model}.params.first_stage_config.{one}" for one in small]
    assert train("diffusion", shards, *widths, *files) == 0
    return shards


def test_the_configs_train_a_decoder_and_a_denoiser(trained):
    checkpoint = torch.load(trained / "diffusion/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2 and (trained / "tokenizer/tokenizer.json").exists()


def test_a_decoder_trained_meanwhile_takes_its_place_in_the_exported_model(trained, tmp_path):
    """The denoiser's first stage goes through the running mean, which leaves its encoder the same bit for bit."""
    folder = tmp_path / "model"
    folder.mkdir()
    export_checkpoint(trained / "diffusion/last.ckpt", folder)
    before = read_state_dict(folder / "model.safetensors")
    stage = torch.load(trained / "decoder/last.ckpt", weights_only=True)
    for key, value in stage["state_dict"].items():
        value += 0.5 if ".decoder." in key else 0
    torch.save(stage, tmp_path / "sharper.ckpt")
    export_checkpoint(tmp_path / "sharper.ckpt", folder)
    after = read_state_dict(folder / "model.safetensors")
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {key for key in after if key.startswith("first_stage_model.decoder.")}
    key = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(after[key], stage["state_dict"][key].to(after[key].dtype))

    stage["state_dict"]["first_stage_model.encoder.conv_in.weight"] *= 1.1
    torch.save(stage, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"the encoder of .*other\.ckpt is another one"):
        export_checkpoint(tmp_path / "other.ckpt", folder)
