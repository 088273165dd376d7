"""What a batch costs besides its edits: so many rows through everything but the model, see docs/cluster.md.

python docs/cluster_scale.py 1000000 --markers 100000
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.runs.batch.dispatch import Dispatch
from ldm.runs.batch.outcome import Outcome
from ldm.runs.batch.report import Summary
from ldm.runs.batch.rows import Chunk, Row, Rows, good, plan, windows
from ldm.runs.batch.site import Site
from ldm.runs.batch.store import Marker


def memory() -> float:
    """MB that this process has needed at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(what: str, rows: int, action: Callable[[], Any]) -> None:
    """Say how long an action takes, by the processor's clock, and how much memory it has added."""
    before, start, wall = memory(), time.process_time(), time.perf_counter()
    action()
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    per = f"{seconds / rows * 1e6:.0f} us of CPU a row"
    print(
        f"{what:42} {rows} rows: {seconds:.0f} s of CPU ({wall:.0f} s), {per}, +{memory() - before:.0f} MB", flush=True
    )


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
        start = time.perf_counter()
        next(iter(Rows(source, Path(folder), {})))
        print(f"first row after {time.perf_counter() - start:.3f} s, memory before all {memory():.0f} MB")
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
    """A batch whose worker makes nothing: it says what one of four predictions would, and puts its marker."""
    out.mkdir(exist_ok=True)
    rows = Rows(source, out, {})
    with Site(str(out)).opened() as files:
        summary = Summary(files.store, "scale")

        def chunks() -> Iterator[Chunk]:
            for window in windows(rows):
                todo = []
                for row in good(window):
                    marker = files.store.marker(row.name)
                    if marker is not None and (outcome := files.outcome(row, marker)) is not None:
                        summary.add(outcome)
                    else:
                        todo.append(row)
                yield from plan(todo, 8)

        dispatch = Dispatch(chunks(), summary.add)
        while (chunk := dispatch.next("worker")) is not None:
            for row in chunk:
                outcome = made(row)
                if markers:
                    files.store.folder(row.name).mkdir()
                    files.store.finish(row.name, Marker("0" * 64, ("0" * 64,) * 2, (None, None), asdict(outcome)))
                dispatch.done("worker", outcome)
        summary.total = rows.wanted
        summary.finish(everything=True)


def made(row: Row) -> Outcome:
    """What is told of a row of four predictions."""
    measures = [{"max_difference": 0, "feather": 4.0, "band_psnr": 33.1, "seam": 1.2, "source_seam": 1.1}] * 4
    seconds = {"reading": 0.1, "waiting": 0.0, "sampling": 4.0, "writing": 0.2}
    about = (row.job.prompt, row.given("init_image"), row.given("mask"))
    seeds, scores = [*row.job.request.seeds], [0.7, 0.71, 0.72, 0.73]
    more: dict[str, Any] = {"device": "cuda:0", "node": "node/01234567", "digest": "0" * 64}
    sizes = [(192, 128)] * 6
    return Outcome(row.number, row.name, "done", *about, seeds, scores, measures, (), seconds, thumbnails=sizes, **more)


if __name__ == "__main__":
    main()
