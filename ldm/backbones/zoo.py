"""A model's name -> its config and weights, wherever they lie. Imports no torch until a model is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.backbones.original_configs import without_training_keys
from ldm.download import Remote, fetch
from ldm.errors import UserError

if TYPE_CHECKING:
    import torch

    from ldm.models.diffusion.ddpm import LatentDiffusion

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]

# Where a folder of the user's may keep its config and its weights; the last of each is how the original LDM logs a
# run. The first pattern that matches counts, and of several matches the last by name.
CONFIG_NAMES = ("config.yaml", "project.yaml", "*-project.yaml", "configs/*-project.yaml")
WEIGHTS_NAMES = ("model.safetensors", "model.ckpt", "checkpoints/last.ckpt")


@dataclass(frozen=True)
class KnownModel:
    """A model with a name: what it is, where it lies, where it can be had."""

    about: str
    folder: str  # below the models folder; holds the weights
    config: str | None = None  # below the repository; None: in the folder
    clip: Path | str | None = None  # a folder below the models folder (Path), or an open_clip name (str)
    remote: Remote | None = None  # None: comes with the repository


# ViT-B/16 was trained with QuickGELU: the plain architecture takes its weights and ranks worse, without a word.
OPENAI_CLIP = "ViT-B-16-quickgelu/openai"

MODELS = {
    "scenes": KnownModel(
        about="a small model of procedural scenes, 128x128; comes with this repository",
        folder="ldm/scenes",
        clip=Path("clip/scenes"),
    ),
    "text2img-large": KnownModel(
        about="the public latent diffusion model, 1.45B parameters, 256x256; 5.7 GB to download",
        folder="ldm/text2img-large",
        config="configs/latent-diffusion/txt2img-1p4B-eval.yaml",
        clip=OPENAI_CLIP,
        remote=Remote(
            urls=(
                "https://ommer-lab.com/files/latent-diffusion/nitro/txt2img-f8-large/model.ckpt",
                "https://huggingface.co/omriav/blended-latent-diffusion-ldm/resolve/main/model.ckpt",
            ),
            least_bytes=2_000_000_000,  # below what 1.45B parameters need, even in half precision
        ),
    ),
}


@dataclass(frozen=True)
class ModelFiles:
    """What one model consists of; the paths are absolute.

    `clip` ranks its predictions: a folder (Path), a name of open_clip's `architecture/pretrained` (str), or None.
    """

    name: str
    config: Path
    weights: Path
    clip: Path | str | None


def models_dir() -> Path:
    """The folder of downloaded models: the environment variable LDM_MODELS, else `models` in the repository."""
    return Path(os.environ.get("LDM_MODELS") or REPOSITORY / "models").expanduser().resolve()


def resolve(model: str = "auto", config: str | Path | None = None, ckpt: str | Path | None = None) -> ModelFiles:
    """Find the files of a model.

    Args:
        model: `auto` (text2img-large where it has been downloaded, else scenes), a name of `MODELS`, or a folder that
            holds a config and weights (and `clip`, if it has its own ranker).
        config, ckpt: files of the user's, in place of a model's name.

    Raises:
        UserError: the name is unknown, a file is missing, or the arguments contradict each other.
    """
    if config or ckpt:
        return _from_files(model, config, ckpt)
    if model == "auto":
        return _best_available()
    if model in MODELS:
        return _known(model)
    folder = Path(model).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f'--model "{model}" is neither auto, {", ".join(MODELS)}, nor a folder')
    return _from_folder(folder)


def _from_files(model: str, config: str | Path | None, ckpt: str | Path | None) -> ModelFiles:
    if not (config and ckpt):
        given, lacking = ("--config", "--ckpt") if config else ("--ckpt", "--config")
        raise UserError(f"{given} needs {lacking} beside it: a config and the weights that were made with it")
    if model != "auto":
        raise UserError(f"--model {model} and --config with --ckpt name two models: give one of them")
    paths = [Path(path).expanduser().resolve() for path in (config, ckpt)]
    for path, option in zip(paths, ("--config", "--ckpt"), strict=True):
        if not path.is_file():
            raise UserError(f"{option} {path}: there is no such file")
    return ModelFiles(paths[1].stem, *paths, clip=OPENAI_CLIP)


def _best_available() -> ModelFiles:
    if _root_of(MODELS["text2img-large"]):
        logger.info("model: text2img-large (--model scenes is the small one)")
        return _known("text2img-large")
    logger.info(
        "model: scenes, the small one; for the public model, text2img-large: "
        "python scripts/download_models.py text2img-large"
    )
    return _known("scenes")


def _known(name: str) -> ModelFiles:
    model = MODELS[name]
    root = _root_of(model) or (models_dir() if model.remote else REPOSITORY / "models")
    folder = root / model.folder
    weights = _first(folder, WEIGHTS_NAMES)
    config = REPOSITORY / model.config if model.config else folder / "config.yaml"
    if weights is None or not config.is_file():
        mend = f"python scripts/download_models.py {name}" if model.remote else f"git checkout -- models/{model.folder}"
        raise UserError(f"{folder / 'model.safetensors' if weights is None else config} is missing: {mend}")
    clip = model.clip
    if isinstance(clip, Path):
        clip = root / clip if (root / clip).is_dir() else None
    return ModelFiles(name, config, weights, clip)


def _root_of(model: KnownModel) -> Path | None:
    """The models folder that holds the weights: of LDM_MODELS and the repository's own, the first that does."""
    roots = (models_dir(), REPOSITORY / "models")
    return next((root for root in roots if _first(root / model.folder, WEIGHTS_NAMES)), None)


