"""scripts/txt2img.py from the outside."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.backbones.defaults import Defaults
from ldm.cli import run
from ldm.editing.edit import generate
from ldm.editing.request import SamplingRequest
from ldm.errors import UserError
from ldm.imaging.images import read_png_text
from scripts import txt2img
from tests.tiny import save_tiny_model, tiny_model

WORDS = {"shapes": ["ball", "cube", "cone", "mug", "die", "star"], "colours": ["red", "blue"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("txt2img") / "model", words=WORDS)


def paint(model, outdir, *more, prompt="a red ball") -> int:
    argv = [f"--prompt={prompt}", "--model", str(model), "--outdir", str(outdir), "--ddim_steps", "3"]
    return run(txt2img.main, [*argv, "--n_samples", "2", "--device", "cpu", "--precision", "float32", *map(str, more)])


def seen(folder: Path) -> list[str]:
    """What a file browser shows of a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def test_a_run_leaves_a_grid_and_pictures_that_say_how_they_were_made(model, tmp_path, capsys):
    assert paint(model, tmp_path, "--seed", 7, "--n_iter", 2, "--scale", 3) == 0
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert files == ["a-red-ball.png", *(f"a-red-ball/{i:04d}.png" for i in range(4))]
    assert seen(tmp_path) == ["a-red-ball", "a-red-ball.png"]
    assert Image.open(tmp_path / "a-red-ball/0000.png").size == (64, 64)
    assert Image.open(tmp_path / "a-red-ball.png").width > 4 * 64
    text = read_png_text(tmp_path / "a-red-ball/0003.png")
    assert text["parameters"].startswith("a red ball\nSteps: 3, ") and "Seed: 10" in text["parameters"]
    about = json.loads(text["ldm"])
    record = about["run"]
    assert (record["prompt"], about["seed"], record["size"]) == ("a red ball", 10, [64, 64])
    assert (record["options"]["scale"], record["precision"], record["window"]) == (3.0, "float32", None)
    said = capsys.readouterr()
    assert str(tmp_path / "a-red-ball.png") in said.out and said.err.count("unranked") == 1


def test_a_model_brings_its_own_scale(tmp_path):
    own = save_tiny_model(tmp_path / "own", editing={"scale": 2.0})
    pictures = {}
    for name, more in {"own": (), "told": ("--scale", 2), "other": ("--scale", 5)}.items():
        assert paint(own, tmp_path / name, *more) == 0
        picture = tmp_path / name / "a-red-ball/0000.png"
        pictures[name] = Image.open(picture).tobytes()
        assert json.loads(read_png_text(picture)["ldm"])["run"]["options"]["scale"] == (5.0 if name == "other" else 2.0)
    assert pictures["own"] == pictures["told"] != pictures["other"]


def test_a_new_run_of_a_prompt_replaces_the_old_one_and_leaves_those_of_others(model, tmp_path):
    assert paint(model, tmp_path, "--n_samples", 3) == 0
    assert paint(model, tmp_path, prompt="a blue cube") == 0
    assert paint(model, tmp_path) == 0
    assert seen(tmp_path) == ["a-blue-cube", "a-blue-cube.png", "a-red-ball", "a-red-ball.png"]
    assert len(list((tmp_path / "a-red-ball").glob("*.png"))) == 2


def test_a_folder_of_the_users_is_not_replaced(model, tmp_path, capsys):
    (tmp_path / "a-red-ball").mkdir()
    (tmp_path / "a-red-ball" / "diary.txt").write_text("mine")
    assert paint(model, tmp_path) == 2
    assert "diary.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["a-red-ball", "diary.txt"]


def asked(*prompt: str, **options) -> SamplingRequest:
    return Defaults().fill(SamplingRequest(*prompt, **options))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_picture_depends_on_its_seed_and_not_on_its_batch(eta):
    model = tiny_model()
    request = {"prompt": "a red ball", "ddim_steps": 4, "ddim_eta": eta}
    batch = generate(model, asked(seed=5, n_samples=3, **request))
    halves = generate(model, asked(seed=5, n_samples=1, n_iter=3, **request))
    alone = generate(model, asked(seed=7, n_samples=1, **request))
    assert batch.seeds == halves.seeds == (5, 6, 7)
    torch.testing.assert_close(batch.x, halves.x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch.x[2:], alone.x, atol=1e-4, rtol=1e-4)
    assert (batch.x[0] - batch.x[1]).abs().mean() > 0.01


def test_prompt_and_guidance_have_their_effect():
    model = tiny_model()

    def paint(prompt: str, scale: float):
        return generate(model, asked(prompt, n_samples=1, ddim_steps=4, scale=scale)).z0

    red, blue, plain = paint("a red ball", 5.0), paint("a blue cube", 5.0), paint("a red ball", 1.0)
    assert not torch.allclose(red, blue, atol=1e-3) and not torch.allclose(red, plain, atol=1e-3)
    torch.testing.assert_close(paint("", 5.0), paint("", 1.0), atol=1e-4, rtol=1e-4)  # nothing to be guided to


def test_the_ranker_sees_whole_pictures_and_orders_everything():
    seen = {}

    class Ranker:
        def distances(self, x, mask, prompt):
            seen.update(x=x, mask=mask, prompt=prompt)
            return torch.tensor([0.7, 0.2, 0.5])

    request = asked("a red ball", seed=5, n_samples=3, ddim_steps=2)
    ranked = generate(tiny_model(), request, ranker=Ranker())
    assert seen["mask"] is None and seen["prompt"] == "a red ball"
    assert ranked.seeds == (6, 7, 5) and ranked.distances == pytest.approx((0.2, 0.5, 0.7))
    torch.testing.assert_close(ranked.x, seen["x"][[1, 2, 0]])
    torch.testing.assert_close(ranked.z0, generate(tiny_model(), request).z0[[1, 2, 0]])


def test_size(model, tmp_path):
    assert paint(model, tmp_path, "--H", 48, "--W", 80) == 0
    assert Image.open(tmp_path / "a-red-ball/0000.png").size == (80, 48)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--H", 50], "--H 48"),
        (["--ddim_steps", 1001], "1001"),
        (["--n_samples", 0], '--n_samples is "0": give an integer from 1 to 1024'),
        (["--scale", "much"], '"much"'),
        (["--model", "nonesuch"], "nonesuch"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--config", "x.yaml"], "ckpt"),
        (["--mask", "m.png"], "--mask"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(model, tmp_path, capsys, more, named):
    try:
        code = paint(model, tmp_path / "out", *more)
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and named in errors[0], said.err
    assert not (tmp_path / "out").exists()


def test_requests_out_of_range():
    with pytest.raises(UserError, match="`n_iter` is 0"):
        SamplingRequest("a ball", n_iter=0)
