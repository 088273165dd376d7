"""Checkpoints of Stable Diffusion and its kin in one file, as their makers publish them: family and configs."""

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.backbones.families import FAMILIES, is_quick
from ldm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# What diffusers takes a checkpoint for -> the family.
_KINDS = {
    "v1": "sd",
    "v2": "sd",
    "inpainting": "sd",
    "inpainting_v2": "sd",
    "xl_base": "sdxl",
    "xl_inpaint": "sdxl",
    "sd3": "sd3",
    "sd35_medium": "sd3",
    "sd35_large": "sd3",
    "flux-dev": "flux",
    "flux-schnell": "flux-schnell",
    "z-image-turbo": "z-image-turbo",
}
_NEEDED = "model.diffusion_model.input_blocks.0.0.weight"  # diffusers takes for v1 whatever it does not know


def family_key(path: Path, name: str) -> str:
    """The family of a checkpoint, a key of `FAMILIES`, as its weights' names tell it; few-step ones by its own name.

    Raises:
        UserError: it is of none that is known here, or cannot be read.
    """
    kind = _kind(path)
    if kind not in _KINDS:
        known = ", ".join(family.about for family in FAMILIES.values() if family.classes)
        raise UserError(f'model "{name}" is {kind}, no checkpoint that paints pictures here; known: {known}')
    key = _KINDS[kind]
    if "lcm" in f"{name} {path.name}".lower() and key in ("sd", "sdxl"):
        return f"{key}-lcm-lora"  # diffusers reads no embedding of the scale from these layouts
    quick = is_quick(name) or is_quick(path.name)
    return f"{key}-turbo" if quick and f"{key}-turbo" in FAMILIES else key


def config_id(path: Path) -> str:
    """The hub's id of the pipeline whose configs and vocabularies a checkpoint has."""
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS

    return DIFFUSERS_DEFAULT_PIPELINE_PATHS[_kind(path)]["pretrained_model_name_or_path"]


@contextmanager
def as_safetensors(path: Path) -> Iterator[Path]:
    """The checkpoint as a file that holds tensors alone: itself, or a pickle by the rules of `read_state_dict`.

    Raises:
        UserError: see `read_state_dict`.
    """
    if path.suffix.lower() == ".safetensors":
        yield path
        return
    from ldm.checkpoint import save_safetensors

    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        made = Path(folder) / "model.safetensors"
        save_safetensors(_tensors(path), made)
        yield made


def _kind(path: Path) -> str:
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    tensors = _tensors(path)
    if any("lora_" in key for key in tensors):
        return "a LoRA (give it by `lora`)"
    kind = infer_diffusers_model_type(tensors)
    return kind if kind != "v1" or _NEEDED in tensors else "something else"


def _tensors(path: Path) -> "dict[str, Tensor]":
    """What a checkpoint holds, mapped into memory, once for each state of the file."""
    try:
        about = path.stat()
    except OSError as error:
        raise UserError(f'"{path}" cannot be read ({error.strerror}): check the path') from error
    return _read(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read(path: Path, size: int, changed: int) -> "dict[str, Tensor]":
    from ldm.checkpoint import read_state_dict

    return read_state_dict(path)
