"""A model's name -> its config and weights, wherever they lie. Imports no torch until a model is loaded."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ldm.backbones import diffusers_models, families, hub
from ldm.backbones.original_configs import without_training_keys
from ldm.download import Remote, fetch
from ldm.errors import UserError
from ldm.files import files_hash, weights_hash

if TYPE_CHECKING:
    import torch

    from ldm.backbones.contract import Backbone
    from ldm.models.diffusion.ddpm import LatentDiffusion

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (_PACKAGE / "_bundled").is_dir()
"""Whether this is the package of a wheel; else it is a clone, or an editable installation of one."""

REPOSITORY = _PACKAGE / "_bundled" if INSTALLED else _PACKAGE.parent
"""What holds `models/` and `configs/`: the clone, or in a wheel's package the folder that brings them along."""

DOWNLOAD = "bld-download" if INSTALLED else "python scripts/download_models.py"

# Where a folder of the user's may keep its config and its weights; the last of each is how the original LDM logs a
# run. The first pattern that matches counts, and of several matches the last by name.
CONFIG_NAMES = ("config.yaml", "project.yaml", "*-project.yaml", "configs/*-project.yaml")
WEIGHTS_NAMES = ("model.safetensors", "model.ckpt", "checkpoints/last.ckpt")


@dataclass(frozen=True)
class KnownModel:
    """A model with a name: what it is, where it lies, where it can be had."""

    about: str
    folder: str  # below the models folder; holds the weights
    config: str | None = None  # below REPOSITORY; None: in the folder
    clip: Path | str | None = None  # a folder below the models folder (Path), or an open_clip name (str)
    remote: Remote | None = None  # None: comes with the repository


# ViT-B/16 was trained with QuickGELU: the plain architecture takes its weights and ranks worse, without a word.
OPENAI_CLIP = "ViT-B-16-quickgelu/openai"

_OPENAI = "https://openaipublic.blob.core.windows.net/diffusion"

SMALL = "things"
"""What edits where nothing has been downloaded."""

MODELS = {
    "things": KnownModel(
        about="a small model of everyday things, 256x256; comes with this program",
        folder="ldm/things",
        clip=Path("clip/things"),
    ),
    "scenes": KnownModel(
        about="its predecessor, of twelve shapes, 128x128; comes with this program",
        folder="ldm/scenes",
        clip=Path("clip/scenes"),
    ),
    "text2img-large": KnownModel(
        about="the public latent diffusion model, 1.45B parameters, 256x256; 5.7 GB to download",
        folder="ldm/text2img-large",
        config="configs/latent-diffusion/txt2img-1p4B-eval.yaml",
        clip=OPENAI_CLIP,
        remote=Remote(
            urls=(  # the first tells its SHA-256
                "https://huggingface.co/omriav/blended-latent-diffusion-ldm/resolve/main/model.ckpt",
                "https://ommer-lab.com/files/latent-diffusion/nitro/txt2img-f8-large/model.ckpt",
            ),
            least_bytes=2_000_000_000,  # below what 1.45B parameters need, even in half precision
        ),
    ),
    "pixels": KnownModel(
        about="a small model of pixels for Blended Diffusion, 64x64; comes with this program",
        folder="pixels/scenes",
        clip=Path("clip/scenes"),
    ),
    "blended-diffusion-256": KnownModel(
        about="guided-diffusion of ImageNet, 553M parameters, 256x256, for Blended Diffusion; to download",
        folder="pixels/blended-diffusion-256",
        config="configs/blended-diffusion/256x256_diffusion_uncond.yaml",
        clip=OPENAI_CLIP,
        remote=Remote((f"{_OPENAI}/jul-2021/256x256_diffusion_uncond.pt",), least_bytes=1_000_000_000),
    ),
    "blended-diffusion-512": KnownModel(
        about="the same with classes, 559M parameters, 512x512; to download",
        folder="pixels/blended-diffusion-512",
        config="configs/blended-diffusion/512x512_diffusion.yaml",
        clip=OPENAI_CLIP,
        remote=Remote((f"{_OPENAI}/jul-2021/512x512_diffusion.pt",), least_bytes=1_000_000_000),
    ),
    "glide-base": KnownModel(
        about="GLIDE-filtered, inpainting, 385M parameters, 64x64; to download, with glide-upsample",
        folder="glide/base",
        config="configs/glide/base_inpaint.yaml",
        clip=OPENAI_CLIP,
        remote=Remote((f"{_OPENAI}/dec-2021/base_inpaint.pt",), least_bytes=700_000_000),
    ),
    "glide-upsample": KnownModel(
        about="GLIDE-filtered, inpainting, 398M parameters, from 64x64 to 256x256; to download",
        folder="glide/upsample",
        config="configs/glide/upsample_inpaint.yaml",
        clip=OPENAI_CLIP,
        remote=Remote((f"{_OPENAI}/dec-2021/upsample_inpaint.pt",), least_bytes=700_000_000),
    ),
    "vqgan-imagenet": KnownModel(
        about="VQGAN of ImageNet, f16, 16384 codes, 76M parameters, for PaintByWord++; to download",
        folder="vqgan/imagenet_f16_16384",
        config="configs/vqgan/imagenet_f16_16384.yaml",
        clip=OPENAI_CLIP,
        remote=Remote(("https://heibox.uni-heidelberg.de/f/867b05fc8c4841768640/?dl=1",), least_bytes=300_000_000),
    ),
}


