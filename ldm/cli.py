"""What the scripts share: exit codes, number types for argparse, and how notices look.

Nothing here imports torch, so that `--help` answers at once.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from ldm.errors import UserError
from ldm.imports import own_process


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as all errors of this project are."""

    def error(self, message: str):
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
        text = super().format(record)
        return f"note: {text}" if record.levelno == logging.WARNING else text


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a script's `main(argv)` and return its exit code.

    0 when it went well, 2 with one line on stderr for a `UserError`, 130 after Ctrl-C. Any other exception is
    a bug of ours and keeps its traceback.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Notices("%(message)s"))
    logger = logging.getLogger("ldm")
    before = logger.handlers, logger.level
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    try:
        with own_process():
            main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        logger.handlers = before[0]
        logger.setLevel(before[1])
    return 0
