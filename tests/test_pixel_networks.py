"""The networks of the predecessor and of the baselines: every key of their checkpoints, and parity with diffusers."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DModel
from einops import rearrange
from torch import Tensor

from ldm.backbones.zoo import read_config
from ldm.checkpoint import load_model, save_safetensors
from ldm.modules.attention import AttentionBlock
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.util import instantiate_from_config
from tests.convert import randomise
from tests.tiny import normal
from tests.tiny_pixels import pixel_config, pixel_model, save_pixel_model

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "256x256_diffusion_uncond": ("blended-diffusion/256x256_diffusion_uncond.yaml", 566),
    "glide-base-inpaint": ("glide/base_inpaint.yaml", 783),
    "glide-upsample-inpaint": ("glide/upsample_inpaint.yaml", 797),
    "vqgan-imagenet-f16-16384": ("vqgan/imagenet_f16_16384.yaml", 343),
}


def model_config(path: str) -> dict:
    return yaml.safe_load((ROOT / "configs" / path).read_text())["model"]


def outline(config: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return instantiate_from_config(config)


@pytest.mark.parametrize("name", FILES)
def test_a_public_checkpoint_has_these_keys_and_shapes(name):
    path, count = FILES[name]
    own = {key: list(tensor.shape) for key, tensor in outline(model_config(path)).state_dict().items()}
    assert own == json.loads((ROOT / f"tests/fixtures/{name}.keys.json").read_text()) and len(own) == count


def test_the_unet_alone_has_the_keys_of_the_public_checkpoint():
    config = model_config("blended-diffusion/256x256_diffusion_uncond.yaml")
    unet = outline(config["params"]["unet_config"])
    assert list(unet.state_dict()) == list(outline(config).state_dict())


def test_the_network_of_512_is_that_of_classes():
    state = outline(model_config("blended-diffusion/512x512_diffusion.yaml")).state_dict()
    assert state["label_emb.weight"].shape == (1000, 1024)
    assert state["input_blocks.0.0.weight"].shape == (128, 3, 3, 3)  # half of 256
    # Seven levels, attention at 32, 16 and 8: the last three of them, on both ways, and the middle.
    assert sum(key.endswith("qkv.weight") for key in state) == 3 * 2 + 1 + 3 * 3


def test_weights_under_bare_keys_load(tmp_path):
    folder = save_pixel_model(tmp_path / "own", clip=False)
    config, weights = read_config(folder / "config.yaml"), folder / "model.safetensors"
    model = load_model(config, weights, device=torch.device("cpu"), dtype=torch.float32)
    x, t = normal(2, 3, 16, 16), torch.tensor([3, 900])
    assert "time_embed.0.weight" in model.state_dict() and not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model.apply_model(x, t), pixel_model().apply_model(x, t))


def test_half_precision_does_not_round_the_noise_levels(tmp_path):
    folder = save_pixel_model(tmp_path / "own", clip=False)
    config, weights = read_config(folder / "config.yaml"), folder / "model.safetensors"
    model = load_model(config, weights, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.levels.schedule(50).levels == pixel_model().levels.schedule(50).levels
    assert model.levels.schedule(50).levels[-2].s == pytest.approx(1e-2)  # sqrt(beta_0)


def test_weights_of_another_network_are_refused(tmp_path):
    from ldm.errors import UserError

    save_safetensors(pixel_model(learn_sigma=False).state_dict(), tmp_path / "model.safetensors")
    config = {"model": pixel_config(learn_sigma=True)}
    with pytest.raises(UserError, match=r"out\.2"):
        load_model(config, tmp_path / "model.safetensors", device=torch.device("cpu"), dtype=torch.float32)


# --- parity -----------------------------------------------------------------------------------------------------------


def both(classes: int | None = None) -> tuple[UNetModel, UNet2DModel]:
    """Our UNet and theirs with the same weights: scale and shift, resampling in residual blocks, attention below."""
    ours = UNetModel(
        image_size=16,
        in_channels=3,
        out_channels=6,
        model_channels=32,
        num_res_blocks=2,
        attention_resolutions=[2],
        channel_mult=[1, 2],
        num_head_channels=16,
        use_spatial_transformer=False,
        use_scale_shift_norm=True,
        resblock_updown=True,
        num_classes=classes,
    )
    randomise(ours)
    theirs = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,
        downsample_type="resnet",
        upsample_type="resnet",
        norm_eps=1e-5,
        num_class_embeds=classes,
    )
    theirs.load_state_dict(to_diffusers(ours.state_dict()), strict=True)
    return ours, theirs.eval()


PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
PLACES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "input_blocks.1.0": "down_blocks.0.resnets.0",
    "input_blocks.2.0": "down_blocks.0.resnets.1",
    "input_blocks.3.0": "down_blocks.0.downsamplers.0",
    "input_blocks.4.0": "down_blocks.1.resnets.0",
    "input_blocks.4.1": "down_blocks.1.attentions.0",
    "input_blocks.5.0": "down_blocks.1.resnets.1",
    "input_blocks.5.1": "down_blocks.1.attentions.1",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "output_blocks.0.0": "up_blocks.0.resnets.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.1.0": "up_blocks.0.resnets.1",
    "output_blocks.1.1": "up_blocks.0.attentions.1",
    "output_blocks.2.0": "up_blocks.0.resnets.2",
    "output_blocks.2.1": "up_blocks.0.attentions.2",
    "output_blocks.2.2": "up_blocks.0.upsamplers.0",
    "output_blocks.3.0": "up_blocks.1.resnets.0",
    "output_blocks.4.0": "up_blocks.1.resnets.1",
    "output_blocks.5.0": "up_blocks.1.resnets.2",
}


def to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        place = max((one for one in PLACES if key.startswith(f"{one}.")), key=len)
        rest, kind = key.removeprefix(f"{place}.").rpartition(".")[::2]
        theirs = PLACES[place]
        if "attentions" not in theirs:
            found[f"{theirs}.{PARTS[rest]}.{kind}" if rest else f"{theirs}.{kind}"] = value
        elif rest == "qkv":
            heads = len(value) // 3 // 16
            split = rearrange(
                value.flatten(1) if value.ndim > 1 else value[:, None], "(h p d) c -> p (h d) c", h=heads, p=3
            )
            for name, part in zip(("to_q", "to_k", "to_v"), split, strict=True):
                found[f"{theirs}.{name}.{kind}"] = part if kind == "weight" else part[:, 0]
        else:
            name = {"norm": "group_norm", "proj_out": "to_out.0"}[rest]
            found[f"{theirs}.{name}.{kind}"] = value.flatten(1) if rest == "proj_out" and kind == "weight" else value
    return found


@pytest.mark.parametrize("classes", [None, 5])
@torch.no_grad()
def test_the_unet_of_guided_diffusion_equals_theirs(classes):
    ours, theirs = both(classes)
    x, t = normal(2, 3, 16, 16), torch.tensor([3, 700])
    y = None if classes is None else torch.tensor([4, 1])
    expected = theirs(x, t, class_labels=y).sample
    assert 0.1 < expected.std() < 30
    torch.testing.assert_close(ours(x, t, y=y), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_to_a_context_is_attention_over_more_positions():
    """GLIDE's encoder_kv: softmax over text and picture together, computed here by hand."""
    block = randomise(AttentionBlock(32, heads=2, context_dim=12))
    x, context = normal(2, 32, 3, 2), normal(2, 5, 12, seed=3)
    h = block.norm(x).flatten(2)
    expected = []
    for b in range(2):
        mixed = (block.qkv.weight[:, :, 0] @ h[b] + block.qkv.bias[:, None]).view(2, 3, 16, 6)
        text = (block.encoder_kv.weight[:, :, 0] @ context[b].T + block.encoder_kv.bias[:, None]).view(2, 2, 16, 5)
        heads = []
        for head in range(2):
            q, (k, v) = mixed[head, 0], (torch.cat([text[head, i], mixed[head, i + 1]], dim=1) for i in range(2))
            heads.append(v @ torch.softmax(q.T @ k / 4, dim=1).T)
        expected.append(block.proj_out.weight[:, :, 0] @ torch.cat(heads) + block.proj_out.bias[:, None])
    torch.testing.assert_close(block(x, context), x + torch.stack(expected).view_as(x), rtol=1e-4, atol=1e-4)
    # One row of a context serves all samples.
    torch.testing.assert_close(block(x, context[:1])[:1], block(x, context)[:1])
