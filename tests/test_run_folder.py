"""The run folder: whole or not at all, never mixed, readable by the next step."""

import errno
import itertools
import json
import multiprocessing
import os
import re
import shutil
import string
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm.errors import UserError
from ldm.imaging.images import read_png_text, save_png
from ldm.runs import folder as run_folder
from ldm.runs.folder import (
    Run,
    check_pictures,
    check_reconstruction,
    check_run,
    check_writable,
    read_run,
    write_pictures,
    write_reconstruction,
    write_run,
)
from ldm.runs.places import locked
from ldm.runs.record import RunRecord, prompt_slug


def tile(level: int, size=(16, 12)) -> Image.Image:
    return Image.new("RGB", size, (level, 255 - level, 7))


def record(n: int = 3, **changes) -> RunRecord:
    values = {
        "prompt": "a pink yarn ball",
        "model": "scenes",
        "seed": 40,
        "seeds": tuple(40 + (i + 1) % n for i in range(n)),
        "image": "inputs/img.png",
        "mask": "inputs/mask.png",
        "size": (12, 16),
        "window": {"left": 3, "top": 0, "width": 40, "height": 30, "image_size": [60, 80]},
        "feather": 4,
        "options": {"ddim_steps": 50, "scale": 5.0, "ddim_eta": 0.0},
        "scores": tuple(0.6 + i / 100 for i in range(n)),
    }
    return RunRecord(**(values | changes))


def save(outdir, n: int = 3, level: int = 10, overwrite: bool = False, masks=None, **changes) -> Path:
    mask = Image.fromarray(np.eye(12, 16, dtype=np.uint8) * 255)
    return write_run(
        outdir,
        record(n, **changes),
        tile(level, (90, 40)),
        [tile(level + i) for i in range(n)],
        [tile(level + i, (80, 60)) for i in range(n)],
        torch.arange(n * 24).reshape(n, 4, 2, 3) + level / 7,
        {"input": tile(99), "mask": mask},
        masks=masks,
        overwrite=overwrite,
    )


def paint(outdir, n: int = 2, level: int = 10, overwrite: bool = True, **changes) -> Path:
    """A run that edited nothing."""
    made = record(n, **({"image": None, "mask": None, "window": None} | changes))
    pictures = [tile(level + i) for i in range(n)]
    return write_pictures(outdir, made, tile(level, (90, 40)), pictures, torch.zeros(n, 4, 2, 3), overwrite)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".run.lock"]


