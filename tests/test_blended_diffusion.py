"""Blended Diffusion: what is blended at which level, ranks that sort by name, and the command, files to folder."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.backbones import zoo
from ldm.editing.editor import Editor
from ldm.editing.guided import guide_task, guided_schedule
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.request import EditRequest
from ldm.editing.result import EditResult, EditTask
from ldm.errors import MissingExtra, OutOfMemory, UserError
from ldm.imaging.canvas import Canvas
from ldm.imaging.extrapolate import extended
from ldm.models.diffusion.blending import blended_sample
from ldm.models.diffusion.pixel import Classes
from ldm.models.diffusion.respacing import RespacedLevels, ancestral_step
from ldm.models.diffusion.sampling import NoiseSource, StepInfo
from ldm.options import declared
from ldm.runs.baseline_jobs import BlendedDiffusionJob
from ldm.runs.folder import read_run
from ldm.runs.program import in_words_of
from ldm.runs.ranked import check_ranked, ranked_name, write_ranked
from ldm.runs.video import require_video_writer
from scripts import blended_diffusion, reconstruct, text_editing
from tests.denoisers import wavy
from tests.tiny import tiny_model, tiny_picture
from tests.tiny_pipelines import saved
from tests.tiny_pixels import clip as tiny_clip
from tests.tiny_pixels import glide_config, pixel_model, save_model, save_pixel_model, vq_config

STEPS = {"timestep_respacing": "4", "skip_timesteps": 1, "aug_num": 2}
QUICK = ["--timestep_respacing", "4", "--skip_timesteps", "1", "--aug_num", "2", "--iterations_num", "1"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_pixel_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """An image of 30x24 and a mask of one grey corner, as options."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    mask = np.full((24, 30), 90, np.uint8)  # grey noise, below half
    mask[6:18, 8:22] = 140
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return [
        "-i",
        str(tmp_path / "in.png"),
        "--mask",
        str(tmp_path / "mask.png"),
        "--output_path",
        str(tmp_path / "out"),
    ]


def square_mask(size: int = 16) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., 4:12, 4:12] = 1
    return mask


def task(seed: int = 3, n: int = 2, mask: Tensor | None = None, prompt: str = "a red ball", size: int = 16) -> EditTask:
    request = EditRequest(prompt, n_samples=n, seed=seed, mask_dilation_iterations=0, context=0.5, scale=1.0)
    canvas = Canvas.of_tensors(tiny_picture(size, size), square_mask(size) if mask is None else mask)
    return EditTask.of(canvas, request, 1)


def guide(clip, own: EditTask | None = None, model=None, **options) -> EditResult:
    return guide_task(model or pixel_model(), own or task(), GuidanceOptions(**STEPS | options), clip)


# --- the trajectory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("released", [False, True])
def test_the_background_is_the_source_at_the_level_arrived_at_or_as_released_at_the_one_before(released):
    levels = RespacedLevels(torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0))
    schedule, source, mask = levels.respaced("5"), tiny_picture(16, 16), square_mask()
    seen: list[StepInfo] = []
    masks = mask.expand(len(schedule), 1, 1, 16, 16)
    blended_sample(
        wavy, schedule, source, masks, NoiseSource([5]), callback=seen.append, step=ancestral_step, released=released
    )

    noise, outside = NoiseSource([5]), mask[0] == 0
    noise.draw((3, 16, 16), source)  # the start
    for i, info in enumerate(seen):
        last = i == len(seen) - 1
        if not last:
            noise.draw((3, 16, 16), source)  # the step's own; the last step adds none
        level = schedule.levels[i if released else i + 1]
        exact = last and not released
        expected = source if exact else level.a * source + level.s * noise.draw((3, 16, 16), source)
        torch.testing.assert_close(info.z[0][:, outside[0]], expected[0][:, outside[0]])


def test_the_result_is_the_last_estimate_with_the_source_around_it(clip):
    made = guide(clip)
    source, inside = task().canvas.x_source, square_mask().bool()[0, 0]
    assert torch.equal(made.x[:, :, ~inside], source[:, :, ~inside].expand(2, -1, -1))
    assert (made.x - source)[:, :, inside].abs().mean() > 0.1


