"""Noise levels: the model's buffers against closed forms, and the steps that a sampler takes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.ddpm import schedule_buffers
from ldm.models.diffusion.levels import ddim_timesteps, make_beta_schedule
from ldm.models.diffusion.schedule import NoiseLevel, SamplingSchedule, second_order_coefficients
from tests.denoisers import trajectory

PUBLIC = dict(linear_start=0.00085, linear_end=0.012)


@pytest.fixture(scope="module")
def levels() -> Tensor:
    """alphas_cumprod of the public model, as its buffer holds it."""
    return schedule_buffers(make_beta_schedule("linear", 1000, **PUBLIC))["alphas_cumprod"]


def alphas(schedule: SamplingSchedule) -> list[float]:
    """alphas_cumprod at each level of a schedule."""
    return [level.a**2 for level in schedule.levels]


# --- the model's side ------------------------------------------------------------------------------------------------


def test_betas_are_linear_in_their_square_roots():
    betas = make_beta_schedule("linear", 1000, **PUBLIC)
    assert betas.shape == (1000,) and betas.dtype == torch.float64
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    for t in (0, 1, 500, 999):
        assert betas[t].item() == pytest.approx((low + (high - low) * t / 999) ** 2, rel=1e-12)


def test_the_other_schedule_is_linear_in_beta():
    betas = make_beta_schedule("sqrt_linear", 11, 0.1, 0.2)
    assert betas.tolist() == pytest.approx([0.1 + 0.01 * t for t in range(11)], rel=1e-12)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="frob"):
        make_beta_schedule("frob")


@pytest.fixture(scope="module")
def by_hand() -> dict[str, list[float]]:
    """The twelve buffers in plain Python floats, a step at a time (Ho et al. 2020, eq. 4 to 7)."""
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    rows, product = [], 1.0
    for t in range(1000):
        beta = (low + (high - low) * t / 999) ** 2
        before, product = product, product * (1 - beta)
        variance = beta * (1 - before) / (1 - product)
        rows.append(
            {
                "betas": beta,
                "alphas_cumprod": product,
                "alphas_cumprod_prev": before,
                "sqrt_alphas_cumprod": math.sqrt(product),
                "sqrt_one_minus_alphas_cumprod": math.sqrt(1 - product),
                "log_one_minus_alphas_cumprod": math.log(1 - product),
                "sqrt_recip_alphas_cumprod": math.sqrt(1 / product),
                "sqrt_recipm1_alphas_cumprod": math.sqrt(1 / product - 1),
                "posterior_variance": variance,
                "posterior_log_variance_clipped": math.log(max(variance, 1e-20)),
                "posterior_mean_coef1": beta * math.sqrt(before) / (1 - product),
                "posterior_mean_coef2": (1 - before) * math.sqrt(1 - beta) / (1 - product),
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_buffers_equal_their_closed_forms(by_hand):
    buffers = schedule_buffers(make_beta_schedule("linear", 1000, **PUBLIC))
    assert buffers.keys() == by_hand.keys()
    for name, expected in by_hand.items():
        assert buffers[name].shape == (1000,) and buffers[name].dtype == torch.float32
        assert torch.allclose(buffers[name], torch.tensor(expected), rtol=1e-5, atol=1e-9), name


def test_the_posterior_without_noise_is_its_own_mean(by_hand):
    """Where x_t carries no noise, the posterior mean of x_{t-1} carries none: c1 + c2 sqrt(a_t) = sqrt(a_{t-1})."""
    for t in (1, 10, 999):
        mean = (
            by_hand["posterior_mean_coef1"][t] + by_hand["posterior_mean_coef2"][t] * by_hand["sqrt_alphas_cumprod"][t]
        )
        assert mean == pytest.approx(math.sqrt(by_hand["alphas_cumprod_prev"][t]), rel=1e-9)


# --- the sampler's side ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [n for n in range(1, 1000) if 1000 % n == 0])
def test_timesteps_are_the_original_s_where_the_count_divides(steps: int):
    assert ddim_timesteps(steps) == tuple(range(1, 1000, 1000 // steps))


def test_fifty_steps():
    assert ddim_timesteps(50)[:3] == (1, 21, 41) and ddim_timesteps(50)[-2:] == (961, 981)
    assert ddim_timesteps(1000) == tuple(range(1000))


def test_any_count_is_exact_distinct_in_range_and_even():
    for steps in range(1, 1001):
        timesteps = ddim_timesteps(steps)
        assert len(timesteps) == len(set(timesteps)) == steps
        assert list(timesteps) == sorted(timesteps)
        assert timesteps[0] >= 0 and timesteps[-1] <= 999
        gaps = {b - a for a, b in pairwise(timesteps)}
        assert gaps <= {1000 // steps, 1000 // steps + 1}
        assert 1000 - timesteps[-1] <= 1000 / steps + 1, "the trajectory begins too far down"


def test_counts_of_a_model_with_fewer_levels():
    assert ddim_timesteps(4, 8) == (1, 3, 5, 7)
    for steps in range(1, 9):
        assert len(set(ddim_timesteps(steps, 8))) == steps and max(ddim_timesteps(steps, 8)) <= 7


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 9, 27, 30, 36, 50, 101, 111, 251, 333, 501, 750, 999, 1000])
def test_each_step_arrives_where_the_next_one_starts(levels: Tensor, steps: int):
    schedule = trajectory(levels, steps)
    assert len(schedule) == steps == len(schedule.levels) - 1 == len(schedule.sigmas) == len(schedule.progress)
    assert list(schedule.timesteps) == sorted(schedule.timesteps, reverse=True)
    assert alphas(schedule) == pytest.approx([*(levels[t].item() for t in schedule.timesteps), levels[0].item()])
    assert all(level.a**2 + level.s**2 == pytest.approx(1) for level in schedule.levels)
    assert set(schedule.sigmas) == {0.0}


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 333, 1000])
def test_sigmas_are_eta_times_the_ancestral_sampler_s(levels: Tensor, steps: int, eta: float):
    schedule = trajectory(levels, steps, eta)
    for (a, before), sigma in zip(pairwise(alphas(schedule)), schedule.sigmas, strict=True):
        expected = eta * math.sqrt((1 - before) / (1 - a)) * math.sqrt(1 - a / before)  # Song et al. 2021, eq. 16
        assert sigma == pytest.approx(expected, rel=1e-9)
        assert sigma**2 <= 1 - before, "more noise than the level holds"
    assert schedule.sigmas[0] > 0 and (schedule.sigmas[-1] > 0) == (steps < 1000)


def test_at_every_level_sigma_squared_is_the_posterior_variance(levels: Tensor):
    """With all steps and eta 1, DDIM is DDPM: the step from t has the variance of q(x_{t-1} | x_t, x_0)."""
    betas = make_beta_schedule("linear", 1000, **PUBLIC)
    sigmas = trajectory(levels, 1000, eta=1.0).sigmas
    variance = schedule_buffers(betas)["posterior_variance"].flip(0)
    torch.testing.assert_close(torch.tensor(sigmas[:-1]) ** 2, variance[:-1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("skip", [0, 1, 10, 49])
def test_skipped_steps_are_the_noisiest(levels: Tensor, skip: int):
    whole, rest = trajectory(levels, 50, 0.5), trajectory(levels, 50, 0.5, skip_steps=skip)
    assert len(rest) == 50 - skip
    for name in ("timesteps", "levels", "sigmas"):
        assert getattr(rest, name) == getattr(whole, name)[skip:]
    assert rest.timesteps[0] == 981 - 20 * skip and rest.timesteps[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(steps=0), "`ddim_steps` is 0: .* 1000"),
        (dict(steps=-5), "`ddim_steps` is -5: .* 1000"),
        (dict(steps=1001), "`ddim_steps` is 1001: .* 1000"),
        (dict(steps=50, skip_steps=50), "`skip_steps` is 50: give 0 to 49 with `ddim_steps=50`"),
        (dict(steps=50, skip_steps=-1), "`skip_steps` is -1: give 0 to 49"),
        (dict(steps=50, eta=-0.1), r"`ddim_eta` is -0\.1"),
        (dict(steps=50, eta=1.1), r"`ddim_eta` is 1\.1"),
        (dict(steps=50, eta=math.nan), "`ddim_eta` is nan"),
        (dict(steps=50, sampler="euler"), '`sampler` is "euler": give one of ddim, dpmpp_2m'),
        (dict(steps=50, eta=0.5, sampler="dpmpp_2m"), r"`ddim_eta=0\.5` .* dpmpp_2m adds no noise"),
        (dict(steps=0, sampler="dpmpp_2m"), "`ddim_steps` is 0: .* 1000"),
    ],
)
def test_numbers_out_of_range_are_one_line(levels: Tensor, arguments: dict, message: str):
    with pytest.raises(UserError, match=message) as error:
        trajectory(levels, **arguments)
    assert "\n" not in str(error.value)


# --- DPM-Solver++(2M) ------------------------------------------------------------------------------------------------


def test_steps_of_the_second_order_solver(levels: Tensor):
    """Distinct, from the noisiest level down to where DDIM ends, and denser towards the clean end."""
    for steps in [*range(1, 60), 99, 333, 500, 501, 999, 1000]:
        schedule = trajectory(levels, steps, sampler="dpmpp_2m")
        assert len(schedule) == len(set(schedule.timesteps)) == steps == len(schedule.second_order)
        assert list(schedule.timesteps) == sorted(schedule.timesteps, reverse=True)
        assert schedule.timesteps[0] == 999 and (schedule.timesteps[-1] > 0 or steps == 1000)
        assert alphas(schedule) == pytest.approx([*(levels[t].item() for t in schedule.timesteps), levels[0].item()])
        assert set(schedule.sigmas) == {0.0}
    assert trajectory(levels, 4, sampler="dpmpp_2m").timesteps == (999, 649, 353, 125)


@pytest.mark.parametrize("skip", [1, 10, 49])
def test_skipped_steps_of_the_second_order_solver_start_where_those_of_ddim_do(levels: Tensor, skip: int):
    ddim = trajectory(levels, 50, skip_steps=skip)
    schedule = trajectory(levels, 50, skip_steps=skip, sampler="dpmpp_2m")
    assert schedule.timesteps[0] == ddim.timesteps[0] and len(schedule) == 50 - skip


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 100])
def test_the_first_step_and_the_last_are_first_order(levels: Tensor, steps: int):
    coefficients = trajectory(levels, steps, sampler="dpmpp_2m").second_order
    assert [c > 0 for c in coefficients] == [0 < i < steps - 1 for i in range(steps)]
    assert set(trajectory(levels, steps, eta=0.5).second_order) == {0.0}


def test_the_second_order_part_integrates_a_line_exactly():
    """Where z0 is a line in lambda, the second-order step is the exact integral, up to what is O(h^3) of it.

    z_t / sigma_t = z_s / sigma_s + integral of exp(lambda) z0(lambda) (Lu et al. 2022, eq. 8).
    """
    errors = []
    for h in (0.2, 0.1, 0.05):
        low, high = 0.3, 0.3 + h
        before, start, end = (1 / (1 + math.exp(-2 * lam)) for lam in (low - h, low, high))
        levels = [NoiseLevel(math.sqrt(a), math.sqrt(1 - a)) for a in (before, start, end, 0.99)]
        _, coefficient, _ = second_order_coefficients(levels)
        ours = math.sqrt(end) * -math.expm1(-h) * low + coefficient * h  # z0 = lambda, whose change since before is h
        exact = math.sqrt(1 - end) * (math.exp(high) * (high - 1) - math.exp(low) * (low - 1))
        errors.append(abs(ours - exact))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15) and errors[1] / errors[2] == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize(
    "levels", [[(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)], [(0.0, 1.0), (1.0, 0.0)]]
)
def test_levels_from_pure_noise_to_none_have_finite_coefficients(levels: list[tuple[float, float]]):
    """As flow matching has them, a = 1 - s; where the step before is infinite in lambda, nothing is extrapolated."""
    coefficients = second_order_coefficients([NoiseLevel(*level) for level in levels])
    assert coefficients[:2] == (0.0, 0.0)[: len(coefficients)] and coefficients[-1] == 0
    assert all(math.isfinite(c) for c in coefficients) and (len(coefficients) < 3 or coefficients[2] > 0)


# --- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "skip"), [(1, 0), (10, 0), (50, 0), (50, 20), (1000, 0)])
def test_progress_of_ddim_is_the_middle_of_each_step(levels: Tensor, steps: int, skip: int):
    n = steps - skip
    progress = trajectory(levels, steps, skip_steps=skip).progress
    assert progress == tuple((i + 0.5) / n for i in range(n))


@pytest.mark.parametrize(("steps", "skip"), [(1, 0), (2, 0), (20, 0), (50, 20), (1000, 0), (1000, 999)])
def test_progress_rises_between_0_and_1(levels: Tensor, steps: int, skip: int):
    schedule = trajectory(levels, steps, skip_steps=skip, sampler="dpmpp_2m")
    assert len(schedule.progress) == steps - skip and schedule.progress[0] > 0 and schedule.progress[-1] < 1
    assert all(a < b for a, b in pairwise(schedule.progress))


@pytest.mark.parametrize("skip", [0, 30])
def test_a_progress_is_reached_at_one_noise_level_with_every_sampler(levels: Tensor, skip: int):
    """So that a grey of a soft mask joins there: the timesteps differ by no more than a step of either."""
    ddim, other = (trajectory(levels, 100, 0, skip, sampler) for sampler in ("ddim", "dpmpp_2m"))
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        i, j = (next(i for i, p in enumerate(one.progress) if p >= share) for one in (ddim, other))
        assert abs(ddim.timesteps[i] - other.timesteps[j]) <= 20
    assert 40 < sum(p < 0.5 for p in ddim.progress) / len(ddim) * 100 < 60
    assert sum(p < 0.5 for p in other.progress) / len(other) < 0.45, "it spends more steps at the clean end"
