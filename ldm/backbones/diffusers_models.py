"""From a folder, a hub id or a single file to a backbone of diffusers: found, checked, loaded, with its LoRAs.

Nothing of diffusers is imported before a model of it is asked for.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import CRITICAL
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.backbones import hub
from ldm.backbones.families import FAMILIES, INDEX, UNUSED, Family, family_of, part_config, read_json
from ldm.backbones.single_file import as_safetensors, config_id, family_key
from ldm.errors import MissingExtra, UserError

if TYPE_CHECKING:
    import torch

    from ldm.backbones.pipelines import DiffusersBackbone


_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def is_pipeline(folder: Path) -> bool:
    """Whether a folder has diffusers' layout."""
    return (folder / INDEX).is_file()


@contextmanager
def told_of_diffusers(name: str) -> Iterator[None]:
    """Report what diffusers says in one line.

    Raises:
        MissingExtra: it is not installed. UserError: it cannot read the model.
    """
    try:
        with _quiet():
            yield
    except UserError:
        raise
    except ImportError as error:
        package = (error.name or "diffusers").partition(".")[0]
        raise MissingExtra(package, "diffusers", f'model "{name}"') from error
    except Exception as error:  # a damaged file may break a library in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        if "no file named" in reason or "Could not find the necessary `safetensors` weights" in reason:
            reason = "it has no safetensors, or only some; pickles of diffusers are not read"
        elif type(error).__name__ == "SafetensorError" or "Unable to load weights" in reason:
            reason = f"a file of its weights is damaged or cut short, get it again ({reason[:120]})"
        raise UserError(f'model "{name}" cannot be loaded: {reason[:300]}') from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' notices and bars, which the user of ours has no use for."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    both: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    before = [(one.get_verbosity(), one.is_progress_bar_enabled()) for one in both]
    for one in both:
        one.set_verbosity(CRITICAL)  # what is wrong is raised too
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one, (verbosity, bar) in zip(both, before, strict=True):
            one.set_verbosity(verbosity)
            if bar:
                one.enable_progress_bar()


def load_pipeline(
    source: Path,
    name: str,
    device: "torch.device",
    dtype: "torch.dtype",
    *,
    config: Path | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    low_memory: bool = False,
) -> "DiffusersBackbone":
    """The backbone of a folder in diffusers' layout, or of a single file.

    Args:
        name: what the user calls it.
        config: of a single file: the folder in diffusers' layout whose configs and vocabularies are its own.
        loras: files, each with its weight.
        low_memory: text encoders stay on the CPU, and the VAE works in tiles.

    Raises:
        MissingExtra, UserError: see `told_of_diffusers`; a LoRA that is not for this model.
    """
    with told_of_diffusers(name):
        import diffusers
        import torch

        from ldm.backbones.pipelines import ADAPTERS

        family = family_of_files(source, name)
        cls = getattr(diffusers, family.pipeline)
        if source.is_dir():
            options = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
            pipe = cls.from_pretrained(source, **options, **_left_out(source, cls), **_variant(source))
        else:
            assert config is not None
            with as_safetensors(source) as file:
                options = {"dtype": dtype, "local_files_only": True, "config": str(config)}
                pipe = cls.from_single_file(str(file), **options, **_left_out(config, cls))
        if dtype == torch.float16 and getattr(pipe.vae.config, "force_upcast", False):
            pipe.vae.to(torch.float32)  # it overflows in half precision
        _add_loras(pipe, loras, name)
        if low_memory:
            pipe.vae.enable_tiling()
        for part_name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                stays = low_memory and part_name.startswith("text_encoder")
                part.eval().requires_grad_(False).to("cpu" if stays else device)
        return ADAPTERS[family.adapter](pipe, family, device, torch.device("cpu") if low_memory else None)


def config_folder(path: Path) -> Path:
    """The configs and vocabularies of a single file, from the pipeline of the hub that diffusers knows it by.

    Raises:
        MissingExtra, UserError: diffusers is missing, the file is none that it knows, or the hub cannot be reached.
    """
    with told_of_diffusers(path.stem):
        family_key(path, path.stem)
        name = config_id(path)
        what = f'"{path.name}" needs the configs of "{name}" (or `config`, a folder in the layout of diffusers), which'
        return hub.fetch(name, weights=False, what=what)


