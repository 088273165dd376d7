"""Downloads from a local server that behaves as badly as real ones do."""

import hashlib
import io
import logging
import os
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ldm.download import Remote, fetch
from ldm.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]


def archive(seed: int = 0) -> bytes:
    """A zip archive as `torch.save` writes one: records uncompressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in ("archive/data.pkl", "archive/data/0"):
            file.writestr(zipfile.ZipInfo(name), random.Random(seed).randbytes(50_000))
    return buffer.getvalue()


CONTENT = archive()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
STEP = 9_000  # bytes until a connection breaks
BODIES = {
    "damaged": CONTENT[:40_000] + bytes(100) + CONTENT[40_100:],
    "other": archive(seed=1),
    "html": b"<!DOCTYPE html>" + b"please log in " * 20_000,
    "tiny": b"PK tiny",
}


class Handler(BaseHTTPRequestHandler):
    """The path says how this server misbehaves; `server.requests` keeps (path, Range) of each GET."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        way, asked = self.path.strip("/"), self.headers["Range"]
        get, start = self.command == "GET", int(asked[6:].split("-")[0]) if asked else 0
        if get:
            self.server.requests.append((way, asked))
        if way == "missing" or (way == "busy" and get):
            return self.send_error(404 if way == "missing" else 503)
        if way == "elsewhere":
            return self.send(302, 0, Location="/good")
        body = BODIES.get(way, CONTENT)
        if way == "ignores_range":
            start = 0
        if way != "says_nothing":
            hub = {"X-Linked-Size": len(CONTENT), "X-Linked-ETag": f'"{SHA256}"'} if way in ("hub", "other_hub") else {}
            body = BODIES["other"] if way == "other_hub" else body
            if start >= len(body):
                return self.send(416, 0)
            ranges = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
            self.send(206 if start else 200, len(body) - start, **hub, **ranges)
        elif start >= len(body):
            return self.send(416, 0)
        else:
            self.send(206 if start else 200, None)
        if get:
            self.wfile.write(body[start:][: STEP if way in ("breaks", "stalls") else None])
            if way == "stalls" and not start:
                self.server.released.wait(20)

    def send(self, code: int, length: int | None, **headers):
        self.send_response(code)
        for name, value in headers.items() if length is None else {"Content-Length": length, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.released = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client may ask: the servers are those of these tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the second that the client waits after a break, which costs it a chunk of 10 MB: here 1 kB."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


def remote(server: ThreadingHTTPServer, *ways: str, **options) -> Remote:
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{way}" for way in ways)
    return Remote(urls, **({"least_bytes": 1000} | options))


def get(server: ThreadingHTTPServer, folder: Path, *ways: str, force: bool = False, **options) -> Path:
    return fetch(remote(server, *ways, **options), folder / "new" / "model.ckpt", force=force)


def assert_whole(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["model.ckpt"]


def write_part(folder: Path, content: bytes) -> None:
    (folder / "new").mkdir()
    (folder / "new" / "model.ckpt.part").write_bytes(content)


@pytest.mark.parametrize("way", ["good", "breaks", "says_nothing", "ignores_range", "hub", "elsewhere"])
@pytest.mark.parametrize("left", [b"", CONTENT[:12_345], CONTENT, CONTENT + b"more", BODIES["other"][:60_000]])
def test_one_mirror_is_enough_whatever_an_earlier_try_has_left(tmp_path: Path, server, hasty, way: str, left: bytes):
    write_part(tmp_path, left)
    assert_whole(get(server, tmp_path, way))


def test_a_break_is_resumed_where_it_was(tmp_path: Path, server, hasty):
    get(server, tmp_path, "breaks")
    asked = [None, *(f"bytes={start}-" for start in range(STEP, len(CONTENT), STEP))]
    assert server.requests == [("breaks", one) for one in asked]
    assert len(asked) > 10, "what brings something new is no failed attempt"


@pytest.mark.parametrize("before", [(), ("missing", "tiny", "busy")])
def test_what_has_come_is_kept_for_the_next_mirror_and_the_next_process(tmp_path: Path, server, before):
    write_part(tmp_path, CONTENT[:12_345])
    assert_whole(get(server, tmp_path, *before, "good"))
    assert server.requests[-1] == ("good", "bytes=12345-")


def test_killed_midway_and_run_again(tmp_path: Path, server):
    """A process that dies without a chance to clean up leaves a part; the next one goes on from there."""
    code = (
        "import sys; from pathlib import Path; from huggingface_hub import constants; from ldm import download\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 1000\n"
        "download.fetch(download.Remote((sys.argv[1],), 1000), Path(sys.argv[2]))"
    )
    offer, target = remote(server, "stalls"), tmp_path / "model.ckpt"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen([sys.executable, "-c", code, offer.urls[0], target], env=environment)
    part, deadline = tmp_path / "model.ckpt.part", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    have = part.stat().st_size
    assert 0 < have <= STEP and not target.exists()
    fetch(remote(server, "good"), target)
    assert_whole(target)
    assert server.requests == [("stalls", None), ("good", f"bytes={have}-")]


@pytest.mark.parametrize(
    "way, reason",
    [
        ("missing", "404"),
        ("busy", "503"),
        ("damaged", "damaged"),
        ("html", "does not begin as a checkpoint does"),
        ("tiny", "7 bytes is too small"),
        ("other_hub", f"not {SHA256}"),
    ],
)
def test_a_bad_mirror_gives_its_reason_and_the_next_one_helps(tmp_path: Path, server, way: str, reason: str):
    with pytest.raises(UserError, match=rf"/{way} \(.*{reason}"):
        get(server, tmp_path, way)
    assert not (tmp_path / "new" / "model.ckpt").exists()
    assert_whole(get(server, tmp_path, way, "good"))


def test_a_wrong_checksum_is_deleted_and_the_next_mirror_asked(tmp_path: Path, server):
    assert_whole(get(server, tmp_path, "other", "good", sha256=SHA256))
    with pytest.raises(UserError, match=f"/good \\(its SHA-256 is {SHA256}, not 1234"):
        get(server, tmp_path, "good", sha256="1234", force=True)
    assert_whole(tmp_path / "new" / "model.ckpt")


def test_all_mirrors_fail(tmp_path: Path, server):
    """Without a network it is one line too, at once."""
    closed = "http://127.0.0.1:1/model.ckpt"
    offer = Remote((*remote(server, "missing").urls, closed), least_bytes=1000)
    with pytest.raises(UserError) as caught:
        fetch(offer, tmp_path / "model.ckpt")
    text = str(caught.value)
    for part in ("/missing (", "404", f"{closed} (", "refused", f"save it as {tmp_path / 'model.ckpt'}"):
        assert part in text
    assert "\n" not in text and not list(tmp_path.iterdir())


def test_what_is_there_stays_without_force(tmp_path: Path, server):
    target = tmp_path / "model.ckpt"
    target.write_bytes(b"mine")
    assert fetch(remote(server, "good"), target) == target
    assert target.read_bytes() == b"mine" and not server.requests
    fetch(remote(server, "good"), target, force=True)
    assert_whole(target)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": len(CONTENT) - 1}))
    with pytest.raises(UserError, match=r"has 0\.0 GB free and 0\.0 GB are needed.*--to"):
        get(server, tmp_path, "good", "good")
    assert not list((tmp_path / "new").iterdir()) and not server.requests


def test_a_folder_that_cannot_be(tmp_path: Path, server):
    (tmp_path / "new").touch()
    with pytest.raises(UserError, match="cannot write"):
        get(server, tmp_path, "good")


def test_the_sum_is_told(tmp_path: Path, server, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="ldm"):
        get(server, tmp_path, "good")
    assert SHA256 in caplog.messages[-1]
