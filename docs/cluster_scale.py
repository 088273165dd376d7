"""What a batch costs besides its edits: so many rows through all of `run_batch` but workers, see docs/cluster.md.

python docs/cluster_scale.py 1000000 --markers 50000
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.runs.batch import job as batch_job
from ldm.runs.batch.dispatch import Dispatch
from ldm.runs.batch.outcome import Outcome, Profile, outcome_of
from ldm.runs.batch.rows import Chunk, Row, Rows
from ldm.runs.batch.site import Site, content_of, stamps_of
from ldm.runs.batch.store import Marker
from ldm.runs.jobs import BatchJob
from ldm.runs.record import prompt_slug


def memory() -> float:
    """MB that this process has needed at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(what: str, rows: int, action: Callable[[], Any]) -> None:
    """Say how long an action takes, by the processor's clock, and how much memory the process has needed until now."""
    start, wall = time.process_time(), time.perf_counter()
    action()
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    per = f"{seconds / rows * 1e6:.0f} us of CPU a row"
    print(f"{what:40} {rows} rows: {seconds:.0f} s of CPU ({wall:.0f} s), {per}; peak {memory():.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=int)
    parser.add_argument("--markers", type=int, default=0, help="so many rows with their markers, and once more")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.jsonl")
        for name in ("image.png", "mask.png"):
            Path(folder, name).write_bytes(b"x" * 1000)
        with open(source, "w") as file:
            for i in range(given.rows):
                row = {"image": "image.png", "mask": "mask.png", "prompt": f"a red ball on table {i % 997}", "seed": i}
                file.write(json.dumps(row) + "\n")
        print(f"imported after {time.process_time():.2f} s of CPU, {memory():.0f} MB")
        print("torch is imported" if "torch" in sys.modules else "no torch is imported")
        timed("reading rows", given.rows, lambda: sum(1 for _ in Rows(source, Path(folder), {})))
        timed("whole batch, no marker there, none put", given.rows, lambda: batch(source, Path(folder, "out"), False))
        if given.markers:
            few = Path(folder, "few.jsonl")
            with open(source) as all_rows:
                few.write_text("".join(next(all_rows) for _ in range(given.markers)))
            put = Path(folder, "put")
            timed("whole batch, markers put", given.markers, lambda: batch(few, put, True))
            timed("again, markers found", given.markers, lambda: batch(few, put, True))
            size = sum(path.stat().st_size for path in put.glob("*/.row.json")) / given.markers
            print(f"a marker is {size:.0f} bytes, a line of the summary {line_size(put):.0f}")


def line_size(out: Path) -> float:
    """Bytes of a line of a summary."""
    content = (out / "summary.jsonl").read_bytes()
    return len(content) / max(1, content.count(b"\n"))


def batch(source: Path, out: Path, markers: bool) -> None:
    """A batch whose worker makes nothing: it says what one of four predictions would, and may put its marker."""

    def work(
        devices: Sequence[str], size: int, site: Site, chunks: Iterator[Chunk], report: Callable[[Outcome], None]
    ) -> Profile:
        dispatch = Dispatch(chunks, report)
        begun, some = time.perf_counter(), False
        with site.opened() as files:
            while (chunk := dispatch.next("worker")) is not None:
                if not some:
                    print(f"the first rows are handed out {begun - start:.2f} s after the call")
                some = True
                for row in chunk:
                    content = content_of(row.job) if markers else ("", "")
                    outcome = made(row, files.digest(row.job, content) if markers else "0" * 64)
                    if markers:
                        samples = files.store.folder(row.name) / "samples"
                        samples.mkdir(parents=True)
                        samples.with_name(f"{prompt_slug(row.job.prompt)}.png").touch()
                        (samples / "run.json").touch()
                        marker = Marker(outcome.digest or "", content, stamps_of(row), asdict(outcome))
                        files.store.finish(row.name, marker)
                    dispatch.done("worker", outcome)
        return Profile()

    start = time.perf_counter()
    before, batch_job.run_workers = batch_job.run_workers, work
    try:
        batch_job.run_batch(BatchJob(str(source), outdir=str(out)), {"model": "scenes"})
    finally:
        batch_job.run_workers = before


def made(row: Row, digest: str) -> Outcome:
    """What is told of a row of four predictions."""
    measures = [{"max_difference": 0, "feather": 4.0, "band_psnr": 33.1, "seam": 1.2, "source_seam": 1.1}] * 4
    seconds = {"reading": 0.1, "waiting": 0.0, "sampling": 4.0, "writing": 0.2}
    more: dict[str, Any] = {"measures": measures, "seconds": seconds, "device": "cuda:0", "node": "node/01234567"}
    more |= {"seeds": [*row.job.request.seeds], "scores": [0.7, 0.71, 0.72, 0.73], "thumbnails": [(192, 128)] * 6}
    return outcome_of(row, "done", digest=digest, **more)


if __name__ == "__main__":
    main()