def seen(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- names -----------------------------------------------------------------------------------------------------------

AWKWARD = [
    "",
    " ",
    "unconditional",
    "a pink yarn ball",
    "A pink yarn ball",
    "a-pink-yarn-ball",
    "a  pink yarn ball",
    "a pink yarn ball.",
    "a pink yarn ball ",
    "a/pink\\yarn:ball",
    "../../etc/passwd",
    "line one\nline two",
    "🧶",
    "🧶🧶",
    "ein rosa Knäuel",
    "糸玉",
    "毛線",
    "con",
    "CON",
    "nul",
    "com1",
    "dots...",
    ".",
    "..",
    "-",
    "nul\0byte",
    "broken \udcff",
    "x" * 5000,
    "x" * 4999,
    "word " * 1000,
    "ab " * 1000,
    "a_b",
]


def test_slugs_are_safe_names():
    for prompt in AWKWARD:
        slug = prompt_slug(prompt)
        assert re.fullmatch("[a-z0-9][a-z0-9_-]{0,79}", slug), slug
        assert slug[-1] in string.ascii_lowercase + string.digits and "-_" not in slug
        assert slug not in {"con", "nul", "aux", "prn", "com1", "lpt1"}
    assert prompt_slug("a pink yarn ball") == "a-pink-yarn-ball"
    assert prompt_slug("") == "unconditional"
    assert prompt_slug("ein rosa Knäuel").startswith("ein-rosa-knauel_")


def test_different_prompts_never_share_a_name():
    assert len({prompt_slug(p) for p in AWKWARD}) == len(AWKWARD)
    short = ["".join(letters) for n in range(1, 5) for letters in itertools.product("aA .", repeat=n)]
    assert len({prompt_slug(p) for p in short}) == len(short)
    hashed = prompt_slug("A ball")
    assert prompt_slug(hashed) != hashed and prompt_slug(hashed.replace("-", " ").replace("_", " ")) != hashed


# --- the record ------------------------------------------------------------------------------------------------------


def test_record_round_trip():
    for changes in ({}, {"scores": None}, {"prompt": 'a "quoted"\nprompt 🧶', "invert_mask": True}, {"prompt": ""}):
        before = record(**changes)
        assert RunRecord.from_json(before.to_json()) == before
    assert json.loads(record(options={"ckpt": Path("a/b")}).to_json())["options"] == {"ckpt": "a/b"}
    now = record()
    assert now.versions.keys() >= {"python", "torch"} and re.match(r"\d{4}-\d\d-\d\dT.*\+00:00$", now.created)
    with pytest.raises(ValueError, match="2 scores for 3"):
        record(scores=(0.1, 0.2))


def test_records_of_other_versions():
    values = json.loads(record().to_json())
    newer = values | {"format": values["format"] + 1}
    with pytest.raises(UserError, match="update") as caught:
        RunRecord.from_json(json.dumps(newer), "some/run.json")
    assert "some/run.json" in str(caught.value)
    same = RunRecord.from_json(json.dumps(values | {"a_later_field": 1}))
    assert same == record(created=values["created"], run_id=values["run_id"])
    first = {k: v for k, v in values.items() if k not in ("weights_sha256", "invert_mask", "versions", "created")}
    assert RunRecord.from_json(json.dumps(first)).weights_sha256 is None


def released_record(**changes) -> dict:
    """A run.json of format 2, as the released program wrote it."""
    return {
        "prompt": "a pink yarn ball",
        "model": "scenes",
        "config": "/home/joe/models/ldm/scenes/config.yaml",
        "weights": "/home/joe/models/ldm/scenes/model.safetensors",
        "seed": 42,
        "seeds": [43, 42],
        "image": "/home/joe/img.png",
        "mask": "inputs/mask.png",
        "size": [12, 16],
        "options": {"ddim_steps": 50, "scale": 5.0, "device": "auto", "precision": "auto"},
        "scores": [0.5, 0.6],
        "invert_mask": False,
        "window": {"left": 3, "top": 0, "width": 40, "height": 30, "image_size": [60, 80]},
        "feather": 4.0,
        "measures": [{"max_difference": 0}, {"max_difference": 0}],
        "weights_sha256": None,
        "versions": {"python": "3.11.7", "torch": "2.6.0", "pillow": "11.0"},
        "created": "2026-01-02T03:04:05+00:00",
        "format": 2,
    } | changes


def test_released_records_are_read_as_they_are():
    old = RunRecord.from_json(json.dumps(released_record()))
    assert (old.image, old.weights) == ("/home/joe/img.png", "/home/joe/models/ldm/scenes/model.safetensors")
    assert (old.device, old.ranker, old.seeds) == (None, None, (43, 42))
    same = RunRecord.from_json(json.dumps(released_record(), indent=2))  # as its pictures' text chunks have it
    other = RunRecord.from_json(json.dumps(released_record(seeds=[42, 43])))
    assert old.run_id == same.run_id != other.run_id
    assert RunRecord.from_json(old.to_json()) == old


def test_no_path_of_the_users_machine_is_recorded(tmp_path, monkeypatch):
    home = tmp_path / "home" / "joe"
    monkeypatch.setattr(Path, "home", lambda: home)
    photo, outdir = home / "photo.png", home / "work" / "outputs"
    files = {"config": f"{home}/models/own/config.yaml", "weights": f"{tmp_path}/scratch/of-joe/model.ckpt"}
    given = {"image": str(photo), "mask": "../masks/mask.png", "options": {"prompt_file": photo, "ddim_steps": 5}}
    samples = save(outdir, **given, **files)
    write_reconstruction(read_run(samples), "pixel", 0, tile(1), {"mask": photo})
    values = json.loads((samples / "run.json").read_text())
    assert (values["image"], values["mask"], values["options"]["prompt_file"]) == (
        *("photo.png", "../masks/mask.png", "photo.png"),
    )
    assert values["config"] == "../../../models/own/config.yaml", "relative to the run's folder"
    assert values["weights"] == "model.ckpt", "it lies outside of all that the user's home and the run share"
    for path in [*outdir.rglob("*.json"), *outdir.rglob("*.png")]:
        assert str(tmp_path).encode() not in path.read_bytes() and b"joe" not in path.read_bytes(), path
    assert read_run(samples).record.config == files["config"], "as it can be opened"
    save(outdir)
    assert read_run(outdir / "samples.1").record.config == files["config"], "also from its later place"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "x"}', '"run"'])
def test_damaged_records(text):
    with pytest.raises(UserError, match=r"run\.json") as caught:
        RunRecord.from_json(text)
    assert "\n" not in str(caught.value)


def test_damaged_fields():
    values = json.loads(record().to_json())
    for changes in ({"seeds": 3}, {"scores": [0.5]}):
        with pytest.raises(UserError, match="damaged"):
            RunRecord.from_json(json.dumps(values | changes))


# --- writing and reading ---------------------------------------------------------------------------------------------