def test_without_enforcing_the_background_is_the_models_too(clip):
    made = guide(clip, no_enforce_background=True)
    outside = ~square_mask().bool()[0, 0]
    assert (made.x - task().canvas.x_source)[:, :, outside].abs().mean() > 1e-3
    assert made.task.canvas.mask.all()  # nothing of it is put back into the picture either


def test_a_prediction_is_the_same_alone_and_in_a_batch(clip):
    together, alone = guide(clip, task(seed=3, n=3)), guide(clip, task(seed=5, n=1))
    torch.testing.assert_close(together.x[together.seeds.index(5)], alone.x[0], rtol=1e-3, atol=1e-3)


def test_more_copies_are_no_other_noise(clip):
    """With no weight on CLIP the number of copies changes nothing."""
    one, many = (guide(clip, aug_num=count, clip_guidance_lambda=0) for count in (1, 5))
    torch.testing.assert_close(one.x, many.x)


def test_guidance_brings_the_picture_nearer_to_the_prompt(clip):
    options = {"timestep_respacing": "12", "skip_timesteps": 2, "range_lambda": 0.0}
    without, guided = (guide(clip, task(n=3), clip_guidance_lambda=weight, **options) for weight in (0, 3000))
    assert np.mean(guided.distances) < np.mean(without.distances) - 0.02


def test_an_empty_prompt_is_not_guided(clip):
    made = guide(clip, task(prompt=""))
    plain = guide(clip, clip_guidance_lambda=0, range_lambda=0)
    torch.testing.assert_close(made.x[made.seeds.index(3)], plain.x[plain.seeds.index(3)])


def test_ddim_adds_no_noise_after_the_start(clip):
    ddim, again = (guide(clip, ddim=True) for _ in range(2))
    assert torch.equal(ddim.x, again.x) and not torch.equal(ddim.x, guide(clip).x)


def test_the_local_baseline_blends_nothing_and_its_losses_hold_the_background(clip):
    options = {"timestep_respacing": "12", "skip_timesteps": 8, "local_clip_guided_diffusion": True}
    held = {"background_preservation_loss": True, "lpips_sim_lambda": 0.0, "l2_sim_lambda": 300.0}
    free, kept = guide(clip, **options), guide(clip, **options, **held)
    outside = ~square_mask().bool()[0, 0]
    off = [(made.x - task().canvas.x_source)[:, :, outside].square().mean() for made in (free, kept)]
    assert 0 < off[1] < 0.8 * off[0]
    with pytest.raises(UserError, match="released_blend"):
        GuidanceOptions(local_clip_guided_diffusion=True, released_blend=True)


def test_a_latent_model_is_guided_as_well(clip):
    own = task(size=64)
    made = guide(clip, EditTask.of(own.canvas, own.request, 8), model=tiny_model())
    assert made.x.shape == (2, 3, 64, 64) and made.z0.shape == (2, 4, 8, 8) and made.distances is not None


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_models_of_diffusers_are_guided_as_well(clip, name):
    """One of noise, and one of flow matching, whose gradient comes through decoder and network."""
    editor = Editor.load(str(saved(name)), precision="float32", device="cpu")
    own = task(size=editor.model.native_size[0], n=1)
    own = EditTask.of(own.canvas, own.request, editor.model.factor)
    guided, without = (guide(clip, own, model=editor.model, clip_guidance_lambda=weight) for weight in (1000, 0))
    assert torch.isfinite(guided.x).all() and not torch.equal(guided.x, without.x)


def test_a_network_of_classes_is_told_a_random_one_at_each_step(clip):
    model, told = pixel_model(classes=50), []
    forward = model.diffusion_model.forward
    model.diffusion_model.forward = lambda *args, **kwargs: (told.append(kwargs["y"]), forward(*args, **kwargs))[1]
    guide(clip, model=model)
    assert len(told) == 3 and len({tuple(y.tolist()) for y in told}) == 3
    assert any(len(set(y.tolist())) == 2 for y in told)  # each sample its own
    assert len(Classes(4).select([1, 2])) == 2


