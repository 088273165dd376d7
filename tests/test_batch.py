"""scripts/batch_editing.py from the outside: rows in, run folders and a summary out, whatever comes between."""

import errno
import html.parser
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli import run
from ldm.editing import edit, editor
from ldm.runs.batch import page, report, work, workers
from ldm.runs.batch.outcome import Outcome
from ldm.runs.batch.report import Summary
from ldm.runs.batch.rows import BadRow, Row, good, plan, read_rows
from ldm.runs.batch.store import LocalStore
from scripts import batch_editing, reconstruct, text_editing
from tests.batches import ROOT
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, three images and their masks."""
    folder = tmp_path_factory.mktemp("batch")
    save_tiny_model(folder / "model")
    random_pixels = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(random_pixels.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        mask = np.zeros((70, 90), np.uint8)
        mask[20:50, 30 : 50 + ord(name) % 10] = 255
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
    Image.new("L", (90, 70)).save(folder / "black.png")
    return folder


def edit_rows(count: int, **more) -> list[dict]:
    return [{"image": f"{n}.png", "mask": f"{n}_mask.png", "prompt": f"a red ball {i}", "seed": 7 * i, **more}
            for i, n in zip(range(count), "abc" * count, strict=False)]  # fmt: skip


def write_jsonl(folder: Path, rows: list, name: str = "edits.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def batch(folder: Path, source: Path, out: Path, *more) -> int:
    """The command; in this process, with what a test has patched, unless devices are named."""
    argv = [str(source), "--outdir", str(out), "--model", str(folder / "model"), "--ddim_steps", "2"]
    argv += [] if "--devices" in more else ["--devices", "cpu", "--workers", "0"]
    try:
        return run(batch_editing.main, [*argv, "--n_samples", "2", "--force", *map(str, more)])
    except SystemExit as stop:
        return stop.code


def summary(out: Path) -> list[dict]:
    lines = (out / "summary.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda line: line["row"])


def pixels(out: Path) -> dict[str, bytes]:
    """All results and predictions below an output folder."""
    paths = [*out.glob("*/samples/results/*.png"), *out.glob("*/samples/images/*.png")]
    return {str(path.relative_to(out)): Image.open(path).tobytes() for path in paths}


def nearly_same(one: Path, other: Path) -> bool:
    """Whether both have the same pictures, to a code: batches of another size round otherwise."""
    a, b = pixels(one), pixels(other)
    differences = (np.frombuffer(a[name], np.uint8).astype(int) - np.frombuffer(b[name], np.uint8) for name in a)
    return a.keys() == b.keys() and max(np.abs(difference).max() for difference in differences) <= 1


def when_made(out: Path) -> dict[str, int]:
    return {path.parts[-3]: path.stat().st_mtime_ns for path in out.glob("*/samples/run.json")}


OURS = (".lock", ".run.lock", ".thumbnails.json", ".thumbnails.webp", ".row.json")


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.name not in OURS]


# ---- rows


def options_of(source: Path, **defaults) -> list[Row | BadRow]:
    return list(read_rows(source, Path("out"), defaults))


def test_a_rows_own_options_win_over_the_command_line(tmp_path):
    more = {"scale": 3, "save_video": False, "mask_dilation_iterations": "2", "invert_mask": "yes", "H": None}
    source = write_jsonl(tmp_path, [*edit_rows(1), "", {"mask": "m.png", **more, "name": "two"}])
    rows = options_of(source, save_video=True, scale=4.0, prompt="p", init_image=Path("all.png"), H=96)
    one, two = (row.job for row in rows)
    assert (one.save_video, one.request.scale, one.request.prompt, one.invert_mask) == (True, 4, "a red ball 0", False)
    assert (two.save_video, two.request.scale, two.request.prompt, two.invert_mask) == (False, 3, "p", True)
    assert (one.request.mask_dilation_iterations, two.request.mask_dilation_iterations) == (None, 2)
    assert (two.H, two.W) == (96, None), "null is the default"
    assert one.mask == tmp_path / "a_mask.png", "relative to the file that names it"
    assert two.init_image == Path("all.png"), "relative to where the command is given"
    assert re.fullmatch("a-red-ball-0-[0-9a-f]{12}", rows[0].name) and rows[1].job.outdir == Path("out/two")


def test_a_row_that_says_which_model_leaves_nothing_of_the_command_lines(tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "own").mkdir()
    source = write_jsonl(tmp_path, [bad(model="scenes"), bad(model="own"), bad(config="c.yaml", ckpt="c.ckpt"), bad()])
    defaults = {"config": Path("a.yaml"), "ckpt": Path("a.ckpt")}
    named, folder, files, none = (row.model[:3] for row in options_of(source, **defaults))
    assert named == ("scenes", None, None), "a known name, whatever lies beside the rows"
    assert folder == (str(tmp_path / "own"), None, None)
    assert files == ("auto", tmp_path / "c.yaml", tmp_path / "c.ckpt")
    assert none == ("auto", Path("a.yaml"), Path("a.ckpt"))
    assert options_of(source, model="text2img-large")[2].model[:3] == files


@pytest.mark.parametrize(("delimiter", "mark"), [(",", ""), (";", "\ufeff"), ("\t", "")])
def test_a_csv_has_the_same_columns_and_empty_cells_are_defaults(tmp_path, delimiter, mark):
    lines = [["image", "mask", "prompt", "scale", "soft_mask", "name"], ["a.png", "m.png", '"x, y; z"', "", "true", ""]]
    lines += [["b.png", "m.png", "b", "2.5", "0", "second"], [""] * 6]
    (tmp_path / "rows.csv").write_text(mark + "\r\n".join(map(delimiter.join, lines)), encoding="utf-8")
    one, two = options_of(tmp_path / "rows.csv")
    assert (one.job.request.prompt, one.job.request.scale, one.job.soft_mask) == ("x, y; z", None, True)
    assert (two.job.request.prompt, two.job.request.scale, two.job.soft_mask, two.name) == ("b", 2.5, False, "second")
    assert two.job.init_image == tmp_path / "b.png"


@pytest.mark.parametrize("layout", ["flat", "parted"])
def test_a_folder_pairs_images_and_masks_by_their_stems(tmp_path, layout, caplog):
    places = {"flat": ("", "{}_mask.png"), "parted": ("images", "masks/{}.png")}
    images, masks = places[layout]
    for path in [Path(images, "b.JPG"), Path(images, "a.png"), Path(images, "c.webp"), Path(images, ".hidden.png")]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    for stem in ("a", "b", "z"):
        (tmp_path / masks.format(stem)).parent.mkdir(exist_ok=True)
        (tmp_path / masks.format(stem)).write_text("")
    (tmp_path / images / "b.txt").write_text("a blue cube\n")
    a, b, c = options_of(tmp_path, prompt="p")
    assert (a.name, a.job.mask, a.job.request.prompt) == ("a", tmp_path / masks.format("a"), "p")
    assert (b.name, b.job.init_image.name, b.job.request.prompt) == ("b", "b.JPG", "a blue cube")
    assert isinstance(c, BadRow) and "no mask" in c.error
    assert "z" in caplog.text and "mask of no image" in caplog.text


def bad(**row) -> dict:
    return {"image": "a.png", "mask": "m.png", "prompt": "p", **row}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("{broken", "no JSON"),
        ("[1]", "no JSON object"),
        (bad(ddim_steps=0), "`ddim_steps` is 0: give an integer from 1 to 1000"),
        (bad(scale="much"), '"much"'),
        (bad(region="some"), "some"),
        (bad(sclae=3), '"sclae"'),
        (bad(invert_mask="perhaps"), "perhaps"),
        (bad(prompt=["a"]), "`prompt` is ['a']"),
        (bad(mask=None), "no mask"),
        (bad(name="first"), '"first" is that of row 1'),
        (bad(name="FIRST"), "row 1"),
        (bad(init_image="b.png"), "`init_image` is given twice"),
    ],
)
def test_a_bad_row_says_why_and_leaves_the_others_alone(tmp_path, row, named):
    first, spoilt, last = options_of(write_jsonl(tmp_path, [bad(name="first"), row, bad()]))
    assert isinstance(spoilt, BadRow) and named in spoilt.error and "\n" not in spoilt.error
    assert isinstance(first, Row) and isinstance(last, Row)


@pytest.mark.parametrize("name", ["../up", "a/b", ".", "", "summary.jsonl", "index.html", "ü", "x" * 300, "con.txt"])
def test_any_name_is_a_safe_folder(tmp_path, name):
    (row,) = options_of(write_jsonl(tmp_path, [bad(name=name)]))
    assert re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,79}", row.name) and row.job.outdir == Path("out") / row.name


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("none.jsonl", None, "none.jsonl"),
        ("rows.txt", "x", "neither"),
        ("empty.jsonl", "\n\n", "no rows"),
        ("latin.jsonl", b"\xff\xfe", 'latin.jsonl" is not UTF-8'),
        ("latin.csv", "image,mask,prompt\na,b,caf\xe9\n".encode("latin-1"), "save it as UTF-8"),
        ("separator.csv", "sep=,\nimage,mask,prompt\na,b,c\n", "line 1 names no column of a row"),
        ("twice.csv", "image,mask,prompt,seed,seed\na,b,c,1,2\n", 'more than one column "seed"'),
        ("open.csv", 'image,mask,prompt\na,b,"a red ball\na,b,c\n', "from line 2: a quotation mark is not closed"),
    ],
)
def test_rows_that_cannot_be_read_are_exit_code_2_and_nothing_is_written(folder, tmp_path, capsys, name, text, named):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert batch(folder, tmp_path / name, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert named in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [("--batch_size", 0), ("--devices", "cpu,,cpu"), ("--scale", "x"), ("--model", "nix")])
def test_a_bad_command_line_is_exit_code_2_and_nothing_is_written(folder, tmp_path, capsys, more):
    assert batch(folder, write_jsonl(folder, edit_rows(1)), tmp_path / "out", *more) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--cpus", 4), "--cpus 4 is of a Ray cluster"),
        (("--address", "auto"), "--address auto is of a Ray cluster"),
        (("--workers", 2), "--workers 2 is of a Ray cluster"),
        (("--engine", "ray", "--workers", 2), "--devices cpu is of this machine"),
        (("--engine", "ray", "--workers", 0, "--devices", "auto"), "--workers 0 makes the rows in this process"),
        (("--devices", "cpu,cpu", "--workers", 0), "--devices cpu,cpu are more"),
        (("--devices", "auto,cpu"), "give auto alone"),
    ],
)
def test_an_option_of_another_engine_is_refused(folder, tmp_path, capsys, more, named):
    assert batch(folder, write_jsonl(folder, edit_rows(1)), tmp_path / "out", *more) == 2
    said = capsys.readouterr().err
    assert named in said and len(said.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_the_process_that_hands_out_rows_imports_no_torch(folder, tmp_path):
    """It holds a million rows in the memory that torch alone would take, and begins before a worker has."""
    source = write_jsonl(folder, [*edit_rows(2), bad(scale=-1)])
    assert batch(folder, source, tmp_path) == 1
    (tmp_path / "summary.jsonl").rename(tmp_path / "summary-1-of-2.jsonl")
    options = [str(source), "-o", str(tmp_path), "--model", str(folder / "model"), "--ddim_steps", "2"]
    options += ["--n_samples", "2", "--force"]
    program = """
