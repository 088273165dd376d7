"""Weights in and out, safely and strictly.

Reading never runs what a file holds: `.safetensors` has no code, and pickles go through torch's weights-only
unpickler. Files are memory-mapped and models are built on the meta device, so that a checkpoint costs the memory of
its weights once, in the dtype that is asked for. The mapping is private: changing a loaded tensor leaves the file.
"""

import logging
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.files import atomic_file, write_error
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
TRAINING_PREFIXES = ("model_ema.", "first_stage_model.loss.", "loss.")

# Packages whose objects training leaves in a checkpoint beside the weights: a callback's class as a key, a learning
# rate as a numpy scalar. They are never imported nor called: a stand-in takes their place and is thrown away.
BOOKKEEPING_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "numpy")

# What a pickle of plain tensors asks for, see torch's weights-only unpickler. Used to word an error, not to allow.
_PLAIN = re.compile(r"(collections|_codecs|torch(\.(_utils|_tensor|storage|serialization|nn\.parameter))?)\.\w+")


class _StandIn:
    """Takes the place of a bookkeeping object: accepts whatever its pickle says and keeps nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any):
        pass


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights of a file, memory-mapped on the CPU where the format allows.

    One level named `state_dict` (Lightning's) is unwrapped. Keys of training alone and entries that are no tensors
    are left out, and one notice counts them.

    Raises:
        UserError: the file is missing, empty, damaged, of another kind, without tensors, or its pickle asks for
            Python objects that plain weights do not need. Nothing of such a file is run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: name a file of weights")
    if path.suffix.lower() not in (".safetensors", *PICKLES):
        raise UserError(f"{path} has no known ending: weights end in {', '.join(('.safetensors', *PICKLES))}")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: get the file again")
    try:
        content = safetensors.torch.load_file(path) if path.suffix.lower() == ".safetensors" else _unpickle(path)
    except UserError:
        raise
    except Exception as error:  # a damaged file may break a decoder in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise UserError(f"{path} cannot be read ({reason}): it may be cut short, get the file again") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a mapping of names to weights")
    return _only_weights(content, path)


def _unpickle(path: Path) -> Any:
    """Read a zip archive of `torch.save` (mapped) or its format of before 2020 (copied), with weights-only rules."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    names = list(_globals_of(path, zipped))
    ours = [name for name in names if name.partition(".")[0] in BOOKKEEPING_PACKAGES]
    stand_ins: list[Callable | tuple[Callable, str]] = [(_StandIn, name) for name in ours]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about the pickle's protocol: if it matters, the error below says so
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # torch's own text is left out: it tells the user to switch the protection off.
        asked = [n for n in names if not _PLAIN.fullmatch(n) and n.partition(".")[0] not in BOOKKEEPING_PACKAGES]
        if asked:
            raise UserError(
                f"{path} was refused, and nothing in it was run: its pickle asks for {_list(asked)}, which weights do "
                "not need; get a .safetensors file of them from a source you trust"
            ) from error
        raise UserError(f"{path} is no pickle of plain weights: get the file again, or as .safetensors") from error


def _globals_of(path: Path, zipped: bool) -> Iterator[str]:
    """Dotted names that the pickles of a file ask for, by disassembling: nothing is resolved or run."""
    with ExitStack() as stack:
        if zipped:
            archive = stack.enter_context(zipfile.ZipFile(path))
            streams = [stack.enter_context(archive.open(n)) for n in archive.namelist() if n.endswith("/data.pkl")]
        else:  # magic number, protocol, system, content: four pickles in a row
            streams = [stack.enter_context(path.open("rb"))] * 4
        for stream in streams:
            try:
                yield from _globals_in_pickle(stream)
            except Exception:  # damaged, or no pickle: `torch.load` is about to refuse it, and the caller words that
                return


def _globals_in_pickle(stream: IO[bytes]) -> Iterator[str]:
    strings: deque[str] = deque(maxlen=2)
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":  # takes module and name from the stack
            yield ".".join(strings)
        elif isinstance(argument, str):
            strings.append(argument)


