"""A studio of the tiny model in a process of its own, as the command starts it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
PATIENCE = 120  # seconds: the machine may be busy


class Server:
    """Runs until it is stopped; `url` is its page's address."""

    def __init__(self, model: Path, outdir: Path, *more: str, ready: bool = True):
        self.model, self.outdir = model, outdir
        words = ["--model", str(model), "--outdir", str(outdir), "--device", "cpu", "--port", "0", *more]
        with open(outdir.parent / f"{outdir.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts/studio.py"), "--no-browser", *words],
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (line, self.log())
        self.url = found[0]
        self.client = httpx.Client(
            base_url=self.url.split("?")[0] + "api/v1", headers={"X-Studio": "test"}, timeout=PATIENCE
        )
        if ready:
            self.wait(lambda: self.get("/health")["status"] == "ready")

    def log(self) -> str:
        return (self.outdir.parent / f"{self.outdir.name}.log").read_text()

    def get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.client.post(path, json={} if body is None else body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def send(self, kind: str, content: bytes, name: str = "") -> Any:
        answer = self.client.post(f"/{kind}", params={"name": name}, content=content)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def pictures(self, size: tuple[int, int] = (96, 80)) -> dict[str, str]:
        """A photograph and a mask, as an edit names them."""
        image, mask = self.send("images", photograph(size), "a photo.png"), self.send("masks", mask_of(size))
        return {"image": image["id"], "mask": mask["id"]}

    def edit(self, pictures: dict[str, str], **options: Any) -> Any:
        return self.post("/jobs", {"prompt": "a red ball", "n_samples": 1, "ddim_steps": 2, **pictures, **options})

    def ended(self, job: str) -> Any:
        """The job when it has ended."""
        return self.wait(lambda: (now := self.get(f"/jobs/{job}"))["state"] in ("done", "failed", "cancelled") and now)

    def running(self, job: str, step: int = 1) -> Any:
        """The job when it has made so many steps."""

        def look() -> Any:
            now = self.get(f"/jobs/{job}")
            assert now["state"] in ("queued", "running"), now
            return now["progress"] and now["progress"]["step"] >= step and now

        return self.wait(look)

    @staticmethod
    def wait(look: Callable[[], Any]) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if found := look():
                return found
            time.sleep(0.05)
        raise AssertionError("waited in vain")

    def events(self, path: str = "/events") -> Iterator[tuple[str, Any]]:
        with self.client.stream("GET", path) as answer:
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    yield name, json.loads(line[6:])

    def workers(self) -> list[int]:
        """The processes that hold models: the children that spawned ones are made of."""
        return [pid for pid in children(self.process.pid) if "spawn_main" in command(pid)]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            self.client.close()
            if self.process.stdout:
                self.process.stdout.close()


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def memory(pid: int) -> float:
    """Megabytes that a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    raise AssertionError(pid)


def png(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def picture(size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A photograph of sorts: a slope with a disc on it."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    ImageDraw.Draw(image).ellipse((size[0] // 8, size[1] // 8, size[0] // 3, size[1] // 3), "red")
    return image


def photograph(size: tuple[int, int] = (96, 80)) -> bytes:
    return png(picture(size))


def mask_of(size: tuple[int, int] = (96, 80)) -> bytes:
    image = Image.new("L", size)
    width, height = size
    ImageDraw.Draw(image).rectangle((width // 3, height // 3, 2 * width // 3, 2 * height // 3), 255)
    return png(image)