class Given(NamedTuple):
    """The arguments of `resolve` that name a model; those of `ModelFiles.given` find the same model on any machine."""

    model: str = "auto"
    config: str | None = None
    ckpt: str | None = None
    revision: str | None = None
    lora: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFiles:
    """What one model consists of.

    name: to be shown. config, weights: absolute paths; of a model of diffusers the index of its folder (of a single
        file the folder that its configs are read from), and the folder or file.
    clip: ranks its predictions: a folder (Path), a name of open_clip's `architecture/pretrained` (str), or None.
    given: what to record of it, so that `resolve(*given)` gives it again: the name of a model of `MODELS`, however it
        was asked for, and otherwise the user's paths as they were given.
    """

    name: str
    config: Path
    weights: Path
    clip: Path | str | None
    given: Given
    library: str = "ldm"
    """What reads it: ldm, or diffusers."""
    loras: tuple[tuple[Path, float], ...] = ()
    """Their files, each with its weight."""

    def digest(self) -> str:
        """SHA-256 of its weights; of a model of diffusers, of all that decides what it paints: see `files_hash`.

        Seconds for gigabytes the first time.

        Raises:
            UserError: a file cannot be read.
        """
        if self.library != "diffusers":
            return weights_hash(self.weights)
        folder = self.weights if self.weights.is_dir() else self.config
        names = [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]
        parts = [
            files_hash(folder, hub.wanted_files(names, families.used_parts(folder))),
            *([] if self.weights.is_dir() else [weights_hash(self.weights)]),
        ]
        parts += [f"{weights_hash(path)} {weight}" for path, weight in self.loras]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def section(self, name: str) -> Any:
        """A section of the config beside that of the model; {} where there is none.

        Raises:
            UserError: the config cannot be read.
        """
        return {} if self.library == "diffusers" else read_config(self.config).get(name) or {}


def models_dir() -> Path:
    """The folder of downloaded models: the environment variable LDM_MODELS, else `models` in the clone.

    A package that was installed without a clone keeps them in the user's cache, where an update leaves them.
    """
    own = _user_models() if INSTALLED else REPOSITORY / "models"
    return Path(os.environ.get("LDM_MODELS") or own).expanduser().resolve()


def _user_models() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "blended-latent-diffusion" / "models"


def resolve(
    model: str = "auto",
    config: str | Path | None = None,
    ckpt: str | Path | None = None,
    revision: str | None = None,
    lora: Sequence[str] = (),
) -> ModelFiles:
    """Find the files of a model; one of the hub is downloaded once.

    Args:
        model: `auto` (text2img-large where it has been downloaded, else things), a name of `MODELS`, a folder that
            holds a config and weights (and `clip`, if it has its own ranker), a folder in diffusers' layout, a single
            .safetensors or .ckpt of Stable Diffusion, or an id of the hub.
        config, ckpt: files of the user's, in place of a model's name; `config` alone is the folder whose configs a
            single file has.
        revision: of an id of the hub.
        lora: FILE_OR_ID[:WEIGHT] each, for models of diffusers.

    Raises:
        UserError: the name is unknown, a file is missing, or the arguments contradict each other.
    """
    files = _resolve(model, config, ckpt, revision)
    if files.library != "diffusers" and (lora or revision):
        what = "`lora`" if lora else "`revision`"
        raise UserError(f"{what} is for models of diffusers, and {files.name} is none")
    if revision and files.given.revision is None:
        raise UserError(f"`revision` is for ids of the hub, and {model} lies on this machine")
    if not lora:
        return files
    loras = tuple(map(diffusers_models.find_lora, lora))
    return replace(files, given=files.given._replace(lora=tuple(lora)), loras=loras)


