"""scripts/text_editing.py from the outside: files in, a run folder out, one line for every mistake."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from ldm.cli import run
from ldm.imaging.images import read_png_text
from scripts import reconstruct, text_editing
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, an image and a mask."""
    folder = tmp_path_factory.mktemp("job")
    save_tiny_model(folder / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "img.png")
    mask = np.zeros((90, 120), np.uint8)
    mask[20:60, 30:80] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def edit(folder, outdir, *more, prompt="a red ball", image="img.png", mask="mask.png") -> int:
    argv = ["--prompt", prompt, "--init_image", str(folder / image), "--mask", str(folder / mask)]
    argv += ["--model", str(folder / "model"), "--outdir", str(outdir), "--ddim_steps", "3", "--n_samples", "2"]
    return run(text_editing.main, [*argv, "--device", "cpu", *map(str, more)])


def test_a_run_leaves_what_the_next_step_needs(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert edit(folder, out, "--seed", 7) == 0
    record = json.loads((out / "samples" / "run.json").read_text())
    assert record["prompt"] == "a red ball" and record["seeds"] == [7, 8] and record["scores"] is None
    assert sorted(p.name for p in (out / "samples" / "images").iterdir()) == ["0000.png", "0001.png"]
    assert load_file(out / "samples" / "latents.safetensors")["z0"].shape == (2, 4, 8, 8)
    assert Image.open(out / "samples" / "images" / "0000.png").size == (64, 64)
    assert Image.open(out / "samples" / "results" / "0000.png").size == (120, 90)
    assert (out / "samples/assets/original.png").read_bytes() == (folder / "img.png").read_bytes()
    assert Image.open(out / "a-red-ball.png").size[0] > 5 * 64
    assert "Seed: 7" in read_png_text(out / "samples" / "images" / "0000.png")["parameters"]
    said = capsys.readouterr()
    assert str(out / "a-red-ball.png") in said.out
    assert said.err.count("unranked") == 1  # no CLIP weights: said once, and the run went on


def test_the_same_seed_gives_the_same_files(folder, tmp_path):
    for name in "ab":
        assert edit(folder, tmp_path / name) == 0
    one, other = ((tmp_path / name / "samples/images/0001.png") for name in "ab")
    assert Image.open(one).tobytes() == Image.open(other).tobytes()


def test_a_new_run_replaces_the_old_one_as_a_whole(folder, tmp_path):
    assert edit(folder, tmp_path, "--n_samples", 3) == 0
    assert edit(folder, tmp_path, prompt="a blue cube") == 0
    assert len(list((tmp_path / "samples" / "images").iterdir())) == 2
    assert json.loads((tmp_path / "samples" / "run.json").read_text())["prompt"] == "a blue cube"


def test_inverting_the_mask_edits_the_other_part(folder, tmp_path):
    assert edit(folder, tmp_path, "--invert_mask") == 0
    mask = np.asarray(Image.open(tmp_path / "samples" / "assets" / "full_mask.png"))
    assert mask.shape == (90, 120) and mask[0, 0] == 255 and mask[30, 50] == 0


def outside(folder, feather: float) -> np.ndarray:
    """Pixels of the image that lie farther than `feather` from its mask's box."""
    far = np.ones((90, 120), bool)
    reach = int(np.ceil(feather))
    far[20 - reach : 60 + reach, 30 - reach : 80 + reach] = False
    return far


@pytest.mark.parametrize(
    "options", [(), ("--region", "whole"), ("--feather", 0), ("--feather", 9.5), ("--context", 0.1), ("--H", 48)]
)
def test_outside_the_mask_and_its_band_the_input_is_untouched(folder, tmp_path, capsys, options):
    assert edit(folder, tmp_path, *options) == 0
    record = json.loads((tmp_path / "samples" / "run.json").read_text())
    source = np.asarray(Image.open(folder / "img.png"))
    far = outside(folder, record["feather"])
    for i, measures in enumerate(record["measures"]):
        result = np.asarray(Image.open(tmp_path / f"samples/results/{i:04d}.png"))
        assert (result[far] == source[far]).all() and measures["max_difference"] == 0
        assert np.abs(result[30:50, 40:70].astype(int) - source[30:50, 40:70]).mean() > 5, "inside, something was made"
        assert measures["seam"] >= 0 and (measures["band_psnr"] is None) == (record["feather"] == 0)
    said = capsys.readouterr().out
    assert "largest difference 0 of 255" in said and "seam" in said


def test_a_window_around_the_mask_is_edited_unless_told_otherwise(folder, tmp_path):
    picture = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    mask = np.zeros((300, 400), np.uint8)
    mask[200:260, 300:360] = 255
    for name, array in (("big.png", picture), ("corner.png", mask)):
        Image.fromarray(array).save(tmp_path / name)
    files = {"image": tmp_path / "big.png", "mask": tmp_path / "corner.png"}
    windows = {}
    for region in ("auto", "whole"):
        assert edit(folder, tmp_path / region, "--region", region, **files) == 0
        record = json.loads((tmp_path / region / "samples" / "run.json").read_text())
        windows[region] = record["window"]
        assert Image.open(tmp_path / region / "samples/results/0000.png").size == (400, 300)
    defaults = record["options"]["context"], record["options"]["scale"]
    assert defaults == (0.5, 5.0), "those of a model whose config says nothing are on record too"
    assert windows["whole"] == {"left": 0, "top": 0, "width": 400, "height": 300, "image_size": [300, 400]}
    window = windows["auto"]
    assert window["width"] == window["height"] < 160, "square as the model's size is, and near the mask"
    assert window["left"] <= 300 and window["left"] + window["width"] >= 360


def test_what_the_file_was_the_result_is(folder, tmp_path):
    """Orientation, transparency and colour profile."""
    from PIL import ImageCms

    picture = Image.open(folder / "img.png").convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rich.png", icc_profile=profile, exif=exif)
    assert edit(folder, tmp_path / "o", image=tmp_path / "rich.png") == 0
    result = Image.open(tmp_path / "o/samples/results/0000.png")
    assert (result.mode, result.size, result.info["icc_profile"]) == ("RGBA", (120, 90), profile)
    far = outside(folder, json.loads((tmp_path / "o/samples/run.json").read_text())["feather"])
    assert (np.asarray(result)[far] == np.asarray(picture)[far]).all()
    assert (np.asarray(result)[..., 3] == np.asarray(picture)[..., 3]).all()


def test_ten_edits_in_a_row_touch_only_their_masks(folder, tmp_path):
    source = np.asarray(Image.open(folder / "img.png"))
    touched, image = np.zeros(source.shape[:2], bool), folder / "img.png"
    for i in range(10):
        mask = np.zeros(source.shape[:2], np.uint8)
        mask[7 * i : 7 * i + 14, 9 * i : 9 * i + 20] = 255
        Image.fromarray(mask).save(tmp_path / "mask.png")
        out = tmp_path / str(i)
        options = ("--n_samples", 1, "--ddim_steps", 2, "--seed", i)
        assert edit(folder, out, *options, image=image, mask=tmp_path / "mask.png") == 0
        reach = int(np.ceil(json.loads((out / "samples/run.json").read_text())["feather"]))
        touched[max(7 * i - reach, 0) : 7 * i + 14 + reach, max(9 * i - reach, 0) : 9 * i + 20 + reach] = True
        image = out / "samples" / "results" / "0000.png"
    last = np.asarray(Image.open(image))
    assert (last[~touched] == source[~touched]).all() and 0.1 < touched.mean() < 0.9
    assert (last[touched] != source[touched]).mean() > 0.5


def test_a_prediction_is_made_again_from_its_picture(folder, tmp_path):
    assert edit(folder, tmp_path / "a", "--n_samples", 3, "--ddim_eta", 0.5, "--scale", 3) == 0
    for kind in ("images", "results"):
        picture = tmp_path / "a" / "samples" / kind / "0002.png"
        argv = ["--from", str(picture), "--n_samples", "1", "--outdir", str(tmp_path / "b"), "--device", "cpu"]
        assert run(text_editing.main, argv) == 0
        again = np.asarray(Image.open(tmp_path / "b" / "samples" / kind / "0000.png")).astype(int)
        assert np.abs(again - np.asarray(Image.open(picture))).max() <= 1
    record = json.loads((tmp_path / "b/samples/run.json").read_text())
    assert record["seeds"] == [44] and record["options"]["scale"] == 3


def test_files_without_a_suffix_are_found_again(folder, tmp_path):
    for name in ("img", "mask"):
        shutil.copy(folder / f"{name}.png", tmp_path / name)
    out = tmp_path / "out"
    assert edit(tmp_path, out, "--model", folder / "model", image="img", mask="mask") == 0
    for name in ("img", "mask"):
        (tmp_path / name).unlink()
    picture = out / "samples" / "results" / "0000.png"
    assert run(text_editing.main, ["--from", str(picture), "--outdir", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/samples/results/0000.png").stat().st_size > 0
    argv = ["--images_path", str(out), "--reconstruction_type", "pixel"]
    assert run(reconstruct.main, argv) == 0


def test_making_again_with_a_change(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert edit(folder, tmp_path / "a", "--invert_mask", "--n_samples", 1) == 0
    picture = str(shutil.copy(tmp_path / "a/samples/images/0000.png", tmp_path / "alone.png"))
    shutil.rmtree(tmp_path / "a")
    argv = ["--from", picture, "--prompt", "a blue cube", "-o", str(tmp_path / "b"), "--device", "cpu"]
    argv += ["--config", "model/config.yaml", "--ckpt", "model/model.safetensors"]  # no name tells where they are
    assert run(text_editing.main, argv) == 0
    record = json.loads((tmp_path / "b/samples/run.json").read_text())
    assert (record["prompt"], record["seed"], record["invert_mask"]) == ("a blue cube", 42, True)


def test_a_picture_that_is_none_of_ours_cannot_be_made_again(folder, tmp_path, capsys):
    assert run(text_editing.main, ["--from", str(folder / "img.png")]) == 2
    said = capsys.readouterr().err
    assert "does not say how it was made" in said and len(said.splitlines()) == 1


def test_soft_masks_keep_more_where_they_are_dark(folder, tmp_path):
    levels = np.zeros((90, 120), np.uint8)
    levels[10:80, 10:60], levels[10:80, 60:110] = 255, 90
    Image.fromarray(levels).save(tmp_path / "soft.png")
    options = ("--soft_mask", "--region", "whole", "--ddim_steps", 10, "--mask_dilation_iterations", 0)
    assert edit(folder, tmp_path / "o", *options, mask=tmp_path / "soft.png") == 0
    after, before = (Image.open(tmp_path / "o/samples" / name) for name in ("images/0000.png", "assets/input.png"))
    change = np.abs(np.asarray(after).astype(int) - np.asarray(before)).mean(-1)
    assert change[16:48, 10:28].mean() > 1.3 * change[16:48, 36:54].mean()


@pytest.mark.parametrize("prompt", ["img", "mask"])
def test_the_users_own_files_are_not_replaced(folder, tmp_path, capsys, monkeypatch, prompt):
    monkeypatch.chdir(tmp_path)
    for name in ("img.png", "mask.png"):
        shutil.copy(folder / name, name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    argv = ["-i", "img.png", "--mask", "mask.png", "-p", prompt, "-o", ".", "--model", "no model is looked for"]
    assert run(text_editing.main, argv) == 2
    said = capsys.readouterr().err
    assert f'"{prompt}.png" was not made by this program' in said and len(said.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_second_run_keeps_the_first(folder, tmp_path):
    assert edit(folder, tmp_path, "--n_samples", 1, "--seed", 5) == 0
    assert edit(folder, tmp_path, "--n_samples", 1, "--seed", 6) == 0
    seeds = [json.loads((tmp_path / name / "run.json").read_text())["seed"] for name in ("samples", "samples.1")]
    assert seeds == [6, 5]


def test_working_size(folder, tmp_path):
    assert edit(folder, tmp_path, "--H", 48, "--W", 80) == 0
    assert Image.open(tmp_path / "samples/images/0000.png").size == (80, 48)


@pytest.mark.parametrize("prompt", ["", "a/b\\c\n..", "🦀 über", "x" * 5000, "CON", "-p"])
def test_any_prompt_is_a_safe_file_name(folder, tmp_path, prompt):
    argv = [f"--prompt={prompt}", "-i", str(folder / "img.png"), "--mask", str(folder / "mask.png")]
    argv += ["--model", str(folder / "model"), "-o", str(tmp_path / "o"), "--ddim_steps", "1", "--n_samples", "1"]
    argv += ["--force"]
    assert run(text_editing.main, argv) == 0
    grids = list((tmp_path / "o").glob("*.png"))
    assert len(grids) == 1 and len(grids[0].name) < 100
    assert json.loads((tmp_path / "o/samples/run.json").read_text())["prompt"] == prompt


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"image": "none.png"}, "none.png"),
        ({"mask": "none.png"}, "none.png"),
        ({"image": "text.png"}, "text.png"),
        ({"mask": "black.png"}, "black.png"),
        ({"more": ["--H", 50]}, "--H 48"),
        ({"more": ["--ddim_steps", 1001]}, "1001"),
        ({"more": ["--ddim_steps", 0]}, '--ddim_steps is "0": give an integer from 1 to 1000'),
        ({"more": ["--skip_steps", 3]}, "--skip_steps is 3: give 0 to 2 with --ddim_steps 3"),
        ({"more": ["--n_samples", 0]}, '--n_samples is "0": give an integer from 1 to 1024'),
        ({"more": ["--scale", "much"]}, '--scale is "much": give a number of at least 0'),
        ({"more": ["--percentage_of_pixel_blending", 30]}, '"30": give a number from 0 to 1'),
        ({"more": ["--H", 1000000]}, '--H is "1000000": give an integer from 8 to 8192'),
        ({"more": ["--model", "nonesuch"]}, "nonesuch"),
        ({"more": ["--device", "cuda:99"]}, "cuda:99"),
        ({"more": ["--config", "x.yaml"]}, "ckpt"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(folder, tmp_path, capsys, arguments, named):
    (folder / "text.png").write_text("this is no picture")
    Image.new("L", (120, 90)).save(folder / "black.png")
    more = arguments.pop("more", [])
    try:
        code = edit(folder, tmp_path / "out", *more, **arguments)
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and named in errors[0], said.err
    assert "Traceback" not in said.err and said.out == ""
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert edit(folder, tmp_path / "file" / "out") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_missing_video_writer_is_named_with_its_extra_before_the_work(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert edit(folder, tmp_path / "out", "--save_video") == 2
    assert 'the extra "video"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_videos_of_the_estimates(folder, tmp_path):
    import imageio.v3 as iio

    assert edit(folder, tmp_path, "--save_video", "--ddim_steps", 6) == 0
    frames = iio.imread(tmp_path / "samples/videos/0001.mp4", plugin="FFMPEG")
    assert frames.shape[1:] == (64, 64, 3) and len(frames) >= 6
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 2


def test_help_answers_at_once_and_imports_nothing_heavy(tmp_path):
    for script in sorted((ROOT / "scripts").glob("[a-z]*.py")):
        code = f"import sys, runpy; sys.argv = [{str(script)!r}, '--help']\ntry: runpy.run_path({str(script)!r}, "
        code += "run_name='__main__')\nexcept SystemExit as stop: print(stop.code, "
        code += "[name for name in ('torch', 'numpy', 'PIL', 'tqdm', 'omegaconf') if name in sys.modules])"
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == "0 []", (script, done.stdout, done.stderr)
        assert "usage:" in done.stdout
        assert time.perf_counter() - start < 10  # a hang, not a benchmark


def test_editing_imports_only_what_it_uses(folder, tmp_path):
    code = "import sys, ldm.runs.edit; print([m for m in ('pytorch_lightning', 'open_clip', 'cv2', 'imageio', "
    code += "'diffusers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_mask_doctor_looks_at_the_window_that_the_model_would_take(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(tmp_path / "img.png")
    mask = np.zeros((300, 400), np.uint8)
    mask[100:200, 150:250] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    model = save_tiny_model(tmp_path / "model", editing={"context": 0.25})
    files = ["-i", str(tmp_path / "img.png"), "--mask", str(tmp_path / "mask.png"), "--model", str(model)]
    for more, side in (([], 150), (["--context", "0.5"], 200)):
        assert run(text_editing.main, [*files, *more, "-o", str(tmp_path / "o"), "--check"]) == 0
        assert f"{side}x{side} from" in capsys.readouterr().out


def test_the_mask_doctor_reports_and_does_not_edit(folder, tmp_path, capsys):
    argv = ["-i", str(folder / "img.png"), "--mask", str(folder / "mask.png"), "--model", str(folder / "model")]
    assert run(text_editing.main, [*argv, "-o", str(tmp_path / "o"), "--check"]) == 0
    said = capsys.readouterr().out
    assert "120x90" in said and "nothing" in said.split("odd:")[1], "a mask in order"
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["mask-check.png"]
    assert Image.open(tmp_path / "o" / "mask-check.png").size[0] > 300
    Image.fromarray(255 - np.asarray(Image.open(folder / "mask.png"))).save(tmp_path / "turned.png")
    argv[3] = str(tmp_path / "turned.png")
    assert run(text_editing.main, [*argv, "-o", str(tmp_path / "o"), "--check"]) == 0
    assert "--invert_mask" in capsys.readouterr().out


def test_a_picture_elsewhere_is_made_again_from_the_files_that_made_it_and_no_others(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("img.png", "mask.png"):
        shutil.copy(folder / name, name)
    own = ["-i", "img.png", "--mask", "mask.png", "-p", "a red ball", "--n_samples", "1", "--ddim_steps", "2"]
    assert run(text_editing.main, [*own, "--model", "scenes", "--precision", "float32", "-o", "a"]) == 0
    shutil.move("a/samples/results/0000.png", "alone.png")
    shutil.rmtree("a")
    assert run(text_editing.main, ["--from", "alone.png", "-o", "b"]) == 0
    record = json.loads(Path("b/samples/run.json").read_text())
    assert record["model"] == "scenes" and record["ranker"] == "clip/scenes" and len(record["scores"]) == 1
    assert Image.open("b/samples/results/0000.png").tobytes() == Image.open("alone.png").tobytes()
    assert str(tmp_path) not in read_png_text(tmp_path / "alone.png")["ldm"], "nobody's folders"
    Image.new("RGB", (120, 90)).save("img.png")  # another picture of that name
    assert run(text_editing.main, ["--from", "alone.png", "-o", "c"]) == 2


def test_a_check_does_not_write_over_a_picture_of_the_users(folder, tmp_path, capsys):
    (tmp_path / "mask-check.png").write_bytes((folder / "img.png").read_bytes())
    argv = ["-i", str(folder / "img.png"), "--mask", str(folder / "mask.png"), "--model", str(folder / "model")]
    assert run(text_editing.main, [*argv, "-o", str(tmp_path), "--check"]) == 2
    assert (tmp_path / "mask-check.png").read_bytes() == (folder / "img.png").read_bytes()
    (tmp_path / "mask-check.png").unlink()
    for _ in range(2):  # our own is replaced
        assert run(text_editing.main, [*argv, "-o", str(tmp_path), "--check"]) == 0


def test_options_of_the_released_program_are_taken(folder, tmp_path, capsys):
    assert edit(folder, tmp_path / "o", "--batch_size", 3, "--n_samples", 1) == 0
    said = capsys.readouterr().err
    assert "taken as" not in said, "ours wins"
    assert len(json.loads((tmp_path / "o/samples/run.json").read_text())["seeds"]) == 1
    needed = ["-p", "p", "-i", "x.png", "--mask", "m.png"]
    assert run(text_editing.main, [*needed, "--batch_size", "0"]) == 2
    assert capsys.readouterr().err.startswith("note: taken as --n_samples 0\n")
    job, _ = text_editing.parse([*needed, "--gpu_id", "1"])
    assert job.device == "cuda:1"


def test_a_prompt_without_a_known_word_is_refused_unless_it_is_forced(folder, tmp_path, capsys):
    assert edit(folder, tmp_path / "o", prompt="fire") == 2
    assert "knows no word of" in capsys.readouterr().err and not (tmp_path / "o").exists()
    assert edit(folder, tmp_path / "o", "--force", prompt="fire") == 0


def test_another_sampler_takes_its_own_noise_when_made_again(folder, tmp_path):
    assert edit(folder, tmp_path / "a", "--n_samples", 1) == 0
    picture = str(tmp_path / "a/samples/results/0000.png")
    argv = ["--from", picture, "--sampler", "dpmpp_2m", "-o", str(tmp_path / "b"), "--device", "cpu"]
    assert run(text_editing.main, argv) == 0
    options = json.loads((tmp_path / "b/samples/run.json").read_text())["options"]
    assert (options["sampler"], options["background_noise"]) == ("dpmpp_2m", "shared")
