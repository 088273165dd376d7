"""Sampling and blending: what is exact stays exact, each step lands on its level, and a seed is one prediction."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.editing.edit import edit_image
from ldm.editing.request import EditRequest
from ldm.editing.result import EditResult
from ldm.models.diffusion.blending import PixelBlending, blended_sample
from ldm.models.diffusion.ddpm import LatentDiffusion, TextConditioning, schedule_buffers
from ldm.models.diffusion.levels import make_beta_schedule
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.sampling import NoiseSource, StepInfo, ddim_step, sample
from ldm.models.diffusion.schedule import NoiseLevel, SamplingSchedule, mask_parts, parts_of
from tests.denoisers import guided, level_at, of_eps, trajectory, wavy
from tests.tiny import normal, squares, tiny_model

LEVELS = schedule_buffers(make_beta_schedule("linear", 1000, 0.00085, 0.012))["alphas_cumprod"]
SIZE = 12  # of the latents


class Recorder(NoiseSource):
    """Keeps what it gave."""

    def draw(self, shape, like):
        self.drawn = [*getattr(self, "drawn", []), super().draw(shape, like)]
        return self.drawn[-1]


def noised(z0: Tensor, level: Tensor | float, noise: Tensor) -> Tensor:
    level = torch.as_tensor(level, dtype=torch.float64)
    return (level.sqrt() * z0 + (1 - level).sqrt() * noise).float()


def per_step(masks: Tensor, schedule: SamplingSchedule) -> Tensor:
    """(K, 1, h, w), widest first -> (steps, 1, 1, h, w)."""
    return masks[list(parts_of(schedule, len(masks)))][:, None]


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# --- plain DDIM ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_denoiser_that_knows_the_answer_is_led_to_it(eta: float):
    """With the true eps every estimate of z_0 is the true one; the last level is alphas_cumprod[0]."""
    truth = normal(2, 4, 5, 5)

    @of_eps
    def oracle(z: Tensor, t: Tensor) -> Tensor:
        level = LEVELS[t].view(-1, 1, 1, 1)
        return (z - level.sqrt() * truth) / (1 - level).sqrt()

    schedule, estimates = trajectory(LEVELS, 7, eta), []
    start = normal(2, 4, 5, 5, seed=2)
    z = sample(oracle, schedule, start, NoiseSource([1, 2]), callback=estimates.append)
    for info in estimates:
        torch.testing.assert_close(info.z0, truth, rtol=1e-3, atol=1e-3)
    residue = (z - LEVELS[0].sqrt() * truth) / (1 - LEVELS[0]).sqrt()
    assert residue.std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_step_is_equation_12(eta: float):
    noise, seen, z = Recorder([5]), [], normal(1, 4, 6, 6)
    schedule = trajectory(LEVELS, 4, eta)
    sample(wavy, schedule, z, noise, callback=seen.append)
    assert [info.timestep for info in seen] == [751, 501, 251, 1]
    assert [(info.step, info.total) for info in seen] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    for i, (info, after) in enumerate(zip(seen, [501, 251, 1, 0], strict=True)):
        a, before = LEVELS[info.timestep].double(), LEVELS[after].double()
        sigma = eta * ((1 - before) / (1 - a) * (1 - a / before)).sqrt()
        eps = wavy(z, level_at(LEVELS, info.timestep)).eps
        z0 = (z - (1 - a).sqrt() * eps) / a.sqrt()
        z = before.sqrt() * z0 + (1 - before - sigma**2).sqrt() * eps
        z = (z + sigma * noise.drawn[i] if eta else z).float()
        same(info.z0, z0.float())
        same(info.z, z)
    assert len(getattr(noise, "drawn", [])) == (4 if eta else 0)


@pytest.mark.parametrize("steps", [1, 3, 9, 27, 30, 36, 50, 101, 111, 251, 333, 501, 1000])
def test_steps_asked_are_steps_taken(steps: int):
    schedule, told = trajectory(LEVELS, steps), []

    @of_eps
    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        told.append(t.tolist())
        return torch.zeros_like(z)

    sample(denoiser, schedule, normal(2, 1, 1, 1), NoiseSource([1, 2]))
    assert told == [[t, t] for t in schedule.timesteps] and len(told) == steps
    told.clear()
    seen: list[StepInfo] = []
    masks = torch.ones(steps, 1, 1, 1, 1)
    blended_sample(denoiser, schedule, normal(1, 1, 1, 1), masks, NoiseSource([1, 2]), callback=seen.append)
    assert told == [[t, t] for t in schedule.timesteps] and len(seen) == steps


# --- guidance --------------------------------------------------------------------------------------------------------


class Spy:
    """Stands for a LatentDiffusion: eps is the mean of the context, and every call is kept."""

    def __init__(self):
        self.calls = []

    def prepare_context(self, context: Tensor) -> Tensor:
        return context

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: TextConditioning) -> Prediction:
        context = conditioning.prepared
        self.calls.append((z, level.t, context))
        rows = context.mean(dim=(1, 2)).repeat_interleave(len(z) // len(context))
        return Prediction(z, level, rows.view(-1, 1, 1, 1) + 0 * z)


def test_guidance_extrapolates_from_the_empty_prompt():
    spy, z, level = Spy(), normal(3, 4, 2, 2), level_at(LEVELS, 7)
    context, empty = torch.full((1, 5, 6), 3.0), torch.full((1, 5, 6), 1.0)
    for scale, expected in ((5.0, 11.0), (0.0, 1.0), (1.5, 4.0)):
        eps = guided(spy, context, empty, scale)(z, level).eps
        same(eps, torch.full_like(z, expected))
    assert len(spy.calls) == 3, "both prompts go through the network as one batch"
    for seen_z, seen_t, seen_context in spy.calls:
        assert torch.equal(seen_z, torch.cat([z, z])) and seen_t == 7
        assert seen_context.shape == (2, 5, 6), "a row for each prompt, not for each sample"


def test_at_scale_one_the_empty_prompt_is_not_computed():
    context = torch.full((1, 5, 6), 3.0)
    spy, level = Spy(), level_at(LEVELS, 7)
    same(guided(spy, context, 2 * context, 1.0)(normal(3, 4, 2, 2), level).eps, torch.full((3, 4, 2, 2), 3.0))
    assert [len(z) for z, _, _ in spy.calls] == [3]


# --- the masks of the steps ------------------------------------------------------------------------------------------


def test_parts_are_as_equal_as_steps_allow_widest_first_tight_last():
    for steps in [*range(1, 60), 99, 100, 101, 333, 1000]:
        for masks in range(1, 12):
            parts = mask_parts(steps, masks)
            assert len(parts) == steps and list(parts) == sorted(parts)
            assert parts[-1] == masks - 1, "the tight mask comes last"
            sizes = [parts.count(k) for k in range(masks)]
            if steps >= masks:
                assert max(sizes) - min(sizes) <= 1
            else:
                assert max(sizes) == 1


@pytest.mark.parametrize(("steps", "parts"), [(4, "0123"), (8, "00112233"), (2, "13"), (1, "3"), (6, "011233")])
def test_each_step_blends_with_the_mask_of_its_part(steps: int, parts: str):
    masks, z_source, seen = squares(12, 8, 4, 2), normal(1, 4, SIZE, SIZE), []
    noise, schedule = Recorder([1, 2]), trajectory(LEVELS, steps)
    blended_sample(wavy, schedule, z_source, per_step(masks, schedule), noise, callback=seen.append)
    for info, part in zip(seen, map(int, parts), strict=True):
        level = 1.0 if info.step == steps - 1 else LEVELS[seen[info.step + 1].timestep]
        fresh = noise.drawn[info.step + 1] if info.step < steps - 1 else torch.zeros(2, 4, SIZE, SIZE)
        outside = (info.z - noised(z_source, level, fresh)).abs().amax(dim=(0, 1)) < 1e-5
        assert torch.equal(~outside, masks[part, 0].bool())


@pytest.mark.parametrize(
    "shape",
    [(4, 1, SIZE, SIZE), (3, 1, 1, SIZE, SIZE), (4, 3, 1, SIZE, SIZE), (4, 1, 4, SIZE, SIZE), (4, 1, 1, 2, SIZE)],
)
def test_masks_are_one_for_each_step(shape: tuple[int, ...]):
    schedule, z_source = trajectory(LEVELS, 4), normal(1, 4, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"masks are \(4, 1 or 2, 1, 12, 12\), one for each step"):
        blended_sample(wavy, schedule, z_source, torch.ones(shape), NoiseSource([1, 2]))


def test_each_sample_has_its_own_masks_where_they_differ():
    schedule, z_source = trajectory(LEVELS, 4), normal(1, 4, SIZE, SIZE)
    wide, tight = (per_step(squares(side), schedule) for side in (8, 4))

    def edit(masks: Tensor, *seeds: int) -> Tensor:
        return blended_sample(wavy, schedule, z_source, masks, NoiseSource(seeds))

    both = edit(torch.cat([wide, tight], dim=1), 1, 2)
    assert torch.equal(both, torch.cat([edit(wide, 1), edit(tight, 2)]))


# --- blending --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("steps", "skip"), [(1, 0), (3, 0), (10, 4), (1000, 990)])
def test_background_at_the_end_is_the_source_bit_for_bit(eta: float, steps: int, skip: int):
    masks, z_source = squares(10, 8, 6, 4), normal(1, 4, SIZE, SIZE)
    schedule = trajectory(LEVELS, steps, eta, skip)
    z = blended_sample(wavy, schedule, z_source, per_step(masks, schedule), NoiseSource([1, 2, 3]))
    assert z.shape == (3, 4, SIZE, SIZE)
    inside = masks[-1, 0].bool()
    assert torch.equal(z[..., ~inside], z_source.expand(3, -1, -1, -1)[..., ~inside])
    assert (z[..., inside] != z_source[..., inside]).float().mean() > 0.99


@pytest.mark.parametrize("skip", [0, 3])
def test_sampling_starts_from_the_source_at_the_first_step_s_level(skip: int):
    z_source, starts = normal(1, 4, SIZE, SIZE), []

    @of_eps
    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        starts.append((t[0].item(), z))
        return wavy(z, level_at(LEVELS, int(t[0]))).eps

    schedule = trajectory(LEVELS, 10, skip_steps=skip)
    blended_sample(denoiser, schedule, z_source, per_step(squares(4), schedule), noise := Recorder([1, 2]))
    timestep, z = starts[0]
    assert timestep == 901 - 100 * skip
    same(z, noised(z_source, LEVELS[timestep], noise.drawn[0]))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_background_on_the_way_has_the_level_after_the_step(eta: float):
    z_source, seen, noise = normal(1, 4, SIZE, SIZE), [], Recorder([1, 2])
    schedule = trajectory(LEVELS, 10, eta)
    blended_sample(wavy, schedule, z_source, per_step(squares(4), schedule), noise, callback=seen.append)
    outside = squares(4)[0, 0] == 0
    draws = noise.drawn[1:]  # after the start: for each step its own noise where there is eta, then the background's
    for info, after in zip(seen[:-1], [801, 701, 601, 501, 401, 301, 201, 101, 1], strict=True):
        fresh = draws[2 * info.step + 1] if eta else draws[info.step]
        same(info.z[..., outside], noised(z_source, LEVELS[after], fresh)[..., outside])
    assert len(draws) == (19 if eta else 9), "the last step needs no background noise"


def test_with_a_white_mask_it_is_plain_ddim_from_the_same_start():
    z_source, schedule = normal(1, 4, SIZE, SIZE), trajectory(LEVELS, 10, skip_steps=2)
    z = blended_sample(wavy, schedule, z_source, torch.ones(8, 1, 1, SIZE, SIZE), NoiseSource([1, 2]))
    start = noised(z_source, LEVELS[701], NoiseSource([1, 2]).draw((4, SIZE, SIZE), z_source))
    plain = sample(wavy, schedule, start, NoiseSource([1, 2]))
    torch.testing.assert_close(z, plain, rtol=1e-4, atol=1e-4)


def test_callbacks_see_the_estimate_of_the_clean_latents():
    seen, asked = [], []

    def denoiser(z: Tensor, level: NoiseLevel) -> Prediction:
        asked.append((z, wavy(z, level).eps))
        return wavy(z, level)

    schedule = trajectory(LEVELS, 5, eta=0.5)
    masks, z_source = per_step(squares(8, 4), schedule), normal(1, 4, SIZE, SIZE)
    z_end = blended_sample(denoiser, schedule, z_source, masks, NoiseSource([1]), callback=seen.append)
    assert [info.step for info in seen] == [0, 1, 2, 3, 4] and {info.total for info in seen} == {5}
    assert torch.equal(seen[-1].z, z_end)
    for info, (z, eps) in zip(seen, asked, strict=True):
        a = LEVELS[info.timestep].double()
        same(info.z0, ((z - (1 - a).sqrt() * eps) / a.sqrt()).float())


# --- pixel blending --------------------------------------------------------------------------------------------------


class Folding:
    """A first stage that loses nothing: pixels are folded into channels, 2x2 to a position, and halved."""

    factor = 2

    gain = 1.0

    def __init__(self):
        self.decoded: list[int] = []

    def encode(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2) / 2

    def decode(self, z: Tensor) -> Tensor:
        self.decoded.append(len(z))
        return F.pixel_shuffle(z * 2, 2) * self.gain


class Sharpening(Folding):
    """One whose decoder adds a fifth to every contrast, which an encoder does not undo."""

    gain = 1.2


def pixel_edit(fraction: float, steps: int = 10, eta: float = 0.0, sampler: str = "ddim", first_stage=Folding):
    model, x_source = first_stage(), normal(1, 3, 2 * SIZE, 2 * SIZE).clamp(-1, 1)
    mask = torch.zeros(1, 1, 2 * SIZE, 2 * SIZE)
    mask[..., 7:15, 8:17] = 1  # odd edges: the border runs through latent positions
    noise, seen, schedule = Recorder([1, 2]), [], trajectory(LEVELS, steps, eta, sampler=sampler)
    z = blended_sample(
        wavy,
        schedule,
        model.encode(x_source),
        per_step(squares(10, 6), schedule),
        noise,
        pixels=PixelBlending(model, x_source, mask, fraction),
        callback=seen.append,
    )
    return model, x_source, mask, z, noise, seen


@pytest.mark.parametrize(
    ("fraction", "steps", "expected"), [(0.0, 10, 0), (0.3, 10, 3), (1.0, 10, 10), (0.25, 30, 8), (1.0, 1, 1)]
)
def test_pixels_are_blended_in_the_last_steps_one_sample_at_a_time(fraction: float, steps: int, expected: int):
    assert pixel_edit(fraction, steps)[0].decoded == [1] * 2 * expected


def test_pixel_blending_changes_the_estimate_and_keeps_the_noise_of_the_step():
    model, x_source, mask, _, noise, seen = pixel_edit(fraction=0.5)
    source, touched = model.encode(x_source), F.max_pool2d(mask, 2)
    for before, info, after in zip(seen[4:], seen[5:-1], [301, 201, 101, 1], strict=False):
        start, end = (level_at(LEVELS, t) for t in (info.timestep, after))
        made = wavy(before.z, start)
        z, z0 = ddim_step(made, end), made.z0
        change = model.encode(model.decode(z0) * mask + x_source * (1 - mask)) - z0
        background = noised(source, LEVELS[after], noise.drawn[1 + info.step])
        same(info.z, torch.where(touched > 0, z + end.a * change, background))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("first_stage", [Folding, Sharpening])
def test_inside_the_mask_pixel_blending_changes_nothing_whatever_the_autoencoder_loses(sampler: str, first_stage):
    """Each step would add its loss, and noise that is not the trajectory's: contrast burnt in."""
    seen = [pixel_edit(fraction, sampler=sampler, first_stage=first_stage)[-1] for fraction in (0.0, 0.2)]
    blended, plain = seen[1][8], seen[0][8]  # the first step that blends: later ones also see the border
    inside = F.max_pool2d(1 - pixel_edit(0.0)[2], 2)[0, 0] == 0
    assert inside.sum() > 4
    same(blended.z[..., inside], plain.z[..., inside])