def test_layout_is_that_of_the_design(tmp_path):
    video = tmp_path / "v.mp4"
    video.write_bytes(b"moving")
    photo = tmp_path / "My Photo.JPG"
    photo.write_bytes(b"as it is")
    out = tmp_path / "deep" / "out"
    samples = write_run(
        out,
        record(2),
        tile(1),
        [tile(2), tile(3)],
        [tile(2, (80, 60)), tile(3, (80, 60))],
        torch.zeros(2, 4, 2, 2),
        {"input": tile(4), "mask": tile(5)},
        {"original": photo},
        [video] * 2,
    )
    assert samples == out / "samples"
    assert sorted(tree(out).keys() - {".run.lock"}) == [
        "a-pink-yarn-ball.png",
        "samples/assets/input.png",
        "samples/assets/mask.png",
        "samples/assets/original.jpg",
        "samples/images/0000.png",
        "samples/images/0001.png",
        "samples/latents.safetensors",
        "samples/results/0000.png",
        "samples/results/0001.png",
        "samples/run.json",
        "samples/videos/0000.mp4",
        "samples/videos/0001.mp4",
    ]
    assert hidden(out) == []
    assert video.exists() and photo.exists(), "the caller's files stay the caller's"
    assert (samples / "assets" / "original.jpg").read_bytes() == b"as it is"
    assert Image.open(samples / "results" / "0001.png").size == (80, 60)
    (tmp_path / "plain").mkdir()
    assert samples.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_written_is_read_back(tmp_path):
    samples = save(tmp_path)
    for path in (samples, tmp_path, str(samples) + "/"):
        run = read_run(path)
        assert len(run) == 3
        assert run.record == replace(record(), created=run.record.created, run_id=run.record.run_id)
    for i in range(3):
        assert np.array_equal(run.image(i), tile(10 + i))
        z0 = run.z0(i)
        assert z0.shape == (1, 4, 2, 3) and z0.dtype == torch.float32
        assert torch.equal(z0, (torch.arange(72).reshape(3, 4, 2, 3) + 10 / 7)[i : i + 1]), "from the latents, exactly"
    assert np.array_equal(run.input, tile(99))
    assert run.asset("input") == samples / "assets" / "input.png" and run.asset("original") is None
    assert run.mask.mode == "L" and np.array_equal(run.mask, np.eye(12, 16, dtype=np.uint8) * 255)
    assert load_file(samples / "latents.safetensors").keys() == {"z0"}


def test_png_text_of_predictions(tmp_path):
    samples = save(tmp_path, prompt="a ball, 糸玉\nsecond line")
    text = read_png_text(samples / "images" / "0001.png")
    assert text["parameters"] == (
        "a ball, 糸玉\nsecond line\nSteps: 50, Sampler: DDIM, CFG scale: 5.0, Seed: 42, Size: 16x12, Model: scenes, "
        "CLIP distance: 0.6100"
    )
    about = json.loads(text["ldm"])
    assert (about["index"], about["seed"], about["clip_distance"]) == (1, 42, 0.61)
    assert RunRecord.from_json(json.dumps(about["run"])) == read_run(samples).record
    samples = save(tmp_path, scores=None, options={})
    text = read_png_text(samples / "images" / "0000.png")["parameters"]
    assert text.endswith("Sampler: DDIM, Seed: 41, Size: 16x12, Model: scenes")


def test_any_prompt_can_be_written(tmp_path):
    for prompt in AWKWARD:
        samples = save(tmp_path, 1, prompt=prompt)
        assert (tmp_path / f"{prompt_slug(prompt)}.png").is_file()
        assert read_run(samples).record.prompt == prompt.encode("utf-8", "replace").decode()
    assert len(list(tmp_path.glob("*.png"))) == len(AWKWARD)


def test_counts_must_agree(tmp_path):
    for images, results, latents, videos in ((2, 3, 3, None), (3, 2, 3, None), (3, 3, 2, None), (3, 3, 3, ["a"])):
        pictures = [tile(2)] * images, [tile(2)] * results
        with pytest.raises(ValueError, match="as many"):
            write_run(tmp_path, record(), tile(1), *pictures, torch.zeros(latents, 4, 2, 2), {}, videos=videos)
    with pytest.raises(ValueError):
        write_run(tmp_path, record(seeds=(), scores=()), tile(1), [], [], torch.zeros(0, 4, 2, 2), {})
    assert list(tmp_path.iterdir()) == []


def test_no_such_prediction(tmp_path):
    run = read_run(save(tmp_path, 6))
    for index in (6, -1, 100):
        for read in (run.image, run.z0):
            with pytest.raises(UserError, match=rf"no prediction {index} .*there are predictions 0 to 5"):
                read(index)
    with pytest.raises(UserError, match="there is prediction 0 alone"):
        read_run(save(tmp_path, 1)).image(1)


