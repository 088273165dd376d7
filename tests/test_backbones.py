"""Backbones of diffusers: their own inpainting pipelines are the oracle, and all that an edit can do works on each."""

import json
import runpy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ldm.backbones.families import FAMILIES as FAMILY_ROWS
from ldm.backbones.families import family_of
from ldm.editing import edit as edit_module
from ldm.editing.editor import Editor
from ldm.errors import UserError
from ldm.imaging.images import to_pil
from ldm.models.diffusion.sampling import NoiseSource
from tests.tiny import normal
from tests.tiny_pipelines import saved

SIDE, STEPS, SKIPPED, SCALE = 64, 5, 1, 4.0


def photograph(height: int = SIDE, width: int = SIDE) -> Image.Image:
    """Smooth, and of many colours."""
    coarse = np.random.RandomState(0).randint(0, 255, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def middle(height: int = SIDE, width: int = SIDE) -> Image.Image:
    """A mask whose border lies between latent cells."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 255
    return Image.fromarray(mask)


def editor(name: str, **options: Any) -> Editor:
    loaded = Editor.load(str(saved(name, **options)), device="cpu", precision="float32")
    loaded.ranker = None
    return loaded


@pytest.fixture(autouse=True)
def no_ranker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.editing.editor.find_ranker", lambda *_: None)


# --- the oracle ------------------------------------------------------------------------------------------------------

ORACLES = {
    "sd": ("StableDiffusionInpaintPipeline", "stable_diffusion.pipeline_stable_diffusion_inpaint"),
    "sdxl": ("StableDiffusionXLInpaintPipeline", "stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint"),
    "sd3": ("StableDiffusion3InpaintPipeline", "stable_diffusion_3.pipeline_stable_diffusion_3_inpaint"),
    "flux": ("FluxInpaintPipeline", "flux.pipeline_flux_inpaint"),
    "z_image": ("ZImageInpaintPipeline", "z_image.pipeline_z_image_inpaint"),
}


@pytest.mark.parametrize("name", ORACLES)
@torch.no_grad()
def test_an_edit_is_that_of_their_inpainting(name: str, monkeypatch: pytest.MonkeyPatch):
    """With one noise of the background, from the noised source: to one 8-bit level, before anything is composed."""
    ours = editor(name)
    noise = normal(1, ours.model.channels, SIDE // ours.model.factor, SIDE // ours.model.factor, seed=7)
    monkeypatch.setattr(edit_module.NoiseSource, "draw", lambda self, shape, like: noise.expand(len(self), -1, -1, -1))
    result = ours.edit(
        photograph(),
        middle(),
        "a red ball",
        H=SIDE,
        W=SIDE,
        region="whole",
        n_samples=1,
        scale=SCALE,
        ddim_steps=STEPS,
        skip_steps=SKIPPED,
        background_noise="shared",
        mask_dilation_iterations=0,
        fit_mask="off",
    )

    class_name, module = ORACLES[name]
    cls = getattr(diffusers, class_name)
    pipe = cls.from_pretrained(saved(name), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(f"diffusers.pipelines.{module}.randn_tensor", lambda *_, **__: noise)
    theirs = pipe(
        "a red ball",
        image=photograph(),
        mask_image=middle(),
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        strength=1 - SKIPPED / STEPS,
        guidance_scale=SCALE - 1 if name == "z_image" else SCALE,  # which counts one less
        output_type="latent" if name == "sd3" else "np",
    ).images[0]
    if name == "sd3":  # whose decoding there forgets the shift that its encoding has taken away
        z = theirs / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
        theirs = pipe.image_processor.postprocess(pipe.vae.decode(z[None]).sample, output_type="np")[0]
    own = np.asarray(to_pil(result.x[0])).astype(int)
    difference = np.abs(own - np.round(theirs * 255).astype(int))
    assert difference.max() <= 1
    before = np.asarray(photograph()).astype(int)
    inside = np.asarray(middle()) > 0
    assert np.abs(own - before)[inside].mean() > 10, "nothing was edited"


@torch.no_grad()
def test_from_the_noisiest_level_theirs_forgets_the_source_and_ours_does_not():
    """Their strength 1 begins with pure noise, ours with the source at the schedule's first level, as the paper has it.

    Flow matching begins with pure noise in both, as its first level has no source in it.
    """
    for name, expected in (("sd", True), ("sdxl", True), ("sd3", False), ("flux", False)):
        first = editor(name).model.levels.schedule(STEPS).levels[0]
        assert (first.a > 0) == expected


# --- noise levels ----------------------------------------------------------------------------------------------------


class Wavy(torch.nn.Module):
    """A network of nothing in particular, bounded."""

    def forward(self, z: torch.Tensor, t: float) -> torch.Tensor:
        return torch.sin(3 * z + z.flip(-1) + 0.01 * t)


def follow(levels: Any, sampler: str, kind: str, steps: int, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Our trajectory of a network that predicts `kind`."""
    from ldm.models.diffusion.prediction import Prediction
    from ldm.models.diffusion.sampling import sample

    network, schedule = Wavy(), levels.schedule(steps, sampler=sampler, size=size)
    return sample(
        lambda z, level: Prediction(z, level, network(z, level.t), kind),
        schedule,
        normal(2, 4, 8, 8),
        NoiseSource([1, 2]),
    )


def follow_theirs(scheduler: Any) -> torch.Tensor:
    network, z = Wavy(), normal(2, 4, 8, 8)
    for t in scheduler.timesteps:
        z = scheduler.step(network(z, float(t)), t, z).prev_sample
    return z


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "z0": "sample"}


