"""The Python API: pictures in memory, of any size, edited by a model that is loaded once."""

import base64
import inspect
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.backbones.defaults import Defaults
from ldm.editing import Editor, EditRequest, EditTask, ReconstructionOptions
from ldm.editing.edit import edit_tasks
from ldm.errors import UserError
from ldm.imaging.canvas import Canvas
from tests.tiny import save_tiny_model, tiny_model, tiny_picture

ROOT = Path(__file__).parents[1]
QUICK = {"ddim_steps": 3, "n_samples": 2}
INSIDE = np.s_[30:70, 40:100]


@pytest.fixture(scope="module")
def editor():
    return Editor(tiny_model())


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((120, 160), np.uint8)
    mask[INSIDE] = 255
    return mask


def task_of(x_source: torch.Tensor, mask: torch.Tensor, request: EditRequest) -> EditTask:
    return EditTask.of(Canvas.of_tensors(x_source, mask), Defaults().fill(request), 8)


def test_paths_pictures_and_arrays_are_the_same(editor, photo, mask, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    forms = [
        (photo, mask),
        (photo, mask > 0),
        (Image.fromarray(photo), Image.fromarray(mask)),
        (tmp_path / "photo.png", str(tmp_path / "mask.png")),
    ]
    results = [editor.edit(*form, "a red ball", **QUICK).results for form in forms]
    for result in results[1:]:
        assert all((np.asarray(one) == np.asarray(other)).all() for one, other in zip(result, results[0], strict=True))


def test_what_an_edit_holds(editor, photo, mask):
    edited = editor.edit(photo, mask, "a red ball", seed=5, **QUICK)
    assert edited.seeds == (5, 6) and edited.scores is None
    assert edited.x.shape == (2, 3, 64, 64) and edited.z0.shape == (2, 4, 8, 8)
    far = np.ones((120, 160), bool)
    reach = int(np.ceil(edited.task.canvas.feather))
    far[30 - reach : 70 + reach, 40 - reach : 100 + reach] = False
    for result, measures in zip(edited.results, edited.measures, strict=True):
        assert result.size == (160, 120) and (np.asarray(result)[far] == photo[far]).all()
        assert measures.max_difference == 0


@pytest.mark.parametrize("kind", ["optimization", "optimization_latents", "pixel", "residual"])
def test_a_prediction_is_restored_without_files(editor, photo, mask, kind):
    edited = editor.edit(photo, mask, "a red ball", **QUICK)
    restored = editor.reconstruct(edited, 1, optimization_steps=3, **ReconstructionOptions.way(kind))
    assert restored.image.size == (160, 120) and restored.measures.max_difference == 0
    assert restored.reconstruction.x.shape == (1, 3, 64, 64)
    change = np.abs(np.asarray(restored.image).astype(int) - np.asarray(edited.results[1]))[INSIDE].mean()
    other = np.abs(np.asarray(restored.image).astype(int) - np.asarray(edited.results[0]))[INSIDE].mean()
    assert change < other, "it is that of its own prediction"


def test_a_residual_is_the_finish_of_an_edit(editor, photo, mask):
    edited = editor.edit(photo, mask, "a red ball", **QUICK)
    restored = editor.reconstruct(edited, 0, reconstruction_type="residual")
    assert np.abs(np.asarray(restored.image).astype(int) - np.asarray(edited.results[0])).max() <= 1


def test_a_loaded_model_brings_its_own_learning_rate(photo, mask, tmp_path):
    folder = save_tiny_model(tmp_path / "own", reconstruction={"learning_rate": 1e-12})
    editor = Editor.load(str(folder), device="cpu", precision="float32")
    edited = editor.edit(photo, mask, "a red ball", **QUICK)
    restored = editor.reconstruct(edited, optimization_steps=2).reconstruction.x
    assert torch.allclose(restored, edited.x[:1].clamp(-1, 1), atol=1e-4), "at that rate nothing moves"


def test_a_loaded_model_brings_its_own_context(photo, mask, tmp_path):
    windows = {}
    for context in (None, 0.25, 2.0):
        sections = {} if context is None else {"editing": {"context": context}}
        folder = save_tiny_model(tmp_path / str(context), **sections)
        editor = Editor.load(str(folder), device="cpu")
        request = EditRequest("a red ball", ddim_steps=2)
        windows[context] = editor.prepare(photo, mask, request).canvas.window
        told = EditRequest("a red ball", ddim_steps=2, context=0.5)
        assert editor.prepare(photo, mask, told).canvas.window == windows[None]
    assert windows[0.25].width < windows[None].width < windows[2.0].width


@pytest.mark.parametrize(
    ("name", "own", "usual"), [("scale", 2.0, 5.0), ("background_noise", "shared", "resampled")], ids=["scale", "noise"]
)
def test_a_loaded_model_brings_its_own_defaults(photo, mask, tmp_path, name, own, usual):
    folders = [save_tiny_model(tmp_path / kind) for kind in ("plain", "own")]
    with (folders[1] / "config.yaml").open("a") as config:
        config.write(f"editing: {{{name}: {own}}}\n")
    editors = [Editor.load(str(folder), device="cpu", precision="float32") for folder in folders]

    def paint(editor: Editor, **options) -> torch.Tensor:
        return editor.edit(photo, mask, "a red ball", **QUICK, **options).z0

    assert torch.equal(paint(editors[0]), paint(editors[1], **{name: usual}))
    assert torch.equal(paint(editors[1]), paint(editors[0], **{name: own}))
    assert not torch.equal(paint(editors[0]), paint(editors[1]))
    assert getattr(editors[1].edit(photo, mask, "a red ball", **QUICK).task.request, name) == own
    paint(editors[1], sampler="dpmpp_2m")  # whose way the model's defaults must not bar


@pytest.mark.parametrize(
    "section",
    [{"context": -1}, {"scale": "wide"}, {"background_noise": "resampled"}, {"context": 0.1, "feather": 2}, [0.1]],
)
def test_a_config_with_no_such_defaults_is_named(tmp_path, section):
    folder = save_tiny_model(tmp_path / "own", editing=section)
    with pytest.raises(UserError, match=r"own.config\.yaml.*editing"):
        Editor.load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ({"region": "left"}, "region"),
        ({"context": -1}, "`context` is -1"),
        ({"feather": float("inf")}, "`feather` is inf"),
    ],
)
def test_a_place_out_of_range_is_named(place, named):
    with pytest.raises(UserError, match=named):
        EditRequest("a red ball", **place)


