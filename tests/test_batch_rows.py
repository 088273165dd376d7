"""The rows of large manifests: read as they are asked for, named by what they say, chosen, counted and shown."""

import json
import re
import resource
import time
from itertools import chain
from pathlib import Path

import pytest

from ldm.errors import MissingExtra, UserError
from ldm.runs.batch import page
from ldm.runs.batch.outcome import Outcome
from ldm.runs.batch.progress import Progress, check_metrics
from ldm.runs.batch.report import Summary, read_summary
from ldm.runs.batch.rows import BadRow, Row, Rows, Selection, read_rows
from ldm.runs.batch.store import LocalStore, Marker


def record(number: int, **more) -> dict:
    return {"image": f"{number}.png", "mask": f"{number}_mask.png", "prompt": "a red ball", "seed": number, **more}


def write(folder: Path, records: list[dict], name: str = "rows.jsonl") -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow", reason='the extra "cluster" is not installed')
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=100)
    elif name.endswith(".csv"):
        columns = list(dict.fromkeys(column for one in records for column in one))
        values = ([one.get(column) for column in columns] for one in records)
        cells = [columns, *(["" if value is None else str(value) for value in row] for row in values)]
        path.write_text("\n".join(map(",".join, cells)))
    else:
        path.write_text("\n".join(map(json.dumps, records)))
    return path


def names(source: Path, **selection) -> list[str]:
    return [row.name for row in read_rows(source, Path("out"), {}, Selection(**selection))]


# ---- streaming


def test_the_first_row_of_a_large_manifest_comes_at_once_and_memory_stays(tmp_path):
    path = tmp_path / "large.jsonl"
    line = json.dumps(record(0, notes="x" * 25_000))
    with open(path, "w") as file:
        file.writelines(line + "\n" for _ in range(8000))  # 200 MB
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    rows = Rows(path, Path("out"), {}, Selection(shard=(1, 1000)))
    first = next(iter(Rows(path, Path("out"), {})))
    assert isinstance(first, Row) and time.process_time() - start < 1
    assert sum(1 for _ in rows) in (0, 8000) and rows.count == 8000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 30, "MB"


def test_the_number_of_rows_is_guessed_and_in_the_end_known(tmp_path):
    rows = Rows(write(tmp_path, [record(i) for i in range(2000)]), Path("out"), {})
    totals = [rows.total for _ in rows]
    assert 1500 < totals[1000] < 2500 and rows.total == 2000
    limited = Rows(rows.manifest.source, Path("out"), {}, Selection(limit=7))
    assert len(list(limited)) == 7 and limited.total == 7


# ---- what a row is


def test_a_rows_name_stays_when_others_come_and_go_and_in_every_kind_of_file(tmp_path):
    records = [record(i, scale=2.5) for i in range(5)]
    before = names(write(tmp_path, records))
    more = [record(77), *records[:2], record(78), *records[2:], record(79)]
    assert [name for name in names(write(tmp_path, more)) if name in before] == before
    assert names(write(tmp_path, records, "rows.csv")) == before
    assert names(write(tmp_path, records, "rows.parquet")) == before
    swapped = [dict(reversed(one.items())) | {"notes": "of no option"} for one in records]
    assert names(write(tmp_path, swapped)) == before, "another order of columns, and one that is none of ours"
    assert len(set(before)) == 5 and all(re.fullmatch("a-red-ball-[0-9a-f]{12}", name) for name in before)
    assert names(write(tmp_path, [record(0)])) != before[:1], "what says something else is another row"


def test_the_same_row_twice_is_two_rows(tmp_path):
    one, two, other = names(write(tmp_path, [record(0), record(0), record(1)]))
    assert two == f"{one}-2" and other not in (one, two)


def test_a_parquet_as_pandas_writes_it(tmp_path):
    source = write(tmp_path, [record(0, scale=float("nan"), H=None, guidance_interval=[0.2, 0.8])], "rows.parquet")
    (row,) = read_rows(source, Path("out"), {"scale": 3.0})
    assert isinstance(row, Row)
    assert (row.job.scale, row.job.H, row.job.guidance_interval, row.job.seed) == (3.0, None, (0.2, 0.8), 0)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as a Parquet"):
        list(read_rows(tmp_path / "broken.parquet", Path("out"), {}))


