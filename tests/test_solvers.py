"""DPM-Solver++(2M) against another implementation, against exact solutions, and within blending; guidance intervals."""

from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from ldm.models.diffusion.blending import blended_sample
from ldm.models.diffusion.ddpm import LatentDiffusion, TextConditioning, schedule_buffers
from ldm.models.diffusion.levels import make_beta_schedule
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.sampling import NoiseSource, sample
from ldm.models.diffusion.schedule import NoiseLevel, SamplingSchedule, mask_parts, parts_of
from tests.denoisers import guided, level_at, trajectory, wavy
from tests.tiny import normal, squares, tiny_model

LEVELS = schedule_buffers(make_beta_schedule("linear", 1000, 0.00085, 0.012))["alphas_cumprod"]
SIZE = 12  # of the latents
CONTEXT, EMPTY = normal(1, 7, 32), normal(1, 7, 32, seed=2)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_model()


class Gaussian:
    """Data of one normal distribution: the exact denoiser, and the exact end of a trajectory (probability-flow ODE)."""

    levels = torch.sigmoid(2 * torch.linspace(3.5, -2.7, 1281, dtype=torch.float64))  # even in log-SNR
    mean, spread = 0.7, 0.4

    def variance(self, level: Tensor) -> Tensor:
        """Of z at a level."""
        return level * self.spread**2 + 1 - level

    def __call__(self, z: Tensor, level: NoiseLevel) -> Prediction:
        alpha = self.levels[int(level.t)]
        return Prediction(z, level, (1 - alpha).sqrt() * (z - alpha.sqrt() * self.mean) / self.variance(alpha))

    def end(self, z: Tensor) -> Tensor:
        start, end = self.levels[-1], self.levels[0]
        grow = (self.variance(end) / self.variance(start)).sqrt()
        return end.sqrt() * self.mean + grow * (z - start.sqrt() * self.mean)

    def error(self, sampler: str, steps: int) -> float:
        """Of so many even steps in log-SNR."""
        timesteps = tuple(range(1280, -1, -1280 // steps))
        schedule = SamplingSchedule.along([level_at(self.levels, t) for t in timesteps], sampler)
        start = normal(1, 4, 4, 4).double()
        return (sample(self, schedule, start, NoiseSource([1])) - self.end(start)).abs().max().item()


# --- the solver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 5, 20])
@torch.no_grad()
def test_it_is_the_solver_of_diffusers(model: LatentDiffusion, steps: int):
    schedule = trajectory(model.alphas_cumprod, steps, sampler="dpmpp_2m")
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=model.betas.double().numpy(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        euler_at_final=True,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(timesteps=list(schedule.timesteps))
    denoiser = guided(model, normal(1, 7, 32), normal(1, 7, 32, seed=2), 2.0)
    start = z = normal(2, 4, 8, 8, seed=3)
    expected, seen = [], []
    for t in scheduler.timesteps:
        z = scheduler.step(denoiser(z, level_at(model.alphas_cumprod, int(t))).eps, t, z).prev_sample
        expected.append(z)
    sample(denoiser, schedule, start, NoiseSource([1, 2]), callback=seen.append)
    assert expected[-1].std() > 0.1
    for info, their_z in zip(seen, expected, strict=True):
        torch.testing.assert_close(info.z, their_z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(sampler: str, order: int):
    """Twice the steps: half the error with DDIM, a quarter with the second-order solver."""
    errors = [Gaussian().error(sampler, steps) for steps in (20, 40, 80, 160)]
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2**order] * 3, rel=0.1), errors


def test_few_steps_of_it_are_closer_than_many_of_ddim():
    assert Gaussian().error("dpmpp_2m", 10) < Gaussian().error("ddim", 80)


# --- blending --------------------------------------------------------------------------------------------------------


def per_step(masks: Tensor, schedule: SamplingSchedule) -> Tensor:
    """(K, 1, h, w), widest first -> (steps, 1, 1, h, w)."""
    return masks[list(parts_of(schedule, len(masks)))][:, None]


class Recorder(NoiseSource):
    """Keeps what it gave."""

    def draw(self, shape, like):
        self.drawn = [*getattr(self, "drawn", []), super().draw(shape, like)]
        return self.drawn[-1]


@pytest.mark.parametrize("skip", [0, 4])
def test_the_background_shares_the_start_s_noise_and_ends_as_the_source(skip: int):
    z_source, seen, noise = normal(1, 4, SIZE, SIZE), [], Recorder([1, 2])
    schedule = trajectory(LEVELS, 10, skip_steps=skip, sampler="dpmpp_2m")
    z = blended_sample(wavy, schedule, z_source, per_step(squares(4), schedule), noise, callback=seen.append)
    (start,) = noise.drawn
    outside = squares(4)[0, 0] == 0
    for info, level in zip(seen, [*schedule.levels[1:-1], NoiseLevel(1.0, 0.0)], strict=True):
        expected = level.a * z_source + level.s * start
        torch.testing.assert_close(info.z[..., outside], expected[..., outside])
    assert torch.equal(z[..., outside], z_source.expand(2, -1, -1, -1)[..., outside])


def test_ddim_draws_afresh_unless_it_is_told_not_to():
    z_source, schedule = normal(1, 4, SIZE, SIZE), trajectory(LEVELS, 10)
    for shared, draws in ((None, 10), (False, 10), (True, 1)):
        noise = Recorder([1])
        blended_sample(wavy, schedule, z_source, per_step(squares(4), schedule), noise, shared_noise=shared)
        assert len(noise.drawn) == draws


def test_with_a_white_mask_it_is_plain_sampling_from_the_same_start():
    z_source, schedule = normal(1, 4, SIZE, SIZE), trajectory(LEVELS, 10, sampler="dpmpp_2m")
    z = blended_sample(wavy, schedule, z_source, torch.ones(10, 1, 1, SIZE, SIZE), NoiseSource([1, 2]))
    start, level = NoiseSource([1, 2]).draw((4, SIZE, SIZE), z_source), schedule.levels[0]
    plain = sample(wavy, schedule, level.a * z_source + level.s * start, NoiseSource([1, 2]))
    torch.testing.assert_close(z, plain, rtol=1e-4, atol=1e-4)


def test_masks_change_at_the_noise_levels_of_ddim():
    for masks in (1, 2, 4):
        even = trajectory(LEVELS, 100)
        assert parts_of(even, masks) == mask_parts(100, masks)
        for steps in (1, 3, 8, 20, 100):
            schedule = trajectory(LEVELS, steps, sampler="dpmpp_2m")
            parts = parts_of(schedule, masks)
            assert len(parts) == steps and list(parts) == sorted(parts) and parts[-1] == masks - 1
            for part, arrival in zip(parts[:-1], schedule.timesteps[1:], strict=True):
                assert part == masks - 1 - int(arrival / 1000 * masks)


def test_a_prediction_does_not_depend_on_its_batch(model: LatentDiffusion):
    denoiser = guided(model, normal(1, 7, 32), normal(1, 7, 32, seed=2), 2.0)
    schedule, z_source = trajectory(model.alphas_cumprod, 5, sampler="dpmpp_2m"), normal(1, 4, 8, 8)
    masks = torch.ones(5, 1, 1, 8, 8)
    masks[2:, ..., 2:, 3:] = 0

    def edit(seeds: list[int]) -> Tensor:
        return blended_sample(denoiser, schedule, z_source, masks, NoiseSource(seeds))

    batch = edit([7, 8, 9])
    torch.testing.assert_close(batch[1:2], edit([8]), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


PINS = [
    (6, 4, None, None, {}, [-7.4985, 2.0257, 2.4455, -3.9387]),
    (6, 4, None, None, {"eta": 1.0}, [-8.8672, 1.0415, -0.2464, -1.3632]),
    (6, 4, True, None, {}, [-7.5262, 2.0129, 2.4125, -3.9134]),
    (8, 3, None, None, {"sampler": "dpmpp_2m"}, [-17.8302, 3.4061, 5.4383, -12.3054]),
    (8, 2, None, None, {"sampler": "dpmpp_2m", "skip_steps": 3}, [-1.7803, 1.2697, 1.0757, 0.2483]),
    (8, 4, None, (0.2, 0.6), {"skip_steps": 2}, [-3.0976, 1.3478, 1.4641, -0.613]),
]
"""Steps, masks, shared noise, guidance interval, and the latents at one place: a seed keeps its picture."""


@pytest.mark.parametrize(("steps", "masks", "shared", "interval", "options", "expected"), PINS)
def test_trajectories_stay_what_they_were(model, steps, masks, shared, interval, options, expected):
    schedule = trajectory(model.alphas_cumprod, steps, **options)
    denoiser = guided(model, CONTEXT, EMPTY, 3.0, interval)
    per = per_step(squares(8, 6, 4, 2, size=8)[-masks:], schedule)
    z = blended_sample(denoiser, schedule, normal(1, 4, 8, 8, seed=3), per, NoiseSource([1, 2]), shared_noise=shared)
    assert z[1, :, 4, 4].tolist() == pytest.approx(expected, abs=2e-3)


# --- guidance in an interval -----------------------------------------------------------------------------------------


class Counting:
    """A model that counts the rows that its network is given."""

    def __init__(self, model: LatentDiffusion):
        self.model, self.levels, self.rows = model, model.levels, {}
        self.prepare_context = model.prepare_context

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: TextConditioning) -> Prediction:
        self.rows[level.t] = len(z)
        return self.model.predict(z, level, conditioning)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_outside_the_interval_the_network_runs_for_the_prompt_alone(model: LatentDiffusion, sampler: str):
    spy, schedule = Counting(model), trajectory(model.alphas_cumprod, 10, sampler=sampler)
    denoiser = guided(spy, CONTEXT, EMPTY, 5.0, interval=(0.2, 0.6))
    sample(denoiser, schedule, normal(3, 4, 8, 8), NoiseSource([1, 2, 3]))
    assert spy.rows == {t: 6 if 0.2 <= t / 999 <= 0.6 else 3 for t in schedule.timesteps}
    assert 3 < list(spy.rows.values()).count(3) < 8


@pytest.mark.parametrize("timestep", [0, 200, 500, 999])
def test_inside_it_is_full_guidance_and_outside_none(model: LatentDiffusion, timestep: int):
    z, at, level = normal(2, 4, 8, 8), level_at(LEVELS, timestep), timestep / 999
    full, none = (guided(model, CONTEXT, EMPTY, scale)(z, at).eps for scale in (5.0, 1.0))
    assert not torch.allclose(full, none, atol=1e-2)
    for interval in ((0.0, 1.0), (max(level - 1e-3, 0.0), 1.0), (0.0, min(level + 1e-3, 1.0))):
        assert torch.equal(guided(model, CONTEXT, EMPTY, 5.0, interval)(z, at).eps, full)
    assert torch.equal(guided(model, CONTEXT, EMPTY, 5.0, (0.3, 0.4))(z, at).eps, none)