def _resolve(model: str, config: str | Path | None, ckpt: str | Path | None, revision: str | None) -> ModelFiles:
    if Path(model).suffix in (".safetensors", ".ckpt") and not os.path.isdir(model):
        if ckpt:
            raise UserError(f"`model={model}` and `ckpt` name two checkpoints: give one of them")
        return _from_single_file(model, config)
    if config or ckpt:
        return _own_name(_from_files(model, config, ckpt))
    if model == "auto":
        return _best_available()
    if model in MODELS:
        return _known(model)
    if not os.path.isdir(Path(model).expanduser()) and hub.HUB_ID.fullmatch(model):
        folder = hub.fetch(model, revision)
        given = Given(model, revision=revision)
        return ModelFiles(model, folder / families.INDEX, folder, OPENAI_CLIP, given, "diffusers")
    return _own_name(_from_folder(model))


def _own_name(files: ModelFiles) -> ModelFiles:
    """A model of `MODELS` under its name where the user has given the paths of one: its ranker comes along."""
    for name in MODELS:
        with suppress(UserError):  # that one is not here
            known = _known(name)
            if (known.config, known.weights) == (files.config, files.weights):
                return known
    return files


def _from_files(model: str, config: str | Path | None, ckpt: str | Path | None) -> ModelFiles:
    if not (config and ckpt):
        one, other = ("config", "ckpt") if config else ("ckpt", "config")
        raise UserError(f"`{one}` needs `{other}` beside it: a config and the weights that were made with it")
    if model != "auto":
        raise UserError(f"`model={model}` and `config` with `ckpt` name two models: give one of them")
    paths = {"config": Path(config).expanduser().resolve(), "ckpt": Path(ckpt).expanduser().resolve()}
    for option, path in paths.items():
        if not os.path.isfile(path):  # which says so of too long a name, too
            raise UserError(f'`{option}` "{path}": there is no such file')
    given = Given(config=str(config), ckpt=str(ckpt))
    return ModelFiles(paths["ckpt"].stem, paths["config"], paths["ckpt"], OPENAI_CLIP, given)


def _best_available() -> ModelFiles:
    if _root_of(MODELS["text2img-large"]):
        logger.info(f"model: text2img-large (the small one is {SMALL})")
        return _known("text2img-large")
    logger.info(f"model: {SMALL}, the small one; for the public model, text2img-large: {DOWNLOAD} text2img-large")
    return _known(SMALL)


def _known(name: str) -> ModelFiles:
    model = MODELS[name]
    root = _root_of(model) or (models_dir() if model.remote else REPOSITORY / "models")
    folder = root / model.folder
    weights = _first(folder, WEIGHTS_NAMES)
    config = REPOSITORY / model.config if model.config else folder / "config.yaml"
    if weights is None or not config.is_file():
        mend = "it comes with this program, install that again"
        if weights is None and model.remote:
            mend = f"{DOWNLOAD} {name}"
        elif (REPOSITORY / ".git").exists():
            mend = f"git checkout -- {model.config or f'models/{model.folder}'}"
        raise UserError(f"{folder / 'model.safetensors' if weights is None else config} is missing: {mend}")
    clip = model.clip
    if isinstance(clip, Path):
        clip = next((root / clip for root in _roots() if (root / clip).is_dir()), None)
    return ModelFiles(name, config, weights, clip, Given(name))


def _root_of(model: KnownModel) -> Path | None:
    """The models folder that holds the weights."""
    return next((root for root in _roots() if _first(root / model.folder, WEIGHTS_NAMES)), None)


def _roots() -> tuple[Path, Path]:
    """The models folders, in the order in which they are searched."""
    return models_dir(), REPOSITORY / "models"


def _from_folder(given: str) -> ModelFiles:
    folder = Path(given).expanduser().resolve()
    if not os.path.isdir(folder):
        raise UserError(f'model "{given}" is neither auto, {", ".join(MODELS)}, nor a folder or an id of the hub')
    if diffusers_models.is_pipeline(folder):
        return ModelFiles(folder.name, folder / families.INDEX, folder, OPENAI_CLIP, Given(str(given)), "diffusers")
    config, weights = _first(folder, CONFIG_NAMES), _first(folder, WEIGHTS_NAMES)
    if config is None or weights is None:
        names = CONFIG_NAMES if config is None else WEIGHTS_NAMES
        raise UserError(f"{folder} is no model: it lacks {' or '.join(names[:2])}, or {families.INDEX} of diffusers")
    clip = folder / "clip"
    return ModelFiles(folder.name, config, weights, clip if clip.is_dir() else OPENAI_CLIP, Given(str(given)))