import json, sys
from ldm.cli import run
from scripts import batch_editing
import ldm.runs.batch.cluster, ldm.runs.batch.workers
for more in ([], ["--merge"]):
    try:
        code = run(batch_editing.main, [*sys.argv[1:], *more])
    except SystemExit as stop:
        code = stop.code
    print(code)
heavy = {"torch", "transformers", "pytorch_lightning", "diffusers", "open_clip", "ldm.editing.editor"}
print(sorted(heavy & sys.modules.keys()))
"""
    said = subprocess.run([sys.executable, "-c", program, *options], cwd=ROOT, capture_output=True, text=True)
    assert "2 were there already" in said.stdout and "2 done, 1 failed" in said.stdout, said.stderr
    assert said.stdout.splitlines()[-1] == "[]" and "row 3: " in said.stderr


def test_rows_of_the_same_settings_are_sampled_together(tmp_path):
    rows = [bad(n_samples=n, **more) for n, more in
            [(3, {}), (2, {"scale": 3}), (3, {}), (3, {}), (9, {}), (2, {"prompt": "q", "seed": 1, "scale": 3}),
             (1, {"model": "scenes"}), (1, {"H": 64}), (1, {"save_video": True}), (1, {})]]  # fmt: skip
    chunks = plan(good(options_of(write_jsonl(tmp_path, rows))), 8)
    numbers = [[row.number for row in chunk] for chunk in chunks]
    assert numbers == [[1, 3], [4], [5], [10], [2, 6], [8], [9], [7]]


# ---- running them


def test_each_row_leaves_a_run_that_the_next_step_can_use(folder, tmp_path, capsys):
    rows = [*edit_rows(3), bad(image=str(folder / "none.png")), {**edit_rows(1)[0], "mask": "black.png"}]
    rows += [bad(scale=-1), {**edit_rows(1)[0], "name": "cube", "prompt": "", "ddim_steps": 3, "soft_mask": True}]
    out = tmp_path / "out"
    assert batch(folder, write_jsonl(folder, rows), out, "--batch_size", 4) == 1
    lines = summary(out)
    assert [line["status"] for line in lines] == ["done"] * 3 + ["failed"] * 3 + ["done"]
    for line, word in zip(lines[3:6], ("none.png", "black.png", "scale"), strict=True):
        assert word in line["error"]
    assert lines[1]["seeds"] == [7, 8] and lines[1]["measures"][0]["max_difference"] == 0
    assert set(lines[1]["seconds"]) == {"reading", "waiting", "sampling", "writing"}
    assert lines[0]["unknown_words"] == ["0"]
    record = json.loads((out / "cube" / "samples" / "run.json").read_text())
    assert (record["options"]["ddim_steps"], record["prompt"], record["seeds"]) == (3, "", [0, 1])
    assert (out / "cube" / "unconditional.png").is_file()
    assert run(reconstruct.main, ["--images_path", str(out / "cube"), "--reconstruction_type", "residual"]) == 0
    said = capsys.readouterr()
    assert "4 made, 3 failed" in said.out and "sampling" in said.out and "Traceback" not in said.err
    assert sum(line.startswith("row ") for line in said.err.splitlines()) == 3


def test_together_rows_give_what_each_gives_alone(folder, tmp_path):
    source = write_jsonl(folder, edit_rows(3, ddim_eta=0.5))
    assert batch(folder, source, tmp_path / "together", "--batch_size", 6) == 0
    assert batch(folder, source, tmp_path / "alone", "--batch_size", 1) == 0
    assert len(pixels(tmp_path / "together")) == 12 and nearly_same(tmp_path / "together", tmp_path / "alone")


def test_out_of_memory_halves_the_batch(folder, tmp_path, monkeypatch, capsys):
    tried, blended_sample = [], edit.blended_sample

    def small_memory(denoiser, schedule, z_source, masks, noise, **more):
        tried.append(len(noise))
        if len(noise) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return blended_sample(denoiser, schedule, z_source, masks, noise, **more)

    source = write_jsonl(folder, edit_rows(4))
    assert batch(folder, source, tmp_path / "large") == 0
    monkeypatch.setattr(edit, "blended_sample", small_memory)
    assert batch(folder, source, tmp_path / "small", "--batch_size", 6) == 0
    assert tried == [6, 3, *[1] * 8], "6 predictions of three rows, then with what was found to fit"
    assert "out of memory" in capsys.readouterr().err
    assert nearly_same(tmp_path / "large", tmp_path / "small")


def test_a_row_that_never_fits_in_memory_fails_alone(folder, tmp_path, monkeypatch):
    blended_sample = edit.blended_sample

    def no_memory(denoiser, schedule, z_source, masks, noise, **more):
        if 7 in noise.seeds:  # the second row's
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return blended_sample(denoiser, schedule, z_source, masks, noise, **more)

    monkeypatch.setattr(edit, "blended_sample", no_memory)
    assert batch(folder, write_jsonl(folder, edit_rows(3)), tmp_path) == 1
    assert [line["status"] for line in summary(tmp_path)] == ["done", "failed", "done"]
    assert "memory" in summary(tmp_path)[1]["error"]


def test_an_error_nobody_thought_of_fails_its_row_alone(folder, tmp_path, monkeypatch, capsys):
    write_result = work.write_result

    def broken(job, *rest, **more):
        if job.request.prompt == "a red ball 1":
            raise KeyError("oh")
        return write_result(job, *rest, **more)

    monkeypatch.setattr(work, "write_result", broken)
    assert batch(folder, write_jsonl(folder, edit_rows(3)), tmp_path) == 1
    assert [line["error"] for line in summary(tmp_path)] == [None, "KeyError: 'oh'", None]
    assert 'raise KeyError("oh")' in capsys.readouterr().err, "a bug of ours keeps its traceback"


# ---- again


def test_started_again_only_what_is_missing_or_changed_is_made(folder, tmp_path, capsys):
    home = tmp_path / "rows"
    home.mkdir()
    for path in folder.glob("*.png"):
        (home / path.name).write_bytes(path.read_bytes())
    rows = edit_rows(4)
    source, out = write_jsonl(home, rows), tmp_path / "out"
    assert batch(folder, source, out) == 0
    first, before = when_made(out), summary(out)
    assert batch(folder, source, out) == 0 and when_made(out) == first
    assert "0 made, 0 failed, 4 were there already" in capsys.readouterr().out
    assert summary(out) == before, "timings too"

    (home / "b.png").write_bytes((home / "c.png").read_bytes())  # another picture under the same name
    os.utime(home / "a.png")  # touched, but the same
    # Others before it leave a row what it is; one that says something else is another row.
    rows = [{**rows[0], "name": "new"}, *rows[:2], {**rows[2], "scale": 3}, rows[3]]
    assert batch(folder, write_jsonl(home, rows), out) == 0
    again = when_made(out)
    changed = {name.rpartition("-")[0] for name in again if again[name] != first.get(name)}
    assert changed == {"a-red-ball-1", "a-red-ball-2", ""} and len(again) == 6, "the old third row's run stays"
    assert [line["row"] for line in summary(out)] == [1, 2, 3, 4, 5]
    capsys.readouterr()
    assert batch(folder, write_jsonl(home, rows), out, "--scale", 3) == 0
    assert capsys.readouterr().err.count("was made of other options, files or weights") == 1
    assert len(when_made(out)) == 6, "another option of the command line's makes rows again in their place"


def test_a_torn_summary_is_mended(folder, tmp_path):
    source = write_jsonl(folder, edit_rows(3))
    assert batch(folder, source, tmp_path) == 0
    lines = sorted((tmp_path / "summary.jsonl").read_bytes().splitlines(keepends=True))
    first = when_made(tmp_path)
    (tmp_path / "summary.jsonl").write_bytes(lines[0] + b'{"status": "done"}\n[]\n' + lines[1] + lines[2][:40])
    assert batch(folder, source, tmp_path) == 0 and when_made(tmp_path) == first
    assert [(line["row"], line["status"]) for line in summary(tmp_path)] == [(1, "done"), (2, "done"), (3, "done")]
    assert summary(tmp_path)[2]["seeds"] == [14, 15], "as the run folder has it"


def forked_batch(*arguments):
    # PyTorch renews its thread pool in the first thread that asks for it after a fork; a second one that asks in the
    # same moment finds none ("Invalid thread pool!"). So one thread asks before there are two.
    torch.set_num_threads(torch.get_num_threads())
    return batch(*arguments)


def test_killed_at_ten_random_times_it_ends_as_if_it_never_was(folder, tmp_path):
    # Forked: a real process and a real SIGKILL, without half a minute of imports for each of ten.
    source, context = write_jsonl(folder, edit_rows(14)), multiprocessing.get_context("fork")
    arguments = (folder, source, tmp_path / "out", "--batch_size", 4, "--n_samples", 1)
    whole = context.Process(target=forked_batch, args=(*arguments[:2], tmp_path / "whole", *arguments[3:]))
    start = time.monotonic()
    whole.start()
    whole.join()
    seconds = time.monotonic() - start
    draw, made, hits = random.Random(0), {}, 0
    for _ in range(10):
        process = context.Process(target=forked_batch, args=arguments)
        process.start()
        time.sleep(draw.uniform(0, seconds / 4))
        hits += process.is_alive()
        process.kill()
        process.join()
        for name, when in when_made(tmp_path / "out").items():
            if list((tmp_path / "out" / name).glob("*.png")):  # the grid comes last
                assert made.setdefault(name, when) == when, "done twice"
    assert hits >= 5
    assert batch(*arguments) == 0
    assert len(when_made(tmp_path / "out")) == 14 and nearly_same(tmp_path / "out", tmp_path / "whole")
    assert all(when_made(tmp_path / "out")[name] == when for name, when in made.items())
    assert [line["status"] for line in summary(tmp_path / "out")] == ["done"] * 14
    assert leftovers(tmp_path / "out") == []


def test_a_full_disk_ends_in_one_line_and_keeps_what_is_done(folder, tmp_path, monkeypatch, capsys):
    source, save, written = write_jsonl(folder, edit_rows(6)), Image.Image.save, []

    def full(image, file, kind=None, **options):
        written.append(kind)
        if written.count("PNG") > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(image, file, kind, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    assert batch(folder, source, tmp_path, "--batch_size", 2) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if "error: " in line]
    assert len(errors) == 1 and "No space left" in errors[0] and "free some space" in errors[0] and said.out == ""
    monkeypatch.undo()
    first = when_made(tmp_path)
    assert 0 < len(first) < 6 and not list(tmp_path.glob("*/.samples.new*"))
    assert {line["name"] for line in summary(tmp_path)} <= first.keys(), "no row has failed, some are to come"
    assert batch(folder, source, tmp_path) == 0
    assert len(when_made(tmp_path)) == 6 and when_made(tmp_path).items() >= first.items()


@pytest.fixture
def ctrl_c():
    """Python's own answer to SIGINT, which a test run that a shell has put in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_is_done_and_is_exit_code_130(folder, tmp_path, monkeypatch, ctrl_c):
    source, edit_tasks, calls = write_jsonl(folder, edit_rows(5)), editor.edit_tasks, []

    def interrupted(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return edit_tasks(*args, **more)

    monkeypatch.setattr(editor, "edit_tasks", interrupted)
    assert batch(folder, source, tmp_path, "--batch_size", 2) == 130
    assert [line["status"] for line in summary(tmp_path)] == ["done", "done"] and len(when_made(tmp_path)) == 2
    assert leftovers(tmp_path) == [] and "2 done" in (tmp_path / "index.html").read_text()


def test_a_schedulers_sigterm_keeps_what_is_done_and_is_exit_code_143(folder, tmp_path, monkeypatch):
    source, edit_tasks, calls = write_jsonl(folder, edit_rows(4)), editor.edit_tasks, []

    def ended(*args, **more):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return edit_tasks(*args, **more)

    monkeypatch.setattr(editor, "edit_tasks", ended)
    assert batch(folder, source, tmp_path, "--batch_size", 2) == 143
    assert [line["status"] for line in summary(tmp_path)] == ["done"] and leftovers(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_two_batches_do_not_share_an_output_folder(folder, tmp_path, monkeypatch, capsys):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"):
        assert batch(folder, write_jsonl(folder, edit_rows(1)), tmp_path) == 2
    assert "another batch is at work" in capsys.readouterr().err


# ---- several workers


def test_two_workers_give_what_one_gives(folder, tmp_path):
    source = write_jsonl(folder, [*edit_rows(5), {**edit_rows(1)[0], "mask": "black.png"}])
    assert batch(folder, source, tmp_path / "one", "--batch_size", 2) == 1
    assert batch(folder, source, tmp_path / "two", "--batch_size", 2, "--devices", "cpu,cpu") == 1
    assert pixels(tmp_path / "one") == pixels(tmp_path / "two") and len(when_made(tmp_path / "two")) == 5
    for one, two in zip(summary(tmp_path / "one"), summary(tmp_path / "two"), strict=True):
        assert one | {"seconds": 0} == two | {"seconds": 0}


@pytest.fixture
def forked(monkeypatch):
    """Workers that see what a test has patched."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: context)


def test_a_row_that_kills_two_workers_is_set_aside_and_the_rest_is_made(folder, tmp_path, monkeypatch, forked):
    read_row = work._read_row

    def deadly(files, outline, row):
        if row.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return read_row(files, outline, row)

    monkeypatch.setattr(work, "_read_row", deadly)
    source = write_jsonl(folder, edit_rows(8))
    assert batch(folder, source, tmp_path, "--batch_size", 2, "--devices", "cpu,cpu") == 1
    lines = {line["row"]: line for line in summary(tmp_path)}
    assert [row for row, line in lines.items() if line["status"] == "failed"] == [2] and len(lines) == 8
    assert "killed two workers" in lines[2]["error"] and lines[2]["set_aside"]
    monkeypatch.undo()
    assert batch(folder, source, tmp_path, "--batch_size", 2) == 1 and len(when_made(tmp_path)) == 7, "not unasked"
    assert batch(folder, source, tmp_path, "--batch_size", 2, "--retry-failed") == 0
    assert len(when_made(tmp_path)) == 8 and {line["status"] for line in summary(tmp_path)} == {"done"}


def test_a_full_disk_stops_all_workers(folder, tmp_path, monkeypatch, forked, capfd):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(work, "write_result", full)
    source = write_jsonl(folder, edit_rows(8))
    assert batch(folder, source, tmp_path, "--batch_size", 2, "--devices", "cpu,cpu") == 2
    assert capfd.readouterr().err.count("error: ") == 1 and summary(tmp_path) == []


def test_ctrl_c_stops_all_workers_and_keeps_what_they_have_sampled(folder, tmp_path, monkeypatch, forked, ctrl_c):
    add, added = Summary.add, []

    def interrupted(self, outcome):
        add(self, outcome)
        added.append(outcome)
        if len(added) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Summary, "add", interrupted)
    source = write_jsonl(folder, edit_rows(20))
    assert batch(folder, source, tmp_path, "--batch_size", 2, "--devices", "cpu,cpu") == 130
    assert 2 <= len(added) < 20 and {line["status"] for line in summary(tmp_path)} == {"done"}
    # A worker that is stopped between a run's last byte and its note loses the note; starting again finds the run.
    assert {line["name"] for line in summary(tmp_path)} <= when_made(tmp_path).keys() and leftovers(tmp_path) == []


def test_a_device_that_is_not_there(folder, tmp_path, capfd, forked):
    source = write_jsonl(folder, edit_rows(4))
    for devices in ("cuda:99", "cpu,cuda:99"):
        assert batch(folder, source, tmp_path, "--batch_size", 2, "--devices", devices) == 2
        assert "cuda:99" in capfd.readouterr().err


# ---- looking first, and the page


def test_check_tells_of_bad_rows_and_batches_and_writes_nothing(folder, tmp_path, capsys):
    rows = [*edit_rows(3), bad(image="none.png"), {**edit_rows(1)[0], "mask": "black.png"}, bad(scale=-1)]
    rows += [{**edit_rows(1)[0], "ddim_steps": 5, "skip_steps": 5}, {**edit_rows(1)[0], "H": 50}]
    source = write_jsonl(folder, rows)
    assert batch(folder, source, tmp_path / "out", "--check", "--batch_size", 4) == 1
    said = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "out").exists()
    words = ("none.png", "black", "scale", "--skip_steps is 5", "--H 48")
    for line, number, word in zip(said, (4, 5, 6, 7, 8), words, strict=False):
        assert line.startswith(f"row {number}: ") and word in line
    assert said[5:] == ["rows: 3 to make in 2 batches, 0 done, 5 bad"]
    assert batch(folder, write_jsonl(folder, edit_rows(3)), tmp_path / "out", "--dry_run") == 0


class _Page(html.parser.HTMLParser):
    """What a page links to, its pictures, and whether its tags are in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.images, self.articles = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        self.articles += tag == "article"
        attrs = dict(attrs)
        self.links += [attrs["href"]] if "href" in attrs else []
        self.images += [attrs] if tag == "img" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_every_row_and_needs_nothing_else(folder, tmp_path):
    rows = [*edit_rows(2), {**edit_rows(1)[0], "prompt": '<script>"&'}, bad(prompt="x", image="<none>.png")]
    assert batch(folder, write_jsonl(folder, rows), tmp_path) == 1
    text = (tmp_path / "index.html").read_text()
    page = _Page(text)
    assert page.open == [] and page.articles == 4 and "4 rows: 3 done, 1 failed" in text
    assert len(page.images) == 3 * 4 and all(image["src"].startswith("data:image/") for image in page.images)
    assert all(image["alt"] and int(image["width"]) <= 192 for image in page.images)
    assert len(page.links) == 3 * 4 and all((tmp_path / link).is_file() for link in page.links)
    assert "http://" not in text and "https://" not in text and "&lt;script&gt;" in text and "&lt;none&gt;" in text


def test_the_page_is_not_written_for_every_row(tmp_path, monkeypatch):
    """Its cost grows with the rows: written for each, a thousand would cost a million."""

    clock, pages = [0.0], []
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])

    def write(summary, changed):
        pages.append(summary.count("done"))
        clock[0] += 0.01 * pages[-1]
        return []

    monkeypatch.setattr(report.page, "write", write)
    summary = Summary(LocalStore(tmp_path), "title")
    for row in range(1, 1001):
        clock[0] += 1
        summary.add(Outcome(row, f"{row}", "done"))
    assert sum(pages) * 0.01 < 0.1 * 1000 and pages[-1] > 900


