"""Batches from and to URLs: in memory in the quick tests, an object store that speaks S3 in the slow ones."""

import json
import random
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("fsspec", reason='the extra "remote" is not installed')

import fsspec

from ldm.cli import run
from ldm.errors import MissingExtra, UserError
from ldm.runs.batch import remote, store
from ldm.runs.batch.remote import InputCache, Remote, is_url, patiently
from ldm.runs.batch.rows import Row, read_rows
from ldm.runs.batch.store import open_store
from scripts import batch_editing
from tests import batches
from tests.batches import OPTIONS, command, finish, lines, make_inputs, pixels, rows, run_ids, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("remote"))


@pytest.fixture
def memory():
    """A file system in memory, under memory://."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE", 0.001)
    monkeypatch.setattr(store, "SETTLED", 0.1)


def batch(source: object, out: object, model: Path, *more: object) -> int:
    argv = [str(source), "-o", str(out), "--model", str(model), *OPTIONS, "--devices", "cpu", "--workers", "0"]
    argv += map(str, more)
    try:
        return run(batch_editing.main, argv)
    except SystemExit as stop:
        return stop.code


def put_inputs(files, folder: Path, base: str = "/in") -> None:
    for path in folder.glob("*.png"):
        files.pipe_file(f"{base}/{path.name}", path.read_bytes())


def brought(files, base: str, to: Path) -> Path:
    """A copy on disk of what lies below a folder of a store."""
    for path in files.find(base):
        target = to / str(path).lstrip("/").removeprefix(base.strip("/")).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files.cat_file(path))
    return to


# ---- reading


def test_what_is_a_url_and_what_relative_paths_of_a_manifest_behind_one_are(memory):
    assert is_url("s3://a/b") and not is_url("a/b") and not is_url("C:/a") and not is_url("/a")
    record = {"image": "a.png", "mask": "s3://other/m.png", "prompt": "p"}
    memory.pipe_file("/in/edits.jsonl", json.dumps(record).encode())
    (row,) = read_rows("memory://in/edits.jsonl", Path("out"), {})
    assert isinstance(row, Row)
    assert row.urls == {"init_image": "memory://in/a.png", "mask": "s3://other/m.png"}
    assert row.given("init_image") == "memory://in/a.png" and row.job.mask == Path("m.png")
    (row,) = read_rows(_local(record | {"mask": "file:///tmp/m%20x.png"}), Path("out"), {})
    assert row.job.mask == Path("/tmp/m x.png") and not row.urls


def _local(record: dict) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "edits.jsonl"
    path.write_text(json.dumps(record))
    return path


def test_a_kind_of_url_that_nobody_knows_or_that_lacks_its_package_is_one_line():
    with pytest.raises(UserError, match="give a path, or a URL"):
        Remote("nonsense://a/b")
    with pytest.raises(MissingExtra, match=r"pip install gcsfs$"):  # which our extra has not
        Remote("gs://a/b")
    with pytest.raises(UserError, match="cannot be opened"):
        Remote("github://a")  # wants more than that


@pytest.mark.parametrize("url", ["s3:/bucket/run", "S3://bucket/run", "file://out/run"])
def test_a_misspelt_url_is_no_folder(url, tmp_path):
    with pytest.raises(UserError, match="slashes"):
        open_store(url, tmp_path)


def test_a_large_file_is_put_and_brought_without_being_held_in_memory(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_LARGE", 10)
    monkeypatch.setattr(Remote, "write", None)
    monkeypatch.setattr(Remote, "read", None)
    (tmp_path / "summary.jsonl").write_text("a line longer than that\n")
    open_store("memory://run", tmp_path).publish(["summary.jsonl"])
    assert memory.cat_file("/run/summary.jsonl") == b"a line longer than that\n"
    desk = tmp_path / "desk"
    for name in ("summary.jsonl", "none"):
        open_store("memory://run", desk).fetch(name)
    assert [path.name for path in desk.iterdir()] == ["summary.jsonl"]


def test_rows_behind_a_web_server_are_rows_and_what_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "mask": "m.png", "prompt": "p"}))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (row,) = read_rows(f"{url}/rows.jsonl", Path("out"), {})
        assert isinstance(row, Row) and row.urls == {"init_image": f"{url}/a.png", "mask": f"{url}/m.png"}
        with pytest.raises(UserError, match="cannot be read as rows"):
            list(read_rows(f"{url}/none.jsonl", Path("out"), {}))
        server.shutdown()


def test_a_store_that_says_no_is_asked_again_and_what_is_not_there_is_not():
    calls = []

    def no(times, error):
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "yes"

    assert patiently(no, 4, OSError("503 slow down")) == "yes" and len(calls) == 5
    calls.clear()
    with pytest.raises(FileNotFoundError):
        patiently(no, 9, FileNotFoundError("x"))
    assert len(calls) == 1
    calls.clear()
    with pytest.raises(UserError, match="slow down"):
        patiently(no, 99, OSError("503 slow down"))


def test_copies_of_inputs_stay_within_their_bound_and_those_in_use_stay(memory, tmp_path, monkeypatch):
    for name in "abcdef":
        memory.pipe_file(f"/in/{name}.bin", name.encode() * 1000)
    cache = InputCache(tmp_path, 3000)

    def size() -> int:
        return sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))

    held = cache.take("memory://in/a.bin")
    for name in "bcdef":
        with cache.lent([f"memory://in/{name}.bin"]) as (path,):
            assert path.read_bytes() == name.encode() * 1000 and path.name == f"{name}.bin"
        assert size() <= 3000 and held.read_bytes() == b"a" * 1000
    # Of many threads that want one file, one fetches it.
    fetched, download = [], Remote.download
    monkeypatch.setattr(Remote, "download", lambda *given: (fetched.append(given), download(*given)))
    threads = [threading.Thread(target=cache.take, args=("memory://in/b.bin",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    with pytest.raises(UserError, match="there is no such file"):
        cache.take("memory://in/none.bin")


# ---- a batch


def test_a_batch_from_and_to_urls_is_that_of_this_machine(folder, memory, tmp_path, capsys):
    put_inputs(memory, folder)
    some = [*rows(3), {**rows(1)[0], "name": "lost", "image": "none.png"}]
    memory.pipe_file("/in/edits.jsonl", "\n".join(map(json.dumps, some)).encode())
    assert batch("memory://in/edits.jsonl", "memory://out/run", folder / "model") == 1
    assert batch(write_rows(folder / "three.jsonl", rows(3)), tmp_path / "here", folder / "model") == 0
    there = brought(memory, "/out/run", tmp_path / "there")
    assert pixels(there) == pixels(tmp_path / "here") and len(pixels(there)) == 12
    said = lines(there / "summary.jsonl")
    assert [line["status"] for line in said] == ["done"] * 3 + ["failed"]
    assert "memory://in/none.png" in said[3]["error"] and said[0]["image"] == "memory://in/a.png"
    assert "3 made, 1 failed" in capsys.readouterr().out
    page = (there / "index.html").read_text()
    assert 'loading="lazy"' in page and (there / "r0" / ".thumbnails.webp").is_file()
    assert not memory.exists("/out/run/.lock.json"), "given back"

    # Again: nothing is made twice, in a place that may be anywhere.
    first = run_ids(there)
    assert batch("memory://in/edits.jsonl", "memory://out/run", folder / "model") == 1
    assert "0 made, 1 failed, 3 were there already" in capsys.readouterr().out
    assert run_ids(brought(memory, "/out/run", tmp_path / "again")) == first
    assert run(batch_editing.main, [str(folder / "three.jsonl"), "-o", str(there), "--model", str(folder / "model"),
                                    *OPTIONS, "--devices", "cpu", "--workers", "0"]) == 0  # fmt: skip
    assert "0 made, 0 failed, 3 were there already" in capsys.readouterr().out, "a bucket that was copied to disk"

    # Another picture under the same name: that row alone; a file of the user's in its folder stays.
    memory.pipe_file("/out/run/r1/notes.txt", b"mine")
    memory.pipe_file("/out/run/r1/samples/results/0009.png", b"of a run of ten")
    memory.pipe_file("/in/b.png", (folder / "c.png").read_bytes())
    assert batch("memory://in/edits.jsonl", "memory://out/run", folder / "model") == 1
    assert "1 made" in capsys.readouterr().out
    again = run_ids(brought(memory, "/out/run", tmp_path / "changed"))
    assert {name for name in again if again[name] != first[name]} == {"r1"}
    assert memory.exists("/out/run/r1/notes.txt") and not memory.exists("/out/run/r1/samples/results/0009.png")


def test_a_page_of_the_users_in_a_bucket_stays(folder, memory, capsys):
    put_inputs(memory, folder)
    memory.pipe_file("/in/edits.jsonl", json.dumps(rows(1)[0]).encode())
    memory.pipe_file("/out/index.html", b"mine")
    assert batch("memory://in/edits.jsonl", "memory://out", folder / "model") == 2
    assert "so it stays" in capsys.readouterr().err and memory.cat_file("/out/index.html") == b"mine"


def test_a_row_whose_put_fails_is_not_done(folder, memory, tmp_path, monkeypatch):
    put_inputs(memory, folder)
    memory.pipe_file("/in/edits.jsonl", "\n".join(map(json.dumps, rows(2))).encode())
    write = Remote.write

    def refused(self, below, content):
        if below == "r1/samples/latents.safetensors":
            raise UserError("the store is full")
        write(self, below, content)

    monkeypatch.setattr(Remote, "write", refused)
    assert batch("memory://in/edits.jsonl", "memory://out", folder / "model") == 1
    assert memory.exists("/out/r0/.row.json") and not memory.exists("/out/r1/.row.json")
    monkeypatch.undo()
    assert batch("memory://in/edits.jsonl", "memory://out", folder / "model") == 0
    assert memory.exists("/out/r1/.row.json") and memory.exists("/out/r1/samples/latents.safetensors")


def test_a_second_batch_of_the_same_rows_is_refused_while_the_first_lives(folder, memory, monkeypatch, capsys):
    put_inputs(memory, folder)
    memory.pipe_file("/in/edits.jsonl", json.dumps(rows(1)[0]).encode())
    lease = {"id": "other", "host": "elsewhere", "pid": 1, "beats": 0}
    memory.pipe_file("/out/.lock.json", json.dumps(lease).encode())
    beats = threading.Event()

    def beat():
        while not beats.wait(0.3):
            lease["beats"] += 1
            memory.pipe_file("/out/.lock.json", json.dumps(lease).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert batch("memory://in/edits.jsonl", "memory://out", folder / "model") == 2
    finally:
        beats.set()
        thread.join()
    assert "process 1 of elsewhere is at work" in capsys.readouterr().err
    assert not memory.exists("/out/r0")
    monkeypatch.setattr("ldm.runs.batch.store.STALE", 2.0)  # and now it is dead
    assert batch("memory://in/edits.jsonl", "memory://out", folder / "model") == 0
    assert memory.exists("/out/r0/.row.json")


# ---- an object store


@pytest.mark.slow
def test_killed_at_random_times_over_an_object_store_that_fails_it_ends_as_if_it_never_was(folder, tmp_path):
    pytest.importorskip("moto", reason="moto[server], an object store for tests, is not installed")
    s3fs = pytest.importorskip("s3fs", reason='the extra "remote" is not installed')
    count = 40
    here = command(write_rows(folder / "here.jsonl", rows(count)), tmp_path / "here", folder / "model")
    assert finish([*here, "--devices", "cpu"])[0] == 0
    with batches.object_store(tmp_path / "server.log") as (environment, server):
        files = s3fs.S3FileSystem(
            key="nobody",
            secret="nothing",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            use_listings_cache=False,
        )
        files.call_s3("create_bucket", Bucket="bucket")
        for path in folder.glob("*.png"):
            files.pipe_file(f"bucket/in/{path.name}", path.read_bytes())
        files.pipe_file("bucket/in/edits.jsonl", "\n".join(map(json.dumps, rows(count))).encode())
        server.stdin.write("0.1\n")  # every tenth put fails, every tenth of the others is slow
        server.stdin.flush()
        argv = [*command("s3://bucket/in/edits.jsonl", "s3://bucket/run", folder / "model"), "--devices", "cpu"]
        draw, made = random.Random(0), {}

        def ids() -> dict[str, str]:
            done = [path for path in files.find("bucket/run") if path.endswith("/.row.json")]
            names = [path.split("/")[2] for path in done]
            return {name: json.loads(files.cat_file(f"bucket/run/{name}/samples/run.json"))["run_id"] for name in names}

        for _ in range(5):
            process = batches.start(argv, tmp_path / "log", **environment)
            before = len(made)
            batches.wait_for(lambda process=process, before=before: process.poll() is not None or len(ids()) > before)
            try:
                process.wait(draw.uniform(0, 3))
            except Exception:
                process.kill()
            process.wait()
            for name, run_id in ids().items():
                assert made.setdefault(name, run_id) == run_id, "made twice"
        assert 5 <= len(made) < count
        code, said = finish(argv, 400, **environment)
        assert code == 0, said
        assert ids().items() >= made.items() and len(ids()) == count
        there = brought(files, "bucket/run", tmp_path / "there")
    assert pixels(there) == pixels(tmp_path / "here") and len(pixels(there)) == 4 * count
    assert [line["status"] for line in lines(there / "summary.jsonl")] == ["done"] * count
