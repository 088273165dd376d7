"""Masks that fit themselves: they follow what the prompt paints, never grow, and everything downstream takes them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.editing import mask_fit
from ldm.editing.edit import edit_image, edit_tasks, sampling_schedule
from ldm.editing.latent_masks import step_masks
from ldm.editing.mask_fit import border_share, matte, plan_fit, strangeness
from ldm.editing.request import EditRequest
from ldm.editing.result import EditTask
from ldm.imaging.canvas import Canvas
from ldm.imaging.images import as_picture, load_image, to_pil
from ldm.models.diffusion import fitting
from ldm.models.diffusion.blending import PixelBlending, blended_sample
from ldm.models.diffusion.ddpm import LatentDiffusion, TextConditioning, schedule_buffers
from ldm.models.diffusion.fitting import MaskFitting, otsu
from ldm.models.diffusion.levels import VariancePreserving, make_beta_schedule
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.sampling import NoiseSource
from ldm.models.diffusion.schedule import NoiseLevel, SamplingSchedule, parts_of
from ldm.runs.again import options_of
from ldm.runs.edit import SavedEdit, run_edit
from ldm.runs.folder import read_run
from ldm.runs.jobs import EditJob, ReconstructionJob
from ldm.runs.reconstruct import run_reconstruction
from tests.denoisers import guided, level_at, trajectory
from tests.tiny import normal, save_tiny_model, squares, tiny_model, tiny_picture

LEVELS = schedule_buffers(make_beta_schedule("linear", 1000, 0.00085, 0.012))["alphas_cumprod"]
SIZE = 16
THING = squares(7, size=SIZE)  # (1, 1, 16, 16)
MASK = squares(12, size=SIZE)


class Painter:
    """A model that paints its prompt's level, context (rows, 1, 1), where the thing is, and 0 elsewhere."""

    levels = VariancePreserving(LEVELS)

    def __init__(self, thing: Tensor = THING):
        self.thing = thing

    def prepare_context(self, context: Tensor) -> Tensor:
        return context

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: TextConditioning) -> Prediction:
        context = conditioning.prepared
        painted = context[:, 0, 0].repeat_interleave(len(z) // len(context)).view(-1, 1, 1, 1)
        thing = self.thing.repeat(len(z) // len(self.thing), 1, 1, 1)
        return Prediction(z, level, (z - level.a * painted * thing) / level.s)


def context(level: float) -> Tensor:
    return torch.full((1, 1, 1), level)


def fitted(
    schedule: SamplingSchedule,
    masks: Tensor,
    painter: Painter | None = None,
    level: float = 3.0,
    interval: tuple[float, float] | None = None,
    seeds: tuple[int, ...] = (1,),
    pixels: PixelBlending | None = None,
) -> tuple[MaskFitting, Tensor, list[Tensor]]:
    """What was fitted, z_0, and the cells at each step, of an edit of a source of little noise."""
    z_source, seen = 0.1 * normal(1, 4, SIZE, SIZE), []
    fit = MaskFitting(schedule, masks, z_source)
    denoiser = guided(painter or Painter(), context(level), context(0.0), 3.0, interval, fit.observe)

    def within(i: int, z0: Tensor) -> Tensor:
        seen.append(fit(i, z0).clone())
        return seen[-1]

    z = blended_sample(
        denoiser, schedule, z_source, masks, NoiseSource(seeds), within=within, shared_noise=True, pixels=pixels
    )
    return fit, z, seen


def per_step(masks: Tensor, schedule: SamplingSchedule) -> Tensor:
    return masks[list(parts_of(schedule, len(masks)))][:, None]


# --- the contrast ----------------------------------------------------------------------------------------------------


def test_the_contrast_is_that_of_the_estimates_of_z0():
    """And their sum over the steps, but for the noisiest."""
    schedule = trajectory(LEVELS, 20)
    fit, differences = MaskFitting(schedule, torch.ones(20, 1, 1, 5, 5), normal(1, 4, 5, 5)), []
    for i, level in enumerate(schedule.levels[:3]):
        differences.append(normal(2, 4, 5, 5, seed=i))
        fit.observe(level, differences[-1])
    assert fit.observed == 1
    torch.testing.assert_close(fit.contrast, differences[2].square().sum(1).sqrt())


def test_an_observer_changes_nothing_and_is_asked_where_both_halves_run():
    z, seen = normal(2, 4, SIZE, SIZE), []
    plain = guided(Painter(), context(3.0), context(0.0), 3.0, (0.2, 0.6))
    told = guided(
        Painter(), context(3.0), context(0.0), 3.0, (0.2, 0.6), lambda at, difference: seen.append((at, difference))
    )
    for timestep in (900, 400, 100):
        level = level_at(LEVELS, timestep)
        assert torch.equal(plain(z, level).out, told(z, level).out)
    ((level, difference),) = seen
    assert level.t == 400 and difference.shape == z.shape
    assert (difference[:, :, THING[0, 0] == 0] == 0).all() and (difference[:, :, THING[0, 0] > 0] != 0).all()


@pytest.mark.parametrize("n", [2, 3, 10, 57])
def test_otsu_is_the_best_of_all_splits(n: int):
    values = normal(n, seed=n).numpy() ** 3
    threshold, part = otsu(values)
    found = []
    for split in np.sort(values)[:-1]:
        low, high = values[values <= split], values[values > split]
        found.append((len(low) * len(high) * (high.mean() - low.mean()) ** 2) / n**2 / values.var())
    assert part == pytest.approx(max(found), rel=1e-4)
    low, high = values[values <= threshold], values[values > threshold]
    assert len(low) * len(high) * (high.mean() - low.mean()) ** 2 / n**2 / values.var() == pytest.approx(part, rel=1e-4)


def test_equal_values_have_no_classes():
    assert otsu(np.full(5, 2.0)) == (2.0, 0.0) and otsu(np.empty(0)) == (0.0, 0.0)


# --- the cells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 8, 50])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_a_mask_becomes_the_thing_and_a_margin(sampler: str, steps: int):
    schedule = trajectory(LEVELS, steps, sampler=sampler)
    masks = MASK[None].expand(steps, -1, -1, -1, -1)
    fit, z, seen = fitted(schedule, masks, seeds=(1, 2))
    assert torch.equal(seen[0], torch.ones(2, 1, SIZE, SIZE))
    inside = seen[-1][0, 0].bool() & MASK[0, 0].bool()
    thing = THING[0, 0].bool()
    assert (inside & thing).sum() == thing.sum() and inside.sum() <= squares(10, size=SIZE).sum()
    assert (z[:, :, ~inside] == 0.1 * normal(1, 4, SIZE, SIZE)[:, :, ~inside]).all(), "elsewhere is the source"
    assert z[:, :, thing].mean() > 2 and all(one > 0.5 for one in fit.separations)


def test_equal_prompts_have_no_contrast_and_leave_the_trajectory_as_it_is():
    schedule = trajectory(LEVELS, 10)
    masks = MASK[None].expand(10, -1, -1, -1, -1)
    fit, z, _ = fitted(schedule, masks, level=0.0)
    denoiser = guided(Painter(), context(0.0), context(0.0), 3.0)
    plain = blended_sample(
        denoiser, schedule, 0.1 * normal(1, 4, SIZE, SIZE), masks, NoiseSource([1]), shared_noise=True
    )
    assert fit.contrast.eq(0).all() and fit.separations == [0.0] and fit.cells.eq(1).all()
    assert torch.equal(z, plain)


def test_masks_are_nested_in_time_and_each_prediction_has_its_own():
    things = torch.cat([squares(7, size=SIZE).roll(shift, 3) for shift in (-2, 0, 2)])
    schedule = trajectory(LEVELS, 20)
    masks = MASK[None].expand(20, -1, -1, -1, -1)
    fit, z, seen = fitted(schedule, masks, Painter(things), seeds=(1, 2, 3))
    for before, after in pairwise(seen):
        assert (after <= before).all()
    for row, thing in enumerate(things[:, 0].bool()):
        assert fit.cells[row, 0][thing].eq(1).all() and (fit.cells[row] * MASK[0]).sum() < 110
        alone, z_alone, _ = fitted(schedule, masks, Painter(things[row : row + 1]), seeds=(row + 1,))
        assert torch.equal(alone.cells[0], fit.cells[row]) and torch.allclose(z_alone[0], z[row], atol=1e-5)


def test_a_fit_that_would_leave_less_than_half_is_not_made():
    schedule = trajectory(LEVELS, 20)
    fit, *_ = fitted(schedule, MASK[None].expand(20, -1, -1, -1, -1), Painter(squares(2, size=SIZE)))
    assert fit.cells.eq(1).all() and fit.fitted == [False] and fit.separations[0] > fitting.SEPARATION
    why = mask_fit.judge_fit(mask_fit.FitPlan(True, ""), fit.separations[0], fit.fitted[0])[1]
    assert why == "less than 50% of it would be left, which is mostly wrong"


def test_a_thing_that_fills_the_mask_keeps_it():
    schedule = trajectory(LEVELS, 20)
    fit, *_ = fitted(schedule, MASK[None].expand(20, -1, -1, -1, -1), Painter(squares(SIZE, size=SIZE)))
    assert (fit.cells * MASK == MASK).all()


def test_a_part_of_the_thing_that_has_lost_its_contrast_is_known_by_its_looks():
    z_source, mask, thing = 0.1 * normal(4, SIZE, SIZE), MASK[0, 0], squares(8, size=SIZE)[0, 0]
    contrast = thing.clone()
    contrast[:, SIZE // 2 :] = 0  # both halves see its right half already
    z0 = torch.where(thing > 0, 2.0, z_source)
    kept, _ = fitting.fit_cells(contrast, mask, z0, z_source)
    assert (kept >= thing).all() and kept.sum() < mask.sum()
    left, _ = fitting.fit_cells(contrast, mask, torch.where(contrast > 0, z0, z_source), z_source)
    assert left.sum() < kept.sum(), "the source is not taken for the thing"


def bay(side: int, mouth: int, size: int) -> np.ndarray:
    """A square with a belly that is open to its right by `mouth`."""
    thing = squares(side, size=size)[0, 0].numpy() > 0
    thing[squares(side - 2 * (side // 6), size=size)[0, 0].numpy() > 0] = False
    middle = size // 2
    thing[middle - mouth // 2 : middle + (mouth + 1) // 2, middle:] = False
    return thing


@pytest.mark.parametrize(("mouth", "kept"), [(0, True), (3, True), (20, False)])
def test_a_belly_that_looks_like_the_photograph_belongs_to_the_thing(mouth: int, kept: bool):
    thing = bay(24, mouth, 40)
    whole = fitting.whole(thing)
    belly = (slice(16, 24), slice(14, 20))
    assert (whole >= thing).all() and whole[belly].all() == kept
    assert whole.sum() <= 24**2, "nothing beyond its hull"
    assert (fitting.whole(whole) == whole).all() and not fitting.whole(np.zeros_like(thing)).any()


def test_a_thing_that_the_window_cuts_is_closed_there_too():
    thing = bay(24, 3, 40)[:, :26]  # its belly is cut open by the border
    assert not fitting.whole(thing)[16:24, 14:26].all()
    thing = bay(24, 3, 40)[:, 8:]
    assert fitting.whole(thing)[16:24, 6:12].all()


@pytest.mark.parametrize(("interval", "known"), [((0.0, 0.2), False), ((0.5, 0.9), True)])
def test_there_is_no_contrast_where_one_half_runs_alone(interval: tuple[float, float], known: bool):
    schedule = trajectory(LEVELS, 20)
    fit, *_ = fitted(schedule, MASK[None].expand(20, -1, -1, -1, -1), interval=interval)
    assert (fit.separations[0] is not None) == known and bool(fit.cells.eq(1).all()) != known


def test_fitting_waits_for_progressive_shrinking():
    schedule = trajectory(LEVELS, 20)
    masks = per_step(squares(16, 15, 14, 12, size=SIZE), schedule)  # the last from step 15 on
    _, _, seen = fitted(schedule, masks)
    assert all(one.eq(1).all() for one in seen[:15]) and not seen[15].eq(1).all()


def test_what_a_soft_mask_adds_later_stays():
    schedule = trajectory(LEVELS, 20)
    levels = torch.zeros(1, 1, SIZE * 8, SIZE * 8)
    levels[..., 16:112, 16:112], levels[..., 100:112, 16:112] = 1.0, 0.3
    masks = step_masks(levels, 8, schedule, 0)[:, None]
    fit, *_ = fitted(schedule, masks)
    grey = (masks[-1] > masks[0])[0, 0]
    assert grey.any() and fit.cells[0, 0][grey].eq(1).all() and fit.cells.eq(0).any()


def test_blended_pixels_stay_in_the_cells(monkeypatch: pytest.MonkeyPatch):
    model, schedule = tiny_model(), trajectory(LEVELS, 10)
    x_source = tiny_picture(SIZE * 8, SIZE * 8)
    mask = torch.nn.functional.interpolate(MASK, scale_factor=8)
    pixels = PixelBlending(model, x_source, mask, 0.5)
    fit, z, _ = fitted(schedule, MASK[None].expand(10, -1, -1, -1, -1), pixels=pixels)
    outside = (fit.cells * MASK)[0, 0] == 0
    assert torch.equal(z[0][:, outside], 0.1 * normal(1, 4, SIZE, SIZE)[0][:, outside]) and fit.cells.eq(0).any()


# --- the decision ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_model()


def plan(mask: Tensor, z_source: Tensor, **options) -> mask_fit.FitPlan:
    request = EditRequest(**{"prompt": "a ball", "scale": 3.0, "fit_mask": "auto", **options})
    pixels = torch.nn.functional.interpolate(mask, scale_factor=8)
    return plan_fit(Canvas.of_tensors(torch.zeros(1, 3, SIZE * 8, SIZE * 8), pixels), request, z_source, mask, 8)


def test_auto_fits_where_the_mask_holds_background():
    same, other = normal(1, 4, SIZE, SIZE), normal(1, 4, SIZE, SIZE)
    other[:, :, 4:12, 4:12] += 6
    mask = squares(10, size=SIZE)
    assert plan(mask, 0.1 * same + 1).wanted is (strangeness(0.1 * same + 1, mask) < mask_fit.STRANGE)
    ramp = torch.linspace(-1, 1, SIZE).view(1, 1, 1, SIZE).expand(1, 4, SIZE, SIZE)
    assert plan(mask, ramp).wanted, "a sky goes on under the mask"
    thing = plan(mask, other)
    assert not thing.wanted and "something of its own" in thing.why
    around = plan(1 - mask, ramp)
    assert not around.wanted and "surrounds" in around.why and border_share(1 - mask) == 1
    thin = plan(squares(3, size=SIZE), ramp)
    assert not thin.wanted and "3.0 latent cells" in thin.why


@pytest.mark.parametrize(
    ("options", "wanted", "why"),
    [
        ({"fit_mask": "off"}, False, "is off"),
        ({"fit_mask": "on"}, True, "is on"),
        ({"prompt": "", "fit_mask": "on"}, False, "prompt is empty"),
        ({"scale": 1.0, "fit_mask": "on"}, False, "without guidance"),
    ],
)
def test_the_user_decides_where_there_is_something_to_decide(options: dict, wanted: bool, why: str):
    found = plan(squares(10, size=SIZE), normal(1, 4, SIZE, SIZE), **options)
    assert found.wanted is wanted and why in found.why


# --- the border ------------------------------------------------------------------------------------------------------


def test_the_matte_is_the_thing_with_its_shadow_and_without_specks():
    x_reference, mask = tiny_picture(), torch.zeros(1, 1, 64, 64)
    mask[..., 8:56, 8:56] = 1
    x = x_reference.clone()
    x[..., 20:40, 20:40] = 1.0
    x[..., 28:32, 28:32] = x_reference[..., 28:32, 28:32]  # a hole
    x[..., 40:48, 18:42] -= 0.25  # its shadow
    x[..., 12, 50] = 1.0  # a speck
    x[..., 2:6, 2:60] = 1.0  # outside the mask
    kept = matte(x, x_reference, mask, 8)
    assert (kept <= mask).all() and kept[..., 20:40, 20:40].all() and kept[..., 41:47, 19:41].all()
    assert not kept[..., 10:15, 47:53].any() and not kept[..., 50:, :].any() and kept.sum() < 900
    assert torch.equal(matte(x_reference, x_reference, mask, 8), mask)


def test_the_matte_has_what_the_thing_surrounds():
    x_reference, mask = tiny_picture(), torch.ones(1, 1, 64, 64)
    thing = torch.from_numpy(bay(40, 4, 64))
    kept = matte(torch.where(thing, x_reference + 0.5, x_reference), x_reference, mask, 8)
    assert kept[..., 16:48, 16:44].all() and not kept[..., :8].any()


@pytest.mark.parametrize("size", [(64, 64), (40, 52), (200, 160)])
def test_a_narrowed_canvas_is_exact_beyond_its_mask(size: tuple[int, int]):
    picture = as_picture(to_pil(tiny_picture(*size)))
    mask = torch.zeros(1, 1, *size)
    mask[..., : size[0] // 2, size[1] // 4 :] = 1  # up to the border: the window is mirrored there
    canvas = Canvas.around(picture, mask, (64, 64), 8, feather=2)
    x_mask = canvas.x_mask.clone()
    x_mask[..., 32:] = 0
    own = canvas.narrowed(x_mask)
    assert 0 < own.mask.sum() < mask.sum() and (own.mask <= mask).all() and (own.x_mask <= canvas.x_mask).all()
    image, measures = own.finish(torch.ones(1, 3, 64, 64))
    assert measures.max_difference == 0
    far = np.asarray(Image.fromarray(own.mask[0, 0].byte().numpy() * 255).resize(size[::-1])) == 0
    changed = np.asarray(image.convert("RGB")) != np.asarray(picture.rgb)
    columns = np.flatnonzero(own.mask[0, 0].numpy().any(0))
    assert changed.any() and not changed[far][:, columns.max() + 4 :].any()
    assert torch.equal(canvas.narrowed(torch.zeros_like(x_mask)).mask, mask), "of an empty one nothing could be shown"


# --- edits -----------------------------------------------------------------------------------------------------------


@contextmanager
def any_contrast() -> Iterator[None]:
    """Any contrast counts, and contrast alone: a random model separates nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (fitting, "CONTRAST", 1.0),
            (fitting, "LIKENESS", 0.0),
            (fitting, "SEPARATION", 0.0),
            (fitting, "LEAST", 0.0),
            (mask_fit, "SEPARATION", 0.0),
        ):
            patch.setattr(module, name, value)
        yield


@pytest.fixture
def always() -> Iterator[None]:
    with any_contrast():
        yield


X_SOURCE = tiny_picture(128, 128)
X_MASK = torch.nn.functional.interpolate(MASK, scale_factor=8)


def request(**options) -> EditRequest:
    return EditRequest("a red ball", **{"ddim_steps": 8, "n_samples": 2, **options})


def test_off_is_the_plain_trajectory_to_the_bit(model: LatentDiffusion):
    asked = request(fit_mask="off", scale=5.0, sampler="ddim", background_noise="resampled")
    edit = edit_image(model, X_SOURCE, X_MASK, asked)
    schedule = sampling_schedule(model, asked)
    contexts = [model.get_learned_conditioning([prompt]) for prompt in ("a red ball", "")]
    masks = step_masks(X_MASK, 8, schedule, 0)[:, None]
    with torch.no_grad():
        z_source = model.encode(X_SOURCE)
        plain = blended_sample(guided(model, *contexts, 5.0), schedule, z_source, masks, NoiseSource([42, 43]))
    assert torch.equal(edit.z0, plain)
    assert not any(fit.fitted for fit in edit.fits) and all(canvas is edit.task.canvas for canvas in edit.canvases)
    assert torch.equal(edit.fitted, edit.latent_masks[-1:].expand(2, -1, -1, -1))


@pytest.mark.parametrize("parameterization", ["eps", "v"])
@pytest.mark.parametrize("options", [{}, {"sampler": "dpmpp_2m"}, {"ddim_eta": 0.5}, {"soft_mask": True}])
def test_an_edit_leaves_all_beyond_the_fitted_mask(
    always: None, model: LatentDiffusion, options: dict, parameterization: str
):
    if parameterization == "v":
        model = tiny_model()
        model.parameterization = "v"
    edit = edit_image(model, X_SOURCE, X_MASK, request(fit_mask="on", **options))
    z_source = model.encode(X_SOURCE)
    assert all(fit.fitted for fit in edit.fits) and (edit.fitted <= edit.latent_masks[-1:]).all()
    assert edit.fitted.sum() < 2 * edit.latent_masks[-1].sum()
    for z0, cells, canvas in zip(edit.z0, edit.fitted, edit.canvases, strict=True):
        outside = cells[0] == 0
        assert torch.equal(z0[:, outside], z_source[0][:, outside])
        assert (canvas.x_mask <= X_MASK).all()
    assert all(one.max_difference == 0 for one in edit.measures)


def test_a_prediction_is_the_same_alone_in_a_batch_and_beside_masks_as_given(always: None, model: LatentDiffusion):
    both = edit_image(model, X_SOURCE, X_MASK, request(fit_mask="on"))
    alone = edit_image(model, X_SOURCE, X_MASK, request(fit_mask="on", n_samples=1, seed=43))
    tasks = [
        EditTask.of(
            Canvas.of_tensors(X_SOURCE, X_MASK),
            request(scale=5.0, sampler="ddim", background_noise="resampled", fit_mask=fit),
            8,
        )
        for fit in ("off", "on")
    ]
    off, on = edit_tasks(model, tasks, batch_size=4)
    assert torch.equal(both.fitted[1], alone.fitted[0]) and torch.equal(both.fitted, on.fitted)
    assert torch.allclose(both.z0[1], alone.z0[0], atol=1e-3) and torch.allclose(both.z0, on.z0, atol=1e-3)
    assert not any(fit.fitted for fit in off.fits)


def test_predictions_are_ranked_by_their_own_masks(always: None, model: LatentDiffusion):
    asked = []

    class Ranker:
        def distances(self, x: Tensor, mask: Tensor, prompt: str) -> Tensor:
            asked.append(mask)
            return torch.tensor([0.9, 0.1])

    plain = edit_image(model, X_SOURCE, X_MASK, request(fit_mask="on"))
    edit = edit_image(model, X_SOURCE, X_MASK, request(fit_mask="on"), Ranker())  # type: ignore[arg-type]
    assert torch.equal(asked[0], torch.cat([canvas.x_mask for canvas in plain.canvases]))
    assert edit.seeds == (43, 42) and torch.equal(edit.fitted, plain.fitted.flip(0))
    assert [fit.x_mask.sum() for fit in edit.fits] == [fit.x_mask.sum() for fit in plain.fits][::-1]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> EditJob:
    tmp_path = tmp_path_factory.mktemp("run")
    to_pil(tiny_picture(150, 130)).save(tmp_path / "photo.png")
    mask = np.zeros((150, 130), np.uint8)
    mask[20:130, 15:120] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return EditJob(
        "a red ball",
        init_image=tmp_path / "photo.png",
        mask=tmp_path / "mask.png",
        model=str(save_tiny_model(tmp_path / "model")),
        outdir=tmp_path / "out",
        n_samples=2,
        ddim_steps=8,
        H=128,
        W=128,
        fit_mask="on",
        device="cpu",
    )


@pytest.fixture(scope="module")
def saved(job: EditJob) -> SavedEdit:
    with any_contrast():
        return run_edit(job)


def test_a_run_keeps_the_mask_of_each_prediction(saved: SavedEdit):
    run = read_run(saved.samples)
    for i, canvas in enumerate(saved.result.canvases):
        path = run.fitted_mask(i)
        assert path is not None
        white = np.asarray(load_image(path).rgb.convert("L")) > 127
        assert np.array_equal(white, canvas.mask[0, 0].numpy() > 0)
        assert run.record.fits[i]["fitted"] and run.record.fits[i]["why"] == "fit_mask is on"
        assert 0 < run.record.fits[i]["kept"] < 1
    assert run.record.options["fit_mask"] == "on"
    assert [one["max_difference"] for one in run.record.measures] == [0, 0]


def test_a_reconstruction_takes_the_mask_of_its_prediction(job: EditJob, saved: SavedEdit):
    source = np.asarray(load_image(job.init_image).rgb)
    how = {"images_path": saved.samples, "reconstruction_type": "pixel", "feather": 0.0, "device": "cpu"}
    for i, (restored, canvas) in enumerate(
        zip(run_reconstruction(ReconstructionJob(**how)), saved.result.canvases, strict=True)
    ):
        changed = (np.asarray(load_image(restored.path).rgb) != source).any(-1)
        assert changed.any() and not changed[canvas.mask[0, 0].numpy() == 0].any(), i
    whole = run_reconstruction(ReconstructionJob(**how, mask=job.mask, selected_indices=(0,)))[0]
    changed = (np.asarray(load_image(whole.path).rgb) != source).any(-1)
    assert changed[saved.result.canvases[0].mask[0, 0].numpy() == 0].any(), "a mask that is given is what counts"


def test_a_prediction_made_again_has_its_mask_again(always: None, saved: SavedEdit, tmp_path: Path):
    again = EditJob(**options_of(saved.samples / "results" / "0001.png") | {"outdir": tmp_path / "again"})
    assert again.fit_mask == "on"
    made = run_edit(again)
    first, second = (
        np.asarray(load_image(samples / "masks" / name).rgb).astype(int)
        for samples, name in ((saved.samples, "0001.png"), (made.samples, "0000.png"))
    )
    assert (first != second).mean() < 0.002


def test_runs_of_earlier_versions_are_made_again_as_they_were(saved: SavedEdit):
    record = json.loads((saved.samples / "run.json").read_text())
    del record["options"]["fit_mask"], record["fits"]
    (saved.samples / "run.json").write_text(json.dumps(record))
    assert options_of(saved.samples / "results" / "0000.png")["fit_mask"] == "off"