def _only_weights(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    skipped: Counter[str] = Counter()
    if isinstance(content.get("state_dict"), Mapping):
        skipped["bookkeeping"] += len(content) - 1
        content = content["state_dict"]
    weights = {}
    for key, value in content.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            skipped["bookkeeping"] += 1
        elif prefix := next(filter(key.startswith, TRAINING_PREFIXES), None):
            skipped[prefix] += 1
        else:
            weights[key] = value.detach()
    if not weights:
        raise UserError(f"{path} holds no weights of a model")
    if total := skipped.total():
        parts = ", ".join(f"{count} {name}" for name, count in skipped.items() if count)
        logger.warning(f"{path}: skipped {total} entries of training alone ({parts})")
    return weights


def assign(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Put the tensors of `state_dict` in the place of the model's own, without copying them.

    The model's dtypes win, and so do its devices, except for the meta device, whose tensors go where the weights are.

    Raises:
        UserError: keys are missing or unknown, or shapes differ. `source` names the weights in the message.
    """
    own = model.state_dict()
    wrong = [
        f"{key} {_describe(state_dict[key])} instead of {_describe(tensor)}"
        for key, tensor in own.items()
        if key in state_dict and _describe(state_dict[key]) != _describe(tensor)
    ]
    differences = {"missing": own.keys() - state_dict.keys(), "unknown": state_dict.keys() - own.keys(), "wrong": wrong}
    if any(differences.values()):
        found = "; ".join(f"{len(keys)} {sort}: {_list(sorted(keys))}" for sort, keys in differences.items() if keys)
        raise UserError(f"{source} does not fit the model of its config ({found}): give the config it was made with")
    fitted = {
        key: state_dict[key].to(state_dict[key].device if tensor.is_meta else tensor.device, tensor.dtype)
        for key, tensor in own.items()
    }
    model.load_state_dict(fitted, strict=True, assign=True)


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" {tensor.dtype}")


def _list(names: Iterable[str], shown: int = 3) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def load_model(
    config: Mapping[str, Any],
    weights: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    elsewhere: Mapping[str, torch.device] | None = None,
) -> Any:
    """Build `config["model"]` and give it the weights of a file: in eval mode, without gradients.

    Parameters and buffers become `dtype`, except the model's own direct buffers: these are the noise schedule
    (`betas`, `alphas_cumprod`, ...), which stays float32.

    Args:
        elsewhere: direct children by name that go to another device than `device`, and never lie there.

    Returns:
        The `nn.Module` that the config names.

    Raises:
        UserError: the config names no such model, or the weights cannot be read or do not fit.
    """
    if "model" not in config:
        raise UserError(f"the config has no part 'model': it has {_list(map(str, config)) or 'nothing'}")
    with torch.device("meta"):  # shapes only: no memory, no random numbers
        model = instantiate_from_config(config["model"])
    model.to(dtype)
    for name, buffer in model.named_buffers(recurse=False):
        if buffer.is_floating_point():
            setattr(model, name, buffer.float())
    assign(model, read_state_dict(weights), str(weights))
    lost = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    if lost:
        raise RuntimeError(f"not in the state dict, so never filled: {_list(lost)}; make them persistent buffers")
    model._apply(lambda tensor: tensor.to(device), recurse=False)  # its direct tensors; `.to` would move all
    for name, child in model.named_children():
        child.to((elsewhere or {}).get(name, device))
    return model.eval().requires_grad_(False)


def save_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to `path` at once or not at all; folders are made as needed.

    Tensors that share memory (tied weights, views of one tensor) are each written in full, since a strict reader
    wants every key.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    packed: dict[str, Tensor] = {}
    storages = set()
    for key, tensor in tensors.items():
        packed[key] = tensor.detach().cpu().contiguous()
        if packed[key].untyped_storage().data_ptr() in storages:
            packed[key] = packed[key].clone()
        storages.add(packed[key].untyped_storage().data_ptr())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            mode = os.fstat(file.fileno()).st_mode  # as the umask wants it; the library would make it its owner's alone
            safetensors.torch.save_file(packed, file.name, {"format": "pt", **(metadata or {})})
            os.chmod(file.name, mode)
    except OSError as error:
        raise write_error(path, error) from error
    except safetensors.SafetensorError as error:  # so the library words a full disk
        raise UserError(f'cannot write "{path}": {error}') from error
