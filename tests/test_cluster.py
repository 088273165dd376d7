"""Batches on a Ray cluster, every address of which is 127.0.0.1."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ldm.runs.batch.cluster import Actor
from ldm.runs.batch.dispatch import DEPTH, Dispatch
from ldm.runs.batch.outcome import Outcome
from ldm.runs.batch.rows import Row, read_rows
from ldm.runs.batch.site import Site
from ldm.runs.jobs import EditJob
from tests.batches import command, finish, lines, make_inputs, pixels, rows, run_ids, start, wait_for, write_rows

# Read by Ray when it is imported, which is later: with it, all processes listen on 127.0.0.1 alone.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
os.environ.update(LOOPBACK)
MEMORY = 80 * 2**20  # bytes of Ray's object store on each node


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("cluster"))


# ---- which worker has which rows


def chunks(*sizes: int) -> Iterator[tuple[Row, ...]]:
    """Chunks of so many rows."""
    number = 0
    for size in sizes:
        chunk = []
        for _ in range(size):
            number += 1
            job = EditJob(prompt="p", init_image=Path("a"), mask=Path("m"))
            chunk.append(Row(number, f"r{number}", job))
        yield tuple(chunk)


def done(row: Row) -> Outcome:
    return Outcome(row.number, row.name, "done")


def test_chunks_are_taken_as_they_are_wanted_and_a_worker_has_a_few_in_hand():
    taken = []
    dispatch = Dispatch((taken.append(1) or chunk for chunk in chunks(*[2] * 100)), lambda outcome: None)
    given = [dispatch.next("a") for _ in range(DEPTH + 1)]
    assert [chunk is None for chunk in given] == [False] * DEPTH + [True] and len(taken) <= DEPTH + 1
    dispatch.done("a", done(given[0][0]))
    assert dispatch.next("a") is None, "half a chunk is still in hand"
    dispatch.done("a", done(given[0][1]))
    assert dispatch.next("a")[0].number == 2 * DEPTH + 1


def test_suspects_are_made_alone_and_a_row_that_kills_two_workers_is_set_aside():
    told = []
    dispatch = Dispatch(chunks(2, 2, 2), told.append)
    first = [dispatch.next("a"), dispatch.next("a")]
    dispatch.done("a", done(first[0][0]))
    dispatch.lost("a", "exit code -9")
    assert [row.number for row in dispatch.next("b")] == [2] and dispatch.next("b") is None, "alone"
    assert [row.number for row in dispatch.next("c")] == [3] and dispatch.next("c") is None
    dispatch.done("c", done(first[1][0]))
    assert [row.number for row in dispatch.next("c")] == [4]
    dispatch.lost("b", "exit code -9")  # again with row 2
    assert [(one.row, one.status, one.set_aside) for one in told] == [
        (1, "done", False),
        (3, "done", False),
        (2, "failed", True),
    ]
    assert "killed two workers (exit code -9)" in told[-1].error
    dispatch.done("c", done(first[1][1]))
    last = dispatch.next("c")
    assert [row.number for row in last] == [5, 6] and not dispatch.over
    for row in last:
        dispatch.done("c", done(row))
    assert dispatch.over and sorted(one.row for one in told) == [1, 2, 3, 4, 5, 6]


def test_rows_of_a_machine_that_is_gone_are_no_suspects():
    told = []
    dispatch = Dispatch(chunks(2, 2), told.append)
    first = dispatch.next("a")
    for worker in "abc":
        dispatch.lost(worker, "the machine is gone", blame=False)
        assert dispatch.next(chr(ord(worker) + 1)) == first
    assert dispatch.next("d") is not None, "and others beside them"
    dispatch.lost("d", "the machine is gone", blame=False)
    for _ in range(3):
        assert len(dispatch.next("e")) == len(dispatch.next("e")) == 2
        dispatch.lost("e", "the machine is gone", blame=False)
    assert told == [] and len(dispatch.next("e")) == 1, "seven machines are too many for chance"


# ---- a worker that is asked


def test_an_actor_makes_chunks_side_by_side_and_tells_of_each_when_it_is_whole(folder, tmp_path):
    source = write_rows(folder / "actor.jsonl", [*rows(4), {**rows(1)[0], "name": "lost", "image": "none.png"}])
    options = {"model": str(folder / "model"), "ddim_steps": 1, "n_samples": 1, "force": True}
    some = list(read_rows(source, tmp_path, options))
    actor = Actor("cpu", 2, Site(str(tmp_path), shared=True, node="n"), None)
    assert actor.ready() is None
    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(actor.make, [tuple(some[:2]), tuple(some[2:4]), (some[4],)]))
    assert [[(one.row, one.status) for one in part] for part in told] == [
        [(1, "done"), (2, "done")],
        [(3, "done"), (4, "done")],
        [(5, "failed")],
    ]
    assert actor.make((some[0],))[0].seeds == [0], "asked once more, it finds what is done"
    assert actor.finish().sampling > 0 and len(run_ids(tmp_path)) == 4


def test_an_actor_without_the_commands_folder_says_so(tmp_path):
    actor = Actor("cpu", 2, Site(str(tmp_path)), str(tmp_path / "not here"))
    assert "is not on every machine" in actor.ready()


# ---- clusters


@contextmanager
def cluster(nodes: int) -> Iterator:
    """So many nodes of one CPU each, on loopback."""
    pytest.importorskip("ray", reason='the extra "cluster" is not installed')
    from ray.cluster_utils import Cluster

    for last in (False, False, True):
        try:
            made = Cluster(initialize_head=True, head_node_args=node_arguments() | {"include_dashboard": False})
            break
        except Exception:  # Ray gives a busy machine half a minute
            if last:
                raise
    try:
        for _ in range(nodes - 1):
            add_node(made)
        assert made.address.startswith("127.0.0.1:")
        yield made
    finally:
        made.shutdown()


def add_node(made):
    try:
        return made.add_node(**node_arguments())
    except Exception:
        return made.add_node(**node_arguments())


def node_arguments() -> dict:
    return {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": MEMORY}


def workers_of(made) -> list[int]:
    """The processes of the workers of a cluster's nodes."""
    raylets = {
        process.process.pid for node in made.list_all_nodes() for process in node.all_processes.get("raylet", [])
    }
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            parent = int(re.search(r"PPid:\s+(\d+)", (path / "status").read_text())[1])
            if parent in raylets and b"RayActor" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def listening() -> set[str]:
    """The addresses, other than loopback, at which a process that this one has started listens."""
    own, sockets = set(), set()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ray" in (path / "cmdline").read_bytes():
                own |= {os.readlink(link) for link in (path / "fd").iterdir()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        if state == "0A" and f"socket:[{rest[5]}]" in own:
            sockets.add(local.split(":")[0])
    return sockets - {"0100007F"}


class Watch(threading.Thread):
    """Looks at an output folder all the time: which rows are done, and that none is made twice."""

    def __init__(self, out: Path):
        super().__init__(daemon=True)
        self.out, self.made, self.twice, self.over = out, {}, set(), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            for name, run_id in run_ids(self.out).items():
                if self.made.setdefault(name, run_id) != run_id:
                    self.twice.add(name)

    def end(self) -> None:
        self.over.set()
        self.join()


@pytest.mark.slow
def test_a_batch_on_a_ray_of_one_node_is_that_of_this_machine(folder, tmp_path):
    pytest.importorskip("ray", reason='the extra "cluster" is not installed')
    source = write_rows(folder / "few.jsonl", [*rows(3), {**rows(1)[0], "name": "lost", "image": "none.png"}])
    here, there = (command(source, tmp_path / name, folder / "model") for name in ("here", "there"))
    assert finish([*here, "--devices", "cpu"])[0] == 1
    code, said = finish([*there, "--engine", "ray", "--address", "local", "--cpus", "1", "--workers", "1"], **LOOPBACK)
    assert code == 1 and "3 made, 1 failed" in said and "Traceback" not in said, said
    assert pixels(tmp_path / "here") == pixels(tmp_path / "there") and len(run_ids(tmp_path / "there")) == 3
    one, other = (lines(tmp_path / name / "summary.jsonl") for name in ("here", "there"))
    assert [line | {"seconds": 0, "node": 0} for line in one] == [line | {"seconds": 0, "node": 0} for line in other]


@pytest.mark.slow
def test_no_cluster_is_one_line(folder, tmp_path):
    pytest.importorskip("ray", reason='the extra "cluster" is not installed')
    source = write_rows(folder / "one.jsonl", rows(1))
    argv = command(source, tmp_path / "out", folder / "model", "--engine", "ray", "--address", "auto")
    code, said = finish(argv, **LOOPBACK, RAY_ADDRESS="", RAY_TMPDIR=str(tmp_path))
    assert code == 2 and "no Ray cluster at --address auto" in said and "Traceback" not in said, said


@pytest.mark.slow
def test_nodes_workers_and_the_driver_die_and_every_row_is_made_once(folder, tmp_path):
    count = 200
    source, out = write_rows(folder / "edits.jsonl", rows(count)), tmp_path / "out"
    here = command(source, tmp_path / "here", folder / "model", "--devices", "cpu")
    assert finish(here, 1800)[0] == 0
    draw, killed = random.Random(0), 0
    watch = Watch(out)
    watch.start()
    with cluster(2) as made:
        argv = command(source, out, folder / "model", "--engine", "ray", "--address", made.address, "--cpus", "1")
        argv += ["--metrics", str(tmp_path / "batch.prom")]
        driver = start(argv, tmp_path / "log", **LOOPBACK)
        wait_for(lambda: len(watch.made) > 5)
        assert listening() == set()
        late = add_node(made)
        while killed < 10 and driver.poll() is None:
            before = len(watch.made)
            wait_for(lambda driver=driver, before=before: len(watch.made) > before + 2 or driver.poll() is not None)
            time.sleep(draw.uniform(0, 2))
            if workers := workers_of(made):
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    killed += 1
            if killed == 4:
                first = next(node for node in made.worker_nodes if node is not late)
                made.remove_node(first, allow_graceful=False)
            if killed == 7:
                driver.kill()
                driver.wait()
                driver = start(argv, tmp_path / "log", **LOOPBACK)
        code = driver.wait(1800)
        metrics = (tmp_path / "batch.prom").read_text()
        told = lines(out / "summary.jsonl")
        aside = [line for line in told if line["set_aside"]]
        if aside:  # the same row was hit twice: as it should be, until it is asked for
            assert code == 1
            code, _ = finish([*argv, "--retry-failed"], 900, **LOOPBACK)
    watch.end()
    log = (tmp_path / "log").read_text()
    print(f"{killed} workers killed, {len(aside)} rows set aside for it, {log.count('is lost')} losses told")
    assert code == 0 and "Traceback" not in log, log
    assert killed == 10 and "its machine is gone" in log
    assert watch.twice == set() and watch.made.items() <= run_ids(out).items()
    told = lines(out / "summary.jsonl")
    assert [line["row"] for line in told] == [*range(1, count + 1)] and {line["status"] for line in told} == {"done"}
    assert pixels(out) == pixels(tmp_path / "here") and len(pixels(out)) == 4 * count
    assert len({line["node"] for line in told}) >= 3 and 'bld_batch_busy{node="' in metrics


@pytest.mark.slow
def test_three_nodes_over_an_object_store(folder, tmp_path):
    pytest.importorskip("moto", reason="moto[server], an object store for tests, is not installed")
    s3fs = pytest.importorskip("s3fs", reason='the extra "remote" is not installed')
    from tests.batches import object_store

    count = 30
    source = write_rows(folder / "edits.jsonl", rows(count))
    assert finish(command(source, tmp_path / "here", folder / "model", "--devices", "cpu"), 400)[0] == 0
    with object_store(tmp_path / "server.log") as (environment, server):
        os.environ.update(environment)  # for the nodes, that pass it on to their workers
        try:
            files = s3fs.S3FileSystem(use_listings_cache=False)
            files.call_s3("create_bucket", Bucket="bucket")
            for path in [*folder.glob("*.png"), source]:
                files.pipe_file(f"bucket/in/{path.name}", path.read_bytes())
            server.stdin.write("0.1\n")
            server.stdin.flush()
            with cluster(3) as made:
                argv = command("s3://bucket/in/edits.jsonl", "s3://bucket/run", folder / "model", "--engine", "ray")
                argv += ["--address", made.address, "--cpus", "1"]
                driver = start(argv, tmp_path / "log", **LOOPBACK)
                wait_for(lambda: len([one for one in files.find("bucket/run") if one.endswith(".row.json")]) > 5, 200)
                with suppress(ProcessLookupError, IndexError):
                    os.kill(workers_of(made)[0], signal.SIGKILL)
                made.remove_node(sorted(made.worker_nodes, key=str)[0], allow_graceful=False)
                assert driver.wait(600) == 0, (tmp_path / "log").read_text()
            for path in files.find("bucket/run"):
                target = tmp_path / "there" / path.removeprefix("bucket/run/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(files.cat_file(path))
        finally:
            for name in environment:
                del os.environ[name]
    assert pixels(tmp_path / "there") == pixels(tmp_path / "here") and len(run_ids(tmp_path / "there")) == count
