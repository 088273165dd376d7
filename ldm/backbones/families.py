"""The families of models that diffusers reads: how each is recognised, what is special, and what it edits best with.

A family is a row of `FAMILIES` and an adapter in `ldm.backbones.pipelines`. Imports nothing heavy.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.errors import UserError

INDEX = "model_index.json"
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that nothing here uses: they are not loaded."""

PREDICTION_KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "z0"}
"""What a scheduler of diffusers says that the network predicts -> the kind of `Prediction`."""

_VOCABULARIES = ("vocab.*", "tokenizer.json", "*.model")
_LIBRARIES = {"diffusers", "transformers", "stable_diffusion", "latent_consistency"}


@dataclass(frozen=True)
class Family:
    """What models of one kind have in common.

    about: for tables. pipeline: diffusers' class that reads it. adapter: of `ldm.backbones.pipelines`.
    classes: what `_class_name` in the index of such a folder may be.
    size: pixels a side that it was trained at. steps, scale, sampler: what its makers recommend; source: where.
    trailing: its steps end at the very last timesteps.
    """

    about: str
    pipeline: str
    adapter: str
    classes: tuple[str, ...]
    size: int
    steps: int
    scale: float
    sampler: str
    source: str
    trailing: bool = False


_SD = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
_SDXL = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
_SD3 = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
_FLUX = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
_LCM = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")
_Z = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")

FAMILIES = {
    "sd": Family(
        "Stable Diffusion 1.x and 2.x",
        *("StableDiffusionPipeline", "StableDiffusion", _SD, 512, 50, 7.5, "ddim"),
        source="model cards of stable-diffusion-v1-5 and stable-diffusion-2-1",
    ),
    "lcm": Family(
        "latent consistency models of Stable Diffusion",
        *("StableDiffusionPipeline", "StableDiffusion", _LCM, 768, 4, 8.5, "lcm"),
        source="Luo et al. 2023; card of LCM_Dreamshaper_v7",
    ),
    "sd-lcm-lora": Family(
        "Stable Diffusion with LCM-LoRA in its weights",
        *("StableDiffusionPipeline", "StableDiffusion", (), 512, 4, 1.0, "lcm"),
        source="card of lcm-lora-sdv1-5",
    ),
    "sd-turbo": Family(
        "SD-Turbo, and Lightning or Hyper of Stable Diffusion",
        *("StableDiffusionPipeline", "StableDiffusion", (), 512, 4, 1.0, "ddim"),
        source="card of sd-turbo",
        trailing=True,
    ),
    "sdxl": Family(
        "Stable Diffusion XL and its fine-tunes",
        *("StableDiffusionXLPipeline", "StableDiffusionXL", _SDXL, 1024, 50, 5.0, "ddim"),
        source="defaults of diffusers' StableDiffusionXLPipeline",
    ),
    "sdxl-turbo": Family(
        "SDXL-Turbo, SDXL-Lightning, Hyper-SDXL",
        *("StableDiffusionXLPipeline", "StableDiffusionXL", (), 1024, 4, 1.0, "ddim"),
        source="cards of sdxl-turbo and SDXL-Lightning",
        trailing=True,
    ),
    "sdxl-lcm": Family(
        "latent consistency models of SDXL",
        *("StableDiffusionXLPipeline", "StableDiffusionXL", (), 1024, 4, 8.0, "lcm"),
        source="card of lcm-sdxl",
    ),
    "sdxl-lcm-lora": Family(
        "SDXL with LCM-LoRA in its weights",
        *("StableDiffusionXLPipeline", "StableDiffusionXL", (), 1024, 4, 1.0, "lcm"),
        source="card of lcm-lora-sdxl",
    ),
    "sd3": Family(
        "Stable Diffusion 3 and 3.5",
        *("StableDiffusion3Pipeline", "StableDiffusion3", _SD3, 1024, 28, 7.0, "ddim"),
        source="card of stable-diffusion-3-medium",
    ),
    "sd3-turbo": Family(
        "Stable Diffusion 3.5 Large Turbo",
        *("StableDiffusion3Pipeline", "StableDiffusion3", (), 1024, 4, 1.0, "ddim"),
        source="card of stable-diffusion-3.5-large-turbo",
    ),
    "flux": Family(
        "FLUX.1 [dev]",
        *("FluxPipeline", "Flux", _FLUX, 1024, 50, 3.5, "ddim"),
        source="card of FLUX.1-dev",
    ),
    "flux-schnell": Family(
        "FLUX.1 [schnell]",
        *("FluxPipeline", "Flux", (), 1024, 4, 1.0, "ddim"),
        source="card of FLUX.1-schnell",
    ),
    "z-image": Family(
        "Z-Image",
        *("ZImagePipeline", "ZImage", _Z, 1024, 50, 6.0, "ddim"),
        source="defaults of diffusers' ZImagePipeline, whose guidance of 5 counts one less",
    ),
    "z-image-turbo": Family(
        "Z-Image-Turbo",
        *("ZImagePipeline", "ZImage", (), 1024, 9, 1.0, "ddim"),
        source="card of Z-Image-Turbo",
    ),
}