def test_what_a_killed_batch_leaves_behind_is_cleared(folder, tmp_path):
    source = write_jsonl(folder, edit_rows(1))
    (tmp_path / ".0123456789ab.part").mkdir(parents=True)  # the probe of `check_writable`
    (tmp_path / ".abcdef012345.part").write_text("half a file")
    (tmp_path / ".samples.new-0123").mkdir()
    (tmp_path / ".mine").write_text("not ours")
    assert batch(folder, source, tmp_path) == 0
    assert [path.name for path in leftovers(tmp_path)] == [".mine"]


# ---- files of the user's


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.html", b"<!doctype html><title>my pages</title>"),
        ("index.html", b""),
        ("summary.jsonl", b'{"image": "a.png", "mask": "a_mask.png", "prompt": "a red ball"}\n'),
        ("summary.jsonl", b'{"row": 1, "image": "a.png"}'),
        ("summary.jsonl", b"notes\n"),
        ("summary.jsonl", None),
        (".lock", b"mine"),
    ],
)
def test_a_file_of_the_users_in_the_output_folder_stays(folder, tmp_path, capsys, name, content):
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
    assert batch(folder, write_jsonl(folder, edit_rows(1)), tmp_path) == 2
    said = capsys.readouterr().err
    assert f'"{tmp_path / name}"' in said and "so it stays" in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name], "and no row was made"
    assert content is None or (tmp_path / name).read_bytes() == content


