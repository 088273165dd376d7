"""Fetch one large file from the first of several mirrors that gives it whole, by the client of `huggingface_hub`.

What has come is kept in `<target>.part`, from whichever mirror, so that the same process or a later one goes on where
it stopped; `hf_hub_download` begins anew after each interruption. Only a file that passes every check gets its name.
"""

import hashlib
import logging
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.files import write_error

logger = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds that a mirror may take to say what it has
CHECKPOINT_STARTS = (b"PK", b"\x80")  # a zip archive, or the bare pickles of older torch


@dataclass(frozen=True)
class Remote:
    """A file as its mirrors offer it: a checkpoint of `torch.save`."""

    urls: tuple[str, ...]
    least_bytes: int  # anything smaller is not the file
    sha256: str | None = None


class _Failed(Exception):
    """This mirror does not give the file."""


def fetch(remote: Remote, target: Path, *, force: bool = False) -> Path:
    """Download `remote` to `target`, unless it is there and `force` is not set.

    Raises:
        UserError: no mirror gave the file (each is listed with its reason), the disk is too small, or the folder
            cannot be written.
    """
    if target.exists() and not force:
        logger.info(f"{target} is already there (--force fetches it again)")
        return target
    part = target.with_name(target.name + ".part")
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for url in remote.urls:
            logger.info(f"fetching {url}")
            try:
                checksum = _fetch_from(url, part, remote)
            except _Failed as error:
                failures.append(f"{url} ({error})")
                logger.info(f"that failed: {error}")
                continue
            os.replace(part, target)
            logger.info(f"saved {target} ({target.stat().st_size} bytes, SHA-256 {checksum})")
            return target
    except OSError as error:
        raise write_error(part, error) from error
    raise UserError(
        f"no mirror gave {target.name}: {'; '.join(failures)}; try again later (what has come is kept), "
        f"or fetch it by other means and save it as {target}"
    )


def _fetch_from(url: str, part: Path, remote: Remote) -> str:
    """Add to `part` what it lacks, check it, and return its SHA-256. What is damaged is deleted."""
    size, sha256 = _offer(url, remote)
    _check_space(part, size)
    while True:
        had = _size(part)
        if size is not None and had > size:  # of another file
            part.unlink()
            continue
        _append(url, part, size)
        checksum = _sha256(part)
        if (reason := _fault(part, checksum, sha256, remote.least_bytes)) is None:
            return checksum
        part.unlink()
        if not had:
            raise _Failed(reason)
        # The fault may lie in what an earlier try or another mirror had left: once more, from byte 0.


def _offer(url: str, remote: Remote) -> tuple[int | None, str | None]:
    """The file's bytes and its SHA-256, as far as the mirror tells: the hub's etag of a large file is its SHA-256."""
    from huggingface_hub import get_hf_file_metadata

    try:
        offer = get_hf_file_metadata(url, timeout=TIMEOUT)
    except Exception as error:  # the client's network errors share no base class across its versions
        raise _Failed(_reason(error)) from error
    size = offer.size
    if size is not None and size < remote.least_bytes:
        if offer.location == url:
            raise _Failed(f"{size} bytes is too small to be the file")
        size = None  # that of the answer which sends us elsewhere
    told = offer.etag if re.fullmatch("[0-9a-f]{64}", offer.etag or "") else None
    return size, remote.sha256 or told


def _append(url: str, part: Path, size: int | None) -> None:
    """Fetch what comes after `part`'s last byte; the client connects again after each break."""
    from huggingface_hub.file_download import http_get

    have = _size(part)
    try:
        with part.open("ab") as file:
            headers = {"Accept-Encoding": "identity"}
            http_get(url, file, resume_size=have, headers=headers, expected_size=size, displayed_filename=part.stem)
    except Exception as error:
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            raise  # the disk's
        if have and getattr(getattr(error, "response", None), "status_code", None) == 416:
            part.unlink()  # as long as the file or longer, and the mirror does not tell how long that is
            return _append(url, part, size)
        if have == 0 and _size(part) == 0:
            part.unlink(missing_ok=True)
        raise _Failed(_reason(error)) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _check_space(part: Path, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free + _size(part)
    if total is not None and total > free:
        raise UserError(
            f"{part.parent} has {free / 1e9:.1f} GB free and {total / 1e9:.1f} GB are needed: make room, "
            "or give another folder with --to"
        )


def _sha256(path: Path) -> str:
    logger.info(f"checking {path}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fault(part: Path, checksum: str, sha256: str | None, least_bytes: int) -> str | None:
    """What is wrong with a file, if anything.

    Without a known sum, the zip archive that a checkpoint is vouches for itself: CRC-32 of every record.
    """
    if _size(part) < least_bytes:
        return f"{_size(part)} bytes is too small to be the file"
    if sha256:
        return None if checksum == sha256 else f"its SHA-256 is {checksum}, not {sha256}"
    with part.open("rb") as file:
        start = file.read(2)
    if not start.startswith(CHECKPOINT_STARTS):
        return "it does not begin as a checkpoint does"
    try:
        bad = zipfile.ZipFile(part).testzip() if start == b"PK" else None
    except Exception as error:  # a damaged archive may break its reader in any way
        return f"it is cut short or damaged: {error}"
    return f"its record {bad} is damaged" if bad else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