def test_pixel_blending_ends_with_the_very_pixels_of_the_source():
    model, x_source, mask, z, _, seen = pixel_edit(fraction=0.5, eta=1.0)
    x, outside = model.decode(z), mask[0, 0] == 0
    same(x[..., outside], x_source.expand(2, -1, -1, -1)[..., outside])
    same(x[..., ~outside], model.decode(seen[-1].z0)[..., ~outside])
    touched = F.max_pool2d(mask, 2)[0, 0] > 0
    z_source = model.encode(x_source)
    assert torch.equal(z[..., ~touched], z_source.expand(2, -1, -1, -1)[..., ~touched])


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_noise_of_a_seed_is_its_own_whatever_the_batch():
    batch, alone = NoiseSource([7, 8, 9]), NoiseSource([8])
    like = torch.zeros(1)
    for _ in range(3):
        drawn = batch.draw((4, 5, 6), like)
        assert drawn.shape == (3, 4, 5, 6) and torch.equal(drawn[1:2], alone.draw((4, 5, 6), like))
        assert not torch.equal(drawn[0], drawn[1])
    rounded = NoiseSource([8]).draw((4,), like.bfloat16())
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, NoiseSource([8]).draw((4,), like).bfloat16())
    assert len(batch) == 3 and batch.seeds == (7, 8, 9)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_model()