def test_the_rows_themselves_stay(folder, tmp_path, capsys):
    for path in folder.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = write_jsonl(tmp_path, edit_rows(1), "summary.jsonl")
    before = source.read_bytes()
    assert batch(folder, source, tmp_path) == 2
    assert source.read_bytes() == before and "summary.jsonl" in capsys.readouterr().err
    assert batch(folder, source, tmp_path / "out") == 0
    noted = tmp_path / "out" / "summary.jsonl"  # ours, but it is what the batch is told to read
    before = noted.read_bytes()
    assert batch(folder, noted, tmp_path / "out") == 2
    assert noted.read_bytes() == before and "would be replaced while" in capsys.readouterr().err


def test_a_file_of_the_users_in_a_rows_folder_fails_that_row_alone(folder, tmp_path):
    rows = [{**row, "name": name} for row, name in zip(edit_rows(4), "abcd", strict=True)]
    theirs = {"a": "a-red-ball-0.png", "b": "samples/photo.png", "c": ".thumbnails.json"}
    for name, file in theirs.items():
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).write_text("mine")
    assert batch(folder, write_jsonl(folder, rows), tmp_path) == 1
    lines = summary(tmp_path)
    assert [line["status"] for line in lines] == ["failed"] * 3 + ["done"]
    for line, (name, file) in zip(lines, theirs.items(), strict=False):
        assert str(tmp_path / name / Path(file).parts[0]) in line["error"]
        assert (tmp_path / name / file).read_text() == "mine"


