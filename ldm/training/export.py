"""From a training checkpoint to what ships: weights in half precision, a config, a tokenizer, a list of its words."""

import os
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.backbones import zoo
from ldm.checkpoint import read_state_dict, save_safetensors
from ldm.data.scenes.backgrounds import KINDS
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.materials import MATERIALS
from ldm.data.scenes.shapes import SHAPES
from ldm.data.things.nouns import NOUNS
from ldm.errors import UserError
from ldm.modules.encoders.modules import BERTTokenizer
from ldm.training.begin import same_encoder
from ldm.training.clip import CLIPTrainer
from ldm.training.clip import export as export_clip
from ldm.training.judge import JudgeTrainer
from ldm.training.judge import export as export_judge
from ldm.training.things_clip import ThingsCLIPTrainer

PARTS = ("clip.", "judge.", "ldm.", "first_stage_model.", "pixels.")
"""What a checkpoint's weights begin with, if they are of a model and not of what only its training needs."""


def export_checkpoint(
    path: Path, folder: Path, sections: dict[str, Any] | None = None, average: Sequence[Path] = ()
) -> Path:
    """Write the model of a checkpoint of `scripts/train.py` to `folder`, as `zoo` and `CLIPRanker` read it.

    Args:
        path: a checkpoint of the training of the diffusion, of pixels, of CLIP or of the judge; or of the
            autoencoder's, whose decoder then takes the place of the one in `folder`.
        sections: what else the config says, beside `model` and `words`.
        average: more checkpoints of that model, with which its weights are averaged: trainings that began from one
            another are often better together than each alone (Wortsman et al. 2022).

    Raises:
        UserError: no checkpoint, or one of another training; a first stage whose latents are not those of `folder`.
    """
    checkpoint = _read(path)
    state = _average(path, checkpoint, average)
    if any(key.startswith("clip.") for key in state):
        kind = ThingsCLIPTrainer if "heads.noun.weight" in state else CLIPTrainer
        ranker = kind.load_from_checkpoint(path, map_location="cpu")
        ranker.load_state_dict(state)
        return export_clip(ranker, folder)
    if any(key.startswith("judge.") for key in state):
        judge = JudgeTrainer.load_from_checkpoint(path, map_location="cpu")
        judge.load_state_dict(state)
        return export_judge(judge, folder)
    if any(key.startswith("pixels.") for key in state):
        return _export_pixels({**checkpoint, "state_dict": state}, folder, sections or {})
    if any(key.startswith("first_stage_model.") for key in state):
        return _replace_decoder(path, state, folder)
    if not any(key.startswith("ldm.model.") for key in state):
        raise UserError(f"{path} is of no training that makes a model: nothing to export")
    return _export_diffusion({**checkpoint, "state_dict": state}, folder, sections or {})


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: train one with scripts/train.py")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["state_dict"].keys()
    except Exception as error:
        raise UserError(f"{path} is no checkpoint of scripts/train.py ({type(error).__name__})") from error
    return checkpoint


def _average(path: Path, checkpoint: dict[str, Any], others: Sequence[Path]) -> dict[str, Tensor]:
    """The state of `checkpoint`, the weights of its model averaged with those of the others."""
    state = dict(checkpoint["state_dict"])
    own = {key: value.shape for key, value in state.items() if key.startswith(PARTS)}
    states = [state]
    for other in others:
        more = _read(other)
        shapes = {key: value.shape for key, value in more["state_dict"].items() if key.startswith(PARTS)}
        same = shapes == own and same_encoder(more["state_dict"], state, "ldm.first_stage_model.")
        if not same or more.get("scale_factor") != checkpoint.get("scale_factor"):
            raise UserError(f"{other} is of another model than {path}: they have no average")
        states.append(more["state_dict"])
    for key in own:
        if others and _is_weight(key, state[key]):
            state[key] = torch.stack([one[key].float() for one in states]).mean(0).to(state[key].dtype)
    return state


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
    editing = (checkpoint["hyper_parameters"].get("editing") or {}) | sections.get("editing", {})
    sections = sections | ({"editing": editing} if editing else {})
    part = folder / "config.yaml.part"
    words = known_words(BERTTokenizer(str(target), encoder["vocab_size"]))
    OmegaConf.save(OmegaConf.create({"model": config, "words": words, **sections}), part)
    os.replace(part, folder / "config.yaml")
    return folder