def test_images_masks_and_prompts_share_a_batch_and_do_not_know_of_each_other():
    model = tiny_model()
    tasks = []
    for i, prompt in enumerate(("a red ball", "a blue cube", "")):
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 8 * i : 32 + 8 * i, 16 : 48 - 12 * i] = 1
        options = {"ddim_steps": 5, "ddim_eta": 0.3, "seed": 7 * i}  # the masks' thickness chooses their numbers
        request = EditRequest(prompt, n_samples=1 + i % 2, **options)
        tasks.append(task_of(tiny_picture(64, 64, i), mask, request))
    together = edit_tasks(model, tasks, batch_size=3)
    for one, edit in zip(tasks, together, strict=True):
        (alone,) = edit_tasks(model, [one])
        assert edit.seeds == alone.seeds and len(edit.x) == one.request.n_samples
        for name in ("x", "z0", "x_reference", "latent_masks"):
            assert torch.allclose(getattr(edit, name), getattr(alone, name), atol=1e-3), name


def test_ten_edits_in_a_row_leave_the_rest_of_the_first_input(editor, photo):
    image, touched = Image.fromarray(photo), np.zeros(photo.shape[:2], bool)
    for i in range(10):
        mask = np.zeros(photo.shape[:2], bool)
        mask[10 * i : 10 * i + 16, 12 * i : 12 * i + 24] = True
        edited = editor.edit(image, mask, "a red ball", seed=i, n_samples=1, ddim_steps=2)
        image, reach = edited.results[0], int(np.ceil(edited.task.canvas.feather))
        touched[max(10 * i - reach, 0) : 10 * i + 16 + reach, max(12 * i - reach, 0) : 12 * i + 24 + reach] = True
    assert (np.asarray(image)[~touched] == photo[~touched]).all() and 0.1 < touched.mean() < 0.9


def test_tasks_of_different_steps_do_not_share_a_batch():
    mask = torch.ones(1, 1, 64, 64)
    tasks = [task_of(tiny_picture(), mask, EditRequest("a", ddim_steps=steps)) for steps in (2, 3)]
    with pytest.raises(ValueError, match="one way of sampling"):
        edit_tasks(tiny_model(), tasks)


def test_readme_s_lines_of_python_run(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    for name in ("img.png", "mask.png"):
        (tmp_path / "inputs").mkdir(exist_ok=True)
        shutil.copy(ROOT / "inputs" / name, tmp_path / "inputs" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Editor, "load", lambda: Editor(tiny_model()))
    exec(lines, {})
    for name in ("best.png", "restored.png"):
        assert Image.open(tmp_path / name).size == Image.open(ROOT / "inputs" / "img.png").size


@pytest.mark.parametrize(
    "changes", [{"sampler": "dpmpp_2m"}, {"guidance_interval": (0.2, 0.6)}, {"sampler": "dpmpp_2m", "scale": 1.0}]
)
def test_samplers_and_intervals_are_reached(editor, photo, mask, changes):
    plain = editor.edit(photo, mask, "a red ball", ddim_steps=5, n_samples=1)
    other = editor.edit(photo, mask, "a red ball", ddim_steps=5, n_samples=1, **changes)
    assert not torch.equal(plain.z0, other.z0) and other.measures[0].max_difference == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"guidance_interval": (0.6, 0.2)}, "`guidance_interval` is 0.6 0.2"),
        ({"sampler": "euler"}, '`sampler` is "euler": give one of ddim, dpmpp_2m'),
        ({"sampler": "dpmpp_2m", "ddim_eta": 0.5}, "`ddim_eta=0.5` needs `sampler=ddim`"),
        ({"sampler": "dpmpp_2m", "background_noise": "fresh"}, "`background_noise=resampled` needs `sampler=ddim`"),
        ({"background_noise": "pink"}, '`background_noise` is "pink": give one of resampled, shared'),
    ],
)
def test_samplers_that_cannot_do_what_is_asked_are_named(editor, photo, mask, options, named):
    with pytest.raises(UserError, match=named):
        editor.edit(photo, mask, "a red ball", **QUICK | options)


