"""`scripts/reconstruct.py`: from a run folder to restored pictures in it, and one line for each mistake."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli import run
from ldm.editing.reconstruct import decode_prediction
from ldm.imaging.images import load_image, to_pil, to_tensor
from ldm.imaging.region import Window
from ldm.runs.folder import read_run, write_run
from ldm.runs.record import RunRecord
from scripts.reconstruct import main
from tests.tiny import save_tiny_model, tiny_model, tiny_picture

REPOSITORY = Path(__file__).resolve().parents[1]
SIZE = (32, 48)
INSIDE = slice(8, 24), slice(10, 30)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """The `samples` folder of a run of three predictions."""
    model = tiny_model()
    z0 = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    record = RunRecord(
        prompt="a red ball",
        model="tiny",
        config=str(model_folder / "config.yaml"),
        weights=str(model_folder / "model.safetensors"),
        seed=7,
        seeds=(7, 8, 9),
        image="photo.png",
        mask="mask.png",
        size=SIZE,
        window=asdict(Window(0, 0, SIZE[1], SIZE[0], SIZE)),
        feather=0,
    )
    images = [to_pil(decode_prediction(model, z)) for z in z0.split(1)]
    mask = np.zeros(SIZE, np.uint8)
    mask[INSIDE] = 255
    folder = tmp_path_factory.mktemp("run")
    to_pil(tiny_picture(*SIZE)).save(folder / "photo.png")
    assets = {"input": to_pil(tiny_picture(*SIZE)), "mask": Image.fromarray(mask), "full_mask": Image.fromarray(mask)}
    originals = {"original": folder / "photo.png"}
    return write_run(folder, record, images[0], images, images, z0, assets, originals)


@pytest.fixture
def samples(finished: Path, tmp_path: Path, model_folder: Path) -> Path:
    samples = Path(shutil.copytree(finished, tmp_path / "out" / "samples"))
    # The model's files are kept relative to the run, which is somewhere else now.
    edit_record(samples, config=str(model_folder / "config.yaml"), weights=str(model_folder / "model.safetensors"))
    return samples


@pytest.fixture
def call(samples: Path, capsys: pytest.CaptureFixture) -> Run:
    """Run the script on `samples` for two steps: exit code, stdout, stderr."""

    def call(*options: str | Path) -> tuple[int, str, str]:
        argv = ["--images_path", samples, "--optimization_steps", 2, "--device", "cpu", *options]
        try:
            code = run(main, [str(word) for word in argv])
        except SystemExit as stop:  # argparse's own errors
            code = stop.code
        return code, *capsys.readouterr()

    yield call
    logging.getLogger("ldm").handlers.clear()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def made(samples: Path) -> list[str]:
    return sorted(str(p.relative_to(samples)) for p in samples.glob("reconstructed_*/*"))


# --- what it makes ---------------------------------------------------------------------------------------------------


def test_pictures_keep_the_indices_of_their_predictions(call: Run, samples: Path):
    code, out, err = call("--selected_indices", 2, 0, 2)
    assert (code, err) == (0, "")
    folder = samples / "reconstructed_optimization"
    names = ["0000.png", "0002.png", "reconstruction.json"]
    assert made(samples) == [f"reconstructed_optimization/{name}" for name in names]
    assert [line.partition(": ")[0] for line in out.splitlines()] == [
        str(folder / "0002.png"),
        str(folder / "0000.png"),
    ]
    assert "PSNR background" in out
    notes = json.loads((folder / "reconstruction.json").read_text())
    assert notes.keys() == {"0000", "0002"}
    assert notes["0002"].keys() >= {"loss", "background_psnr", "foreground_psnr", "seconds", "steps", "learning_rate"}
    assert (notes["0002"]["steps"], notes["0002"]["learning_rate"]) == (2, 1e-4)
    # At the default learning rate, two steps do not take it far: each is that of its own prediction.
    for i in (0, 2):
        distance = [np.abs(pixels(folder / f"{i:04d}.png") - to_numpy(samples, k)).mean() for k in range(3)]
        assert np.argmin(distance) == i
    assert "CFG" not in (info := Image.open(folder / "0002.png").text)["parameters"] and "Seed: 9" in info["parameters"]


def to_numpy(samples: Path, index: int) -> np.ndarray:
    return pixels(samples / "images" / f"{index:04d}.png").astype(float)


def test_the_best_prediction_is_the_default(call: Run, samples: Path):
    assert call()[0] == 0
    assert made(samples)[0] == "reconstructed_optimization/0000.png"


def test_it_starts_from_the_saved_latent_not_from_the_picture(call: Run, samples: Path):
    call("--optimization_steps", 1, "--learning_rate", 1e-12)
    restored = samples / "reconstructed_optimization" / "0000.png"
    assert np.abs(pixels(restored).astype(int) - pixels(samples / "images" / "0000.png"))[INSIDE].max() <= 1
    before = pixels(restored)
    Image.new("RGB", (48, 32), "red").save(samples / "images" / "0000.png")
    _, _, err = call("--optimization_steps", 1, "--learning_rate", 1e-12)
    assert (pixels(restored) == before).all()
    assert "is it the one that made the run" in err


def test_without_latents_the_picture_is_encoded(call: Run, samples: Path):
    (samples / "latents.safetensors").unlink()
    code, _, err = call("--optimization_steps", 1, "--learning_rate", 1e-12)
    assert code == 0
    assert err.startswith("note: ") and "encoded anew" in err
    model, prediction = tiny_model(), to_tensor(load_image(samples / "images" / "0000.png").rgb)
    expected = np.asarray(to_pil(model.decode(model.encode(prediction)))).astype(int)
    assert np.abs(pixels(samples / "reconstructed_optimization" / "0000.png") - expected)[INSIDE].max() <= 1


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--optimization_mode", "latents"), "optimization_latents"),
        (("--reconstruction_type", "pixel"), "pixel"),
        (("--reconstruction_type", "poisson"), "poisson"),
        (("--reconstruction_type", "residual"), "residual"),
    ],
)
def test_each_kind_has_a_folder(options: tuple[str, str], kind: str, call: Run, samples: Path):
    pytest.importorskip("cv2") if kind == "poisson" else None
    assert call(*options, "--selected_indices", 0)[0] == 0
    assert made(samples) == [f"reconstructed_{kind}/0000.png", f"reconstructed_{kind}/reconstruction.json"]


def test_without_indices_all_are_restored(call: Run, samples: Path):
    assert call("--reconstruction_type", "pixel")[0] == 0
    pictures = [f"reconstructed_pixel/{i:04d}.png" for i in range(3)]
    assert made(samples) == [*pictures, "reconstructed_pixel/reconstruction.json"]


def test_a_mask_that_leaves_the_window_is_refused_before_the_work(call: Run, samples: Path, tmp_path: Path):
    edit_record(samples, window={"left": 8, "top": 8, "width": 24, "height": 16, "image_size": list(SIZE)})
    mask = Image.new("L", SIZE[::-1])
    mask.paste(255, (10, 2, 20, 14))
    mask.save(tmp_path / "above.png")
    code, out, err = call("--mask", tmp_path / "above.png")
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and made(samples) == []
    assert "leaves the window of the run, 24x16 from (8, 8)" in err


def test_pasting_is_exact_and_needs_no_model(call: Run, samples: Path, model_folder: Path):
    record = json.loads((samples / "run.json").read_text())
    (samples / "run.json").write_text(json.dumps(record | {"config": "/gone.yaml", "weights": "/gone.ckpt"}))
    code, out, _ = call("--reconstruction_type", "pixel", "--selected_indices", 1)
    assert code == 0
    assert "-> inf dB" in out
    mask = pixels(samples / "assets" / "mask.png")[..., None] > 0
    expected = np.where(mask, pixels(samples / "images" / "0001.png"), pixels(samples / "assets" / "input.png"))
    assert (pixels(samples / "reconstructed_pixel" / "0001.png") == expected).all()
    notes = json.loads((samples / "reconstructed_pixel" / "reconstruction.json").read_text())["0001"]
    assert notes["background_psnr"] == "inf"
    assert "steps" not in notes


def test_image_and_mask_of_the_user_win(call: Run, samples: Path, tmp_path: Path):
    Image.new("RGB", (96, 64), (10, 200, 30)).save(tmp_path / "photo.png")  # the run's image was half as large
    mask = np.full((64, 96), 255, np.uint8)
    mask[:, :48] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = ("--init_image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--invert_mask")
    code, _, err = call("--reconstruction_type", "pixel", *given)
    assert (code, err) == (0, "")
    out = pixels(samples / "reconstructed_pixel" / "0000.png")
    assert out.shape == (64, 96, 3) and (out[:, 48:] == (10, 200, 30)).all()
    prediction = Image.open(samples / "images" / "0000.png").resize((96, 64), Image.Resampling.BICUBIC)
    assert np.abs(out.astype(int) - np.asarray(prediction))[4:-4, 4:40].max() < 24


def test_outside_mask_and_band_every_kind_gives_the_input_bit_for_bit(call: Run, samples: Path):
    edit_record(samples, feather=3)
    far = np.ones(SIZE, bool)
    far[5:27, 7:33] = False
    source = pixels(samples / "assets" / "original.png")
    for options in (
        (),
        ("--optimization_mode", "latents"),
        *(("--reconstruction_type", k) for k in ("residual", "pixel")),
    ):
        assert call(*options)[0] == 0
    for folder in samples.glob("reconstructed_*"):
        result = pixels(folder / "0000.png")
        assert (result[far] == source[far]).all() and (result[INSIDE] != source[INSIDE]).any()
        notes = json.loads((folder / "reconstruction.json").read_text())["0000"]
        assert notes["max_difference"] == 0 and notes["feather"] == 3 and notes["seam"] >= 0
    assert len(list(samples.glob("reconstructed_*"))) == 4


def test_an_image_of_another_size_does_not_fit_a_window(call: Run, samples: Path, tmp_path: Path):
    edit_record(samples, window=asdict(Window(4, 0, 44, 32, SIZE)))
    Image.new("RGB", (96, 64)).save(tmp_path / "photo.png")
    code, _, err = call("--init_image", tmp_path / "photo.png")
    assert code == 2 and "is 96x64, the image of the run was 48x32" in err


# --- the model -------------------------------------------------------------------------------------------------------


def rate(samples: Path, kind: str = "optimization") -> float:
    return json.loads((samples / f"reconstructed_{kind}" / "reconstruction.json").read_text())["0000"]["learning_rate"]


def test_the_learning_rate_is_the_users_then_the_models(call: Run, samples: Path, tmp_path: Path):
    folder = save_tiny_model(tmp_path / "own", reconstruction={"learning_rate": 3e-3, "latents_learning_rate": 0.2})
    assert call("--model", folder)[0] == 0
    assert rate(samples) == 3e-3
    call("--model", folder, "--optimization_mode", "latents")
    assert rate(samples, "optimization_latents") == 0.2
    call("--config", folder / "config.yaml", "--ckpt", folder / "model.safetensors", "--learning_rate", 0.01)
    assert rate(samples) == 0.01


@pytest.mark.parametrize("section", [{"learning_rate": -1}, {"learning_rate": "fast"}, {"steps": 3}, [1]])
def test_a_bad_section_names_the_config(section, call: Run, samples: Path, tmp_path: Path):
    folder = save_tiny_model(tmp_path / "own", reconstruction=section)
    code, _, err = call("--model", folder)
    assert code == 2
    assert len(err.splitlines()) == 1 and "config.yaml: " in err and "reconstruction" in err
    assert made(samples) == []


def test_a_run_of_a_named_model_is_found_by_its_name(
    call: Run, samples: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = json.loads((samples / "run.json").read_text())
    (samples / "run.json").write_text(json.dumps(record | {"model": "scenes", "config": "/moved/config.yaml"}))
    shutil.copytree(model_folder, tmp_path / "models" / "ldm" / "scenes")
    monkeypatch.setenv("LDM_MODELS", str(tmp_path / "models"))
    assert call()[0] == 0


# --- mistakes --------------------------------------------------------------------------------------------------------


def edit_record(samples: Path, **changes) -> None:
    record = json.loads((samples / "run.json").read_text())
    (samples / "run.json").write_text(json.dumps(record | changes))


MISTAKES = {
    # Before the model, which takes long to load, is even looked for.
    "index": (("--selected_indices", 0, 3), "there is no prediction 3", lambda s: edit_record(s, weights="/gone.ckpt")),
    "no integer": (
        ("--selected_indices", "best"),
        '--selected_indices holds "best": give numbers of predictions, from 0',
        lambda s: None,
    ),
    "no run": (("--images_path", "/nowhere"), "scripts/text_editing.py", lambda s: None),
    "steps": (("--optimization_steps", 0), "at least 1", lambda s: None),
    "rate": (("--learning_rate", 0), "above 0", lambda s: None),
    "size": (("--W", 256), "--W 256 --H 32 is not the size of the run, 48x32", lambda s: None),
    "inversion": (("--invert_mask",), "--invert_mask needs --mask", lambda s: None),
    "image": (("--init_image", "/no.png"), 'there is no image "/no.png"', lambda s: None),
    "mask": (("--mask", "/no.png"), 'there is no image "/no.png"', lambda s: None),
    "kept": ((), "give the file by --init_image", lambda s: (s / "assets" / "original.png").unlink()),
    "device": (("--device", "abacus"), "--device abacus", lambda s: None),
    "model": (("--model", "/no/folder"), "neither auto", lambda s: None),
    "weights": (
        (),
        '"/gone.ckpt" of the model "tiny" is gone: give it by --model',
        lambda s: edit_record(s, weights="/gone.ckpt"),
    ),
    "latents": ((), "give the model that made the run", lambda s: edit_record(s, size=(64, 48))),
    "damage": ((), "is damaged", lambda s: (s / "latents.safetensors").write_bytes(b"?" * 99)),
    "diverging": (("--learning_rate", "1e30"), "--learning_rate", lambda s: None),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(what: str, call: Run, samples: Path):
    options, words, spoil = MISTAKES[what]
    spoil(samples)
    code, out, err = call(*options)
    errors = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, out) == (2, "")
    assert len(errors) == 1 and errors[0].startswith("error: ") and words in errors[0]
    assert made(samples) == []


def test_an_all_white_mask_is_allowed_with_a_notice(call: Run, samples: Path):
    Image.new("L", (48, 32), 255).save(samples / "assets" / "full_mask.png")
    code, out, err = call("--reconstruction_type", "pixel")
    assert code == 0
    assert err.startswith("note: ") and "all white" in err
    assert "PSNR background - -> - dB" in out
    assert (pixels(samples / "reconstructed_pixel" / "0000.png") == pixels(samples / "images" / "0000.png")).all()


def test_without_opencv_poisson_names_the_extra(call: Run, samples: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, _, err = call("--reconstruction_type", "poisson")
    assert code == 2
    assert len(err.splitlines()) == 1 and 'the extra "poisson"' in err
    assert made(samples) == []


def test_the_run_itself_stays_as_it_was(call: Run, samples: Path):
    before = {p: p.read_bytes() for p in samples.rglob("*") if p.is_file()}
    call()
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(read_run(samples)) == 3