def _from_folder(folder: Path) -> ModelFiles:
    config, weights = _first(folder, CONFIG_NAMES), _first(folder, WEIGHTS_NAMES)
    for found, names in ((config, CONFIG_NAMES), (weights, WEIGHTS_NAMES)):
        if found is None:
            raise UserError(f"{folder} is no model: it lacks {' or '.join(names[:2])}")
    clip = folder / "clip"
    return ModelFiles(folder.name, config, weights, clip if clip.is_dir() else OPENAI_CLIP)


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        if matches := sorted(p for p in folder.glob(pattern) if p.is_file()):
            return matches[-1]
    return None


def load(files: ModelFiles, device: torch.device, dtype: torch.dtype) -> LatentDiffusion:
    """The model of these files, in eval mode and without gradients.

    Raises:
        UserError: the config or the weights cannot be read, or do not fit together.
    """
    from ldm.checkpoint import load_model

    return load_model(read_config(files.config), files.weights, device=device, dtype=dtype)


def outline(files: ModelFiles) -> LatentDiffusion:
    """The model without its weights, on the meta device: good for its sizes alone.

    Raises:
        UserError: the config cannot be read, or names no such model.
    """
    import torch

    from ldm.util import instantiate_from_config

    with torch.device("meta"):
        return instantiate_from_config(read_config(files.config)["model"])


def read_config(path: Path) -> Mapping[str, Any]:
    """A model's yaml as plain mappings, without the keys of original configs that only training reads.

    Paths of its text encoder that exist beside the yaml are made absolute.

    Raises:
        UserError: it is missing, no yaml, or has no part `model`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read as a config: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"{path} is no config of a model: it has no part `model`")
    encoder = (config["model"].get("params") or {}).get("cond_stage_config")
    params = encoder.get("params") if isinstance(encoder, dict) else None
    for key, value in (params or {}).items():
        if isinstance(value, str) and value and (path.parent / value).exists():
            params[key] = str((path.parent / value).resolve())
    return without_training_keys(config)


def download(name: str, to: Path | None = None, *, force: bool = False) -> Path:
    """Fetch the weights of a named model into its own folder, or into `to`; see `ldm.download.fetch`.

    Raises:
        UserError: the name is unknown or needs no download, or no mirror gives the file.
    """
    downloadable = [name for name, model in MODELS.items() if model.remote]
    if name not in downloadable:
        what = "comes with this repository" if name in MODELS else "is unknown"
        raise UserError(f'model "{name}" {what}; to download: {", ".join(downloadable)}')
    model = MODELS[name]
    folder = Path(to).expanduser().resolve() if to else models_dir() / model.folder
    return fetch(model.remote, folder / "model.ckpt", force=force)
