"""Importing open_clip without what no ranking uses, where the process runs one of our commands and nothing else.

Three quarters of the cost of loading a ranker are two imports: torchvision and timm ask torch's compiler
(`torch._dynamo`, which brings sympy, triton and torch.distributed.fsdp) for one function each, and open_clip takes
`transformers`, an extra of its own, where it is installed. In our own commands the compiler's two functions are stood
in for by ones that import it when they are called, and open_clip is told that there is no `transformers` until a
model needs it. Should a library ask for anything else, it is imported as ever: slower, and as right.

A program that uses `Editor` gets open_clip whole, since it may use it for other things. Nothing here imports torch.
"""

import contextlib
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

logger = logging.getLogger(__name__)

_COMPILER = "torch._dynamo"
_state = {"own process": False, "without transformers": False}


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """While this lasts, the process runs a command of ours and no code of others that may want open_clip whole."""
    before, _state["own process"] = _state["own process"], True
    try:
        yield
    finally:
        _state["own process"] = before


def import_open_clip() -> ModuleType:
    """The package open_clip; in a process of our own without torch's compiler and `transformers`, where that works."""
    if _state["own process"] and "open_clip" not in sys.modules:
        try:
            with _standing_in(_stand_ins()):
                importlib.import_module("open_clip")
            _state["without transformers"] = True
        except Exception as error:  # a version that asks for more, in whatever way it then fails
            logger.debug("open_clip is imported whole: %s", error)
    return importlib.import_module("open_clip")


def import_transformers_too() -> None:
    """Give open_clip what `import_open_clip` may have kept from it: for a text encoder of `transformers`."""
    if _state["without transformers"]:
        importlib.reload(importlib.import_module("open_clip.hf_model"))
        _state["without transformers"] = False


def _stand_ins() -> dict[str, ModuleType | None]:
    """What stands for modules that are not imported yet; None makes their import fail as if they were missing."""
    modules: dict[str, ModuleType | None] = {}
    if "transformers" not in sys.modules:
        modules["transformers"] = None
    if _COMPILER not in sys.modules:
        package, utils = ModuleType(_COMPILER), ModuleType(f"{_COMPILER}.utils")
        package.__dict__.update(__path__=[], utils=utils, disable=_disable)
        utils.__dict__.update(is_compile_supported=_is_compile_supported)
        modules |= {_COMPILER: package, utils.__name__: utils}
    return modules


@contextlib.contextmanager
def _standing_in(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    sys.modules.update(modules)  # type: ignore[arg-type]  # None is what the import system documents
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def _is_compile_supported(device_type: Any) -> Any:
    return importlib.import_module(f"{_COMPILER}.utils").is_compile_supported(device_type)


def _disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Callable[..., Any]:
    """`torch.compiler.disable` as the decorator of a function, which takes effect when that is first called."""
    if not isinstance(fn, FunctionType):
        raise ImportError("only functions can be kept from the compiler before it is imported")

    @functools.cache
    def disabled() -> Callable[..., Any]:
        return importlib.import_module(_COMPILER).disable(fn, recursive, reason=reason)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return disabled()(*args, **kwargs)

    return call
