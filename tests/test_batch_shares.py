"""Shares of a batch, `--shard I/N`: stateless, started anywhere and twice, and put together by `--merge`."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from ldm.cli import run
from ldm.errors import UserError
from ldm.runs.batch import site
from ldm.runs.batch.outcome import Outcome
from ldm.runs.batch.rows import BadRow, Selection, read_rows, share_of
from scripts import batch_editing
from tests import batches
from tests.batches import OPTIONS, command, finish, lines, make_inputs, pixels, rows, run_ids, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("shares"))


def batch(source: Path, out: Path, model: Path, *more: object) -> int:
    argv = [str(source), "-o", str(out), "--model", str(model), *OPTIONS, "--devices", "cpu", *map(str, more)]
    argv += [] if "--shard" in more else ["--workers", "0"]
    try:
        return run(batch_editing.main, argv)
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def forked(monkeypatch):
    """Workers without half a minute of imports."""
    from ldm.runs.batch import workers

    torch.set_num_threads(torch.get_num_threads())  # as in test_batch's `forked_batch`
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: context)


def test_every_row_is_of_one_share_and_shares_are_alike():
    names = [f"row-{i}" for i in range(8000)]
    shares = [share_of(name, 8) for name in names]
    assert {shares.count(share) for share in range(1, 9)} <= set(range(850, 1150))
    assert share_of("row-0", 8) == share_of("ROW-0", 8), "as file systems that know no capitals have it"


@pytest.mark.parametrize("text", ["0/8", "9/8", "1", "a/b", "1/0", "-1/8"])
def test_what_is_no_share_is_one_line(text):
    with pytest.raises(UserError, match="give I/N"):
        Selection.of(text, (), None)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (1, 1)),
        ({"ID": "3", "COUNT": "8", "MIN": "0", "MAX": "7", "STEP": "1"}, (4, 8)),
        ({"ID": "8", "COUNT": "8", "MIN": "1", "MAX": "8", "STEP": "1"}, (8, 8)),
        ({"ID": "6", "COUNT": "4", "MIN": "0", "MAX": "6", "STEP": "2"}, (4, 4)),
        ({"ID": "5", "COUNT": "2", "MIN": "3", "MAX": "5", "STEP": "1"}, None),
    ],
)
def test_a_slurm_job_array_says_the_share(monkeypatch, environment, share):
    for name in ("ID", "COUNT", "MIN", "MAX", "STEP"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    if share is None:  # tasks 3 and 5 alone were sent again
        with pytest.raises(UserError, match="shard=I/N"):
            Selection.of(None, (), None)
        assert Selection.of("5/8", (), None).shard == (5, 8)
    else:
        assert Selection.of(None, (), None).shard == share
        assert Selection.of("2/3", (), None).shard == (2, 3)


def test_shares_make_all_rows_once_and_merge_puts_them_together(folder, tmp_path, forked, capsys):
    some = [*rows(7), {**rows(1)[0], "name": "lost", "image": "none.png"}]
    source, out, model = write_rows(folder / "edits.jsonl", some), tmp_path / "out", folder / "model"
    codes = [batch(source, out, model, "--shard", "1/2")]
    assert batch(source, out, model, "--merge") == 1
    said = capsys.readouterr().out
    assert "are missing, told by 1 shares" in said
    assert sorted([*codes, batch(source, out, model, "--shard", "2/2")]) == [0, 1], "one has the bad row"
    assert batch(source, out, model, "--merge") == 1
    assert "7 done, 1 failed, told by 2 shares" in capsys.readouterr().out
    assert [line["row"] for line in lines(out / "summary.jsonl")] == [*range(1, 9)]
    assert "8 rows: 7 done, 1 failed" in (out / "index.html").read_text()
    first = run_ids(out)
    assert batch(source, out, model) == 1 and run_ids(out) == first, "all rows are done for who makes all, too"
    (out / f"summary-{3 - share_of('lost', 2)}-of-2.jsonl").unlink()  # a share's machine was lost: markers know better
    assert batch(source, out, model, "--merge") == 1
    assert "7 done, 1 failed" in capsys.readouterr().out


def test_merge_counts_only_the_rows_it_is_asked_for_and_takes_no_row_for_another(folder, tmp_path, capsys):
    records = [{**row, "name": f"{i:04d}"} for i, row in enumerate(rows(4))]
    records[2] = {**records[2], "seed": -1}  # the third row, and "0003" is the name of the fourth
    source, out, model = write_rows(folder / "numbers.jsonl", records), tmp_path / "out", folder / "model"
    told = [Outcome(i + 1, row["name"], "done") for i, row in enumerate(records) if i != 2]
    (bad,) = (row for row in read_rows(source, out, {}) if isinstance(row, BadRow))
    told.append(Outcome(bad.number, bad.name, "failed", error=bad.error))
    out.mkdir()
    (out / "summary-1-of-2.jsonl").write_bytes(b"".join(one.line() for one in told))
    assert batch(source, out, model, "--merge") == 1
    assert "rows: 3 done, 1 failed, told" in capsys.readouterr().out
    assert batch(source, out, model, "--merge", "--limit", 2) == 0
    assert "rows: 2 done, 0 failed, told" in capsys.readouterr().out


def test_a_marker_wins_over_a_failure_that_a_share_has_told(folder, tmp_path, capsys):
    source, out, model = write_rows(folder / "won.jsonl", rows(2)), tmp_path / "out", folder / "model"
    assert batch(source, out, model) == 0
    for name in ("summary.jsonl", "index.html"):
        (out / name).unlink()
    told = [Outcome(i + 1, f"r{i}", "failed", error="the disk was gone") for i in range(2)]  # and back, later
    (out / "summary-1-of-2.jsonl").write_bytes(b"".join(one.line() for one in told))
    capsys.readouterr()
    assert batch(source, out, model, "--merge") == 0
    assert "rows: 2 done, 0 failed" in capsys.readouterr().out
    assert batch(source, out, model, "--merge", "--ddim_steps", 3) == 1, "a marker of the row as it was"
    assert "rows: 0 done, 2 failed" in capsys.readouterr().out


def test_merge_without_shares_is_one_line(folder, tmp_path, capsys):
    assert batch(write_rows(folder / "one.jsonl", rows(1)), tmp_path, folder / "model", "--merge") == 2
    assert "no summary of a share" in capsys.readouterr().err


def test_a_share_that_is_started_twice_and_one_of_another_size_are_refused(folder, tmp_path, capsys):
    from filelock import FileLock

    source = write_rows(folder / "edits.jsonl", rows(4))
    with FileLock(tmp_path / ".lock-1-of-3"):
        for share in ("1/3", "1/2", "1/1"):
            assert batch(source, tmp_path, folder / "model", "--shard", share) == 2
            assert "another batch is at work" in capsys.readouterr().err
    assert run_ids(tmp_path) == {}


def test_a_worker_finds_what_another_has_made_meanwhile(folder, tmp_path, forked, monkeypatch, capsys):
    """The second of two that both believed a row to be missing."""
    source = write_rows(folder / "edits.jsonl", rows(3))
    assert batch(source, tmp_path, folder / "model") == 0
    first = run_ids(tmp_path)
    monkeypatch.setattr(site.Files, "known", lambda self, row: None)  # it looked before the first began
    for share in ("1/2", "2/2"):
        assert batch(source, tmp_path, folder / "model", "--shard", share) == 0
    assert run_ids(tmp_path) == first
    assert Outcome(1, "a", "done").line() and "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_eight_shares_at_once_two_of_them_killed_and_started_again(folder, tmp_path):
    source = write_rows(folder / "edits.jsonl", rows(120))
    assert finish([*command(source, tmp_path / "one", folder / "model"), "--devices", "cpu"], 400)[0] == 0
    out = tmp_path / "out"

    def share(number: int):
        argv = [*command(source, out, folder / "model"), "--devices", "cpu", "--shard", f"{number}/8"]
        return batches.start(argv, tmp_path / f"log-{number}")

    begun = time.monotonic()
    twice = [share(5), share(5)]  # the same one, at the same moment
    processes = {number: share(number) for number in range(1, 9) if number != 5}
    batches.wait_for(lambda: len(run_ids(out)) > 10)
    made = run_ids(out)
    for number in (3, 6):
        processes[number].send_signal(signal.SIGKILL)
        processes[number].wait()
    time.sleep(random.Random(0).uniform(0, 2))
    for number in (3, 6):
        processes[number] = share(number)
    assert [process.wait(600) for process in processes.values()] == [0] * 7
    assert sorted(process.wait(600) for process in twice) == [0, 2], "one of them was refused"
    print(f"eight shares on this machine: {time.monotonic() - begun:.0f} s")
    code, said = finish([*command(source, out, folder / "model"), "--merge"])
    assert code == 0 and "120 done, 0 failed, told by 8 shares" in said
    told = lines(out / "summary.jsonl")
    assert [line["row"] for line in told] == [*range(1, 121)] and {line["status"] for line in told} == {"done"}
    assert run_ids(out).items() >= made.items() and len(run_ids(out)) == 120
    assert pixels(out) == pixels(tmp_path / "one")