def test_a_parquet_without_its_package_is_one_line(tmp_path, monkeypatch):
    source = write(tmp_path, [record(0)], "rows.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="pyarrow"):
        list(read_rows(source, Path("out"), {}))


# ---- which rows


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_empty_cell_can_be_asked_for(tmp_path, kind):
    records = [record(i, split="test" if i % 2 else None, notes=None) for i in range(4)]
    source = write(tmp_path, records, f"rows.{kind}")
    every = names(source)
    assert names(source, where=(("split", ""),)) == every[::2]
    assert names(source, where=(("split", "test"),)) == every[1::2]
    assert names(source, where=(("notes", ""), ("split", ""))) == every[::2]
    with pytest.raises(UserError, match='asks for a column "spilt"'):
        names(source, where=(("spilt", ""),))


def test_rows_are_chosen_by_any_column_and_by_number(tmp_path):
    records = [record(i, split="test" if i % 3 else "train", scale=i % 2) for i in range(12)]
    source = write(tmp_path, records)
    every = names(source)
    assert names(source, where=(("split", "train"),)) == every[::3]
    assert names(source, where=(("split", "train"), ("scale", "1"))) == every[3::6]
    assert names(source, where=(("split", "test"),), limit=2) == every[1:3]
    shares = [names(source, shard=(i, 3)) for i in (1, 2, 3)]
    assert sorted(chain(*shares)) == sorted(every)
    with pytest.raises(UserError, match='asks for a column "spilt", which no row has'):
        names(source, where=(("spilt", "train"),))
    with pytest.raises(UserError, match="no row fits"):
        names(source, where=(("split", "none"),))
    with pytest.raises(UserError, match="give a column and its text"):
        Selection.of(None, ("split",), None)


def test_bad_rows_are_of_one_share_each(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(["{broken", json.dumps(record(0, seed=-1))] * 10))
    found = [row for i in range(1, 5) for row in read_rows(source, Path("out"), {}, Selection(shard=(i, 4)))]
    assert sorted(row.number for row in found) == [*range(1, 21)] and all(isinstance(row, BadRow) for row in found)


def test_a_row_of_nonsense_is_a_bad_row_that_is_called_like_no_other(tmp_path):
    source = tmp_path / "rows.jsonl"
    bad = [json.dumps(record(0, model={"a": 1})), "[" * 100_000]
    bad += [json.dumps(record(0) | {name: text}) for name in ("image", "ckpt", "model") for text in ("a\0", "\ud800")]
    source.write_text("\n".join([*bad, json.dumps(record(0, name="0002"))]))
    *bad, good = read_rows(source, Path("out"), {})
    assert all(isinstance(row, BadRow) for row in bad) and isinstance(good, Row)
    assert "`model`" in bad[0].error and "no JSON" in bad[1].error
    assert all("no file's name" in row.error for row in bad[2:]) and len(bad) == 8
    assert good.name == "0002" not in {row.name for row in bad}


def test_a_parquet_with_times_that_python_cannot_hold_is_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason='the extra "cluster" is not installed')
    parquet = pytest.importorskip("pyarrow.parquet")
    times = pyarrow.array([10**16], pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"image": ["a.png"], "made": times}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="cannot be read as a Parquet"):
        names(tmp_path / "rows.parquet")


# ---- what is told


def outcome(number: int, status: str = "done", **more) -> Outcome:
    sizes = [(192, 100)] * 4
    return Outcome(number, f"r{number}", status, "a <ball>", "a.png", "m.png", [1, 2], None,
                   thumbnails=sizes if status == "done" else (), **more)  # fmt: skip


