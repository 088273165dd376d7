"""From a folder, a hub id or a single file to a backbone of diffusers: found, checked, loaded, with its LoRAs.

Nothing of diffusers is imported before a model of it is asked for.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.backbones.families import FAMILIES, INDEX, Family, family_of, part_config, read_json
from ldm.errors import MissingExtra, UserError

if TYPE_CHECKING:
    import torch

    from ldm.backbones.pipelines import DiffusersBackbone

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A model of the hub, owner/name."""

_WANTED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja")
# How the names begin of what diffusers takes a checkpoint for -> the family.
_SINGLE_FILES = {
    "v1": "sd",
    "v2": "sd",
    "xl": "sdxl",
    "inpainting": "sd",
    "sd3": "sd3",
    "flux": "flux",
    "z-image": "z-image",
}


def is_pipeline(folder: Path) -> bool:
    """Whether a folder has diffusers' layout."""
    return (folder / INDEX).is_file()


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a hub id, downloaded once: configs, tokenizers and safetensors, nothing that could run.

    Raises:
        UserError: there is no such model, it holds no safetensors, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f" at {revision}" if revision else ""
    try:
        try:
            files = HfApi().list_repo_files(name, revision=revision)
        except (OfflineModeIsEnabled, ConnectionError, OSError) as error:
            if isinstance(error, HfHubHTTPError):
                raise
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
        if INDEX not in files:
            raise UserError(f'model "{name}"{where} of the hub is no pipeline of diffusers: it has no {INDEX}')
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted_files(files)))
    except GatedRepoError as error:
        raise UserError(
            f'model "{name}" asks for its licence to be accepted: do so on its page, then hf auth login'
        ) from (error)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(f'the hub has no model "{name}"{where}') from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f'model "{name}"{where} is not in {constants.HF_HUB_CACHE}, and the hub cannot be reached: connect once, '
            "or give a folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f'model "{name}"{where} cannot be downloaded: {" ".join(str(error).split())[:200]}') from error


def wanted_files(files: Sequence[str]) -> list[str]:
    """What of a repository is downloaded: the parts' configs, vocabularies and safetensors, in one precision.

    Files beside the index are the same weights once more, in another layout; half precision is taken alone only where
    there is no other.
    """
    inside = [file for file in files if "/" in file and any(Path(file).match(pattern) for pattern in _WANTED)]
    weights = [file for file in inside if file.endswith(".safetensors")]
    plain = {file for file in weights if not re.search(r"\.(fp16|bf16|non_ema)\b", file)}
    covered = {file.split("/")[0] for file in plain}
    kept = [file for file in weights if file in plain or file.split("/")[0] not in covered]
    return [INDEX, *(file for file in inside if not file.endswith(".safetensors")), *kept]


@contextmanager
def told_of_diffusers(name: str) -> Iterator[None]:
    """Report what diffusers says in one line.

    Raises:
        MissingExtra: it is not installed. UserError: it cannot read the model.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "diffusers").partition(".")[0]
        raise MissingExtra(package, "diffusers", f'model "{name}"') from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if "safetensors" in reason and (".bin" in reason or "use_safetensors" in reason or "no file named" in reason):
            reason = "it has no safetensors, or only some; pickles of diffusers are not read"
        raise UserError(f'model "{name}" cannot be loaded: {reason[:300]}') from error


def load_pipeline(
    source: Path,
    name: str,
    device: "torch.device",
    dtype: "torch.dtype",
    *,
    config: Path | None = None,
    loras: Sequence[str] = (),
    low_memory: bool = False,
) -> "DiffusersBackbone":
    """The backbone of a folder in diffusers' layout, or of a single file.

    Args:
        name: what the user calls it.
        config: of a single file: a folder in diffusers' layout whose configs and vocabularies are its own.
        loras: FILE_OR_ID[:WEIGHT] each.
        low_memory: text encoders on the CPU, VAE in tiles, and on a GPU the parts there only while they run.

    Raises:
        MissingExtra, UserError: see `told_of_diffusers`; a LoRA that is not for this model.
    """
    with told_of_diffusers(name):
        import diffusers
        import torch
        from diffusers.utils import logging as their_logging

        from ldm.backbones.pipelines import ADAPTERS

        their_logging.set_verbosity_error()
        their_logging.disable_progress_bar()
        if source.is_dir():
            family = family_of(source, name)
            cls = getattr(diffusers, family.pipeline)
            options = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
            pipe = cls.from_pretrained(source, **options, **_left_out(source, cls), **_variant(source))
        else:
            family = FAMILIES[single_file_family(source, name)]
            cls = getattr(diffusers, family.pipeline)
            where = {} if config is None else {"config": str(config), "local_files_only": True}
            extras = {"safety_checker": None} if family.pipeline == "StableDiffusionPipeline" else {}
            pipe = cls.from_single_file(str(source), dtype=dtype, **where, **extras)
        pipe.set_progress_bar_config(disable=True)
        if dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False):
            pipe.vae.to(torch.float32)  # it overflows in half precision
        _add_loras(pipe, loras, name)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        text_device = None
        if low_memory:
            pipe.vae.enable_tiling()
            text_device = torch.device("cpu")
        for part_name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                stays = low_memory and part_name.startswith("text_encoder")
                part.to("cpu" if stays else device)
        return ADAPTERS[family.adapter](pipe, family, device, text_device)


def outline_pipeline(source: Path, name: str) -> "DiffusersBackbone":
    """The backbone without weights, on the meta device: good for its sizes, its levels and its tokenizer.

    Raises:
        MissingExtra, UserError: see `load_pipeline`.
    """
    with told_of_diffusers(name):
        import diffusers
        import torch
        import transformers

        from ldm.backbones.pipelines import ADAPTERS

        family = family_of(source, name)
        adapter = ADAPTERS[family.adapter]
        index = read_json(source / INDEX)
        pipe = _Outline()
        with torch.device("meta"):
            for part in (adapter.part, "vae"):
                cls = getattr(diffusers, index[part][1])
                setattr(pipe, part, cls.from_config(dict(part_config(source, part))))
        scheduler = getattr(diffusers, index["scheduler"][1])
        pipe.scheduler = scheduler.from_config(dict(part_config(source, "scheduler", "scheduler_config.json")))
        for part in ("tokenizer", "tokenizer_2", "tokenizer_3"):
            name_of = (index.get(part) or (None, None))[1]
            known = isinstance(name_of, str) and (source / part).is_dir()
            setattr(pipe, part, getattr(transformers, str(name_of)).from_pretrained(source / part) if known else None)
        return adapter(pipe, family, torch.device("cpu"))


def load_first_stage(source: Path, name: str, device: "torch.device") -> "DiffusersBackbone":
    """The backbone of which only the autoencoder has weights, in float32; of a single file, all of it.

    Raises:
        MissingExtra, UserError: see `load_pipeline`.
    """
    import torch

    if not source.is_dir():
        return load_pipeline(source, name, device, torch.float32)
    backbone = outline_pipeline(source, name)
    with told_of_diffusers(name):
        cls = type(backbone.vae)
        options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
        vae = cls.from_pretrained(source, subfolder="vae", **options, **_variant(source))
        backbone.vae, backbone.device = vae.to(device).eval().requires_grad_(False), device
    return backbone


class _Outline:
    """Stands for a pipeline that has not been loaded."""

    tokenizer: Any = None
    scheduler: Any = None


def single_file_family(path: Path, name: str) -> str:
    """The family of a checkpoint in the makers' own layout, as diffusers tells it by its keys.

    Raises:
        UserError: it is of none that is known.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint

    kind = infer_diffusers_model_type(load_single_file_checkpoint(str(path), local_files_only=True))
    key = next((key for prefix, key in _SINGLE_FILES.items() if kind.startswith(prefix)), None)
    if key is None:
        raise UserError(f'model "{name}" is a checkpoint of {kind}, which is not known here: {", ".join(FAMILIES)} are')
    lowered = f"{name} {path.name}".lower()
    quick = next((word for word in ("lcm", "turbo", "lightning", "hyper") if word in lowered), None)
    if quick and key in ("sd", "sdxl"):
        key = f"{key}-turbo" if quick != "lcm" else {"sd": "lcm", "sdxl": "sdxl-lcm"}[key]
    return "flux-schnell" if key == "flux" and "schnell" in kind else key