def test_the_files_of_an_earlier_batch_are_replaced(folder, tmp_path):
    rows = [{**row, "name": "one"} for row in edit_rows(1)]
    assert batch(folder, write_jsonl(folder, rows), tmp_path) == 0
    index = tmp_path / "index.html"
    index.write_text(index.read_text().replace(page._GENERATOR, ""))  # as before it was named
    (tmp_path / "summary.jsonl").write_text('{"row": 1, "name": "one')  # killed while it noted the first row
    assert batch(folder, write_jsonl(folder, [{**rows[0], "scale": 3}]), tmp_path) == 0
    assert page._GENERATOR in index.read_text() and summary(tmp_path)[0]["status"] == "done"
    (run_folder,) = tmp_path.glob("*/samples*")
    assert run_folder.name == "samples", "a changed row replaces its run"


# ---- rows as other programs write them


def rows_of(tmp_path: Path, text: str, name: str = "rows.csv") -> list[Row | BadRow]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return options_of(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (",image,mask,prompt\n0,a.png,m.png,a ball\n", {"prompt": "a ball"}),  # pandas with its index
        ("image,mask,prompt,\na.png,m.png,a ball,\n", {"prompt": "a ball"}),
        ("image,mask,prompt,seed\na.png,m.png,a ball,7.0\n", {"seed": 7}),
        ("image,mask,prompt,seed\na.png,m.png,a ball,\n", {"seed": 42}),
        (
            'image, mask, prompt, ddim_steps\na.png, m.png, "a ball, blue", 1\n',
            {"prompt": "a ball, blue", "ddim_steps": 1},
        ),
        ("\n\nimage,mask,prompt\n\na.png,m.png,a ball\n,,\n", {"prompt": "a ball"}),
        ("image,mask,prompt,guidance_interval\na.png,m.png,a ball,0.2 0.8\n", {"guidance_interval": (0.2, 0.8)}),
        ('image,mask,prompt\na.png,m.png,"two\nlines"\n', {"prompt": "two\nlines"}),
    ],
    ids=["index", "trailing comma", "float", "empty cell", "spaces", "blank lines", "pair", "two lines"],
)
def test_a_csv_as_pandas_and_spreadsheets_write_it(tmp_path, text, expected):
    (row,) = rows_of(tmp_path, text)
    assert isinstance(row, Row), row
    assert {name: getattr(row.job, name) for name in expected} == expected