_QUICK = re.compile(r"turbo|lightning|schnell|(?<![a-z])hyper(?:[-_ .]?sd|(?![a-z])(?![-_ .]?real))")
"""In names of few-step models. Hyper is one; "hyperreal" praises the pictures of any."""


def is_quick(name: str) -> bool:
    """Whether a model's name says that it takes few steps."""
    return bool(_QUICK.search(name.lower()))


def read_json(path: Path) -> Mapping[str, Any]:
    """A config of diffusers.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no config: it holds {type(content).__name__} and no mapping")
    return content


def part_config(folder: Path, part: str, name: str = "config.json") -> Mapping[str, Any]:
    """The config of one part of a pipeline's folder, {} where it has none."""
    path = folder / part / name
    return read_json(path) if path.is_file() else {}


def family_of(folder: Path, name: str) -> Family:
    """The family of a folder in diffusers' layout; `name` is what the user calls it.

    Few-step offspring have the classes of their parents: what tells them is their scheduler, their network, or, as
    Lightning and Hyper change weights alone, their name.

    Raises:
        UserError: the folder needs code of its own, is of another kind, or cannot be read.
    """
    index = read_json(folder / INDEX)
    class_name = index.get("_class_name")
    foreign = [
        part
        for part, value in index.items()
        if isinstance(value, list) and value and not part.startswith("_") and value[0] not in {*_LIBRARIES, None}
    ]
    if not isinstance(class_name, str) or foreign:
        what = f'its part "{foreign[0]}"' if foreign else "its pipeline"
        raise UserError(f'model "{name}" needs code of its own for {what}, which is never run: take another model')
    key = next((key for key, family in FAMILIES.items() if class_name in family.classes), None)
    missing = [part for part, value in index.items() if _is_used(part, value) and not (folder / part).is_dir()]
    if key is not None and missing:
        raise UserError(f'model "{name}" is incomplete: {folder / missing[0]} is missing, get the model again')
    if key is None:
        known = ", ".join(family.about for family in FAMILIES.values() if family.classes)
        raise UserError(
            f'model "{name}" is a {class_name}, which paints no pictures from a prompt here; known: {known}'
        )
    _check_parts(index, folder, name)
    return FAMILIES[_offspring(key, folder, name)]


def _check_parts(index: Mapping[str, Any], folder: Path, name: str) -> None:
    """Refuse what has the class of a known pipeline, and parts that work in another way."""
    if index.get("requires_aesthetics_score"):
        raise UserError(f'model "{name}" is a refiner of SDXL, which paints nothing by itself: take the base model')
    vae = (index.get("vae") or [None, None])[-1]
    if vae != "AutoencoderKL":
        raise UserError(f'model "{name}" has {vae} as its autoencoder: only AutoencoderKL is known here')
    config = part_config(folder, "scheduler", "scheduler_config.json")
    scheduler, predicts = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if not isinstance(scheduler, str):
        where = folder / "scheduler" / "scheduler_config.json"
        raise UserError(f'model "{name}" is incomplete: {where} is missing or names no class, get the model again')
    if scheduler.startswith("EDM"):  # its network is scaled otherwise
        raise UserError(f'model "{name}" has the noise levels of {scheduler}, which are not known here')
    if predicts not in PREDICTION_KINDS:
        known = ", ".join(PREDICTION_KINDS)
        raise UserError(f'model "{name}" has prediction_type {predicts}, which is not known here; known: {known}')
    for part in sorted(used_parts(folder)):
        if part.startswith("tokenizer") and not any(next((folder / part).glob(one), None) for one in _VOCABULARIES):
            raise UserError(f'model "{name}" is incomplete: {folder / part} has no vocabulary, get the model again')


def used_parts(folder: Path) -> set[str]:
    """The parts that are loaded of a folder in diffusers' layout; repositories hold others beside them.

    Raises:
        UserError: its index cannot be read.
    """
    return {part for part, value in read_json(folder / INDEX).items() if _is_used(part, value)}


def _is_used(part: str, value: Any) -> bool:
    """Whether an entry of an index is a part that is there and that is loaded."""
    return isinstance(value, list) and None not in value and not part.startswith("_") and part not in UNUSED


def _offspring(key: str, folder: Path, name: str) -> str:
    scheduler = part_config(folder, "scheduler", "scheduler_config.json")
    quick = is_quick(name) or is_quick(folder.name)
    if key in ("sd", "sdxl"):
        if part_config(folder, "unet").get("time_cond_proj_dim"):
            return "lcm" if key == "sd" else "sdxl-lcm"
        if scheduler.get("_class_name") == "LCMScheduler":
            return f"{key}-lcm-lora"
        trailing = scheduler.get("timestep_spacing") == "trailing"
        ancestral = scheduler.get("_class_name") == "EulerAncestralDiscreteScheduler"
        return f"{key}-turbo" if quick or (trailing and ancestral) else key
    if key == "flux":
        return key if part_config(folder, "transformer").get("guidance_embeds", False) else "flux-schnell"
    return f"{key}-turbo" if quick and f"{key}-turbo" in FAMILIES else key


def sized(family: Family, side: int) -> Family:
    """A family whose model says of itself at what size it was trained."""
    return replace(family, size=side)