def family_of_files(source: Path, name: str) -> Family:
    """The family of a folder or single file."""
    if source.is_dir():
        return family_of(source, name)
    with told_of_diffusers(name):
        return FAMILIES[single_file_family(source, name)]


def _left_out(source: Path, cls: Any) -> dict[str, Any]:
    """Parts that nothing here uses, such as safety checkers: they are not loaded."""
    index = read_json(source / INDEX)
    names = ("safety_checker", "feature_extractor", "image_encoder")
    optional = set(getattr(cls, "_optional_components", ()))
    parts: dict[str, Any] = {name: None for name in names if name in index and name in optional}
    return parts | ({"requires_safety_checker": False} if "requires_safety_checker" in index else {})


def _variant(source: Path) -> dict[str, str]:
    """Which of several precisions of the same weights is read: the plain one, or else half precision."""
    weights = [path.name for path in source.glob("*/*.safetensors")]
    if any(".fp16." in name for name in weights) and not any(".fp16." not in name for name in weights):
        return {"variant": "fp16"}
    return {}


def split_lora(given: str) -> tuple[str, float]:
    """FILE_OR_ID[:WEIGHT] -> (file or id, weight).

    Raises:
        UserError: the weight is no number.
    """
    path, colon, weight = given.rpartition(":")
    if not colon or Path(given).exists() or len(path) == 1:  # a drive's letter
        return given, 1.0
    try:
        return path, float(weight)
    except ValueError as error:
        raise UserError(f'`lora` "{given}": "{weight}" is no weight; write FILE_OR_ID:0.8') from error


def _add_loras(pipe: Any, loras: Sequence[str], name: str) -> None:
    names, weights = [], []
    for i, given in enumerate(loras):
        path, weight = split_lora(given)
        if not (Path(path).expanduser().exists() or HUB_ID.fullmatch(path)):
            raise UserError(f'`lora` "{path}": there is no such file, nor is it an id of the hub')
        if not hasattr(pipe, "load_lora_weights"):
            raise UserError(f'model "{name}" takes no LoRA')
        source = Path(path).expanduser()
        where = {"weight_name": source.name} if source.is_file() else {}
        folder = source.parent if source.is_file() else path
        try:
            pipe.load_lora_weights(str(folder), adapter_name=f"lora{i}", use_safetensors=True, **where)
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f'`lora` "{path}" does not fit model "{name}": {reason}') from error
        if not any(f"lora{i}" in adapters for adapters in pipe.get_list_adapters().values()):
            raise UserError(f'`lora` "{path}" is for another family than model "{name}": it has no weight for it')
        names.append(f"lora{i}")
        weights.append(weight)
    if names:
        pipe.set_adapters(names, weights)
        pipe.fuse_lora(adapter_names=names)
        pipe.unload_lora_weights()
