"""DPM-Solver++(2M) against another implementation, against exact solutions, and within blending; guidance intervals."""

from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.blended_ddim import BlendedDDIMSampler, mask_parts, parts_of
from ldm.models.diffusion.ddim import DDIMSampler, NoiseSource, guided_denoiser
from ldm.models.diffusion.ddpm import LatentDiffusion, schedule_buffers
from ldm.models.diffusion.schedule import (
    SamplingSchedule,
    make_beta_schedule,
    make_sampling_schedule,
    second_order_slopes,
)
from tests.tiny import normal, squares, tiny_model

LEVELS = schedule_buffers(make_beta_schedule("linear", 1000, 0.00085, 0.012))["alphas_cumprod"]
SIZE = 12  # of the latents


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_model()


class Gaussian:
    """Data of one normal distribution: the exact denoiser, and the exact end of a walk (probability-flow ODE)."""

    levels = torch.sigmoid(2 * torch.linspace(3.5, -2.7, 1281, dtype=torch.float64))  # even in log-SNR
    mean, spread = 0.7, 0.4

    def variance(self, level: Tensor) -> Tensor:
        """Of z at a level."""
        return level * self.spread**2 + 1 - level

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        level = self.levels[t].view(-1, 1, 1, 1)
        return (1 - level).sqrt() * (z - level.sqrt() * self.mean) / self.variance(level)

    def end(self, z: Tensor) -> Tensor:
        start, end = self.levels[-1], self.levels[0]
        grow = (self.variance(end) / self.variance(start)).sqrt()
        return end.sqrt() * self.mean + grow * (z - start.sqrt() * self.mean)

    def error(self, sampler: str, steps: int) -> float:
        """Of a walk of so many even steps in log-SNR."""
        timesteps = tuple(range(1280, -1, -1280 // steps))
        levels = tuple(self.levels[list(timesteps)].tolist())
        walk = levels[:-1], levels[1:]
        none = (0.0,) * steps
        slopes = none if sampler == "ddim" else second_order_slopes(*walk)
        schedule = SamplingSchedule(timesteps[:-1], *walk, sigmas=none, slopes=slopes, sampler=sampler)
        start = normal(1, 4, 4, 4).double()
        return (DDIMSampler(self, schedule).sample(start, NoiseSource([1])) - self.end(start)).abs().max().item()


# --- the solver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 5, 20])
@torch.no_grad()
def test_it_is_the_solver_of_diffusers(model: LatentDiffusion, steps: int):
    schedule = make_sampling_schedule(model.alphas_cumprod, steps, sampler="dpmpp_2m")
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=model.betas.double().numpy(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        euler_at_final=True,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(timesteps=list(schedule.timesteps))
    denoiser = guided_denoiser(model, normal(1, 7, 32), normal(1, 7, 32, seed=2), 2.0)
    start = z = normal(2, 4, 8, 8, seed=3)
    expected, seen = [], []
    for t in scheduler.timesteps:
        z = scheduler.step(denoiser(z, t.expand(2)), t, z).prev_sample
        expected.append(z)
    DDIMSampler(denoiser, schedule).sample(start, NoiseSource([1, 2]), seen.append)
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


def wavy(z: Tensor, t: Tensor) -> Tensor:
    """A denoiser of nothing in particular: bounded, and every position depends on others and on the timestep."""
    return torch.sin(3 * z + z.flip(-1) + z.flip(-2) + 0.01 * t.view(-1, 1, 1, 1))


def noised(z0: Tensor, level: Tensor | float, noise: Tensor) -> Tensor:
    level = torch.as_tensor(level, dtype=torch.float64)
    return (level.sqrt() * z0 + (1 - level).sqrt() * noise).float()


class Recorder(NoiseSource):
    """Keeps what it gave."""

    def draw(self, shape, like):
        self.drawn = [*getattr(self, "drawn", []), super().draw(shape, like)]
        return self.drawn[-1]


@pytest.mark.parametrize("skip", [0, 4])
def test_the_background_keeps_its_one_noise_and_ends_as_the_source(skip: int):
    z_source, seen, noise = normal(1, 4, SIZE, SIZE), [], Recorder([1, 2])
    schedule = make_sampling_schedule(LEVELS, 10, skip_steps=skip, sampler="dpmpp_2m")
    z = BlendedDDIMSampler(wavy, schedule, squares(4)).sample(z_source, noise, seen.append)
    (start,) = noise.drawn
    outside = squares(4)[0, 0] == 0
    for info, level in zip(seen, [*schedule.alphas[1:], 1.0], strict=True):
        torch.testing.assert_close(info.z[..., outside], noised(z_source, level, start)[..., outside])
    assert torch.equal(z[..., outside], z_source.expand(2, -1, -1, -1)[..., outside])


def test_ddim_draws_afresh_unless_it_is_told_not_to():
    z_source, schedule = normal(1, 4, SIZE, SIZE), make_sampling_schedule(LEVELS, 10)
    for fixed, draws in ((None, 10), (False, 10), (True, 1)):
        noise = Recorder([1])
        BlendedDDIMSampler(wavy, schedule, squares(4), fixed_noise=fixed).sample(z_source, noise)
        assert len(noise.drawn) == draws


def test_with_a_white_mask_it_is_plain_sampling_from_the_same_start():
    z_source, schedule = normal(1, 4, SIZE, SIZE), make_sampling_schedule(LEVELS, 10, sampler="dpmpp_2m")
    z = BlendedDDIMSampler(wavy, schedule, torch.ones(1, 1, SIZE, SIZE)).sample(z_source, NoiseSource([1, 2]))
    start = noised(z_source, schedule.alphas[0], NoiseSource([1, 2]).draw((4, SIZE, SIZE), z_source))
    plain = DDIMSampler(wavy, schedule).sample(start, NoiseSource([1, 2]))
    torch.testing.assert_close(z, plain, rtol=1e-4, atol=1e-4)


def test_masks_change_at_the_noise_levels_of_ddim():
    for masks in (1, 2, 4):
        even = make_sampling_schedule(LEVELS, 100)
        assert parts_of(even, masks) == mask_parts(100, masks)
        for steps in (1, 3, 8, 20, 100):
            schedule = make_sampling_schedule(LEVELS, steps, sampler="dpmpp_2m")
            parts = parts_of(schedule, masks)
            assert len(parts) == steps and list(parts) == sorted(parts) and parts[-1] == masks - 1
            for part, arrival in zip(parts[:-1], schedule.timesteps[1:], strict=True):
                assert part == masks - 1 - int(arrival / 1000 * masks)


def first_order_steps(masks: Tensor, steps: int, restarts: bool) -> list[list[int]]:
    """For each sample which steps added nothing to DDIM's."""
    schedule, seen, asked = make_sampling_schedule(LEVELS, steps, sampler="dpmpp_2m"), [], []

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        asked.append(z)
        return wavy(z, t)

    z_source, inside = normal(1, 4, SIZE, SIZE), (..., SIZE // 2, SIZE // 2)
    BlendedDDIMSampler(denoiser, schedule, masks, restarts=restarts).sample(z_source, NoiseSource([1, 2]), seen.append)
    found = [[], []]
    for i, (info, z) in enumerate(zip(seen, asked, strict=True)):
        ddim = noised(info.z0, schedule.alphas_prev[i], wavy(z, torch.tensor([info.timestep])))
        for row in range(2):
            if torch.allclose(info.z[row][inside], ddim[row][inside], atol=1e-5):
                found[row].append(i)
    return found


def test_restarts_are_each_sample_s_own():
    wide, tight = squares(8, 4)
    turns = [3, 5]  # sample 0 is blended with its tight mask from step 3 on, sample 1 from step 5 on
    masks = torch.stack([torch.stack([wide if i < turn else tight for turn in turns]) for i in range(10)])
    assert first_order_steps(masks, 10, restarts=False) == [[0, 9], [0, 9]]
    assert first_order_steps(masks, 10, restarts=True) == [[0, 4, 9], [0, 6, 9]]
    assert first_order_steps(masks[:2], 2, restarts=True) == [[0, 1], [0, 1]]


def test_a_prediction_does_not_depend_on_its_batch(model: LatentDiffusion):
    denoiser = guided_denoiser(model, normal(1, 7, 32), normal(1, 7, 32, seed=2), 2.0)
    schedule, z_source = make_sampling_schedule(model.alphas_cumprod, 5, sampler="dpmpp_2m"), normal(1, 4, 8, 8)
    masks = torch.ones(2, 1, 8, 8)
    masks[1, :, 2:, 3:] = 0

    def sample(seeds: list[int]) -> Tensor:
        return BlendedDDIMSampler(denoiser, schedule, masks).sample(z_source, NoiseSource(seeds))

    batch = sample([7, 8, 9])
    torch.testing.assert_close(batch[1:2], sample([8]), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


# --- guidance in an interval -----------------------------------------------------------------------------------------


class Counting:
    """A model that counts the rows that its network is given."""

    def __init__(self, model: LatentDiffusion):
        self.model, self.alphas_cumprod, self.rows = model, model.alphas_cumprod, {}
        self.prepare_context = model.prepare_context

    def predict_eps(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.rows[t[0].item()] = len(z)
        return self.model.predict_eps(z, t, context)


CONTEXT, EMPTY = normal(1, 7, 32), normal(1, 7, 32, seed=2)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_outside_the_interval_the_network_runs_for_the_prompt_alone(model: LatentDiffusion, sampler: str):
    spy, schedule = Counting(model), make_sampling_schedule(model.alphas_cumprod, 10, sampler=sampler)
    denoiser = guided_denoiser(spy, CONTEXT, EMPTY, 5.0, interval=(0.2, 0.6))
    DDIMSampler(denoiser, schedule).sample(normal(3, 4, 8, 8), NoiseSource([1, 2, 3]))
    assert spy.rows == {t: 6 if 0.2 <= t / 999 <= 0.6 else 3 for t in schedule.timesteps}
    assert 3 < list(spy.rows.values()).count(3) < 8


@pytest.mark.parametrize("timestep", [0, 200, 500, 999])
def test_inside_it_is_full_guidance_and_outside_none(model: LatentDiffusion, timestep: int):
    z, t, level = normal(2, 4, 8, 8), torch.tensor([timestep] * 2), timestep / 999
    full, none = (guided_denoiser(model, CONTEXT, EMPTY, scale)(z, t) for scale in (5.0, 1.0))
    assert not torch.allclose(full, none, atol=1e-2)
    for interval in ((0.0, 1.0), (max(level - 1e-3, 0.0), 1.0), (0.0, min(level + 1e-3, 1.0))):
        assert torch.equal(guided_denoiser(model, CONTEXT, EMPTY, 5.0, interval)(z, t), full)
    assert torch.equal(guided_denoiser(model, CONTEXT, EMPTY, 5.0, (0.3, 0.4))(z, t), none)


@pytest.mark.parametrize("interval", [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(model: LatentDiffusion, interval: tuple[float, float]):
    with pytest.raises(UserError, match=f"guidance_interval {interval[0]:g} {interval[1]:g} .* 0 .* to 1"):
        guided_denoiser(model, CONTEXT, EMPTY, 5.0, interval)
