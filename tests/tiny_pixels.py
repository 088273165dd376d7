"""Small random models of pixels, GLIDE's and VQGAN's, and a CLIP that knows a few words: the real classes, built in a
blink and always the same."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from ldm.checkpoint import save_safetensors
from ldm.data.tokenizer import write_tokenizer
from ldm.editing.ranking import CLIPRanker
from ldm.models.diffusion.pixel import PixelDiffusion
from ldm.util import instantiate_from_config
from tests.convert import randomise

SIZE = 16
UNET = {
    "image_size": SIZE,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 1],
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
WORDS = ("a", "red", "blue", "ball", "cube", "on", "grass")
CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 64,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "pool_type": "eos",
            "eos_id": 3,
            "hf_tokenizer_name": "wordpiece",
        },
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"},
}


def pixel_config(learn_sigma: bool = True, classes: int | None = None, **params: Any) -> dict[str, Any]:
    """Of a `PixelDiffusion` of 16x16 pictures."""
    unet = UNET | {"in_channels": 3, "out_channels": 6 if learn_sigma else 3, "use_spatial_transformer": False}
    own = {
        "image_size": SIZE,
        "learn_sigma": learn_sigma,
        "num_classes": classes,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": unet | {"num_classes": classes},
        },
    }
    return {"target": "ldm.models.diffusion.pixel.PixelDiffusion", "params": own | params}


def pixel_model(**params: Any) -> PixelDiffusion:
    """In eval mode and without gradients, its output of about the size of noise."""
    model = instantiate_from_config(pixel_config(**params))
    return randomise(model).requires_grad_(False)


def save_pixel_model(folder: Path, clip: bool = True, **params: Any) -> Path:
    """A folder that `zoo.resolve(str(folder))` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": pixel_config(**params)}))
    save_safetensors(pixel_model(**params).state_dict(), folder / "model.safetensors")
    if clip:
        save_clip(folder / "clip")
    return folder


def save_clip(folder: Path) -> Path:
    """A folder of a tiny random CLIP, as `CLIPRanker.from_folder` takes it."""
    from open_clip.model import CLIP as Model

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(**CLIP["model_cfg"])
    save_safetensors(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP))
    write_tokenizer(WORDS, folder, max_length=8)
    return folder


def clip(folder: Path) -> CLIPRanker:
    """The ranker of `save_clip`."""
    return CLIPRanker.from_folder(save_clip(folder))


def glide_config(low_res: bool) -> dict[str, Any]:
    """Of a GLIDE network, 8x8 or with `low_res` 16x16, of texts of 6 tokens."""
    params = UNET | {"image_size": 16 if low_res else 8, "out_channels": 6, "low_res": low_res}
    params |= {"text_ctx": 6, "xf_width": 32, "xf_layers": 1, "xf_heads": 2, "n_vocab": 300}
    schedule = "sqrt_linear" if low_res else "squaredcos_cap_v2"
    return {
        "model": {"target": "ldm.modules.diffusionmodules.glide.InpaintText2ImUNet", "params": params},
        "diffusion": {"beta_schedule": schedule},
    }


def save_model(folder: Path, config: dict[str, Any], clip: bool = True) -> Path:
    """A folder with a random model of a config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    model = randomise(instantiate_from_config(config["model"]))
    save_safetensors(model.state_dict(), folder / "model.safetensors")
    if clip:
        save_clip(folder / "clip")
    return folder


def vq_config() -> dict[str, Any]:
    """Of a VQGAN, f4, of 24 codes."""
    dd = {
        "double_z": False,
        "z_channels": 8,
        "resolution": 16,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.0,
    }
    params = {"embed_dim": 8, "n_embed": 24, "ddconfig": dd}
    return {"model": {"target": "ldm.models.autoencoder.VQModel", "params": params}}


def save_byte_pairs(folder: Path) -> Path:
    """GPT-2's byte pairs at their smallest: the 256 bytes, no merges but of "re" and "red", and the end of a text."""
    from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer  # noqa: F401  (the class must be there)

    folder.mkdir(parents=True, exist_ok=True)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(others))]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    vocabulary |= {"re": 256, "red": 257, "<|endoftext|>": 258}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d\n")
    return folder