def test_a_batch_too_large_for_memory_is_halved_and_goes_on(clip, caplog):
    model = pixel_model()
    predict = model.predict

    def short(z, level, conditioning):
        if len(z) > 2:
            raise MemoryError("no room")
        return predict(z, level, conditioning)

    model.predict = short
    made, expected = guide(clip, task(n=5), model=model), guide(clip, task(n=5))
    assert "`batch_size=3`" in caplog.text and "`batch_size=2`" in caplog.text
    # Some processors' kernels round otherwise for other batch sizes, by the size of the largest values.
    torch.testing.assert_close(made.x, expected.x, rtol=1e-4, atol=1e-6 * float(expected.x.abs().max()))

    def none(z, level, conditioning):
        raise MemoryError("no room")

    model.predict = none
    with pytest.raises(OutOfMemory):
        guide(clip, model=model)


def test_respacing_by_a_stride_is_for_every_backbone():
    told = GuidanceOptions(timestep_respacing="ddim10", skip_timesteps=3)
    assert len(guided_schedule(pixel_model(), told)) == len(guided_schedule(tiny_model(), told)) == 7


# --- names and files --------------------------------------------------------------------------------------------------


def test_names_sort_by_distance():
    distances = [0.0, 0.0712, 0.9999, 1.0, 1.25, 2.4]
    names = [ranked_name(distance, "output", i, 4) for i, distance in enumerate(distances)]
    assert names == sorted(names) and names[1] == "00712_output_i_0_b_1.png" and names[4] == "12500_output_i_1_b_0.png"


def test_a_picture_is_extended_by_its_mirror():
    image = Image.fromarray(np.arange(5 * 4 * 3, dtype=np.uint8).reshape(4, 5, 3))
    larger, mask = extended(image, (2, 0, 3, 1))
    assert larger.size == mask.size == (10, 5)
    assert larger.crop((2, 0, 7, 4)).tobytes() == image.tobytes()
    assert not np.asarray(mask)[:4, 2:7].any() and np.asarray(mask)[4].all()
    assert larger.getpixel((1, 2)) == image.getpixel((0, 2)) and larger.getpixel((7, 2)) == image.getpixel((4, 2))
    with pytest.raises(UserError, match="not all 0"):
        extended(image, (0, 0, 0, 0))


def test_all_options_of_the_public_program_have_its_names_and_defaults():
    own = declared(BlendedDiffusionJob)
    same = {
        "skip_timesteps": 25,
        "timestep_respacing": "100",
        "aug_num": 8,
        "range_lambda": 50,
        "lpips_sim_lambda": 1000,
    }
    same |= {"l2_sim_lambda": 10000, "seed": 404, "output_path": Path("output"), "output_file": "output.png"}
    same |= {"iterations_num": 8, "batch_size": 4, "mask": None, "local_clip_guided_diffusion": False, "ddim": False}
    same |= {"background_preservation_loss": False, "invert_mask": False, "no_enforce_background": False, "vid": False}
    same |= {"export_assets": False}
    assert {name: own[name].default for name in same} == same
    given = ["-p", "x", "-i", "a.png", "-o", "b.png", "--gpu_id", "0", "--model_output_size", "256"]
    parsed = vars(blended_diffusion.build_parser().parse_args([*given, "--clip_guidance_lambda", "1000"]))
    assert parsed["output_file"] == "b.png" and parsed["gpu_id"] == "0"


def run(*argv: str) -> None:
    blended_diffusion.main(["-p", "a red ball", *argv])


def test_the_command_leaves_a_run_and_ranked_results(files, model_folder, tmp_path, capsys):
    run(*files, *QUICK, "--model", str(model_folder), "--batch_size", "3", "-o", "rock.png", "--vid")
    folder = tmp_path / "out"
    found = read_run(folder)
    assert found.record.options["method"] == "blended-diffusion" and found.record.options["skip_timesteps"] == 1
    assert found.record.options["fit_mask"] == "off", "this method fits no mask"
    assert found.record.scores == tuple(sorted(found.record.scores)) and len(found) == 3
    names = sorted(path.name for path in (folder / "ranked").iterdir())
    assert [int(name.rpartition("_")[2][0]) + 404 for name in names] == list(found.record.seeds)
    assert all("_rock_i_0_b_" in name for name in names) and str(folder / "ranked") in capsys.readouterr().out
    best = [Image.open(folder / "ranked" / names[0]), Image.open(folder / "samples/results/0000.png")]
    assert best[0].tobytes() == best[1].tobytes() and best[0].size == (30, 24)
    assert len(list((folder / "samples" / "videos").glob("*.mp4"))) == 3
    # Grey below half is no mask: outside it and the band nothing has changed.
    source = np.asarray(Image.open(tmp_path / "in.png").convert("RGB"))
    assert (np.asarray(best[0].convert("RGB"))[:3] == source[:3]).all()

    with pytest.raises(UserError, match="made by blended-diffusion"):
        text_editing.main(["--from", str(folder / "samples/results/0000.png")])
    reconstruct.main(["--images_path", str(folder / "samples"), "--reconstruction_type", "residual"])
    assert len(list((folder / "samples" / "reconstructed_residual").glob("*.png"))) == 3
    with pytest.raises(UserError, match="no decoder to tune"):
        reconstruct.main(["--images_path", str(folder / "samples")])