def outline_pipeline(source: Path, name: str, config: Path | None = None) -> "DiffusersBackbone":
    """The backbone without weights, on the meta device: good for its sizes, its levels and its tokenizer.

    Args:
        source, name, config: see `load_pipeline`.

    Raises:
        MissingExtra, UserError: see `load_pipeline`.
    """
    with told_of_diffusers(name):
        import diffusers
        import torch
        import transformers

        from ldm.backbones.pipelines import ADAPTERS

        family = family_of_files(source, name)
        adapter, pipe = ADAPTERS[family.adapter], _Outline()
        folder = source if source.is_dir() or config is None else config
        index = read_json(folder / INDEX)
        with torch.device("meta"):
            for part in (adapter.part, "vae"):
                cls = getattr(diffusers, index[part][1])
                setattr(pipe, part, cls.from_config(dict(part_config(folder, part))))
        scheduler = getattr(diffusers, index["scheduler"][1])
        pipe.scheduler = scheduler.from_config(dict(part_config(folder, "scheduler", "scheduler_config.json")))
        for part in ("tokenizer", "tokenizer_2", "tokenizer_3"):
            name_of = (index.get(part) or (None, None))[1]
            known = isinstance(name_of, str) and (folder / part).is_dir()
            setattr(pipe, part, getattr(transformers, str(name_of)).from_pretrained(folder / part) if known else None)
        return adapter(pipe, family, torch.device("cpu"))


def load_first_stage(
    source: Path, name: str, device: "torch.device", config: Path | None = None
) -> "DiffusersBackbone":
    """The backbone of which only the autoencoder has weights, in float32; of a single file, all of it.

    Args:
        source, name, device, config: see `load_pipeline`.

    Raises:
        MissingExtra, UserError: see `load_pipeline`.
    """
    import torch

    if not source.is_dir():
        return load_pipeline(source, name, device, torch.float32, config=config)
    backbone = outline_pipeline(source, name)
    with told_of_diffusers(name):
        cls: Any = type(backbone.vae)
        options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
        vae = cls.from_pretrained(source, subfolder="vae", **options, **_variant(source))
        backbone.vae, backbone.device = vae.to(device).eval().requires_grad_(False), device
    return backbone


class _Outline:
    """Stands for a pipeline that has not been loaded."""

    tokenizer: Any = None
    scheduler: Any = None


def family_of_files(source: Path, name: str) -> Family:
    """The family of a folder or single file."""
    if source.is_dir():
        return family_of(source, name)
    with told_of_diffusers(name):
        return FAMILIES[family_key(source, name)]


def _left_out(source: Path, cls: Any) -> dict[str, Any]:
    """Parts that nothing here uses, such as safety checkers: they are not loaded."""
    index = read_json(source / INDEX)
    optional = set(getattr(cls, "_optional_components", ()))
    parts: dict[str, Any] = {name: None for name in UNUSED if name in index and name in optional}
    return parts | ({"requires_safety_checker": False} if "requires_safety_checker" in index else {})


def _variant(source: Path) -> dict[str, str]:
    """Which of several precisions of the same weights is read: the plain one, or half precision if a part has no
    other; diffusers then takes the plain one of the parts that have it alone."""
    weights = [path for path in source.glob("*/*.safetensors") if path.parent.name not in UNUSED]
    half = {path for path in weights if re.search(r"\.fp16\b", path.name)}
    only = {path.parent for path in half} - {path.parent for path in weights if path not in half}
    return {"variant": "fp16"} if only else {}


def split_lora(given: str) -> tuple[str, float]:
    """FILE_OR_ID[:WEIGHT] -> (file or id, weight).

    Raises:
        UserError: the weight is no number.
    """
    path, colon, weight = given.rpartition(":")
    if not colon or Path(given).exists() or len(path) == 1:  # a drive's letter
        return given, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = inf
    if not isfinite(number):
        raise UserError(f'`lora` "{given}": "{weight}" is no weight; write FILE_OR_ID:0.8')
    return path, number


def find_lora(given: str) -> tuple[Path, float]:
    """The file of a LoRA, which is downloaded once if it is an id of the hub, and its weight.

    Raises:
        UserError: there is none, or it is no `.safetensors`.
    """
    name, weight = split_lora(given)
    path = Path(name).expanduser().resolve()
    if not path.exists() and hub.HUB_ID.fullmatch(name) and path.suffix.lower() not in _WEIGHTS:
        return hub.fetch_lora(name), weight
    if not path.is_file():
        raise UserError(f'`lora` "{name}": there is no such file, nor is it an id of the hub')
    if path.suffix.lower() != ".safetensors":
        raise UserError(f'`lora` "{name}": LoRAs are read from .safetensors alone')
    return path, weight


def _add_loras(pipe: Any, loras: Sequence[tuple[Path, float]], name: str) -> None:
    """Add LoRAs to the weights themselves, which then cost nothing."""
    if not loras:
        return
    import peft  # noqa: F401  # or diffusers says in other words that it is missing

    names, weights = [f"lora{i}" for i in range(len(loras))], [weight for _, weight in loras]
    for own, (path, _) in zip(names, loras, strict=True):
        what = f'`lora` "{path.name}" does not fit model "{name}"'
        try:
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=own)
        except Exception as error:  # the library has no error of its own for it
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"{what}, is it for another family? ({reason})") from error
        if not any(own in adapters for adapters in pipe.get_list_adapters().values()):
            raise UserError(f"{what}: it has no weight for it, it is for another family")
    pipe.set_adapters(names, weights)
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()
