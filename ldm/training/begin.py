"""Where a training begins: with the weights of a model that is there already, and with the scale of its latents."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.backbones import zoo
from ldm.checkpoint import read_state_dict
from ldm.errors import UserError
from ldm.training.deepen import deepened

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A `LatentDiffusion` to train further: its weights by name, and what its denoiser has latents multiplied by."""

    weights: Mapping[str, Tensor]
    scale_factor: float


def read_trained(path: str | Path) -> TrainedModel:
    """The model of a folder, of a file of weights with its config beside it, or of a checkpoint of this training.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = Path(path)
    if path.is_file() and (found := _checkpoint(path)):
        return found
    files = zoo.resolve(str(path.parent if path.is_file() else path))
    params = zoo.read_config(files.config)["model"].get("params") or {}
    return TrainedModel(read_state_dict(path if path.is_file() else files.weights), params.get("scale_factor", 1.0))


def _checkpoint(path: Path) -> TrainedModel | None:
    """What `DiffusionTrainer` saved; None for any other file."""
    if path.suffix != ".ckpt":
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        scale_factor = content["scale_factor"]
    except Exception:  # not ours: `read_state_dict` says what is wrong with it, if anything is
        return None
    weights = {key.removeprefix("ldm."): value for key, value in content["state_dict"].items()}
    return TrainedModel(weights, scale_factor)


def begin_from(module: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Give `module` the weights that the file has under `prefix`; see `begin_with`."""
    begin_with(module, read_state_dict(Path(path)), path, prefix)


def begin_with(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path, prefix: str = "") -> None:
    """Give `module` the weights of these under `prefix`, where name and shape are the same.

    For training what has shipped further, also after the config has grown: what is missing keeps its fresh values,
    and one line says how many tensors those are. A denoiser with more residual blocks begins where the smaller one
    was, see `deepened`. `source` names the weights.

    Raises:
        UserError: none of them fits, or their denoiser cannot become this one.
    """
    own = module.state_dict()
    found = deepened(weights, own)
    known = {
        name: found[prefix + name]
        for name, value in own.items()
        if prefix + name in found and found[prefix + name].shape == value.shape
    }
    if not known:
        raise UserError(f"nothing in {source} fits the model of this config: is it another model's?")
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in known.items()}, strict=False)
    new = sorted(own.keys() - known.keys())
    logger.warning("%d of %d tensors are those of %s%s", len(known), len(own), source, _new(new))


def _new(names: list[str]) -> str:
    return f"; new: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" if names else ""


def encoder_digest(first_stage: Mapping[str, Tensor]) -> str:
    """A hash of the weights that make the latents, those of a first stage's encoder: the decoder does not count."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(_encoder(first_stage).items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


def same_encoder(one: Mapping[str, Tensor], other: Mapping[str, Tensor], prefix: str = "") -> bool:
    """Whether two first stages make the same latents, but for rounding: models ship in half precision, and a running
    mean of weights rounds at every step, also of those that never change.

    one, other: their state dicts, or larger ones that hold them under `prefix`.
    """
    ours, theirs = _encoder(one, prefix), _encoder(other, prefix)
    return ours.keys() == theirs.keys() and all(
        value.shape == theirs[name].shape and (value - theirs[name]).norm() <= 1e-3 * value.norm()
        for name, value in ours.items()
    )


def _encoder(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    parts = (f"{prefix}encoder.", f"{prefix}quant_conv.")
    return {name: value.detach().cpu().float() for name, value in state.items() if name.startswith(parts)}
