"""Writing files whole or not at all. Imports nothing heavy, so that every floor may use it."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ldm.errors import UserError


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to that appears at `path` when the block ends well, and otherwise leaves no trace.

    Raises:
        UserError: it cannot be written (see `write_error`).
    """
    path = Path(path)
    # Not `tempfile`: its files are readable by their owner only, and stay so after the rename.
    part = path.with_name(f".{uuid.uuid4().hex[:12]}.part")
    try:
        with open(part, "xb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        if error.errno is None:  # not the system's: Pillow, asked for what it cannot write
            raise
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # gone after the rename, or never there
            part.unlink()


def write_error(path: str | os.PathLike, error: OSError) -> UserError:
    """What to tell the user when the system refuses to write at `path`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    mend = "free some space or choose another folder" if full else "choose a folder that exists and can be written"
    return UserError(f'cannot write "{path}" ({error.strerror}): {mend}')


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content in hexadecimal, read in pieces: weights may be larger than memory.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