def test_runs_that_are_missing_or_damaged(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing", tmp_path / "missing" / "samples"):
        with pytest.raises(UserError, match=r"no run in .*text_editing"):
            read_run(path)
    samples = save(tmp_path)
    run = read_run(samples)
    latents = samples / "latents.safetensors"
    latents.write_bytes(latents.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged"):
        run.z0(0)
    latents.unlink()
    assert run.z0(0) is None, "then the image is encoded instead"
    (samples / "images" / "0001.png").unlink()
    with pytest.raises(UserError, match=r"0001\.png"):
        run.image(1)
    (samples / "run.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"run\.json"):
        read_run(samples)


# --- a second run ----------------------------------------------------------------------------------------------------


def prompts(outdir: Path) -> list[str]:
    """Of the runs of an output folder, the latest first."""
    names = ["samples", *sorted((p.name for p in outdir.glob("samples.*")), key=lambda name: int(name[8:]))]
    return [read_run(outdir / name).record.prompt for name in names]


def test_a_new_run_keeps_the_ones_before(tmp_path):
    for i in range(12):
        save(tmp_path, 2, level=i, prompt=f"ball {'abcdefghijkl'[i]}")
    assert prompts(tmp_path) == [f"ball {letter}" for letter in "lkjihgfedcba"]
    assert read_run(tmp_path).record.prompt == "ball l"
    first = read_run(tmp_path / "samples.11")
    assert np.array_equal(first.image(1), tile(1)) and first.z0(0) is not None and first.asset("input").is_file()
    save(tmp_path, 1, level=200, prompt="ball a")
    assert Image.open(tmp_path / "ball-a.png").getpixel((1, 1))[0] == 200, "the grid is the latest one"
    assert hidden(tmp_path) == []


def test_a_gap_is_filled_and_what_lies_behind_it_stays(tmp_path):
    for letter in "abcd":
        save(tmp_path, 1, prompt=letter)
    os.rename(tmp_path / "samples.2", tmp_path / "elsewhere")
    save(tmp_path, 1, prompt="e")
    assert prompts(tmp_path) == ["e", "d", "c", "a"] and (tmp_path / "samples.3").is_dir()


def test_overwrite_replaces_the_run_before_as_a_whole(tmp_path):
    save(tmp_path, 1, prompt="first")
    samples = save(tmp_path, 5)
    write_reconstruction(read_run(samples), "optimization", 4, tile(3), {})
    save(tmp_path, 2, overwrite=True, masks=[tile(0), tile(255)])
    assert seen(samples / "masks") == ["0000.png", "0001.png"]
    save(tmp_path, 2, level=60, prompt="a blue cube", overwrite=True)
    assert seen(tmp_path) == ["a-blue-cube.png", "a-pink-yarn-ball.png", "first.png", "samples", "samples.1"]
    assert seen(samples) == ["assets", "images", "latents.safetensors", "results", "run.json"]
    assert seen(samples / "images") == ["0000.png", "0001.png"]
    assert prompts(tmp_path) == ["a blue cube", "first"] and hidden(tmp_path) == []


def test_pictures_from_a_prompt_alone(tmp_path):
    folder = paint(tmp_path, 3)
    assert folder == tmp_path / "a-pink-yarn-ball"
    names = ["0000.png", "0001.png", "0002.png", "latents.safetensors", "run.json"]
    assert seen(tmp_path) == ["a-pink-yarn-ball", "a-pink-yarn-ball.png"] and seen(folder) == names
    run = read_run(folder)
    assert len(run) == 3 and run.record.image is None and np.array_equal(run.image(2), tile(12))
    assert run.z0(2).shape == (1, 4, 2, 3) and run.asset("original") is None
    assert "Seed: 42" in read_png_text(folder / "0001.png")["parameters"]
    paint(tmp_path, 1, level=50)
    paint(tmp_path, 1, prompt="a blue cube")
    paint(tmp_path, 1, prompt="samples")
    assert seen(folder) == ["0000.png", "latents.safetensors", "run.json"] and hidden(tmp_path) == []
    paint(tmp_path, 1, level=70, overwrite=False)
    assert [read_run(f).image(0).getpixel((0, 0))[0] for f in (folder, tmp_path / "a-pink-yarn-ball.1")] == [70, 50]
    with pytest.raises(UserError, match="another kind"):  # than the pictures of the prompt "samples"
        save(tmp_path)


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a bug"), KeyboardInterrupt()]
STEPS = ["save_png", "_save_z0", "os.rename", "os.replace", "shutil.copyfile"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", FAILURES)
def test_the_old_runs_survive_any_failure(tmp_path, monkeypatch, step, error, overwrite):
    out = tmp_path / "out"
    save(out, prompt="the first")
    save(out)
    before = tree(out)
    video = tmp_path / "v.mp4"
    video.touch()
    where, name = (getattr(run_folder, step.split(".")[0]), step.split(".")[1]) if "." in step else (run_folder, step)
    original, reached = getattr(where, name), []

    def fail(source, *arguments, **options):
        inside = step != "os.replace" or "grid.png" in str(source)
        if step == "os.rename" and ".samples.new-" not in str(source):
            inside = False  # the last rename, when the old runs are already out of the way
        if not inside or reached:
            return original(source, *arguments, **options)
        reached.append(source)
        raise error

    monkeypatch.setattr(where, name, fail)
    expected = UserError if isinstance(error, OSError) else type(error)
    pictures = [tile(2)] * 2, [tile(2)] * 2
    arguments = record(2, prompt="a pink yarn ball"), tile(1), *pictures, torch.zeros(2, 4, 2, 2), {}, {}, [video] * 2
    with pytest.raises(expected) as caught:
        write_run(out, *arguments, overwrite)
    assert reached
    if expected is UserError:
        assert "free some space" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    if step == "os.replace":  # the very last step: the new run is there, whole, and only its grid is not
        assert [len(read_run(path)) for path in sorted(out.glob("samples*"))] == [2, 3, 3][: 2 if overwrite else 3]
    else:
        assert tree(out) == before
    assert hidden(out) == []


# --- killed at any instant -------------------------------------------------------------------------------------------

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that dies before its `step`th change of a folder; whether it died."""
    process = os.fork()
    if process == 0:
        left = itertools.count(step, -1)

        def count(event: str, arguments: tuple) -> None:
            if event in CHANGES and next(left) == 0:
                os._exit(9)

        sys.addaudithook(count)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9), "the work itself failed"
    return code == 9


def whole(run: Run) -> str:
    """The prompt of a run of which everything is there."""
    for i in range(len(run)):
        assert run.image(i).size == (16, 12) and run.z0(i).shape == (1, 4, 2, 3)
    return run.record.prompt


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_any_instant_nothing_is_lost(tmp_path, overwrite):
    out, start, seen_latest = tmp_path / "out", tmp_path / "start", set()
    for letter in "abc":
        save(start, 1, prompt=letter)
    (start / "b.txt").write_text("mine")
    for step in itertools.count():
        shutil.copytree(start, out)
        died = killed_at(step, lambda: save(out, 1, prompt="new", overwrite=overwrite))
        # A reader finds the latest run, whole, by the place that it is told of, and changes nothing.
        before = tree(out)
        latest = whole(read_run(out / "samples"))
        assert whole(read_run(out)) == latest and tree(out) == before
        assert latest == "new" if not died else latest in ("c", "new")
        seen_latest.add(latest)
        # The next writer, and then each run is there once, in order.
        save(out, 1, prompt="last")
        kept = ["b", "a"] if overwrite and latest == "new" else ["c", "b", "a"]
        assert prompts(out) == ["last", *(["new"] if latest == "new" else []), *kept]
        assert all(whole(read_run(folder)) for folder in out.glob("samples*"))
        assert hidden(out) == [] and (out / "b.txt").read_text() == "mine"
        assert (out / "last.png").is_file()
        if not died:
            break
        shutil.rmtree(out)
    assert step > 15 and seen_latest == {"c", "new"}


def test_pictures_killed_at_any_instant(tmp_path):
    for step in itertools.count():
        folder = paint(tmp_path, 1, level=10)
        died = killed_at(step, lambda: paint(tmp_path, 1, level=20))
        before = tree(tmp_path)
        run = read_run(folder)
        assert (len(run), run.image(0).getpixel((0, 0))[0]) in ((1, 10), (1, 20)) and tree(tmp_path) == before
        paint(tmp_path, 1, level=30)
        assert seen(tmp_path) == ["a-pink-yarn-ball", "a-pink-yarn-ball.png"] and hidden(tmp_path) == []
        if not died:
            break
    assert step > 10


def test_what_the_released_program_left_when_it_was_killed_is_recovered(tmp_path, caplog):
    save(tmp_path)
    os.rename(tmp_path / "samples", tmp_path / ".samples.old")
    before = tree(tmp_path)
    assert len(read_run(tmp_path / "samples")) == 3 and tree(tmp_path) == before
    (tmp_path / ".samples.new-stale" / "samples").mkdir(parents=True)
    save(tmp_path, 2)
    assert "earlier run is back" in caplog.text and hidden(tmp_path) == []
    assert [len(read_run(tmp_path / name)) for name in ("samples", "samples.1")] == [2, 3]


# --- at the same time ------------------------------------------------------------------------------------------------


def write_some(out: Path, letter: str, overwrite: bool = False) -> None:
    torch.set_num_threads(1)
    for i in range(5):
        save(out, 1, prompt=f"{letter} {'vwxyz'[i]}", overwrite=overwrite)


def test_two_writers_at_once_both_keep_their_runs(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_some, args=(tmp_path, letter)) for letter in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(prompts(tmp_path)) == [f"{letter} {i}" for letter in "ab" for i in "vwxyz"]
    for letter in "ab":
        assert [p for p in prompts(tmp_path) if p[0] == letter] == [f"{letter} {i}" for i in "zyxwv"]
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_reader_beside_a_writer_sees_one_run_whole(tmp_path, overwrite):
    save(tmp_path, 1, prompt="first")
    process = multiprocessing.get_context("fork").Process(target=write_some, args=(tmp_path, "a", overwrite))
    process.start()
    looks = 0
    while process.is_alive():
        run = read_run(tmp_path / "samples")
        try:
            text = run.read(lambda folder: read_png_text(folder / "images" / "0000.png"))
        except UserError as error:
            assert overwrite and "has been replaced" in str(error), error
            continue
        assert json.loads(text["ldm"])["run"]["run_id"] == run.record.run_id
        looks += 1
    process.join()
    assert looks and process.exitcode == 0


def test_a_run_that_was_read_stays_that_run(tmp_path):
    run = read_run(save(tmp_path, 2, level=10))
    save(tmp_path, 2, level=100)
    save(tmp_path, 2, level=150)
    assert run.find() == tmp_path / "samples.2"
    assert np.array_equal(run.image(1), tile(11)) and run.asset("input").parts[-3] == "samples.2"
    assert torch.equal(run.z0(0), torch.arange(24).reshape(1, 4, 2, 3) + 10 / 7)
    latest = read_run(tmp_path)
    save(tmp_path, 1, overwrite=True)
    with pytest.raises(UserError, match="has been replaced"):
        latest.image(0)
    assert run.find() == tmp_path / "samples.2"


def test_a_writer_waits_for_another(tmp_path, caplog):
    with locked(tmp_path / ".run.lock"):
        thread = threading.Thread(target=save, args=(tmp_path,))
        thread.start()
        thread.join(1.5)
        assert thread.is_alive() and not (tmp_path / "samples").exists() and "waiting" in caplog.text
    thread.join()
    assert len(read_run(tmp_path)) == 3


# --- files of the user's ---------------------------------------------------------------------------------------------

CHECKS = {
    lambda out: check_run(out, "a pink yarn ball"): save,
    lambda out: check_run(out, "a pink yarn ball", overwrite=True): lambda out: save(out, overwrite=True),
    lambda out: check_pictures(out, "a pink yarn ball"): paint,
    lambda out: check_pictures(out, "a pink yarn ball", overwrite=False): lambda out: paint(out, overwrite=False),
}
RUNS = list(CHECKS.items())


def their_photo(path: Path) -> None:
    tile(77).save(path)


def their_painting(path: Path) -> None:
    """As other programs mark what they paint."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    line = "Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 16x12, Model hash: 1f, Model: own"
    text.add_text("parameters", f"a pink yarn ball\n{line}")
    text.add_text("ldm", "[1]")
    tile(77).save(path, pnginfo=text)


def their_text(path: Path) -> None:
    path.write_text("mine")


def their_link(path: Path) -> None:
    their_photo(path.parent / "elsewhere.png")
    path.symlink_to("elsewhere.png")


def their_copy(path: Path) -> None:
    """One of our results, kept under another name."""
    path.write_bytes((save(path.parent / "other") / "results" / "0001.png").read_bytes())


@pytest.mark.parametrize("check_and_run", RUNS)
@pytest.mark.parametrize("make", [their_photo, their_painting, their_text, their_link, their_copy, Path.mkdir])
def test_a_picture_of_the_users_where_the_grid_goes_stays(tmp_path, check_and_run, make):
    make(tmp_path / "a-pink-yarn-ball.png")
    before = tree(tmp_path)
    for call in check_and_run:
        with pytest.raises(UserError, match=r"a-pink-yarn-ball\.png.*outdir") as caught:
            call(tmp_path)
        assert "\n" not in str(caught.value)
    after = tree(tmp_path)
    after.pop(".run.lock", None)
    assert after == before


@pytest.mark.parametrize("check_and_run", RUNS)
@pytest.mark.parametrize("name", ["0000.png", "run.json", "notes.txt", "images/0000.png"])
@pytest.mark.parametrize("make", [their_photo, their_text])
def test_a_folder_of_the_users_stays(tmp_path, check_and_run, name, make):
    for folder in ("samples", "a-pink-yarn-ball"):
        (tmp_path / folder / name).parent.mkdir(parents=True)
        make(tmp_path / "file.png")
        os.rename(tmp_path / "file.png", tmp_path / folder / name)
    before = tree(tmp_path)
    for call in check_and_run:
        with pytest.raises(UserError, match="outdir") as caught:
            call(tmp_path)
        assert "\n" not in str(caught.value)
    after = tree(tmp_path)
    after.pop(".run.lock", None)
    assert after == before


def test_a_folder_of_the_users_among_the_older_runs_is_not_moved(tmp_path):
    save(tmp_path)
    (tmp_path / "samples.1").mkdir()
    (tmp_path / "samples.1" / "thesis.txt").write_text("precious")
    for call in RUNS[0]:
        with pytest.raises(UserError, match=r"samples\.1.*outdir"):
            call(tmp_path)
    save(tmp_path, 1, overwrite=True)  # moves nothing on
    assert (tmp_path / "samples.1" / "thesis.txt").read_text() == "precious" and len(read_run(tmp_path)) == 1


def test_files_that_the_user_added_to_a_run_are_not_removed_with_it(tmp_path):
    samples, folder = save(tmp_path, 2), paint(tmp_path, 2)
    (samples / ".DS_Store").write_text("litter")
    (samples / "images" / ".0123456789ab.part").write_text("litter")
    added = [samples / "notes.txt", samples / "images" / "0002.png", samples / "results" / "best.png"]
    added += [folder / "notes.txt", folder / "0002.png", folder / "mine" / "0000.png"]
    for path in added:
        path.parent.mkdir(exist_ok=True)
        (their_text if path.suffix == ".txt" else their_photo)(path)
        before = tree(tmp_path)
        for call in RUNS[1 if samples in path.parents else 2]:
            with pytest.raises(UserError, match=re.escape(f'"{path}" is not of the run')):
                call(tmp_path)
        assert tree(tmp_path) == before
        path.unlink()
    (folder / "mine").rmdir()
    (samples / "images" / "0001.png").write_bytes((samples / "images" / "0000.png").read_bytes())
    save(tmp_path, 1, overwrite=True)
    paint(tmp_path, 1)
    (samples / "notes.txt").write_text("mine")
    save(tmp_path, 1)
    assert (tmp_path / "samples.1" / "notes.txt").read_text() == "mine", "it moves on with its run"


def test_what_the_released_program_wrote_is_replaced(tmp_path):
    """Grids with `parameters` alone, runs of format 2, folders of pictures without a record."""
    run = RunRecord.from_json(json.dumps(released_record()))
    samples = save(tmp_path, 2)
    grid = save_png
    for overwrite in (False, True):
        (samples / "run.json").write_text(json.dumps(released_record()))
        for path in [*samples.glob("images/*.png"), *samples.glob("results/*.png")]:
            about = {"index": 0, "seed": 42, "clip_distance": None, "run": released_record()}
            grid(tile(3), path, run.png_text(0) | {"ldm": json.dumps(about)})
        grid(tile(3), tmp_path / "a-pink-yarn-ball.png", {"parameters": run.png_text(0)["parameters"]})
        save(tmp_path, 1, overwrite=overwrite)
    assert read_run(tmp_path / "samples.1").record.format == 2
    (tmp_path / "a-red-ball").mkdir()
    for i in range(2):
        about = {"prompt": "a red ball", "seed": i, "n_samples": 2, "size": [12, 16], "model": "scenes"}
        line = "Steps: 50, Sampler: DDIM, Eta: 0.0, CFG scale: 5.0, Seed: 0, Size: 16x12, Model: scenes"
        text = {"parameters": f"a red ball\n{line}", "ldm": json.dumps(about)}
        grid(tile(3), tmp_path / "a-red-ball" / f"{i:04d}.png", text)
        grid(tile(3), tmp_path / "a-red-ball.png", {"parameters": text["parameters"]})
    paint(tmp_path, 1, prompt="a red ball")
    assert seen(tmp_path / "a-red-ball") == ["0000.png", "latents.safetensors", "run.json"]


def test_folders_that_are_not_ours_are_refused(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "thesis.txt").write_text("precious")
    for call in RUNS[0]:
        with pytest.raises(UserError, match=r"no run\.json.*outdir"):
            call(tmp_path)
    (tmp_path / "samples" / "thesis.txt").unlink()
    save(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "samples").write_text("a file")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "samples").symlink_to(tmp_path / "samples")
    (tmp_path / "fourth").mkdir()
    (tmp_path / "fourth" / ".run.lock").write_text("a file of the user's")
    for name, words in {"other": "no folder", "third": "no folder", "fourth": "no lock"}.items():
        for call in RUNS[0]:
            with pytest.raises(UserError, match=words):
                call(tmp_path / name)
    assert (tmp_path / "fourth" / ".run.lock").read_text() == "a file of the user's"
    assert len(read_run(tmp_path)) == 3


def test_check_writable_leaves_nothing_behind(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
    save(tmp_path)
    paint(tmp_path)
    before = tree(tmp_path)
    for check in (check_writable, *CHECKS):
        check(tmp_path)
        assert tree(tmp_path) == before
    monkeypatch.chdir(tmp_path)
    check_writable("new")
    assert tree(tmp_path) == before


def test_a_link_to_nowhere_or_too_long_a_name_is_no_output_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for outdir in (tmp_path / "link", tmp_path / "link" / "out"):
        with pytest.raises(UserError, match="cannot write"):
            check_writable(outdir)
    with pytest.raises(UserError, match="too long"):
        check_writable(tmp_path / ("x" * 300))
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for outdir in (tmp_path / "file", tmp_path / "file" / "out"):
        for call in (check_writable, save):
            with pytest.raises(UserError, match="cannot write") as caught:
                call(outdir)
            assert "file" in str(caught.value) and "\n" not in str(caught.value)
    assert tree(tmp_path) == {"file": b""}

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        check_writable(tmp_path)


# --- reconstructions -------------------------------------------------------------------------------------------------


def test_reconstructions_keep_the_index_of_their_prediction(tmp_path):
    samples = save(tmp_path, 6)
    before = (samples / "run.json").read_bytes()
    path = write_reconstruction(read_run(samples), "optimization", 5, tile(5), {"psnr": 31.5})
    assert path == samples / "reconstructed_optimization" / "0005.png"
    assert np.array_equal(Image.open(path), tile(5))
    write_reconstruction(read_run(samples), "optimization", 0, tile(0), {"psnr": 30.0})
    write_reconstruction(read_run(samples), "optimization", 5, tile(55), {"psnr": 33.0, "device": torch.device("cpu")})
    write_reconstruction(read_run(tmp_path), "pixel", 1, tile(1), {})
    folder = samples / "reconstructed_optimization"
    assert sorted(p.name for p in folder.iterdir()) == ["0000.png", "0005.png", "reconstruction.json"]
    notes = json.loads((folder / "reconstruction.json").read_text())
    assert notes == {"0000": {"psnr": 30.0}, "0005": {"psnr": 33.0, "device": "cpu"}}
    assert np.array_equal(Image.open(path), tile(55))
    assert "Seed: 40" in read_png_text(path)["parameters"]
    assert (samples / "run.json").read_bytes() == before, "the record of the run stays as it is"


def test_reconstructions_that_cannot_be(tmp_path):
    samples = save(tmp_path)
    with pytest.raises(UserError, match="predictions 0 to 2"):
        write_reconstruction(read_run(samples), "pixel", 3, tile(1), {})
    with pytest.raises(ValueError, match="kind"):
        write_reconstruction(read_run(samples), "../pixel", 0, tile(1), {})
    assert not list(tmp_path.rglob("*pixel*"))
    (samples / "reconstructed_pixel").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_reconstruction(read_run(samples), "pixel", 0, tile(1), {})


def test_damaged_notes_do_not_lose_a_reconstruction(tmp_path):
    samples = save(tmp_path)
    write_reconstruction(read_run(samples), "pixel", 0, tile(1), {"psnr": 1})
    notes = samples / "reconstructed_pixel" / "reconstruction.json"
    for damage in ("{", "[]"):
        notes.write_text(damage)
        write_reconstruction(read_run(samples), "pixel", 2, tile(1), {"psnr": 2})
        assert json.loads(notes.read_text()) == {"0002": {"psnr": 2}}


def test_a_reconstruction_lands_in_its_own_run(tmp_path):
    run = read_run(save(tmp_path, 2, prompt="a red ball"))
    check_reconstruction(run, "pixel", [0, 1])
    save(tmp_path, 2, prompt="a blue cube")  # while it is being made
    path = write_reconstruction(run, "pixel", 1, tile(1), {})
    assert path == tmp_path / "samples.1" / "reconstructed_pixel" / "0001.png"
    assert read_png_text(path)["parameters"].startswith("a red ball\n")
    latest = read_run(tmp_path)
    save(tmp_path, 2, prompt="a green star", overwrite=True)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r'"a blue cube".* has been replaced'):
        write_reconstruction(latest, "pixel", 1, tile(1), {})
    assert tree(tmp_path) == before


def test_a_file_of_the_users_among_the_reconstructions_stays(tmp_path):
    run = read_run(save(tmp_path, 2))
    folder = run.path / "reconstructed_pixel"
    write_reconstruction(run, "pixel", 0, tile(1), {})
    their_photo(folder / "0001.png")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"0001\.png.*made by this program"):
        check_reconstruction(run, "pixel", [0, 1])
    with pytest.raises(UserError, match=r"0001\.png.*made by this program"):
        write_reconstruction(run, "pixel", 1, tile(1), {})
    assert tree(tmp_path) == before
    check_reconstruction(run, "pixel", [0])
    with pytest.raises(UserError, match="predictions 0 to 1"):
        check_reconstruction(run, "pixel", [2])


@pytest.mark.parametrize("way", [".", "..", "link", "link/.."])
def test_a_run_is_found_from_within_and_through_links(tmp_path, monkeypatch, way):
    samples = save(tmp_path / "out", 2, prompt="a red ball")
    (samples / "link").symlink_to(samples)
    monkeypatch.chdir(samples if way != ".." else samples / "images")
    run = read_run(way)
    (samples / "link").unlink()
    save(tmp_path / "out", 1)
    assert write_reconstruction(run, "pixel", 1, tile(1), {}).parts[-3] == "samples.1"
    assert hidden(samples) == [] and not list(tmp_path.rglob("samples*/.run.lock"))
    monkeypatch.chdir("/")
    for nowhere in (".", "/", "..", tmp_path):
        with pytest.raises(UserError, match="no run in"):
            read_run(nowhere)