def test_what_is_no_option_is_told_once_and_what_is_nearly_one_is_a_bad_row(tmp_path, caplog):
    rows = [bad(notes="hello", name="a"), bad(notes="again", name="b"), bad(promt="x", name="c")]
    one, two, three = rows_of(tmp_path, "\n".join(map(json.dumps, rows)), "rows.jsonl")
    assert isinstance(one, Row) and isinstance(two, Row) and isinstance(three, BadRow)
    assert [record.getMessage() for record in caplog.records if '"notes"' in record.getMessage()] == [
        f'"{tmp_path / "rows.jsonl"}": "notes" is no option of a row and is ignored'
    ]
    assert '"promt"' in three.error and '"prompt"' in three.error
    (row,) = rows_of(tmp_path, "image,MASK,prompt\na.png,m.png,a ball\n")
    assert isinstance(row, BadRow) and '"MASK"' in row.error and '"mask"' in row.error


def test_a_prompt_that_is_no_text_is_one_bad_row(tmp_path):
    for stem in ("a", "b"):
        for name in (f"{stem}.png", f"{stem}_mask.png"):
            (tmp_path / name).write_text("")
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "b.txt").write_text("café", encoding="utf-8")
    one, two = options_of(tmp_path)
    assert isinstance(one, BadRow) and "a.txt" in one.error and "UTF-8" in one.error
    assert isinstance(two, Row) and two.job.prompt == "café"