def _from_single_file(given: str, config: str | Path | None) -> ModelFiles:
    path = Path(given).expanduser().resolve()
    if not os.path.isfile(path):
        raise UserError(f'`model` "{path}": there is no such file')
    folder = None if config is None else Path(config).expanduser().resolve()
    if folder is not None and not diffusers_models.is_pipeline(folder):
        raise UserError(f'`config` "{folder}" is no folder in the layout of diffusers: it lacks {families.INDEX}')
    own = Given(str(given), config=None if config is None else str(config))
    folder = folder or diffusers_models.config_folder(path)
    return ModelFiles(path.stem, folder, path, OPENAI_CLIP, own, "diffusers")


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        if matches := sorted(p for p in folder.glob(pattern) if p.is_file()):
            return matches[-1]
    return None


def load(files: ModelFiles, device: torch.device, dtype: torch.dtype, low_memory: bool = False) -> Backbone:
    """The model of these files, in eval mode and without gradients.

    Args:
        low_memory: text encoders, 40 % of the large model, stay on the CPU, and large pictures are decoded in tiles
            where the library can.

    Raises:
        UserError: the config or the weights cannot be read, or do not fit together.
    """
    if files.library == "diffusers":
        return diffusers_models.load_pipeline(
            files.weights,
            files.name,
            device,
            dtype,
            config=files.config,
            loras=files.loras,
            low_memory=low_memory,
        )
    return load_ours(files, device, dtype, low_memory)


def load_ours(files: ModelFiles, device: torch.device, dtype: torch.dtype, low_memory: bool = False) -> LatentDiffusion:
    """As `load`, of a model that is read by this program itself: for what needs its parts, such as training.

    Raises:
        UserError: as `load`; or the model is one of diffusers.
    """
    if files.library == "diffusers":
        raise UserError(f"{files.name} is a model of diffusers: this needs one of our own, such as scenes")
    import torch

    from ldm.checkpoint import load_model

    elsewhere = {"cond_stage_model": torch.device("cpu")} if low_memory else {}
    return load_model(read_config(files.config), files.weights, device=device, dtype=dtype, elsewhere=elsewhere)


def load_first_stage(files: ModelFiles, device: torch.device) -> Backbone:
    """The model of these files, of which only the autoencoder can be used; in float32, on the device.

    Raises:
        UserError: as `load`.
    """
    if files.library == "diffusers":
        return diffusers_models.load_first_stage(files.weights, files.name, device, files.config)
    import torch

    model: Any = load_ours(files, torch.device("cpu"), torch.float32)  # mapped from its file, and not read
    if not hasattr(model, "first_stage_model"):
        from ldm.models.diffusion.pixel import Pictures

        return model if isinstance(model, Pictures) else Pictures()  # of a network that painted pictures
    model.first_stage_model.to(device)
    return model


def outline(files: ModelFiles) -> Backbone:
    """The model without its weights, on the meta device: good for its sizes, its noise levels and its tokenizer.

    Raises:
        UserError: the config cannot be read, or names no such model.
    """
    if files.library == "diffusers":
        return diffusers_models.outline_pipeline(files.weights, files.name, files.config)
    import torch

    from ldm.util import instantiate_from_config

    with torch.device("meta"):
        model = instantiate_from_config(read_config(files.config)["model"])
    if not hasattr(model, "alphas_cumprod"):  # a network of another method, which is told where it is asked to edit
        return model
    # An outline has no values. Of these only their number matters.
    model.alphas_cumprod = torch.linspace(0.99, 0.01, len(model.alphas_cumprod))
    return model


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
        config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read as a config: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"{path} is no config of a model: it has no part 'model'")
    encoder = (config["model"].get("params") or {}).get("cond_stage_config")
    params = (encoder.get("params") if isinstance(encoder, dict) else None) or {}
    for key, value in params.items():
        if isinstance(value, str) and value and (path.parent / value).exists():
            params[key] = str((path.parent / value).resolve())
    return without_training_keys(config)


def download(name: str, to: Path | None = None, *, force: bool = False) -> Path:
    """Fetch the weights of a named model into its own folder, or into `to`; see `ldm.download.fetch`.

    Raises:
        UserError: the name is unknown or needs no download, or no mirror gives the file.
    """
    model = MODELS.get(name)
    if model is None or model.remote is None:
        what = "is unknown" if model is None else "comes with this program"
        downloadable = [name for name, model in MODELS.items() if model.remote]
        raise UserError(f'model "{name}" {what}; to download: {", ".join(downloadable)}')
    folder = Path(to).expanduser().resolve() if to else models_dir() / model.folder
    return fetch(model.remote, folder / "model.ckpt", force=force)