@pytest.mark.parametrize(
    "kind, spacing, zero_snr",
    [
        *((kind, spacing, False) for kind in PREDICTIONS for spacing in ("leading", "trailing")),
        # Where nothing is left of the source, noise says nothing, and only trailing steps go there.
        *((kind, "trailing", True) for kind in ("v", "z0")),
    ],
)
def test_ddim_is_theirs(kind: str, spacing: str, zero_snr: bool):
    from ldm.models.diffusion.levels import VariancePreserving

    scheduler = diffusers.DDIMScheduler(
        prediction_type=PREDICTIONS[kind],
        timestep_spacing=spacing,
        rescale_betas_zero_snr=zero_snr,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    scheduler.set_timesteps(10)
    levels = VariancePreserving(scheduler.alphas_cumprod, spacing, float(scheduler.final_alpha_cumprod))
    same(follow(levels, "ddim", kind, 10), follow_theirs(scheduler))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_flow_matching_is_theirs(shift: float, steps: int):
    from ldm.models.diffusion.levels import Flow

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    same(follow(Flow(shift, least=1 / 1000), "ddim", "flow", steps), follow_theirs(scheduler))
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    same(follow(Flow(shift), "ddim", "flow", steps), follow_theirs(scheduler))


@pytest.mark.parametrize("size", [(64, 64), (128, 96)])
@pytest.mark.parametrize("terminal", [None, 0.02])
def test_the_shift_by_sequence_length_is_theirs(size: tuple[int, int], terminal: float | None):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    from ldm.models.diffusion.levels import Flow

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal)
    mu = calculate_shift(size[0] * size[1] // 4)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7), mu=mu)
    levels = Flow(dynamic=((256, 0.5), (4096, 1.15)), shift_terminal=terminal)
    same(follow(levels, "ddim", "flow", 7, size), follow_theirs(scheduler))


@pytest.mark.parametrize("steps", [3, 10])
def test_the_second_order_solver_of_flow_matching_is_theirs(steps: int):
    from ldm.models.diffusion.levels import Flow

    levels = Flow(shift=3.0)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, euler_at_final=True
    )
    scheduler.set_timesteps(steps)
    # Its own levels differ from the pipelines': ours are put in their place.
    own = levels.schedule(steps, sampler="dpmpp_2m")
    scheduler.sigmas = torch.tensor([level.s for level in own.levels], dtype=torch.float64)
    scheduler.timesteps = torch.tensor(own.timesteps)
    same(follow(levels, "dpmpp_2m", "flow", steps), follow_theirs(scheduler))


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_consistency_models_take_their_timesteps(steps: int):
    from ldm.models.diffusion.levels import VariancePreserving

    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(steps)
    schedule = VariancePreserving(scheduler.alphas_cumprod).schedule(steps, sampler="lcm")
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()
    assert schedule.levels[-1].s == 0 and schedule.sigmas[:-1] == tuple(level.s for level in schedule.levels[1:-1])


