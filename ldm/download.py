"""Fetch one large file from the first of several mirrors that gives it whole.

What has come is kept in `<target>.part`, so that a break costs nothing: the same process or a later one goes on where
it stopped, from any mirror. Only a file that passes every check gets its name. Imports no torch.
"""

import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from ldm.errors import UserError

logger = logging.getLogger(__name__)

CHUNK = 1 << 18  # bytes read at a time, so the most that a break can lose
TIMEOUT = 30.0  # seconds without a byte until a connection counts as broken
CHECKPOINT_STARTS = (b"PK", b"\x80")  # a zip archive, or the bare pickles of older torch
RETRY_LATER = (408, 425, 429, 500, 502, 503, 504)  # HTTP codes that may pass by themselves


@dataclass(frozen=True)
class Remote:
    """A file as its mirrors offer it: a checkpoint of `torch.save`."""

    urls: tuple[str, ...]
    least_bytes: int  # anything smaller is not the file
    sha256: str | None = None


class _Broken(Exception):
    """The connection failed: the same mirror is worth another try."""


class _Useless(Exception):
    """This mirror does not have the file."""


class _Damaged(_Useless):
    """What came is whole, but it is not the file. It has been deleted."""


def fetch(remote: Remote, target: Path, *, force: bool = False, attempts: int = 4, pause: float = 1.0) -> Path:
    """Download `remote` to `target`, unless it is there and `force` is not set.

    Args:
        attempts: tries of one mirror in a row that bring nothing new before the next mirror is asked.
        pause: seconds before the second of them, doubled for each further one.

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
                checksum = _fetch_checked(url, part, remote, attempts, pause)
            except (_Broken, _Useless) as error:
                logger.info(f"that failed: {error}")
                failures.append(f"{url} ({error})")
                continue
            os.replace(part, target)
            logger.info(f"saved {target} ({target.stat().st_size} bytes, SHA-256 {checksum})")
            return target
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror or error}") from error
    raise UserError(
        f"no mirror gave {target.name}: {'; '.join(failures)}; try again later (what has come is kept), "
        f"or fetch it by other means and save it as {target}"
    )


def _fetch_checked(url: str, part: Path, remote: Remote, attempts: int, pause: float) -> str:
    """Fetch, connecting again after each break, and check; give up after `attempts` in a row that add nothing."""
    inherited = part.exists()
    longest, failed = _size(part), 0
    while True:
        try:
            _fetch_once(url, part, remote.least_bytes)
            return _check(part, remote)
        except _Damaged:
            if not inherited:
                raise
            # The fault may lie in what an earlier try or another mirror had left: once more, from byte 0.
            inherited, longest = False, 0
        except _Broken as error:
            failed = 1 if _size(part) > longest else failed + 1
            longest = max(longest, _size(part))
            if failed >= attempts:
                raise
            logger.info(f"{error}; trying again")
            time.sleep(pause * 2 ** (failed - 1))


def _fetch_once(url: str, part: Path, least_bytes: int) -> None:
    """Append to `part` what it lacks, or write it anew where the server cannot send the rest alone."""
    have = _size(part)
    headers = {"User-Agent": "blended-latent-diffusion", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond: the part is whole, or not of this file
            if _total(error.headers.get("Content-Range")) in (have, None):
                return
            part.unlink()
            raise _Broken("what was there is longer than this file") from error
        sort = _Broken if error.code in RETRY_LATER else _Useless
        raise sort(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"no connection: {getattr(error, 'reason', error)}") from error
    with response:
        resumed = response.status == 206
        content_range = response.headers.get("Content-Range", "")
        if resumed and not content_range.startswith(f"bytes {have}-"):
            raise _Useless(f"asked for the bytes from {have} on, it sends {content_range or 'others'}")
        length = response.headers.get("Content-Length", "")
        total = _total(content_range) if resumed else int(length) if length.isdigit() else None
        if total is not None and total < least_bytes:
            raise _Useless(f"{total} bytes is too small to be the file")
        chunks = _chunks(response)
        first = next(chunks, b"")
        if not first:
            raise _Broken("the connection broke before the first byte")
        if not resumed and not first.startswith(CHECKPOINT_STARTS):
            raise _Useless(f"it sends {response.headers.get_content_type()}, not a checkpoint")
        _check_space(part, total)
        with part.open("ab" if resumed else "wb") as file:  # from here on, what was there may be gone
            _write(chain([first], chunks), file, have if resumed else 0, total)


def _write(chunks: Iterable[bytes], file: BinaryIO, done: int, total: int | None) -> None:
    """Write chunks that begin at byte `done` of `total`; if they end before it, the connection broke."""
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=Path(file.name).stem, disable=None) as bar:
        for chunk in chunks:
            done += file.write(chunk)
            bar.update(len(chunk))
    if total is not None and done < total:
        raise _Broken(f"the connection broke after {done} of {total} bytes")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Chunks of the body. Errors of the network become `_Broken`, so that an OSError outside is one of the disk."""
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke: {error}") from error


def _check_space(part: Path, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free + _size(part)
    if total is not None and total > free:
        raise UserError(
            f"{part.parent} has {free / 1e9:.1f} GB free and {total / 1e9:.1f} GB are needed: make room, "
            "or give another folder with --to"
        )


def _check(part: Path, remote: Remote) -> str:
    """The SHA-256 of a file that is what was wanted; any other file is deleted.

    Without a known sum, the zip archive that a checkpoint is vouches for itself: CRC-32 of every record.
    """
    logger.info(f"checking {part}")
    reason = None
    digest = hashlib.sha256()
    with part.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if _size(part) < remote.least_bytes:
        reason = f"{_size(part)} bytes is too small to be the file"
    elif remote.sha256 and digest.hexdigest() != remote.sha256:
        reason = f"its SHA-256 is {digest.hexdigest()}, not {remote.sha256}"
    elif not start.startswith(CHECKPOINT_STARTS):
        reason = "it does not begin as a checkpoint does"
    elif start == b"PK" and not remote.sha256:
        try:
            with zipfile.ZipFile(part) as archive:
                if bad := archive.testzip():
                    reason = f"its record {bad} is damaged"
        except Exception as error:  # a damaged archive may break its reader in any way
            reason = f"it is cut short or damaged: {error}"
    if reason:
        part.unlink()
        raise _Damaged(reason)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _total(content_range: str | None) -> int | None:
    """The whole file's bytes in `bytes 0-99/1234` or `bytes */1234`, if the server knows them."""
    match = re.search(r"/(\d+)$", content_range or "")
    return int(match[1]) if match else None
