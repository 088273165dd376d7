"""What every floor may use: objects from configs, and the choice of device and precision."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ldm.errors import OutOfMemory, UserError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def get_obj_from_str(path: str) -> Any:
    """The object at a dotted path, `package.module.Name`.

    Raises:
        UserError: no module or no name of that path.
    """
    module, _, name = str(path).rpartition(".")
    if not (name and all(module.split("."))):
        raise UserError(f'"{path}" is no class path: expected package.module.Name')
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(f'cannot find the class "{path}" that the config names: {error}') from error


def instantiate_from_config(config: Mapping[str, Any], **overrides: Any) -> Any:
    """Build what a config names: `{target: dotted.path, params: {...}}` -> `target(**params)`.

    Args:
        config: a mapping with `target` and, optionally, `params` (OmegaConf nodes welcome).
        overrides: keyword arguments that win over `params`.

    Raises:
        UserError: there is no `target`, it does not exist, or it refuses a parameter or its value.
    """
    if "target" not in config:
        raise UserError(f"a config needs the key 'target'; this one has {sorted(config)}")
    params = dict(config.get("params") or {}) | overrides
    cls = get_obj_from_str(config["target"])
    try:
        return cls(**params)
    except TypeError as error:
        if "unexpected keyword argument" in str(error) or "missing" in str(error):
            raise UserError(f"{config['target']} does not fit its config: {error}") from error
        raise
    except ValueError as error:
        raise UserError(f"{config['target']} refuses its config: {error}") from error


def choose_device(name: str = "auto") -> torch.device:
    """`auto` takes cuda, then mps, then cpu; any other name is taken at its word.

    Raises:
        UserError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` is a device too, whose tensors have no values
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"`device={name}` cannot be used here ({reason}); try `device=auto`") from error
    return device


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32; others imitate it, or have it and are no faster.

    Intel's AVX512-BF16 is of the second kind: half as many instructions a cycle as of float32's, each with twice the
    products. There it takes AMX, which a virtual machine may hide.
    """
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    avx512_pays = flags.get("avx512_bf16", False) and "intel" not in flags.get("cpu_name", "").lower()
    return avx512_pays or any(flags.get(name, False) for name in ("amx_tile", "sve_bf16"))


def peak_memory() -> int | None:
    """The most that this process has had resident, in bytes; None where the system does not tell (Linux does).

    From the kernel's record of the process alone: `getrusage` begins with what its parent had when it started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        return None


@contextmanager
def told_out_of_memory() -> Iterator[None]:
    """Report in one line that memory does not suffice, whichever part of PyTorch or Python found it out.

    Raises:
        OutOfMemory: names what takes less.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from pytorch_lightning.utilities.memory import is_oom_error  # a second to import, and seldom needed

        if isinstance(error, RuntimeError) and not is_oom_error(error):
            raise
        reason = str(error).partition("\n")[0].partition(". ")[0] or "out of memory"
        raise OutOfMemory(
            f"too little memory ({reason}): try a smaller `H` and `W`, or fewer `n_samples` and more `n_iter`"
        ) from error


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device is fast in it, else float16 on a GPU and float32 on a CPU.

    Raises:
        UserError: an unknown name.
    """
    if name == "auto":
        if device.type == "cuda":
            # Ampere's and newer. `torch.cuda.is_bf16_supported` says yes of older ones too, which imitate it.
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        if device.type == "cpu":
            return torch.bfloat16 if has_fast_bfloat16() else torch.float32
        return torch.float16
    if name not in PRECISIONS:
        raise UserError(f"`precision={name}` is unknown: choose auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
