"""From a training checkpoint to what ships: weights in half precision, a config, a tokenizer."""

import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import save_safetensors
from ldm.errors import UserError
from ldm.training.clip import CLIPTrainer
from ldm.training.clip import export as export_clip


def export_checkpoint(path: Path, folder: Path, sections: dict[str, Any] | None = None) -> Path:
    """Write the model of a checkpoint of `scripts/train.py` to `folder`, as `ldm.zoo` and `CLIPRanker` read it.

    Args:
        path: a checkpoint of the diffusion or of the CLIP training.
        sections: what else the config says, beside `model`.

    Raises:
        UserError: no checkpoint, or one of another training.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: train one with scripts/train.py")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = checkpoint["state_dict"]
    except Exception as error:
        raise UserError(f"{path} is no checkpoint of scripts/train.py ({type(error).__name__})") from error
    if any(key.startswith("clip.") for key in state):
        return export_clip(CLIPTrainer.load_from_checkpoint(path, map_location="cpu"), folder)
    if not any(key.startswith("ldm.model.") for key in state):
        raise UserError(f"{path} is neither of the diffusion training nor of CLIP's: nothing to export")
    return _export_diffusion(checkpoint, folder, sections or {})


def _export_diffusion(checkpoint: dict[str, Any], folder: Path, sections: dict[str, Any]) -> Path:
    from omegaconf import OmegaConf

    config = deepcopy(checkpoint["hyper_parameters"]["model"])
    config["params"]["scale_factor"] = checkpoint["scale_factor"]
    encoder = config["params"]["cond_stage_config"]["params"]
    tokenizer = Path(encoder["tokenizer"])
    encoder["tokenizer"] = "tokenizer"  # beside the config
    target = folder / "tokenizer"
    if tokenizer.resolve() != target.resolve():
        shutil.copytree(tokenizer, target, dirs_exist_ok=True)
    weights = {
        key.removeprefix("ldm."): _half(key, value)
        for key, value in checkpoint["state_dict"].items()
        if key.startswith("ldm.")
    }
    save_safetensors(weights, folder / "model.safetensors")
    part = folder / "config.yaml.part"
    OmegaConf.save(OmegaConf.create({"model": config, **sections}), part)
    os.replace(part, folder / "config.yaml")
    return folder


def _half(key: str, value: Tensor) -> Tensor:
    """Half precision for weights; the noise schedule, `ldm.betas` and its like, keeps its own."""
    keep = key.count(".") == 1 or not value.is_floating_point()
    return (value if keep else value.half()).contiguous()