def test_another_run_takes_the_place_of_the_ranked_results_but_not_of_the_users_files(files, model_folder, tmp_path):
    run(*files, *QUICK, "--model", str(model_folder), "--batch_size", "2")
    run(*files, *QUICK, "--model", str(model_folder), "--batch_size", "1")
    ranked = tmp_path / "out" / "ranked"
    assert len(list(ranked.iterdir())) == 1 and (tmp_path / "out" / "samples.1").is_dir()
    (ranked / "00001_mine_i_0_b_0.png").write_bytes((tmp_path / "in.png").read_bytes())
    with pytest.raises(UserError, match="was not made by this program"):
        run(*files, *QUICK, "--model", str(model_folder), "--batch_size", "1")
    (ranked / "00001_mine_i_0_b_0.png").unlink()
    (ranked / "note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"note\.txt"):
        check_ranked(tmp_path / "out")


def test_without_a_mask_the_whole_image_is_edited(files, model_folder, tmp_path):
    run(*files[:2], *files[4:], *QUICK, "--model", str(model_folder), "--batch_size", "1")
    kept = Image.open(tmp_path / "out" / "samples" / "assets" / "full_mask.png")
    assert np.asarray(kept).all() and kept.size == (30, 24)


def test_beyond_the_picture(files, model_folder, tmp_path):
    run(
        *files[:2],
        *files[4:],
        *QUICK,
        "--model",
        str(model_folder),
        "--batch_size",
        "1",
        "--extrapolate",
        "8",
        "0",
        "0",
        "4",
    )
    (path,) = (tmp_path / "out" / "ranked").iterdir()
    made, source = Image.open(path).convert("RGB"), Image.open(tmp_path / "in.png").convert("RGB")
    assert made.size == (38, 28)
    inner = np.asarray(made)[:18, 16:]
    assert (inner == np.asarray(source)[:18, 8:]).all()  # away from the band
    assert read_run(tmp_path / "out").record.options["extrapolate"] == [8, 0, 0, 4]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--skip_timesteps", "4"], "skip_timesteps"),
        (["--timestep_respacing", "many"], "timestep_respacing"),
        (["-o", "a/b.png"], "output_file"),
        (["--extrapolate", "1", "2", "3"], "extrapolate"),
        (["--model_output_size", "17"], r"multiples of 2: the nearest is `model_output_size=16`$"),
        (["--gpu_id", "7"], "cuda:7"),
        (["--aug_num", "0"], "aug_num"),
        (["-o", "n" * 250], "at most 200 bytes"),
        (["-o", "a\nb.png"], "printable"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(files, model_folder, tmp_path, more, said):
    with pytest.raises((UserError, SystemExit), match=said if "extrapolate" not in said else None):
        run(*files, *QUICK, "--model", str(model_folder), *more)
    assert not (tmp_path / "out").exists()


def test_an_inverted_mask_needs_a_mask(files, model_folder, tmp_path):
    with pytest.raises(UserError, match="`invert_mask` needs `mask`"):
        run(*files[:2], *files[4:], *QUICK, "--model", str(model_folder), "--invert_mask")


def test_a_network_of_another_method_is_refused_in_a_line(files, tmp_path):
    for name, config in (("glide", glide_config(False)), ("vq", vq_config())):
        folder = save_model(tmp_path / name, config)
        with pytest.raises(UserError, match=r"not a model that this command can use: scripts/glide_inpaint\.py"):
            run(*files, *QUICK, "--model", str(folder))
    assert not (tmp_path / "out").exists()


def test_errors_of_the_core_are_in_the_commands_words():
    words = {"H": "model_output_size", "n_samples": "batch_size"}
    less = "try a smaller `H` and `W`, or fewer `n_samples`"
    for own, text, said in (
        (words, less, "try a smaller `model_output_size`, or fewer `batch_size`"),
        ({}, less, "try fewer `n_samples`"),
        (words, "the nearest is `W=64` `H=32` of `seed=1`", "the nearest is `model_output_size=64` of `seed=1`"),
    ):
        with pytest.raises(OutOfMemory) as told, in_words_of(own):
            raise OutOfMemory(text)
        assert str(told.value) == said


def test_guidance_that_ends_in_nan_ends_at_that_step(clip):
    seen: list[StepInfo] = []
    told = GuidanceOptions(**STEPS | {"clip_guidance_lambda": 1e38})
    with pytest.raises(UserError, match=r"step \d of 3 gave NaN: .*`clip_guidance_lambda`"):
        guide_task(pixel_model(), task(), told, clip, on_step=seen.append)
    assert len(seen) < 3


def test_a_missing_writer_of_videos_is_told_as_this_command_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio.v3", None)
    with pytest.raises(MissingExtra, match="`vid` needs the package"):
        require_video_writer("vid")


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".ranked.new-0123456789ab").mkdir()
    (tmp_path / "mine.png").write_text("mine")
    write_ranked(tmp_path, [("00001_x_i_0_b_0.png", Image.new("RGB", (2, 2)), {"ldm": '{"index": 0}'})])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"ranked", "mine.png"} <= names and not any(name.startswith(".ranked") for name in names)


