"""The studio as a server with the tiny model: jobs from submission to files, and processes that are killed."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageChops

from ldm.runs.again import options_of
from ldm.runs.folder import read_run
from ldm.runs.jobs import EditJob
from tests.studio_server import Server, alive, memory, photograph, picture, png
from tests.tiny import save_tiny_model

LONG = {"ddim_steps": 1000, "n_samples": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    one = Server(model, tmp_path_factory.mktemp("studio") / "kept")
    yield one
    assert one.stop() == 0
    assert "Traceback" not in one.log()


@pytest.fixture(scope="module")
def done(server):
    """An edit of two predictions, its pictures, and the news of it."""
    pictures = server.pictures()
    job = server.edit(pictures, n_samples=2, ddim_steps=6)
    news = list(server.events(f"/jobs/{job['id']}/events"))
    return server.get(f"/jobs/{job['id']}"), pictures, news


def image_of(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


def unpacked(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder


def test_an_edit_tells_how_it_comes_along_and_ends(done):
    job, _, news = done
    assert job["state"] == "done" and job["saved"] and job["error"] is None
    assert [one["seed"] for one in job["results"]] == [42, 43]
    assert all(one["measures"]["max_difference"] == 0 for one in job["results"])
    names = [name for name, _ in news]
    assert names[0] == "job" and names[-1] == "job" and news[-1][1]["state"] == "done"
    steps = [data["step"] for name, data in news if name == "progress" and data["stage"] == "painting"]
    assert steps == sorted(steps) and steps[-1] == 6
    previews = [data for name, data in news if name == "preview"]
    assert [one["index"] for one in previews[:2]] == [0, 1] and previews[0]["step"] == 1
    assert image_of(base64.b64decode(previews[0]["image"])).format == "WEBP"


def test_results_are_the_photograph_outside_the_mask_and_say_how_they_were_made(server, done):
    job, _, _ = done
    result = image_of(server.client.get(f"/jobs/{job['id']}/results/1").content)
    assert json.loads(result.info["ldm"])["seed"] == 43
    difference = ImageChops.difference(result.convert("RGB"), picture())
    box = difference.getbbox()
    assert box and box[0] > 10 and box[2] < 86, "changed, and only around the mask"
    window, view = job["window"], image_of(server.client.get(f"/jobs/{job['id']}/view/1").content)
    left, top = max(0, window["left"]), max(0, window["top"])
    part = result.crop((left, top, left + view.width, top + view.height))
    assert part.tobytes() == view.tobytes(), "what a page lays over the photograph is the result"
    assert server.client.get(f"/jobs/{job['id']}/results/2").status_code == 404


def test_a_run_s_zip_is_read_by_the_command_lines(server, done, tmp_path):
    job, _, _ = done
    folder = unpacked(server.client.get(f"/jobs/{job['id']}/zip").content, tmp_path)
    run = read_run(folder / "samples")
    assert run.record.prompt == "a red ball" and len(run) == 2
    text = (folder / "samples/run.json").read_text()
    assert str(server.outdir) not in text and str(Path.home()) + "/" not in text
    again = EditJob(**options_of(folder / "samples/results/0001.png", ["model"]), model="scenes")
    assert (again.seed, again.ddim_steps, again.n_samples) == (43, 6, 1) and again.init_image.is_relative_to(folder)


def test_the_client_of_the_documentation_works(server, tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[1]
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs/studio.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    for written, here in {"http://127.0.0.1:7860/": server.url, "a white donut": "a red ball"}.items():
        assert written in code
        code = code.replace(written, here)
    (tmp_path / "inputs").symlink_to(root / "inputs")
    monkeypatch.chdir(tmp_path)
    exec(code.replace('"seed": 7', '"seed": 7, "ddim_steps": 3'), {})
    assert '"step": 3' in capsys.readouterr().out
    assert Image.open("best.png").size == Image.open(root / "inputs/img.png").size


def test_a_prediction_becomes_the_next_input_and_the_session_is_a_folder(server, done, tmp_path):
    _, pictures, _ = done
    session = server.post("/sessions", {"image": pictures["image"]})
    first = server.edit(pictures, session=session["id"])
    server.ended(first["id"])
    used = server.post("/images/from-result", {"job": first["id"], "index": 0, "session": session["id"]})
    second = server.edit({"image": used["id"], "mask": pictures["mask"]}, session=session["id"], prompt="a blue cube")
    assert server.ended(second["id"])["state"] == "done"
    server.post("/images/from-result", {"job": second["id"], "index": 0, "session": session["id"]})
    steps = server.get(f"/sessions/{session['id']}")["steps"]
    assert [step["prompt"] for step in steps] == ["", "a red ball", "a blue cube"]
    assert steps[2]["parent"] == steps[1]["image"] and steps[1]["parent"] == pictures["image"]
    assert server.get("/sessions")[0]["id"] == session["id"]
    folder = unpacked(server.client.get(f"/sessions/{session['id']}/zip").content, tmp_path)
    told = json.loads((folder / "session.json").read_text())["steps"]
    assert [step.get("from") for step in told] == [None, 0, 1]
    assert (folder / told[0]["picture"]).read_bytes() == photograph()
    assert [read_run(folder / step["run"]).record.prompt for step in told[1:]] == ["a red ball", "a blue cube"]
    (original,) = (folder / told[2]["run"] / "assets").glob("original.*")
    assert original.read_bytes() == (folder / told[1]["picture"]).read_bytes(), "the second began where the first ended"


def test_a_background_is_restored_with_progress(server, done):
    job, _, _ = done
    restoring = server.post(f"/jobs/{job['id']}/restore", {"index": 1, "optimization_steps": 3, "learning_rate": 1e-3})
    news = list(server.events(f"/jobs/{restoring['id']}/events"))
    assert news[-1][1]["state"] == "done"
    assert [data["step"] for name, data in news if name == "progress" and data["stage"] == "restoring"][-1] == 2
    plain, restored = (
        image_of(server.client.get(f"/jobs/{job['id']}/results/1", params=more).content)
        for more in ({}, {"restored": "optimization"})
    )
    assert restored.size == plain.size and restored.tobytes() != plain.tobytes()
    assert server.client.get(f"/jobs/{job['id']}/results/0", params={"restored": "optimization"}).status_code == 404
    assert server.client.get(f"/jobs/{job['id']}/view/1", params={"restored": "../samples"}).status_code == 404
    refused = server.client.post(f"/jobs/{job['id']}/restore", json={"index": 9})
    assert refused.status_code == 422 and "no such prediction" in refused.json()["error"]


def test_what_the_model_cannot_do_is_told_in_its_sentence(server, done):
    _, pictures, _ = done
    failed = server.ended(server.edit(pictures, prompt="dog")["id"])
    assert failed["state"] == "failed" and "knows no word" in failed["error"]
    noted = server.ended(server.edit(pictures, prompt="a red dog")["id"])
    assert noted["state"] == "done" and any("dog" in note for note in noted["notes"])
    empty = server.send("masks", png(Image.new("L", (96, 80))))
    failed = server.ended(server.edit({**pictures, "mask": empty["id"]})["id"])
    assert failed["state"] == "failed" and str(server.outdir) not in failed["error"]


def test_a_cancelled_job_frees_the_device_within_a_step(server, done):
    _, pictures, _ = done
    long, next_ = server.edit(pictures, **LONG), server.edit(pictures)
    third = server.edit(pictures)
    assert server.get(f"/jobs/{third['id']}")["ahead"] == 2
    now = server.running(long["id"], 2)
    server.post(f"/jobs/{third['id']}/cancel")
    server.post(f"/jobs/{long['id']}/cancel")
    at = server.get(f"/jobs/{long['id']}")
    ended = server.ended(long["id"])
    last = (at["progress"] or now["progress"])["step"]
    assert ended["state"] == "cancelled" and ended["ended"] - ended["started"] < 60 and last < 1000
    assert server.ended(next_["id"])["state"] == "done"
    assert server.get(f"/jobs/{third['id']}")["state"] == "cancelled"


def test_a_killed_worker_is_told_of_and_another_takes_its_place(server, done):
    _, pictures, _ = done
    job = server.edit(pictures, **LONG)
    server.running(job["id"])
    waiting = server.edit(pictures)
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    failed = server.ended(job["id"])
    assert failed["state"] == "failed" and "was killed" in failed["error"] and "memory" in failed["error"]
    assert server.ended(waiting["id"])["state"] == "done"
    assert server.get("/health")["status"] == "ready" and server.workers() != [worker]


@pytest.mark.slow
def test_fifty_clients_at_once_lose_no_job(server, done):
    _, pictures, _ = done

    def one(number: int) -> str:
        with httpx.Client(base_url=server.client.base_url, headers={"X-Studio": "1"}, timeout=120) as client:
            edit = {"prompt": "a red ball", "n_samples": 1, "ddim_steps": 1, "seed": number, **pictures}
            return client.post("/jobs", json=edit).raise_for_status().json()["id"]

    with ThreadPoolExecutor(50) as pool:
        jobs = list(pool.map(one, range(50)))
    assert len(set(jobs)) == 50
    ended = [server.ended(job) for job in jobs]
    assert [job["state"] for job in ended] == ["done"] * 50
    assert [job["results"][0]["seed"] for job in ended] == list(range(50))


def ends(words: list[str], folder: Path) -> tuple[int, str]:
    """How the command ends that is given these words, and what it says last."""
    own = [str(Path(__file__).parents[1] / "scripts/studio.py"), "--port", "0", "--no-browser", "--outdir", "kept"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, *own, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


def test_what_cannot_be_had_ends_the_command_in_a_line(server, tmp_path):
    code, said = ends(["--model", "none"], tmp_path)
    assert code == 2 and said.startswith('error: model "none" is neither')
    code, said = ends(["--outdir", str(server.outdir)], tmp_path)
    assert code == 2 and "another studio" in said and "--outdir" in said
    port = server.url.rstrip("/").rpartition(":")[2]
    code, said = ends(["--port", port], tmp_path)
    assert code == 2 and "cannot listen" in said and "--port" in said


def test_requests_that_break_off_leave_nothing_behind(server):
    """The fixture looks for tracebacks in the log at its end."""
    port = int(server.url.rstrip("/").rpartition(":")[2])
    for path in ("images", "jobs"):
        with socket.create_connection(("127.0.0.1", port)) as line:
            head = f"POST /api/v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Studio: 1\r\nContent-Length: 9999\r\n"
            line.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
            time.sleep(0.2)
    Server.wait(lambda: not [*(server.outdir / "incoming").iterdir()])


def test_those_who_listen_and_never_read_hold_nobody_up(server, done):
    _, pictures, _ = done
    port = int(server.url.rstrip("/").rpartition(":")[2])
    lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for line in lines:
        line.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert server.ended(server.edit(pictures)["id"])["state"] == "done"
    for line in lines:
        line.close()


# ---- longer ones


@pytest.mark.slow
def test_a_device_that_there_is_not_ends_the_command_in_a_line(tmp_path):
    code, said = ends(["--device", "cuda:77"], tmp_path)
    assert code == 2 and said.startswith("error: ") and "cuda:77" in said


@pytest.mark.slow
def test_sigterm_ends_the_step_and_the_next_start_goes_on(model, tmp_path):
    first = Server(model, tmp_path / "kept", ready=False)
    pictures = first.pictures()
    cancelled, running, waiting = first.edit(pictures), first.edit(pictures, **LONG), first.edit(pictures)
    first.post(f"/jobs/{cancelled['id']}/cancel")
    first.running(running["id"], 2)
    (worker,) = first.workers()
    begun = time.monotonic()
    assert first.stop() == 0 and time.monotonic() - begun < 20
    assert not alive(worker)
    second = Server(model, tmp_path / "kept", ready=False)
    try:
        states = {job["id"]: job["state"] for job in second.get("/jobs")}
        assert states[cancelled["id"]] == "cancelled" and states[waiting["id"]] == "queued"
        second.running(running["id"], 2)
        second.post(f"/jobs/{running['id']}/cancel")
        assert second.ended(waiting["id"])["state"] == "done"
    finally:
        assert second.stop() == 0


@pytest.mark.slow
def test_a_killed_server_leaves_no_worker_and_loses_no_job(model, tmp_path):
    first = Server(model, tmp_path / "kept")
    pictures = first.pictures()
    ready = first.edit(pictures)
    first.ended(ready["id"])
    running, waiting = first.edit(pictures, ddim_steps=200), first.edit(pictures)
    first.running(running["id"], 2)
    (worker,) = first.workers()
    first.stop(signal.SIGKILL)
    Server.wait(lambda: not alive(worker))
    second = Server(model, tmp_path / "kept")
    try:
        assert second.get(f"/jobs/{ready['id']}")["state"] == "done"
        assert second.client.get(f"/jobs/{ready['id']}/results/0").status_code == 200
        assert second.ended(running["id"])["state"] == "done"
        assert second.ended(waiting["id"])["state"] == "done"
    finally:
        assert second.stop() == 0


@pytest.mark.slow
def test_five_hundred_jobs_leak_no_memory(model, tmp_path):
    server = Server(model, tmp_path / "kept", "--queue", "1000")
    try:
        pictures = server.pictures()
        held = []
        for _ in range(5):
            jobs = [server.edit(pictures, ddim_steps=1)["id"] for _ in range(100)]
            assert {server.ended(job)["state"] for job in jobs} == {"done"}
            held.append((memory(server.process.pid), memory(server.workers()[0])))
        print(f"memory after each 100 jobs, server and worker, MB: {held}")  # shown by pytest -s
        for before, after in zip(held[1], held[4], strict=True):
            assert after - before < 30, held
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_a_full_disk_fails_jobs_and_not_the_studio(model, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        server = Server(model, small / "kept")
        pictures = server.pictures()
        (small / "filler").write_bytes(bytes(shutil.disk_usage(small).free - 40_000))
        failed = server.ended(server.edit(pictures)["id"])
        assert failed["state"] == "failed" and "space" in failed["error"] and str(tmp_path) not in failed["error"]
        refused = server.client.post("/images", content=photograph((600, 600)) + bytes(2_000_000))
        assert refused.status_code in (422, 507), refused.text
        (small / "filler").unlink()
        assert server.ended(server.edit(pictures)["id"])["state"] == "done"
        assert server.stop() == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)
