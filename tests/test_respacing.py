"""Chains of guided-diffusion: subsets of timesteps, the posterior and learned variances, against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from ldm.errors import UserError
from ldm.models.diffusion.levels import make_beta_schedule
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.respacing import (
    AncestralPrediction,
    RespacedLevels,
    ancestral_step,
    posterior_mean,
    posterior_variance,
    space_timesteps,
    transition_variance,
)
from ldm.models.diffusion.sampling import NoiseSource, ddim_step
from ldm.models.diffusion.schedule import NoiseLevel
from tests.tiny import normal

BETAS = make_beta_schedule("sqrt_linear")
LEVELS = RespacedLevels(torch.cumprod(1 - BETAS, dim=0))
START, END = NoiseLevel(0.6, 0.8, 500), NoiseLevel(0.8, 0.6, 300)


def test_timesteps_reach_from_the_first_to_the_last():
    assert space_timesteps("1000") == tuple(range(1000))
    assert space_timesteps("100")[:3] + space_timesteps("100")[-2:] == (0, 10, 20, 989, 999)
    assert space_timesteps("2", 10) == (0, 9) and space_timesteps("1", 10) == (0,)


def test_sections_have_their_own_numbers_of_steps():
    timesteps = space_timesteps("10,10,3,2,2")
    assert [sum(200 * k <= t < 200 * (k + 1) for t in timesteps) for k in range(5)] == [10, 10, 3, 2, 2]
    assert timesteps[20:] == (400, 500, 599, 600, 799, 800, 999)
    assert space_timesteps("fast27") == (*timesteps[:-1], 997)


def test_ddim_respacing_has_a_whole_stride_from_the_first():
    assert space_timesteps("ddim25") == tuple(range(0, 1000, 40))


@pytest.mark.parametrize("given", ["", "0", "many", "1001", "ddim", "ddim7,7", "ddim999", "500,600", "-3", "1.5"])
def test_what_is_no_subset_is_refused_by_name(given):
    with pytest.raises(UserError, match="timestep_respacing"):
        space_timesteps(given)


def test_a_trajectory_starts_where_steps_are_left_out_and_ends_without_noise():
    schedule = LEVELS.respaced("100", skip_steps=25)
    assert len(schedule) == 75 and schedule.timesteps[0] == space_timesteps("100")[74]
    assert (schedule.levels[-1].a, schedule.levels[-1].s) == (1.0, 0.0)
    with pytest.raises(UserError, match="skip_timesteps"):
        LEVELS.respaced("100", skip_steps=100)


def test_respaced_betas_multiply_to_the_same_levels():
    """1 - beta' = abar_t / abar_s (Nichol & Dhariwal 2021, section 4), in float64."""
    levels = LEVELS.respaced("50").levels
    product = math.prod(1 - transition_variance(start, end) for start, end in pairwise(levels))
    assert product == pytest.approx(float(LEVELS.alphas_cumprod[999]), rel=1e-10)


def test_every_timestep_gives_the_betas_back():
    levels = LEVELS.respaced("1000").levels
    betas = [transition_variance(start, end) for start, end in pairwise(levels)]
    torch.testing.assert_close(torch.tensor(betas[::-1], dtype=torch.float64), BETAS, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("start", "end"), [(START, END), (NoiseLevel(0.2, 0.8), NoiseLevel(0.7, 0.3))])
def test_the_posterior_is_that_of_bayes(start, end):
    """p(z' | z, z0) ~ p(z | z') p(z' | z0): precisions add; also for levels of flow matching."""
    ratio, beta = start.a / end.a, start.s**2 - (start.a / end.a * end.s) ** 2
    precision = ratio**2 / beta + 1 / end.s**2
    z, z0 = normal(3, 1, 2, 2).double(), normal(3, 1, 2, 2, seed=2).double()
    mean = (ratio * z / beta + end.a * z0 / end.s**2) / precision
    assert posterior_variance(start, end) == pytest.approx(1 / precision, rel=1e-12)
    torch.testing.assert_close(posterior_mean(z, z0, start, end), mean, rtol=1e-12, atol=1e-12)


def test_the_learned_variance_lies_between_the_posteriors_and_betas():
    out = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    fraction = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64).view(1, 1, 1, 3)
    variance = AncestralPrediction(out, START, out, fraction=fraction).variance(END)[0, 0, 0]
    low, high = posterior_variance(START, END), transition_variance(START, END)
    expected = torch.tensor([low, math.sqrt(low * high), high], dtype=torch.float64)
    torch.testing.assert_close(variance, expected, rtol=1e-12, atol=0)
    assert AncestralPrediction(out, START, out).variance(END) == low


def test_with_the_posteriors_variance_a_step_is_that_of_ddim_with_eta_one():
    made = Prediction(normal(2, 3, 4, 4), START, normal(2, 3, 4, 4, seed=5))
    sigma = posterior_variance(START, END) ** 0.5
    expected = ddim_step(made, END, sigma, NoiseSource([3, 4]).draw((3, 4, 4), made.z))
    torch.testing.assert_close(ancestral_step(made, END, NoiseSource([3, 4])), expected, rtol=1e-5, atol=1e-6)


def test_a_gradient_moves_the_mean_by_the_variance_and_the_last_step_is_the_estimate():
    z, out, gradient = (normal(2, 3, 4, 4, seed=seed) for seed in (1, 2, 3))
    plain = ancestral_step(AncestralPrediction(z, START, out), END, NoiseSource([0, 1]))
    made = AncestralPrediction(z, START, out, gradient=gradient)
    moved = ancestral_step(made, END, NoiseSource([0, 1]))
    torch.testing.assert_close(moved, plain - posterior_variance(START, END) * gradient)
    torch.testing.assert_close(ancestral_step(made, NoiseLevel(1.0, 0.0), NoiseSource([0, 1])), made.z0)


def test_the_squared_cosine_is_that_of_its_equation():
    betas = make_beta_schedule("squaredcos_cap_v2", 100)
    levels = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    assert betas[40].item() == pytest.approx(1 - levels[41] / levels[40], rel=1e-12)
    assert betas[-1].item() == 0.999


def test_ancestral_sampling_of_a_gaussian_ends_with_its_variance():
    """Data of N(0, 0.25): the exact denoiser's samples have that variance, up to the discretisation."""
    schedule = LEVELS.respaced("1000")
    noise = NoiseSource([7])
    z = noise.draw((1, 64, 64), torch.empty(0, dtype=torch.float64))
    for start, end in pairwise(schedule.levels):
        z0 = start.a * 0.25 / (start.a**2 * 0.25 + start.s**2) * z
        z = ancestral_step(Prediction(z, start, z0, "z0"), end, noise)
    assert z.var().item() == pytest.approx(0.25, rel=0.06)