def test_the_whole_image_is_told_once_and_without_a_file_that_nobody_gave(files, model_folder, tmp_path, caplog):
    caplog.set_level("INFO")
    Image.new("I;16", (20, 16), 40000).save(tmp_path / "in.png")
    run(*files[:2], *files[4:], *QUICK, "--model", str(model_folder), "--batch_size", "1")
    assert caplog.text.count("16 bits per channel") == 1 and "without `mask` the whole image" in caplog.text
    assert "whole_image_mask" not in caplog.text


def test_a_picture_that_is_extended_keeps_its_alpha():
    image = Image.new("RGBA", (5, 4), (10, 20, 30, 0))
    larger, _ = extended(image, (2, 0, 0, 1))
    assert larger.mode == "RGBA" and larger.getpixel((2, 0))[3] == 0 and larger.getpixel((1, 0))[3] == 255


def test_a_model_without_clip_cannot_be_guided(files, tmp_path, monkeypatch):
    folder = save_pixel_model(tmp_path / "model", clip=False)
    monkeypatch.setattr(zoo, "OPENAI_CLIP", None)
    with pytest.raises(UserError, match="CLIP guides this method"):
        run(*files, *QUICK, "--model", str(folder))


def test_the_editor_of_prompts_says_which_command_is_for_pixels(files, model_folder, tmp_path):
    argv = ["-p", "a red ball", *files[:4], "--outdir", str(tmp_path / "edit"), "--model", str(model_folder)]
    with pytest.raises(UserError, match=r"scripts/blended_diffusion\.py"):
        text_editing.main(argv)


def test_words_that_clip_does_not_know_are_told(files, model_folder, tmp_path, caplog):
    with pytest.raises(UserError, match="knows no word"):
        blended_diffusion.main(["-p", "a zebra", *files, *QUICK, "--model", str(model_folder)])
    assert not (tmp_path / "out").exists()
    blended_diffusion.main(["-p", "a red zebra", *files, *QUICK, "--model", str(model_folder), "--batch_size", "1"])
    assert 'does not know "zebra"' in caplog.text


def test_strength_of_a_models_own_config(tmp_path, model_folder):
    from ldm.runs.blended_diffusion import strength_of

    folder = save_pixel_model(tmp_path / "model", clip=False)
    files = zoo.resolve(str(folder))
    assert strength_of(files) is None
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config + "\nguidance: {clip_guidance_lambda: 250}\n")
    assert strength_of(files) == 250.0
    (folder / "config.yaml").write_text(config + "\nguidance: {lambda: 250}\n")
    with pytest.raises(UserError, match="clip_guidance_lambda alone"):
        strength_of(files)
    assert replace(GuidanceOptions(), clip_guidance_lambda=3).clip_guidance_lambda == 3