def test_a_page_of_many_rows_has_parts_that_load_what_is_looked_at(tmp_path, monkeypatch):
    written, write = [], page._write
    monkeypatch.setattr(page, "_write", lambda summary, file, text: (written.append(file), write(summary, file, text)))
    summary = Summary(LocalStore(tmp_path), "title")
    summary.due = float("inf")
    for number in range(1, 1001):
        summary.add(outcome(number, "failed" if number == 333 else "done", error="why" if number == 333 else None))
    summary.total = 1000
    summary.finish(everything=True)
    index = (tmp_path / "index.html").read_text()
    assert "1000 rows: 999 done, 1 failed" in index and 'href=".pages/00002.html#row-333"' in index
    assert index.index("1 failed</h2>") < index.index('id="rows"'), "what has failed comes before thousands of links"
    assert 'name="row" min="1" max="1000"' in index and "<img" not in index and len(index) < 20_000
    parts = sorted((tmp_path / ".pages").iterdir())
    assert [path.name for path in parts] == [f"{i:05d}.html" for i in range(1, 6)]
    text = parts[1].read_text()
    assert text.count("<article") == 200 and text.count('loading="lazy"') == 199 * 4
    assert 'src="../r201/.thumbnails.webp" width="192" height="100"' in text and "-192px 0" in text
    assert 'href="../r201/samples/results/0001.png"' in text and "data:image" not in text
    assert 'id="row-333" class="failed"' in text
    # Of what comes later, its part alone is written.
    written.clear()
    summary.add(outcome(777, seconds={"sampling": 1.0}, digest="another"))
    summary.write_page()
    assert written == [".pages/00004.html", "index.html"]


def test_a_page_of_the_users_below_pages_stays(tmp_path):
    (tmp_path / ".pages").mkdir()
    (tmp_path / ".pages" / "00001.html").write_text("mine")
    summary = Summary(LocalStore(tmp_path), "title")
    summary.due = float("inf")
    for number in range(1, page.ROWS + 2):
        summary.add(outcome(number))
    with pytest.raises(UserError, match="so it stays"):
        summary.write_page()
    assert (tmp_path / ".pages" / "00001.html").read_text() == "mine"


def test_a_summary_keeps_what_it_is_not_told_anew_until_all_rows_have_been_seen(tmp_path):
    for numbers, everything, left in [((1, 2, 3), True, [1, 2, 3]), ((2,), False, [1, 2, 3]), ((2, 3), True, [2, 3])]:
        summary = Summary(LocalStore(tmp_path), "title")
        for number in numbers:
            summary.add(outcome(number))
        summary.finish(everything)
        assert [one.row for one in read_summary(tmp_path)] == left
        assert summary.count("done") == len(left)


def test_progress_counts_and_tells_prometheus(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("ldm.runs.batch.progress.time.monotonic", lambda: clock[0])
    with Progress(lambda: 100, tmp_path / "batch.prom") as progress:
        for number in range(1, 11):
            progress.note(outcome(number), made=False)  # found: they say nothing of how fast it goes
        for number in range(11, 31):
            clock[0] += 2
            status = "failed" if number == 30 else "done"
            seconds = {"sampling": 1.0} if number % 2 else {}
            progress.note(outcome(number, status, node=f"n{number % 2}", device="cuda:0", seconds=seconds))
        assert (progress.made, progress.found, progress.failed, progress.left) == (19, 10, 1, 70)
        assert progress.rate == pytest.approx(0.5) and "0.50 a second, 2 min left" in progress.line()
        assert dict(progress.shares()) == {"n0": 0.0, "n1": 0.25}
    text = (tmp_path / "batch.prom").read_text()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['bld_batch_rows{status="made"}'] == "19" and values["bld_batch_seconds_left"] == "140"
    assert values['bld_batch_busy{node="n1"}'] == "0.25"
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"\})? [-+.eE\dNa]+', line), line


def test_counters_replace_only_counters(tmp_path):
    mine = tmp_path / "edits.jsonl"
    mine.write_text("{}")
    with pytest.raises(UserError, match="so it stays"):
        check_metrics(mine)
    for path in (tmp_path, tmp_path / "none" / "batch.prom"):
        with pytest.raises(UserError, match="cannot write"):
            check_metrics(path)
    path = tmp_path / "batch.prom"
    for _ in range(2):  # new, and an earlier batch's
        check_metrics(path)
        path.write_text(Progress(lambda: 0).exposition())
    assert mine.read_text() == "{}" and len([*tmp_path.iterdir()]) == 2


def test_what_is_no_marker_is_none():
    marker = Marker("d", ("a", "b"), (["a.png", 1, 2], None), {"row": 1})
    again = Marker.from_json(marker.to_json())
    assert again is not None and again.content == ("a", "b") and again.stamps == (["a.png", 1, 2], None)
    for text in (None, b"", b"{}", b"[1]", b'{"digest": 1}', marker.to_json()[:30]):
        assert Marker.from_json(text) is None
