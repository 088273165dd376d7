"""Writing files whole or not at all, and what is in them. Imports nothing heavy, so that every floor may use it."""

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator
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


def weights_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits.

    Seconds for gigabytes, and no Python lock held meanwhile: a thread does it while the model is loaded. Remembered in
    the user's cache folder under path, size and time of change, as far as that can be written.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(path)
    try:
        about = path.stat()
        key = f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}"
        cached = _cache_dir() / "weights" / hashlib.sha256(os.fsencode(key)).hexdigest()
        with suppress(OSError, UnicodeDecodeError):
            if re.fullmatch("[0-9a-f]{64}", text := cached.read_text(encoding="ascii")):
                return text
        digest = file_sha256(path)
    except OSError as error:
        raise UserError(f'"{path}" cannot be read ({error.strerror}): check the path') from error
    with suppress(OSError, UserError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(cached) as file:
            file.write(digest.encode())
    return digest


def files_hash(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 of files of a folder, given by their paths in it: of their names and of what `weights_hash` says of each.

    Raises:
        UserError: one cannot be read.
    """
    parts = [f"{name}\0{weights_hash(Path(folder) / name)}" for name in sorted(names)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _cache_dir() -> Path:
    """Where the hub's library keeps its own, too."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "blended-latent-diffusion"