def source() -> Tensor:
    return normal(1, 3, 64, 64).clamp(-1, 1)


def edit(model: LatentDiffusion, **options) -> EditResult:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    request = EditRequest(**{"prompt": "a pink ball", "ddim_steps": 4, "ddim_eta": 1.0, "seed": 5} | options)
    return edit_image(model, source(), mask, request)


@pytest.mark.parametrize("pixels", [0.0, 0.5])
def test_a_prediction_is_the_same_alone_in_a_batch_and_with_n_iter(model, pixels: float):
    options = {"percentage_of_pixel_blending": pixels}
    batch = edit(model, n_samples=3, **options)
    one_by_one = edit(model, n_samples=1, n_iter=3, **options)
    alone = edit(model, n_samples=1, seed=6, **options)
    assert batch.seeds == one_by_one.seeds == (5, 6, 7) and alone.seeds == (6,)
    assert batch.x.shape == (3, 3, 64, 64)
    for ours, expected in ((one_by_one, batch.x), (alone, batch.x[1:2])):
        torch.testing.assert_close(ours.x, expected, rtol=0, atol=1e-4)  # 8-bit levels are 8e-3 apart
    assert not torch.allclose(batch.x[0], batch.x[1], atol=1e-2)


def test_the_global_generator_is_neither_read_nor_moved(model):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(edit(model, n_samples=2, percentage_of_pixel_blending=0.5).z0)
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*results)


