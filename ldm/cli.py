"""What the scripts share: exit codes, number types for argparse, how notices look; and the scripts as commands.

Nothing here imports torch, so that `--help` answers at once.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

from ldm.errors import UserError
from ldm.imports import own_process
from ldm.options import as_flags


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as all errors of this project are."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def bounded(kind: type, low: float | None = None, high: float | None = None) -> Callable[[str], float]:
    """A type for argparse: a finite number of `kind` between `low` and `high`, both included."""

    def parse(text: str) -> float:
        span = f"a{'n integer' if kind is int else ' number'}"
        if low is not None and high is not None:
            span += f" from {low:g} to {high:g}"
        elif low is not None:
            span += f" of at least {low:g}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'"{text}" is not {span}') from None
        inside = (low is None or value >= low) and (high is None or value <= high)
        if not (inside and float("-inf") < value < float("inf")):
            raise argparse.ArgumentTypeError(f"{text} is out of range: give {span}")
        return value

    return parse


class _Notices(logging.Formatter):
    """`note: ...` for warnings of this package, plain text for its information."""

    def format(self, record: logging.LogRecord) -> str:
        text = as_flags(super().format(record))
        return f"note: {text}" if record.levelno == logging.WARNING else text


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a script's `main(argv)` and return its exit code.

    0 when it went well, 2 with one line on stderr for a `UserError`, 130 after Ctrl-C, 141 where nobody reads what is
    printed any more (`| head -1`). Any other exception is a bug of ours and keeps its traceback.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Notices("%(message)s"))
    logger = logging.getLogger("ldm")
    before = logger.handlers, logger.level
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    try:
        with own_process(), _ctrl_c():
            main(sys.argv[1:] if argv is None else argv)
            if sys.stdout is not None:
                sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"error: {as_flags(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except BrokenPipeError:
        with suppress(OSError):  # or Python complains once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        logger.handlers = before[0]
        logger.setLevel(before[1])
    return 0


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the block as such, also where a library makes another error of it, as some do in their imports."""
    before, pressed = signal.getsignal(signal.SIGINT), threading.Event()
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def press(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, press)
    try:
        yield
    except Exception as error:
        if pressed.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def add_words_option(parser: argparse.ArgumentParser) -> None:
    """Let a command list the words of a model in the place of its work; see `ldm.runs.jobs.words_of`."""
    parser.add_argument("--words", action="store_true", help="list all words that the model knows, and do nothing else")


def add_released_options(parser: argparse.ArgumentParser, **same: str) -> None:
    """Take options of the released programs that have another name here, see docs/migration.md.

    Args:
        same: names of theirs, each with the name of ours that means the same. `gpu_id` is always one: cuda:N.
    """
    group = parser.add_argument_group("of the released programs")
    group.add_argument("--gpu_id", metavar="N", default=argparse.SUPPRESS, help="the same as --device cuda:N")
    for theirs, ours in same.items():
        group.add_argument(
            f"--{theirs}", dest=f"as_{ours}", metavar="N", default=argparse.SUPPRESS, help=f"the same as --{ours}"
        )


def with_released_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parsed options with those of the released programs under our names, and one notice of it.

    What is given under our name too is taken from there.
    """
    options = {name: value for name, value in given.items() if name != "gpu_id" and not name.startswith("as_")}
    taken = {name.removeprefix("as_"): value for name, value in given.items() if name.startswith("as_")}
    if "gpu_id" in given:
        taken["device"] = f"cuda:{given['gpu_id']}"
    taken = {name: value for name, value in taken.items() if name not in options}
    if taken:
        words = ", ".join(f"`{name}={value}`" for name, value in taken.items())
        logging.getLogger(__name__).warning("taken as %s", words)
    return options | taken


def _command(script: str) -> int:
    """Run a file of `scripts/`, which an installation knows as the package `ldm.commands`; returns the exit code."""
    return run(import_module(f"ldm.commands.{script}").main)


# The console commands bld-edit, bld-reconstruct, ... of setup.py.
edit = partial(_command, "text_editing")
reconstruct = partial(_command, "reconstruct")
batch = partial(_command, "batch_editing")
txt2img = partial(_command, "txt2img")
download = partial(_command, "download_models")
studio = partial(_command, "studio")
blended_diffusion = partial(_command, "blended_diffusion")
glide = partial(_command, "glide_inpaint")
paint_by_word = partial(_command, "paint_by_word")