def _export_pixels(checkpoint: dict[str, Any], folder: Path, sections: dict[str, Any]) -> Path:
    from omegaconf import OmegaConf

    state = checkpoint["state_dict"]
    weights = {key.removeprefix("pixels."): value.half() for key, value in state.items() if key.startswith("pixels.")}
    save_safetensors(weights, folder / "model.safetensors")
    part = folder / "config.yaml.part"
    OmegaConf.save(OmegaConf.create({"model": checkpoint["hyper_parameters"]["model"], **sections}), part)
    os.replace(part, folder / "config.yaml")
    return folder


def _replace_decoder(path: Path, state: dict[str, Tensor], folder: Path) -> Path:
    """Give the model in `folder` the decoder of an autoencoder's checkpoint, if its encoder is the same."""
    if not folder.is_dir():
        raise UserError(f"{path} is a first stage, and there is no model in {folder} to put its decoder into")
    weights = zoo.resolve(str(folder)).weights
    if weights.suffix != ".safetensors":
        raise UserError(f"{weights} is no export of this script: only such a model's decoder can be replaced")
    model = read_state_dict(weights)
    prefix = "first_stage_model."
    old = {key: value for key, value in model.items() if key.startswith(prefix)}
    new = {key: value for key, value in state.items() if key.startswith(prefix)}
    if {key: value.shape for key, value in old.items()} != {key: value.shape for key, value in new.items()}:
        raise UserError(f"the first stages of {path} and of {folder} have different sizes: they do not fit")
    new = {key: value.to(old[key].dtype) for key, value in new.items()}
    decoder = (f"{prefix}decoder.", f"{prefix}post_quant_conv.")
    if any(not torch.equal(value, old[key]) for key, value in new.items() if not key.startswith(decoder)):
        raise UserError(
            f"the encoder of {path} is another one than that of {folder}, whose denoiser knows the latents of its own "
            "alone: train with train_encoder: false from that model, or train a denoiser on the new latents"
        )
    save_safetensors(model | new, weights)
    return folder


THINGS = {
    "animal": "animals",
    "person": "people",
    "food": "food",
    "dish": "dishes",
    "vehicle": "vehicles",
    "plant": "plants",
    "furniture": "furniture",
    "machine": "appliances",
    "tool": "tools",
    "wear": "clothes",
    "play": "sport, music and play",
    "place": "places and weather",
}
"""Kind of a noun of the everyday things -> what the list of a model's words calls it."""


def known_words(tokenize: BERTTokenizer) -> dict[str, list[str]]:
    """What the captions name, by kind, each by its commonest words: those that a model with this tokenizer knows.

    Everyday things come first where most of them are known: of a tokenizer of the scenes a few are by chance, the fruit
    of a colour's name among them. Only familiar ones are listed: others a training shows so seldom that who asks for
    one would be disappointed.
    """
    nouns: dict[str, list[str]] = {}
    for noun in NOUNS.values():
        if noun.familiar:
            nouns.setdefault(THINGS[noun.kind], []).append(noun.name)
    listed_nouns = [name for listed in nouns.values() for name in listed]
    if sum(not tokenize.unknown_words(name) for name in listed_nouns) < len(listed_nouns) / 2:
        nouns = {}
    names = nouns | {
        "shapes": [shape.words[0] for shape in SHAPES.values()],
        "colours": [color.words[0] for color in COLORS.values()],
        "materials": [material.adjectives[0] for material in MATERIALS.values()],
        # The plain ones, "a red background", say no more than the colours.
        "backgrounds": [kind.words[0] for kind in KINDS.values() if "background" not in kind.words[0]],
    }
    return {kind: [name for name in listed if not tokenize.unknown_words(name)] for kind, listed in names.items()}


def _is_weight(key: str, value: Tensor) -> bool:
    """Not a count, nor the noise schedule: `ldm.betas` and its like."""
    return value.is_floating_point() and (key.count(".") > 1 or not key.startswith("ldm."))


def _half(key: str, value: Tensor) -> Tensor:
    """Half precision for weights; the rest keeps its own."""
    return (value.half() if _is_weight(key, value) else value).contiguous()
