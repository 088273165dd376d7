"""The run folder: whole or not at all, never mixed, readable by the next step."""

import errno
import itertools
import json
import os
import re
import string
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldm.errors import UserError
from ldm.imaging.images import read_png_text
from ldm.runs import folder as run_folder
from ldm.runs.folder import check_writable, read_run, write_reconstruction, write_run
from ldm.runs.record import RunRecord, prompt_slug


def tile(level: int, size=(16, 12)) -> Image.Image:
    return Image.new("RGB", size, (level, 255 - level, 7))


def record(n: int = 3, **changes) -> RunRecord:
    values = {
        "prompt": "a pink yarn ball",
        "model": "scenes",
        "config": "models/ldm/scenes/config.yaml",
        "weights": "models/ldm/scenes/model.safetensors",
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


def save(outdir, n: int = 3, level: int = 10, **changes) -> Path:
    mask = Image.fromarray(np.eye(12, 16, dtype=np.uint8) * 255)
    return write_run(
        outdir,
        record(n, **changes),
        tile(level, (90, 40)),
        [tile(level + i) for i in range(n)],
        [tile(level + i, (80, 60)) for i in range(n)],
        torch.arange(n * 24).reshape(n, 4, 2, 3) + level / 7,
        {"input": tile(99), "mask": mask},
    )


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
    assert RunRecord.from_json(json.dumps(values | {"a_later_field": 1})) == record(created=values["created"])
    first = {k: v for k, v in values.items() if k not in ("weights_sha256", "invert_mask", "versions", "created")}
    assert RunRecord.from_json(json.dumps(first)).weights_sha256 is None


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
    assert sorted(tree(out)) == [
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
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    assert video.exists() and photo.exists(), "the caller's files stay the caller's"
    assert (samples / "assets" / "original.jpg").read_bytes() == b"as it is"
    assert Image.open(samples / "results" / "0001.png").size == (80, 60)
    (tmp_path / "plain").mkdir()
    assert samples.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_written_is_read_back(tmp_path):
    samples = save(tmp_path)
    for path in (samples, tmp_path, str(samples) + "/"):
        run = read_run(path)
        assert len(run) == 3 and run.record == replace(record(), created=run.record.created)
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


# --- replacing a run -------------------------------------------------------------------------------------------------


def test_a_new_run_replaces_the_old_one_as_a_whole(tmp_path):
    samples = save(tmp_path, 5)
    write_reconstruction(samples, "optimization", 4, tile(3), {})
    (samples / "notes.txt").write_text("stale")
    save(tmp_path, 2, level=60, prompt="a blue cube")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-blue-cube.png", "a-pink-yarn-ball.png", "samples"]
    assert sorted(p.name for p in samples.iterdir()) == [
        *("assets", "images", "latents.safetensors", "results", "run.json")
    ]
    assert sorted(p.name for p in (samples / "images").iterdir()) == ["0000.png", "0001.png"]
    assert read_run(samples).record.prompt == "a blue cube"
    save(tmp_path, 1, level=200)
    assert Image.open(tmp_path / "a-pink-yarn-ball.png").getpixel((1, 1))[0] == 200, "the grid is the latest one"


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a bug"), KeyboardInterrupt()]
STEPS = ["save_png", "save_safetensors", "os.rename", "os.replace", "shutil.copyfile"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", FAILURES)
def test_the_old_run_survives_any_failure(tmp_path, monkeypatch, step, error):
    save(tmp_path / "out")
    before = tree(tmp_path / "out")
    video = tmp_path / "v.mp4"
    video.touch()
    where, name = (getattr(run_folder, step.split(".")[0]), step.split(".")[1]) if "." in step else (run_folder, step)
    original, reached = getattr(where, name), []

    def fail(source, *arguments, **options):
        inside = step != "os.replace" or "grid.png" in str(source)
        if step == "os.rename" and run_folder._NEW not in str(source):
            inside = False  # the second rename, when the old run is already out of the way
        if not inside or reached:
            return original(source, *arguments, **options)
        reached.append(source)
        raise error

    monkeypatch.setattr(where, name, fail)
    expected = UserError if isinstance(error, OSError) else type(error)
    pictures = [tile(2)] * 2, [tile(2)] * 2
    arguments = record(2, prompt="a pink yarn ball"), tile(1), *pictures, torch.zeros(2, 4, 2, 2), {}, {}, [video] * 2
    with pytest.raises(expected) as caught:
        write_run(tmp_path / "out", *arguments)
    assert reached
    if expected is UserError:
        assert "free some space" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    if step == "os.replace":  # the very last step: the new run is there, whole, and only its grid is not
        assert len(read_run(tmp_path / "out")) == 2
    else:
        assert tree(tmp_path / "out") == before
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []


def test_a_run_killed_between_the_renames_is_recovered(tmp_path, caplog):
    save(tmp_path)
    before = tree(tmp_path / "samples")
    os.rename(tmp_path / "samples", tmp_path / ".samples.old")
    assert len(read_run(tmp_path / "samples")) == 3
    assert tree(tmp_path / "samples") == before and "earlier run is back" in caplog.text
    os.rename(tmp_path / "samples", tmp_path / ".samples.old")
    save(tmp_path, 2)
    assert len(read_run(tmp_path)) == 2
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_leftovers_of_killed_runs_are_swept_when_old(tmp_path):
    samples = save(tmp_path)
    for name in (".samples.old", ".samples.new-stale", ".samples.new-busy"):
        (tmp_path / name / "samples").mkdir(parents=True)
    os.utime(tmp_path / ".samples.new-stale", (0, time.time() - 7200))
    save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".samples.new-busy", "a-pink-yarn-ball.png", "samples"]
    assert len(read_run(samples)) == 2


def test_folders_that_are_not_ours_are_refused(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "thesis.txt").write_text("precious")
    for call in (check_writable, save):
        with pytest.raises(UserError, match=r"no run\.json.*--outdir"):
            call(tmp_path)
    assert tree(tmp_path) == {"samples/thesis.txt": b"precious"}
    (tmp_path / "samples" / "thesis.txt").unlink()
    save(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "samples").write_text("a file")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "samples").symlink_to(tmp_path / "samples")
    for name in ("other", "third"):
        with pytest.raises(UserError, match="no folder"):
            check_writable(tmp_path / name)
    assert len(read_run(tmp_path)) == 3


def test_check_writable_leaves_nothing_behind(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
    save(tmp_path)
    before = tree(tmp_path)
    check_writable(tmp_path)
    assert tree(tmp_path) == before
    monkeypatch.chdir(tmp_path)
    check_writable("new")
    assert tree(tmp_path) == before


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
    path = write_reconstruction(samples, "optimization", 5, tile(5), {"psnr": 31.5})
    assert path == samples / "reconstructed_optimization" / "0005.png"
    assert np.array_equal(Image.open(path), tile(5))
    write_reconstruction(samples, "optimization", 0, tile(0), {"psnr": 30.0})
    write_reconstruction(samples, "optimization", 5, tile(55), {"psnr": 33.0, "device": torch.device("cpu")})
    write_reconstruction(tmp_path, "pixel", 1, tile(1), {})
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
        write_reconstruction(samples, "pixel", 3, tile(1), {})
    with pytest.raises(UserError, match="no run"):
        write_reconstruction(tmp_path / "missing", "pixel", 0, tile(1), {})
    with pytest.raises(ValueError, match="kind"):
        write_reconstruction(samples, "../pixel", 0, tile(1), {})
    assert not list(tmp_path.rglob("*pixel*"))
    (samples / "reconstructed_pixel").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_reconstruction(samples, "pixel", 0, tile(1), {})


def test_damaged_notes_do_not_lose_a_reconstruction(tmp_path):
    samples = save(tmp_path)
    write_reconstruction(samples, "pixel", 0, tile(1), {"psnr": 1})
    notes = samples / "reconstructed_pixel" / "reconstruction.json"
    for damage in ("{", "[]"):
        notes.write_text(damage)
        write_reconstruction(samples, "pixel", 2, tile(1), {"psnr": 2})
        assert json.loads(notes.read_text()) == {"0002": {"psnr": 2}}