def test_with_low_memory_the_text_encoder_stays_on_the_cpu(photo, mask, tmp_path):
    folder = str(save_tiny_model(tmp_path / "own"))
    low, plain = (Editor.load(folder, device="cpu", low_memory=low) for low in (True, False))
    assert next(low.model.cond_stage_model.parameters()).device.type == "cpu"
    results = [editor.edit(photo, mask, "a red ball", **QUICK).x for editor in (low, plain)]
    assert torch.equal(*results)


@pytest.mark.parametrize(("index", "same"), [(-1, 1), (-2, 0), (1, 1)])
def test_an_index_counts_from_the_end_where_it_is_negative(editor, photo, mask, index, same):
    result = editor.edit(photo, mask, "a red ball", **QUICK)
    restored = editor.reconstruct(result, index, reconstruction_type="pixel")
    assert restored.image.tobytes() == editor.reconstruct(result, same, reconstruction_type="pixel").image.tobytes()


@pytest.mark.parametrize("index", [2, -3])
def test_an_index_that_there_is_not_is_an_index_error(editor, photo, mask, index):
    result = editor.edit(photo, mask, "a red ball", **QUICK)
    with pytest.raises(IndexError, match=f"no prediction {index}: there are 2, from 0 to 1"):
        editor.reconstruct(result, index)


def test_only_an_edit_is_restored_by_an_integer(editor, photo, mask):
    result = editor.edit(photo, mask, "a red ball", **QUICK)
    with pytest.raises(TypeError, match="integer"):
        editor.reconstruct(result, 1.0)
    with pytest.raises(TypeError, match="a result of an edit"):
        editor.reconstruct(editor.generate("a red ball", n_samples=1, ddim_steps=1))
    restored = editor.reconstruct(result, np.int64(0), reconstruction_type="pixel")
    assert repr(restored) == "<Restored: 160x120, largest difference 0 of 255>"
    assert "data:image/png;base64," in restored._repr_html_()


def test_edit_names_its_options():
    parameters = inspect.signature(Editor.edit).parameters
    assert parameters["n_samples"].default == 4 and parameters["scale"].default is None
    assert "options" not in parameters and parameters["prompt"].default is inspect.Parameter.empty
    assert "mask_dilation_iterations: wider masks" in Editor.edit.__doc__


@pytest.mark.parametrize("options", [{"n_sample": 4}, {"place": 3}])
def test_an_option_that_there_is_not_is_named(editor, photo, mask, options):
    with pytest.raises(UserError, match=f'there is no option "{next(iter(options))}"'):
        editor.edit(photo, mask, "a red ball", **options)


def test_a_result_fits_a_line_and_shows_itself_in_a_notebook(editor, photo, mask):
    result = editor.edit(photo, mask, "a red ball", **QUICK)
    assert repr(result) == "<EditResult: 2 of 'a red ball', 160x120>"
    page = result._repr_html_()
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 2 and "0 · seed 42" in page
    assert Image.open(io.BytesIO(base64.b64decode(pictures[1]))).size == (160, 120)


def test_pictures_from_a_prompt_alone(editor):
    made = editor.generate("a red ball", n_samples=2, ddim_steps=2, H=48)
    assert made.results[0].size == (64, 48) and made.seeds == (42, 43)
    alone = editor.generate("a red ball", n_samples=1, ddim_steps=2, H=48, seed=43)
    # Batches of two sizes may round differently.
    torch.testing.assert_close(made.z0[1:], alone.z0, rtol=1e-5, atol=1e-5)


def test_progress_is_shown_where_it_is_asked_for(editor, photo, mask, capsys):
    editor.edit(photo, mask, "a red ball", **QUICK)
    assert capsys.readouterr().err == ""
    editor.edit(photo, mask, "a red ball", progress=True, **QUICK)
    assert "denoising: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("given", [{"ddim_steps": 1001}, {"H": 50}, {"n_samples": 0}, {"skip_steps": 3}])
def test_errors_of_the_api_speak_of_no_flags(editor, photo, mask, given):
    with pytest.raises(UserError) as told:
        editor.edit(photo, mask, "a red ball", **QUICK | given)
    assert "--" not in str(told.value) and next(iter(given)) in str(told.value)
