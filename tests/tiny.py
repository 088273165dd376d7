"""A small random text-to-image model for tests: the real classes at the smallest widths, built in a blink.

64x64 pictures, latents of 4x8x8 (f8), any multiple of 16 a side. The weights are random but always the same ones.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from ldm.checkpoint import save_safetensors
from ldm.data.tokenizer import write_tokenizer
from ldm.models.diffusion.ddpm import LatentDiffusion

WORDS = ("a", "ball", "blue", "cube", "pink", "red", "yarn")


def tiny_config(tokenizer: str) -> dict[str, Any]:
    """The config of the tiny model as its yaml has it; `tokenizer` is a folder of `write_tokenizer`."""
    autoencoder = {
        "embed_dim": 4,
        "ddconfig": {
            "double_z": True,
            "z_channels": 4,
            "resolution": 64,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 1, 2, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }
    unet = {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "attention_resolutions": [1, 2],
        "num_res_blocks": 1,
        "channel_mult": [1, 2],
        "num_head_channels": 16,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": 32,
        "legacy": False,
    }
    encoder = {"n_embed": 32, "n_layer": 1, "vocab_size": 128, "tokenizer": tokenizer, "with_logits": False}
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "image_size": 8,
        "channels": 4,
        "scale_factor": 0.18215,
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": autoencoder},
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": encoder},
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def tiny_model(tokenizer: str | Path | None = None) -> LatentDiffusion:
    """The model in eval mode and without gradients, as `ldm.backbones.zoo.load` gives it."""
    config = tiny_config(str(tokenizer or _tokenizer().name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LatentDiffusion(**config["model"]["params"])
        for parameter in model.parameters():  # the UNet's output starts at zero, which would hide what feeds it
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


def save_tiny_model(folder: str | Path, **sections: Any) -> Path:
    """Write the model as a folder that `zoo.resolve(str(folder))` takes: config.yaml, model.safetensors, tokenizer.

    `sections` stand beside `model` in the yaml. There is no `clip` in it.
    """
    folder = Path(folder)
    write_tokenizer(WORDS, folder / "tokenizer", max_length=77)
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config("tokenizer") | sections))
    save_safetensors(tiny_model(folder / "tokenizer").state_dict(), folder / "model.safetensors")
    return folder


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal numbers, the same ones for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def squares(*sides: int, size: int = 12) -> torch.Tensor:
    """(K, 1, size, size) masks: centred squares of these sides."""
    masks = torch.zeros(len(sides), 1, size, size)
    for mask, side in zip(masks, sides, strict=True):
        low = (size - side) // 2
        mask[:, low : low + side, low : low + side] = 1
    return masks


def tiny_picture(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """A smooth picture x (1, 3, H, W) in [-0.7, 0.7]."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.7
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


@functools.cache
def _tokenizer() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="tiny-tokenizer-")  # goes with the process
    write_tokenizer(WORDS, Path(folder.name), max_length=77)
    return folder
