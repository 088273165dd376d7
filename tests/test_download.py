"""Downloads from a local server that behaves as badly as real ones do."""

import hashlib
import io
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

from ldm import download
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
STEP = 9_000  # bytes until a connection breaks


class Handler(BaseHTTPRequestHandler):
    """The path says how this server misbehaves; `server.requests` keeps (path, Range) of each request."""

    def do_GET(self):
        way, asked = self.path.strip("/"), self.headers["Range"]
        self.server.requests.append((way, asked))
        getattr(self, f"send_{way}")(int(asked[6:-1]) if asked else 0)

    def send_body(self, body: bytes, *, start: int = 0, total: int | None = None, length: int | None = None, **headers):
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", len(body) if length is None else length)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body)}/{total}")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_good(self, start: int, content: bytes = CONTENT):
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
        else:
            self.send_body(content[start:], start=start, total=len(content))

    def send_breaks(self, start: int):
        self.send_body(CONTENT[start:][:STEP], start=start, total=len(CONTENT), length=len(CONTENT) - start)

    def send_breaks_for_good(self, start: int):
        if start:
            self.send_error(503)
        else:
            self.send_breaks(0)

    def send_ignores_range(self, start: int):
        self.send_body(CONTENT)

    def send_ignores_range_and_breaks(self, start: int):
        self.send_body(CONTENT[:STEP], length=len(CONTENT))

    def send_another_range(self, start: int):
        self.send_body(CONTENT[start + 1 :], start=start + 1, total=len(CONTENT))

    def send_bare_416(self, start: int):
        self.send_error(416)

    def send_says_too_much(self, start: int):
        if start >= len(CONTENT):
            self.send_good(start)
        else:
            self.send_body(CONTENT[start:], start=start, total=2 * len(CONTENT), length=2 * len(CONTENT) - start)

    def send_says_too_little(self, start: int):
        self.send_body(CONTENT[: len(CONTENT) // 2])

    def send_says_nothing(self, start: int):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def send_damaged(self, start: int):
        self.send_good(start, CONTENT[:40_000] + bytes(100) + CONTENT[40_100:])

    def send_other(self, start: int):
        self.send_good(start, archive(seed=1))

    def send_html(self, start: int):
        self.send_body(b"<!DOCTYPE html>" + b"please log in " * 20_000, Content_Type="text/html; charset=utf-8")

    def send_tiny(self, start: int):
        self.send_body(b"PK tiny")

    def send_tiny_of_unknown_length(self, start: int):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"PK tiny")

    def send_only_headers(self, start: int):
        self.send_body(b"", length=len(CONTENT))

    def send_missing(self, start: int):
        self.send_error(404)

    def send_busy(self, start: int):
        if len(self.server.requests) < 3:
            self.send_error(503)
        else:
            self.send_good(start)

    def send_stalls(self, start: int):
        if len(self.server.requests) > 1:
            self.send_good(start)
        else:
            self.send_body(CONTENT[:STEP], length=len(CONTENT))
            if not self.server.released.wait(20):
                self.server.requests.append("waited in vain")

    def send_hangs_up(self, start: int):
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.released = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def remote(server: ThreadingHTTPServer, *ways: str, **options) -> Remote:
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{way}" for way in ways)
    return Remote(urls, **({"least_bytes": 1000} | options))


def get(server: ThreadingHTTPServer, folder: Path, *ways: str, force: bool = False, **options) -> Path:
    return fetch(remote(server, *ways, **options), folder / "new" / "model.ckpt", force=force, pause=0.001)


def assert_whole(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["model.ckpt"]


def write_part(folder: Path, content: bytes) -> Path:
    (folder / "new").mkdir()
    part = folder / "new" / "model.ckpt.part"
    part.write_bytes(content)
    return part


@pytest.mark.parametrize("way", ["good", "breaks", "says_too_much", "says_nothing", "busy", "ignores_range", "stalls"])
def test_one_mirror_is_enough(tmp_path: Path, server, way: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    assert_whole(get(server, tmp_path, way))
    assert "waited in vain" not in server.requests


def test_a_break_is_resumed_where_it_was(tmp_path: Path, server):
    get(server, tmp_path, "breaks")
    ranges = [None, *(f"bytes={start}-" for start in range(STEP, len(CONTENT), STEP))]
    assert server.requests == [("breaks", asked) for asked in ranges]
    assert len(ranges) > 10, "what brings something new is no failed attempt"


def test_a_later_process_resumes(tmp_path: Path, server):
    write_part(tmp_path, CONTENT[:12_345])
    assert_whole(get(server, tmp_path, "good"))
    assert server.requests == [("good", "bytes=12345-")]


def test_the_next_mirror_resumes(tmp_path: Path, server):
    assert_whole(get(server, tmp_path, "breaks_for_good", "good"))
    assert server.requests[-1] == ("good", f"bytes={STEP}-")


@pytest.mark.parametrize("way", ["good", "bare_416"])
def test_a_part_that_is_whole_only_gets_its_name(tmp_path: Path, server, way: str):
    write_part(tmp_path, CONTENT)
    assert_whole(get(server, tmp_path, way))
    assert len(server.requests) == 1


@pytest.mark.parametrize("left", [CONTENT + b"more", archive(seed=1)[:60_000], bytes(60_000)])
def test_a_part_of_another_file_is_thrown_away(tmp_path: Path, server, left: bytes):
    write_part(tmp_path, left)
    assert_whole(get(server, tmp_path, "good"))


def test_a_mirror_that_sends_damage_twice_is_given_up(tmp_path: Path, server):
    write_part(tmp_path, CONTENT[:5000])
    assert_whole(get(server, tmp_path, "damaged", "good"))
    assert server.requests == [("damaged", "bytes=5000-"), ("damaged", None), ("good", None)]


def test_a_server_without_ranges_begins_anew(tmp_path: Path, server):
    write_part(tmp_path, bytes(12_345))
    assert_whole(get(server, tmp_path, "ignores_range"))
    assert server.requests == [("ignores_range", "bytes=12345-")]


@pytest.mark.parametrize(
    "way, reason",
    [
        ("missing", "HTTP 404"),
        ("breaks_for_good", "HTTP 503"),
        ("ignores_range_and_breaks", f"broke after {STEP} of {len(CONTENT)} bytes"),
        ("says_too_little", "cut short"),
        ("damaged", "damaged"),
        ("html", "text/html"),
        ("tiny", "7 bytes is too small"),
        ("tiny_of_unknown_length", "7 bytes is too small"),
        ("only_headers", "before the first byte"),
        ("hangs_up", "no connection"),
    ],
)
def test_a_bad_mirror_gives_its_reason_and_the_next_one_helps(tmp_path: Path, server, way: str, reason: str):
    with pytest.raises(UserError, match=rf"/{way} \([^)]*{reason}"):
        get(server, tmp_path, way)
    assert not (tmp_path / "new" / "model.ckpt").exists()
    assert_whole(get(server, tmp_path, way, "good"))


def test_another_range_is_not_appended(tmp_path: Path, server):
    part = write_part(tmp_path, CONTENT[:5000])
    with pytest.raises(UserError, match="asked for the bytes from 5000 on, it sends bytes 5001-"):
        get(server, tmp_path, "another_range")
    assert part.read_bytes() == CONTENT[:5000]


def test_bad_mirrors_do_not_cost_what_has_come(tmp_path: Path, server):
    write_part(tmp_path, CONTENT[:5000])
    assert_whole(get(server, tmp_path, "html", "tiny", "only_headers", "hangs_up", "good"))
    assert server.requests[-1] == ("good", "bytes=5000-")


def test_a_wrong_checksum_is_deleted_and_the_next_mirror_asked(tmp_path: Path, server):
    wanted = hashlib.sha256(CONTENT).hexdigest()
    assert_whole(get(server, tmp_path, "other", "good", sha256=wanted))
    assert server.requests == [("other", None), ("good", None)]
    with pytest.raises(UserError, match=f"/good \\(its SHA-256 is {wanted}, not 1234"):
        get(server, tmp_path, "good", sha256="1234", force=True)
    assert_whole(tmp_path / "new" / "model.ckpt")


def test_all_mirrors_fail(tmp_path: Path, server):
    closed = "http://127.0.0.1:1/model.ckpt"
    offer = Remote((*remote(server, "missing", "html").urls, closed), least_bytes=1000)
    with pytest.raises(UserError) as caught:
        fetch(offer, tmp_path / "model.ckpt", pause=0.001)
    text = str(caught.value)
    for part in ("/missing (HTTP 404", "/html (it sends text/html", f"{closed} (no connection", "save it as"):
        assert part in text
    assert str(tmp_path / "model.ckpt") in text
    assert "\n" not in text
    assert [way for way, _ in server.requests] == ["missing", "html"], "these are not worth a second try"


def test_what_is_there_stays_without_force(tmp_path: Path, server):
    target = tmp_path / "model.ckpt"
    target.write_bytes(b"mine")
    assert fetch(remote(server, "good"), target) == target
    assert target.read_bytes() == b"mine"
    assert not server.requests
    fetch(remote(server, "good"), target, force=True)
    assert_whole(target)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, server, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": len(CONTENT) - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"has 0\.0 GB free and 0\.0 GB are needed.*--to"):
        get(server, tmp_path, "good", "good")
    assert not list((tmp_path / "new").iterdir())
    assert len(server.requests) == 1
    write_part(tmp_path / "new", CONTENT[:1])
    assert_whole(get(server, tmp_path / "new", "good"))


def test_a_folder_that_cannot_be(tmp_path: Path, server):
    (tmp_path / "new").touch()
    with pytest.raises(UserError, match="cannot write"):
        get(server, tmp_path, "good")


def test_the_sum_is_told(tmp_path: Path, server, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    get(server, tmp_path, "good")
    assert hashlib.sha256(CONTENT).hexdigest() in caplog.records[-1].message


def test_killed_midway_and_run_again(tmp_path: Path, server):
    """A process that dies without a chance to clean up leaves a part; the next one goes on from there."""
    code = (
        "import sys; from pathlib import Path; from ldm import download; download.CHUNK = 1000\n"
        "download.fetch(download.Remote((sys.argv[1],), 1000), Path(sys.argv[2]))"
    )
    offer, target = remote(server, "stalls"), tmp_path / "model.ckpt"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", code, offer.urls[0], target], env=environment)
    part, deadline = tmp_path / "model.ckpt.part", time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    have = part.stat().st_size
    assert 0 < have <= STEP
    assert not target.exists()
    fetch(offer, target)
    assert_whole(target)
    assert server.requests == [("stalls", None), ("stalls", f"bytes={have}-")]