# --- what inference must not do --------------------------------------------------------------------------------------


def test_no_gradients_are_tracked():
    weight = torch.ones(1, requires_grad=True)
    z_source = normal(1, 4, SIZE, SIZE).requires_grad_()
    schedule = trajectory(LEVELS, 3)
    seen: list[StepInfo] = []
    masks = per_step(squares(8, 4), schedule)

    @of_eps
    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        return weight * wavy(z, level_at(LEVELS, int(t[0]))).eps

    z = blended_sample(denoiser, schedule, z_source, masks, NoiseSource([1]), callback=seen.append)
    plain = sample(denoiser, schedule, z_source, NoiseSource([1]), callback=seen.append)
    assert not any(t.requires_grad for info in seen for t in (info.z, info.z0, z, plain))


def test_editing_encodes_each_prompt_once_and_tracks_no_gradients():
    model, encoded, tracked = tiny_model().requires_grad_(True), [], []
    encode = model.cond_stage_model.forward

    def spy(prompts: list[str]) -> Tensor:
        encoded.append(prompts)
        tracked.append(torch.is_grad_enabled())
        return encode(prompts)

    model.cond_stage_model.forward = spy
    for network in (model.model, model.first_stage_model.decoder, model.first_stage_model.encoder):
        network.register_forward_hook(lambda *_: tracked.append(torch.is_grad_enabled()))
    result = edit(model, n_samples=2, n_iter=2, percentage_of_pixel_blending=0.5)
    assert sorted(encoded) == [[""], ["a pink ball"]]
    assert len(tracked) > 2 + 2 * 4 and not any(tracked)
    assert not result.x.requires_grad and not result.z0.requires_grad


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_in_half_precision_the_networks_are_half_and_the_latents_are_not(parameterization: str):
    model, seen = tiny_model(), []
    schedule = dict(model.named_buffers(recurse=False))
    model.bfloat16()
    for name, buffer in schedule.items():  # float32 in every precision, as `ldm.checkpoint.load_model` has it
        setattr(model, name, buffer)
    model.parameterization = parameterization
    model.model.diffusion_model.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    conditioning = TextConditioning(model, normal(2, 7, 32).bfloat16())
    eps = model.predict(normal(2, 4, 8, 8), level_at(LEVELS, 5), conditioning).eps
    assert eps.dtype == torch.float32
    result = edit(model, n_samples=1)
    assert result.x.dtype == result.z0.dtype == torch.float32 and torch.isfinite(result.x).all()
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    outside = result.latent_masks[-1, 0] == 0
    z_source = model.encode(source())
    assert torch.equal(result.z0[..., outside], z_source[..., outside])
