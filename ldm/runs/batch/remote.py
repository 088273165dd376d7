"""Files behind URLs (s3://, gs://, az://, https://), through fsspec: patiently, whole, and cached within a bound."""

import hashlib
import inspect
import logging
import os
import random
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ldm.errors import MissingExtra, UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES, _PAUSE = 6, 0.25  # a store that says no is asked again after 0.25, 0.75, 2.25, 6.75 and 20 seconds, or so
_LARGE = 64 << 20  # bytes of a file that is no longer read into memory to be put
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError, UserError)


def is_url(text: str | os.PathLike) -> bool:
    """Whether a text is a URL and no path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", str(text)) is not None


def as_local(text: str) -> str:
    """A `file://` URL as its path; anything else as it is.

    Raises:
        UserError: it is of another machine.
    """
    if not text.startswith("file://"):
        return text
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise UserError(
            f'"{text}" names a machine "{parts.netloc}": three slashes begin a path of this one, file:///a/b'
        )
    return url2pathname(parts.path)


def stem_of(place: str) -> str:
    """The last part of a path or URL, for people."""
    return PurePosixPath(urlsplit(place).path).name if is_url(place) else Path(place).name


class Remote:
    """A folder or file behind a URL.

    Raises:
        UserError: fsspec knows no such kind of URL.
        MissingExtra: fsspec, or its package for this kind, is not installed.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise MissingExtra("fsspec", "remote", f'"{url}"') from None
        try:
            # What others write meanwhile must be seen.
            self.fs, self.path = url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            package = re.search(r"[Ii]nstall (\w+)", str(error))
            name = package[1] if package else "fsspec"
            raise MissingExtra(name, "remote" if name in ("fsspec", "s3fs") else None, f'"{url}"') from None
        except Exception as error:  # some kinds of store are reached, or want their options, at once
            raise UserError(f'"{url}" cannot be opened ({error}): give a path, or a URL such as s3://') from None

    def read(self, below: str = "") -> bytes | None:
        """The content of a file, None where there is none."""
        try:
            return patiently(self.fs.cat_file, self._at(below))
        except FileNotFoundError:
            return None

    def write(self, below: str, content: bytes) -> None:
        """Put a file, as a whole."""
        patiently(self.fs.pipe_file, self._at(below), content)

    def upload(self, pairs: Sequence[tuple[Path, str]]) -> None:
        """Put files from this machine, each as a whole."""
        for path, below in pairs:
            if path.stat().st_size <= _LARGE:
                self.write(below, path.read_bytes())
            else:
                patiently(self.fs.put_file, str(path), self._at(below))

    def download(self, below: str, path: Path) -> None:
        """A file as a file of this machine, whole or not at all."""
        part = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            patiently(self.fs.get_file, self._at(below), str(part))
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink()

    def remove(self, below: str) -> None:
        """Remove a file, if there is one."""
        with suppress(FileNotFoundError):
            patiently(self.fs.rm_file, self._at(below))

    def files(self, below: str = "") -> list[str]:
        """The paths of all files below a folder, seen from there."""
        folder = self._at(below)
        with suppress(FileNotFoundError):
            return [str(path)[len(folder) :].lstrip("/") for path in patiently(self.fs.find, folder)]
        return []

    def names(self, prefix: str) -> list[str]:
        """The names that begin so, of the files in a folder, not of those below.

        An object store is asked for these alone: there may be millions of others.
        """
        asks = getattr(self.fs, "_find", self.fs.find)  # of the kinds that answer later, what `find` is made of
        with suppress(FileNotFoundError):
            if "prefix" in inspect.signature(asks).parameters:
                found = [str(path) for path in patiently(partial(self.fs.find, prefix=prefix), self.path)]
            else:
                found = [one["name"] for one in patiently(self.fs.ls, self.path) if one["type"] == "file"]
            below = (path.rstrip("/").removeprefix(f"{self.path.rstrip('/')}/") for path in found)
            return [name for name in below if name.startswith(prefix) and "/" not in name]
        return []

    def stamp(self) -> list[Any] | None:
        """What tells one content of a file from the next without reading it; None where the store does not say.

        Raises:
            FileNotFoundError: there is no such file.
        """
        about = patiently(self.fs.info, self.path)
        mark = next(
            (about[key] for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime") if about.get(key)), None
        )
        return None if mark is None else [self.url, about.get("size"), str(mark)]

    def open(self) -> BinaryIO:
        """The file, to be read from its beginning."""
        return patiently(self.fs.open, self.path, "rb")

    def _at(self, below: str) -> str:
        return f"{self.path.rstrip('/')}/{below}" if below else self.path


def patiently(action: Callable[..., T], *arguments: Any) -> T:
    """Do what a store may refuse for a while: again, after longer and longer pauses.

    Raises:
        UserError: it still does not work, or never will.
        FileNotFoundError: there is no such file.
    """
    for attempt in range(_TRIES):
        try:
            return action(*arguments)
        except FileNotFoundError:
            raise
        except Exception as error:
            final = isinstance(error, _FINAL) or "Credentials" in type(error).__name__ or attempt == _TRIES - 1
            text = " ".join(str(error).split()) or type(error).__name__
            if final:
                what = next((str(one) for one in arguments if isinstance(one, str)), "the store")
                raise UserError(f'"{what}" cannot be reached ({text}): check the URL and the access to it') from error
            if attempt == 2:  # a second or so: a store that is slow for a moment is not spoken of
                logger.warning("a store does not answer (%s): it is asked again for half a minute or longer", text)
            time.sleep(_PAUSE * 3**attempt * random.uniform(0.7, 1.3))
    raise AssertionError("the last attempt returns or raises")


class InputCache:
    """Copies of files behind URLs in a folder, the least recently used of which go when there are too many bytes.

    What is being used stays, even where that alone is more than the bound. Threads may share it.

    Args:
        folder: made when it is needed. bound: bytes.
    """

    def __init__(self, folder: Path, bound: float):
        self.folder, self.bound = folder, bound
        self.lock = threading.Condition()
        self.sizes: OrderedDict[str, int | None] = OrderedDict()  # by URL, the last used at the end; None: on its way
        self.users: dict[str, int] = {}

    def place(self, url: str) -> Path:
        """Where the copy is; its name is the file's own."""
        return self.folder / hashlib.sha256(url.encode()).hexdigest()[:16] / (stem_of(url)[-100:] or "file")

    def take(self, url: str) -> Path:
        """A copy, that stays until `give_back`.

        Raises:
            UserError: it cannot be had.
        """
        with self.lock:
            self.users[url] = self.users.get(url, 0) + 1
            while self.sizes.get(url, 0) is None:
                self.lock.wait()
            if url in self.sizes:
                self.sizes.move_to_end(url)
                return self.place(url)
            self.sizes[url] = None
        path = self.place(url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Remote(url).download("", path)
            size = path.stat().st_size
        except BaseException as error:
            with self.lock:
                del self.sizes[url]
                self.lock.notify_all()
            self.give_back(url)
            if isinstance(error, FileNotFoundError):
                raise UserError(f'"{url}": there is no such file') from error
            raise
        with self.lock:
            self.sizes[url] = size
            self.lock.notify_all()
        self._trim()
        return path

    def give_back(self, url: str) -> None:
        """The copy is no longer used by the caller."""
        with self.lock:
            self.users[url] -= 1
            if not self.users[url]:
                del self.users[url]
        self._trim()

    @contextmanager
    def lent(self, urls: Sequence[str]) -> Iterator[list[Path]]:
        """Copies, for the length of a block."""
        taken: list[str] = []
        try:
            paths = []
            for url in urls:
                paths.append(self.take(url))
                taken.append(url)
            yield paths
        finally:
            for url in taken:
                self.give_back(url)

    def _trim(self) -> None:
        with self.lock:
            total = sum(size for size in self.sizes.values() if size)
            for url in [url for url, size in self.sizes.items() if size is not None and url not in self.users]:
                if total <= self.bound:
                    return
                total -= self.sizes.pop(url) or 0
                shutil.rmtree(self.place(url).parent, ignore_errors=True)