# --- everything on each ----------------------------------------------------------------------------------------------

FAMILIES = ("sd", "sdxl", "sd3", "flux", "z_image")


@pytest.fixture(scope="module", params=FAMILIES)
def each(request: pytest.FixtureRequest) -> Editor:
    return editor(request.param)


def outside_is_exact(result: Any, image: Image.Image, mask: Image.Image) -> None:
    for shown, measures in zip(result.results, result.measures, strict=True):
        assert shown.size == image.size and measures.max_difference == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft_mask": True, "ddim_steps": 4},
        {"percentage_of_pixel_blending": 0.5},
        {"sampler": "dpmpp_2m"},
        {"fit_mask": "on"},
        {"negative_prompt": "a blue cube", "guidance_interval": (0.2, 0.8)},
        {"skip_steps": 2, "background_noise": "shared", "mask_dilation_iterations": 3},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_an_edit_is_exact_outside_and_the_same_alone(each: Editor, options: dict[str, Any]):
    image, mask = photograph(70, 100), middle(70, 100)
    base = {"H": SIDE, "W": SIDE, "ddim_steps": 3, "seed": 5} | options
    result = each.edit(image, mask, "a red ball", n_samples=2, **base)
    outside_is_exact(result, image, mask)
    alone = each.edit(image, mask, "a red ball", n_samples=1, **base | {"seed": 6})
    torch.testing.assert_close(alone.x[0], result.x[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(result.x[0], result.x[1], atol=0.05)


@pytest.mark.parametrize("kind", ["optimization", "optimization_latents", "residual", "pixel"])
def test_each_reconstruction(each: Editor, kind: str):
    from ldm.editing.request import ReconstructionOptions

    image, mask = photograph(), middle()
    result = each.edit(image, mask, "a red ball", n_samples=1, H=SIDE, W=SIDE, ddim_steps=2)
    losses: list[float] = []
    restored = each.reconstruct(
        result, on_step=lambda step: losses.append(step.loss), optimization_steps=4, **ReconstructionOptions.way(kind)
    )
    assert restored.measures.max_difference == 0
    assert not losses or losses[-1] < losses[0]
    if kind == "optimization":
        again = each.reconstruct(result, optimization_steps=2, tuned_levels=1)
        assert torch.isfinite(again.reconstruction.x).all()


def test_an_outline_knows_what_the_model_knows(each: Editor):
    assert each.files is not None
    outline = Editor.outline(each.files).model
    for name in ("native_size", "factor", "unit", "channels", "guidance"):
        assert getattr(outline, name) == getattr(each.model, name)
    assert outline.levels.schedule(4) == each.model.levels.schedule(4)


def test_a_prompt_that_is_too_long_is_told(each: Editor, caplog: pytest.LogCaptureFixture):
    each.prepare(photograph(), middle(), edit_request("a red ball " * 400))
    assert "it does not see" in caplog.text and "red ball" in caplog.text
    caplog.clear()
    each.prepare(photograph(), middle(), edit_request("a red ball"))
    assert "does not see" not in caplog.text
    each.prepare(photograph(), middle(), edit_request("a red ball", negative_prompt="a blue cube " * 400))
    assert "it does not see" in caplog.text and "blue cube" in caplog.text


def edit_request(prompt: str, **options: Any) -> Any:
    from ldm.editing.request import EditRequest

    return EditRequest(prompt, H=SIDE, W=SIDE, **options)


def test_a_negative_prompt_leads_away(each: Editor):
    options = {"n_samples": 1, "H": SIDE, "W": SIDE, "ddim_steps": 2, "scale": 5.0}
    plain, other = (
        each.edit(photograph(), middle(), "a red ball", negative_prompt=negative, **options).x
        for negative in ("", "a blue cube")
    )
    assert torch.allclose(plain, other) == (each.model.guidance != "free")


# --- special members of the families ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_an_inpainting_network_is_shown_the_picture_and_its_mask(name: str):
    ours, seen = editor(name, channels=9), []
    ours.model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image, mask = photograph(), middle()
    result = ours.edit(image, mask, "a red ball", n_samples=2, H=SIDE, W=SIDE, ddim_steps=2, region="whole")
    outside_is_exact(result, image, mask)
    assert {tuple(z.shape) for z in seen} == {(4, 9, 16, 16)}
    cells, masked = seen[0][:, 4:5], seen[0][:, 5:]
    assert torch.equal(cells[0, 0], torch.from_numpy(np.asarray(mask)[::4, ::4] / 255).float())
    x = result.task.canvas.x_source * (1 - result.task.canvas.x_mask)
    torch.testing.assert_close(masked[:1], ours.model.encode(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="only fills masks"):
        ours.generate("a red ball", n_samples=1, H=SIDE, W=SIDE, ddim_steps=2)


def test_their_inpainting_network_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    """Theirs blends nothing, so only a mask of everything is comparable."""
    ours, noise = editor("sd", channels=9), normal(1, 4, 16, 16, seed=7)
    monkeypatch.setattr(edit_module.NoiseSource, "draw", lambda self, shape, like: noise)
    whole = Image.new("L", (SIDE, SIDE), 255)
    options = {"H": SIDE, "W": SIDE, "region": "whole", "n_samples": 1, "scale": SCALE, "mask_dilation_iterations": 0}
    result = ours.edit(photograph(), whole, "a red ball", ddim_steps=STEPS, skip_steps=SKIPPED, **options)
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(saved("sd", channels=9), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: noise)
    theirs = pipe(
        *("a red ball", photograph(), whole),
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        strength=1 - SKIPPED / STEPS,
        guidance_scale=SCALE,
        output_type="np",
    ).images[0]
    own = np.asarray(to_pil(result.x[0])).astype(int)
    assert np.abs(own - np.round(theirs * 255).astype(int)).max() <= 1


def test_the_offspring_are_told_apart(tmp_path: Path):
    def family(name: str, change: Any = None, called: str = "own") -> str:
        import shutil

        folder = Path(shutil.copytree(saved(name), tmp_path / called / name, dirs_exist_ok=True))
        if change:
            part, file, values = change
            path = folder / part / file
            path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return family_of(folder, called).about

    scheduler = ("scheduler", "scheduler_config.json")
    assert family("sd") == FAMILY_ROWS["sd"].about
    assert family("sd", (*scheduler, {"_class_name": "LCMScheduler"}), "b") == FAMILY_ROWS["sd-lcm-lora"].about
    for own, key in {"sd": "lcm", "sdxl": "sdxl-lcm"}.items():
        told = ("unet", "config.json", {"time_cond_proj_dim": 256})
        assert family(own, told, "e") == FAMILY_ROWS[key].about and FAMILY_ROWS[key].scale > 1
    for called, key in {"Hyper-SD15": "sd-turbo", "hyper-realistic": "sd", "hyperrealism_v3": "sd"}.items():
        assert family("sd", None, called) == FAMILY_ROWS[key].about
    turbo = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    assert family("sdxl", (*scheduler, turbo), "c") == FAMILY_ROWS["sdxl-turbo"].about
    assert family("sdxl", None, "someone/sdxl-lightning") == FAMILY_ROWS["sdxl-turbo"].about
    assert family("flux") == FAMILY_ROWS["flux"].about
    assert family("flux", ("transformer", "config.json", {"guidance_embeds": False}), "d") == (
        FAMILY_ROWS["flux-schnell"].about
    )


def test_a_flow_model_without_guidance_is_not_guided():
    ours = editor("flux", guidance=False)
    assert ours.model.guidance == "none" and ours.defaults.ddim_steps == 4
    result = ours.edit(photograph(), middle(), "a red ball", n_samples=1, H=SIDE, W=SIDE)
    assert result.task.request.ddim_steps == 4 and torch.isfinite(result.x).all()


def test_the_page_lists_the_families_as_they_are():
    script = Path(__file__).parents[1] / "docs" / "backbones.py"
    table = "\n".join(runpy.run_path(str(script))["families"]())
    assert table in script.with_suffix(".md").read_text(encoding="utf-8"), "python docs/backbones.py writes it anew"
