"""The public text-to-image model: every key and shape of its checkpoint, and every key of its yaml."""

import json
from functools import reduce
from inspect import signature
from operator import getitem
from pathlib import Path

import pytest
import torch
import yaml

from ldm.backbones.original_configs import TRAINING_KEYS
from ldm.backbones.zoo import read_config
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import get_obj_from_str, instantiate_from_config

TESTS = Path(__file__).resolve().parent
CONFIG = TESTS.parent / "configs/latent-diffusion/txt2img-1p4B-eval.yaml"
KEYS = json.loads((TESTS / "fixtures/txt2img-f8-large.keys.json").read_text())

# As https://github.com/CompVis/latent-diffusion gives it, which users of the checkpoint have on their disks.
ORIGINAL = """\
model:
  base_learning_rate: 5.0e-05
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.012
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: image
    cond_stage_key: caption
    image_size: 32
    channels: 4
    cond_stage_trainable: true
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: False

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: 4
        out_channels: 4
        model_channels: 320
        attention_resolutions:
        - 4
        - 2
        - 1
        num_res_blocks: 2
        channel_mult:
        - 1
        - 2
        - 4
        - 4
        num_heads: 8
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: 1280
        use_checkpoint: true
        legacy: False

    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 128
          ch_mult:
          - 1
          - 2
          - 4
          - 4
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity

    cond_stage_config:
      target: ldm.modules.encoders.modules.BERTEmbedder
      params:
        n_embed: 1280
        n_layer: 32
"""

# What a yaml to train from holds beside that. The classes and files it names are not here, and nothing may need them.
TRAINING = """\
    scheduler_config:
      target: ldm.lr_scheduler.LambdaLinearScheduler
      params: {warm_up_steps: [10000], f_start: [1.e-6]}
    ckpt_path: models/none.ckpt
data:
  target: main.DataModuleFromConfig
lightning:
  trainer: {benchmark: true}
"""
LOSS = "ldm.modules.losses.LPIPSWithDiscriminator"


def build(path: Path) -> LatentDiffusion:
    with torch.device("meta"):
        return instantiate_from_config(read_config(path)["model"])


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return build(CONFIG)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original.yaml"
    path.write_text(ORIGINAL)
    return path


def test_keys_and_shapes_are_those_of_the_public_checkpoint(model: LatentDiffusion):
    assert len(KEYS) == 1368
    own = shapes(model)
    assert own.keys() == KEYS.keys()
    assert {key: shape for key, shape in own.items() if shape != KEYS[key]} == {}


def test_nothing_was_allocated_and_the_schedule_is_float32(model: LatentDiffusion):
    assert all(tensor.is_meta and tensor.dtype == torch.float32 for tensor in model.state_dict().values())


def test_unet_has_872_million_parameters(model: LatentDiffusion):
    count = sum(p.numel() for p in model.model.diffusion_model.parameters())
    assert round(count / 1e6, 1) == 872.3


def test_values_that_no_shape_shows(model: LatentDiffusion):
    """The state dict would fit other numbers of heads, levels of noise and factors just as well."""
    assert (model.scale_factor, model.factor, model.image_size, model.channels) == (0.18215, 8, 32, 4)
    unet = model.model.diffusion_model
    transformers = [m for m in unet.modules() if hasattr(m, "heads")]
    assert len(transformers) == 2 * 16 and {m.heads for m in transformers} == {8}
    assert unet.factor == 8
    assert (model.cond_stage_model.tokenize.vocab_size, model.cond_stage_model.tokenize.max_length) == (30522, 77)
    levels = read_config(CONFIG)["model"]["params"]
    assert (levels["linear_start"], levels["linear_end"], model.parameterization) == (0.00085, 0.012, "eps")


def test_the_original_yaml_loads_unchanged(original: Path):
    assert read_config(original)["model"] == read_config(CONFIG)["model"], "ours gives other values than the original"
    assert shapes(build(original)) == KEYS


def test_training_keys_are_taken_and_what_they_name_is_not_needed(original: Path):
    original.write_text(ORIGINAL.replace("torch.nn.Identity", LOSS) + TRAINING)
    assert shapes(build(original)) == KEYS


def test_every_training_key_of_the_original_classes_is_taken_at_any_depth(original: Path):
    config = yaml.safe_load(ORIGINAL)
    whole, params = config["model"], config["model"]["params"]
    for part in (whole, params["first_stage_config"]):
        part["params"] |= {key: {"target": "not.here"} for key in TRAINING_KEYS[part["target"]]}
    original.write_text(yaml.safe_dump(config))
    assert shapes(build(original)) == KEYS
    # Elsewhere such a key is a mistake like any other.
    params["unet_config"]["params"]["monitor"] = "val/loss"
    original.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"UNetModel.*'monitor'"):
        build(original)


def test_the_classes_take_what_they_read_alone():
    for target, keys in TRAINING_KEYS.items():
        assert not keys & signature(get_obj_from_str(target)).parameters.keys()


PARTS = {
    "LatentDiffusion": (),
    "UNetModel": ("unet_config", "params"),
    "AutoencoderKL": ("first_stage_config", "params"),
    "Encoder": ("first_stage_config", "params", "ddconfig"),
    "BERTEmbedder": ("cond_stage_config", "params"),
}


@pytest.mark.parametrize("part", PARTS)
def test_an_unknown_key_is_refused_by_name(original: Path, part: str):
    config = read_config(original)["model"]
    reduce(getitem, PARTS[part], config["params"])["frobnicate"] = 1
    with pytest.raises(UserError, match=f"{part}.*'frobnicate'") as error, torch.device("meta"):
        instantiate_from_config(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("LatentDiffusion", "unet_config"),
        ("UNetModel", "model_channels"),
        ("AutoencoderKL", "embed_dim"),
        ("Encoder", "z_channels"),
        ("BERTEmbedder", "n_layer"),
    ],
)
def test_a_missing_key_is_named(original: Path, part: str, key: str):
    config = read_config(original)["model"]
    del reduce(getitem, PARTS[part], config["params"])[key]
    with pytest.raises(UserError, match=f"{part}.*'{key}'") as error, torch.device("meta"):
        instantiate_from_config(config)
    assert "\n" not in str(error.value)