def test_a_folder_takes_every_kind_of_picture_that_an_edit_takes(tmp_path):
    kinds = ["avif", "gif", "ppm", "jp2", "PNG", "jpeg", "webp", "tif", "bmp"]
    for kind in kinds:
        for name in (f"{kind}.{kind}", f"{kind}_mask.png"):
            (tmp_path / name).write_text("")
    (tmp_path / "notes.txt").write_text("of no picture")
    assert sorted(row.name for row in options_of(tmp_path, prompt="p")) == sorted(kinds)


def test_a_row_and_an_edit_of_the_same_options_are_the_same_bit_for_bit(folder, tmp_path):
    """Also where the model's config has its own defaults; and the record says what was used."""
    model = save_tiny_model(tmp_path / "model", editing={"scale": 3.0, "context": 0.1, "background_noise": "one"})
    options = ["--model", str(model), "--ddim_steps", "3", "--n_samples", "2", "--precision", "float32", "--force"]
    files = {"image": str(folder / "a.png"), "mask": str(folder / "a_mask.png"), "prompt": "a red ball"}
    source = write_jsonl(tmp_path, [files])
    argv = [str(source), "-o", str(tmp_path / "batch"), "--devices", "cpu", "--workers", "0", *options]
    assert run(batch_editing.main, argv) == 0
    argv = ["-p", files["prompt"], "-i", files["image"], "--mask", files["mask"], "--device", "cpu"]
    assert run(text_editing.main, [*argv, "-o", str(tmp_path / "edit"), *options]) == 0
    (row,) = (tmp_path / "batch").glob("*/samples")
    for path in (tmp_path / "edit/samples").rglob("*.png"):
        assert Image.open(path).tobytes() == Image.open(row / path.relative_to(tmp_path / "edit/samples")).tobytes()
    of_row, of_edit = (json.loads((one / "run.json").read_text()) for one in (row, tmp_path / "edit/samples"))
    del of_row["options"]["row"]
    for name in ("options", "seeds", "window", "feather", "measures", "device", "precision", "weights_sha256"):
        assert of_row[name] == of_edit[name], name
    assert (of_row["options"]["scale"], of_row["options"]["context"]) == (3.0, 0.1)
    assert of_row["options"]["background_noise"] == "shared" and of_row["device"] == "cpu"
