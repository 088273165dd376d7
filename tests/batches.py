"""What the tests of batches share: a tiny model with pictures, rows, commands as processes, and what came of them."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[1]
# Each row is a batch of its own, so that its pictures are the same bit for bit whatever it is made with.
OPTIONS = ("--ddim_steps", "2", "--n_samples", "2", "--batch_size", "2", "--force")


def make_inputs(folder: Path) -> Path:
    """A tiny model, three images and their masks."""
    save_tiny_model(folder / "model")
    draw = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(draw.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        mask = np.zeros((70, 90), np.uint8)
        mask[20:50, 30 : 50 + ord(name) % 10] = 255
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
    return folder


def rows(count: int, base: str = "") -> list[dict]:
    """Rows that differ in their seed alone, named by their number."""
    names = ("abc"[i % 3] for i in range(count))
    return [
        {
            "image": f"{base}{n}.png",
            "mask": f"{base}{n}_mask.png",
            "prompt": "a red ball",
            "seed": 7 * i,
            "name": f"r{i}",
        }
        for i, n in enumerate(names)
    ]


def write_rows(path: Path, records: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def command(source: object, out: object, model: Path, *more: object) -> list[str]:
    script = str(ROOT / "scripts" / "batch_editing.py")
    return [sys.executable, script, str(source), "-o", str(out), "--model", str(model), *OPTIONS, *map(str, more)]


def start(argv: list[str], log: Path, **environment: str) -> subprocess.Popen:
    """A command as a process of its own, that says what it says to a file."""
    with open(log, "ab") as file:
        return subprocess.Popen(argv, cwd=ROOT, env=_environment(environment), stdout=file, stderr=file)


def finish(argv: list[str], seconds: float = 300, **environment: str) -> tuple[int, str]:
    """The exit code of a command, and what it says."""
    done = subprocess.run(
        argv, cwd=ROOT, env=_environment(environment), capture_output=True, text=True, timeout=seconds
    )
    return done.returncode, done.stdout + done.stderr


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def pixels(out: Path) -> dict[str, bytes]:
    """All results and predictions below an output folder."""
    paths = [*out.glob("*/samples/results/*.png"), *out.glob("*/samples/images/*.png")]
    return {str(path.relative_to(out)): Image.open(path).tobytes() for path in paths}


def run_ids(out: Path) -> dict[str, str]:
    """Of each row's run: another one would have another."""
    paths = out.glob("*/samples/run.json")
    return {path.parts[-3]: json.loads(path.read_text())["run_id"] for path in paths}


def lines(path: Path) -> list[dict]:
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["row"])


def wait_for(condition, seconds: float = 600) -> None:
    """Until a condition holds, or the test fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


# Answers as S3 does, on loopback. Of the puts after the first line that it is told on its input, some fail and some are
# slow.
_SERVER = """
import random, sys, threading, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

share, draw = [0.0], random.Random(0)
application = DomainDispatcherApplication(create_backend_app)

def flaky(environment, respond):
    if environment["REQUEST_METHOD"] == "PUT":
        if draw.random() < share[0]:
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            respond("503 Slow Down", [("Content-Type", "application/xml"), ("Connection", "close")])
            return [b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"]
        if draw.random() < share[0]:
            time.sleep(0.3)
    return application(environment, respond)

server = make_server("127.0.0.1", int(sys.argv[1]), flaky, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    share[0] = float(line)
"""


@contextlib.contextmanager
def object_store(log: Path) -> Iterator[tuple[dict[str, str], subprocess.Popen]]:
    """The environment of those who would reach it, with a bucket "bucket"; and its process, told what to refuse."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with open(log, "ab") as file:
        argv = [sys.executable, "-c", _SERVER, str(port)]
        server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        yield environment, server
    finally:
        server.kill()
        server.wait()
