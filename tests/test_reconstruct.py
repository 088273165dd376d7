"""Restoring the background: what each way keeps, what it changes, and that the model is never touched."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.editing.reconstruct import (
    LEARNING_RATES,
    RECONSTRUCTIONS,
    ReconstructionTask,
    decode_prediction,
    encode_prediction,
    psnr,
    reconstruct,
    reconstruction_loss,
)
from ldm.editing.request import ReconstructionOptions
from ldm.errors import MissingExtra, UserError
from ldm.imaging.images import to_pil
from ldm.imaging.poisson import seamless_clone
from ldm.models.diffusion.ddpm import FloatDecoder, LatentDiffusion
from tests.tiny import tiny_model, tiny_picture

QUICK = ReconstructionOptions(optimization_steps=12, learning_rate=1e-3)


def restore(kind: str, task: ReconstructionTask, options: ReconstructionOptions = QUICK, on_step=None):
    return reconstruct(task, replace(options, **ReconstructionOptions.way(kind)), on_step)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_model()


@pytest.fixture(scope="module")
def task(model: LatentDiffusion) -> ReconstructionTask:
    z0 = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 8:24, 10:30] = 1
    return ReconstructionTask(tiny_picture(32, 48), decode_prediction(model, z0), mask, z0, model)


@pytest.fixture
def untouched(model: LatentDiffusion, task: ReconstructionTask):
    """Whatever the test does: afterwards the model and the latent are bit for bit what they were."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    z0 = task.z0.clone()
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert torch.equal(task.z0, z0) and not task.z0.requires_grad


def spy(monkeypatch: pytest.MonkeyPatch) -> list[FloatDecoder]:
    """The copies of the decoder that are made from now on."""
    made = []

    class Spied(FloatDecoder):
        def __init__(self, model):
            super().__init__(model)
            made.append(self)

    monkeypatch.setattr(LatentDiffusion, "tunable_decoder", lambda self: Spied(self))
    return made


# --- optimisation ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
def test_weights_bring_back_the_background(task: ReconstructionTask):
    steps = []
    result = restore("optimization", task, QUICK, steps.append)
    assert [(s.step, s.steps) for s in steps] == [(i, 12) for i in range(12)]
    # It starts at the prediction itself: D of the model's own weights at its own latent.
    assert steps[0].foreground_psnr == math.inf
    assert steps[0].background_psnr == pytest.approx(psnr(task.x_hat, task.x_source, 1 - task.mask), abs=1e-3)
    assert result.background_psnr > steps[0].background_psnr + 8
    assert result.loss < steps[0].loss / 5
    assert (result.steps, result.x.shape, result.x.dtype) == (12, (1, 3, 32, 48), torch.float32)
    assert result.x.abs().max() <= 1
    assert result.seconds > 0


def test_the_foreground_stays_near_the_prediction(task: ReconstructionTask):
    # A random decoder cannot part inside from outside as a trained one does: so lambda 1, which asks for both.
    both = restore("optimization", task, replace(QUICK, background_weight=1))
    background_alone = restore("optimization", task, replace(QUICK, background_weight=1e6))
    assert both.foreground_psnr > background_alone.foreground_psnr + 4
    assert both.foreground_psnr > psnr(task.x_source, task.x_hat, task.mask) + 4
    assert both.background_psnr > psnr(task.x_hat, task.x_source, 1 - task.mask) + 8


@pytest.mark.usefixtures("untouched")
def test_what_is_given_back_is_of_the_last_weights(task: ReconstructionTask, monkeypatch: pytest.MonkeyPatch):
    made = spy(monkeypatch)
    result = restore("optimization", task, replace(QUICK, optimization_steps=2))
    (decoder,) = made
    with torch.no_grad():
        assert torch.equal(decoder(task.z0).clamp(-1, 1), result.x)
    for name in ("decoder.conv_in.weight", "decoder.conv_out.bias", "post_quant_conv.weight"):
        assert not torch.equal(decoder.state_dict()[name], task.model.first_stage_model.state_dict()[name])


@pytest.mark.usefixtures("untouched")
def test_latents_move_and_the_decoder_stays(task: ReconstructionTask, monkeypatch: pytest.MonkeyPatch):
    made = spy(monkeypatch)
    steps = []
    result = restore("optimization_latents", task, replace(QUICK, learning_rate=0.1), steps.append)
    assert result.background_psnr > steps[0].background_psnr + 0.5
    assert result.steps == len(steps) == 12
    (decoder,) = made
    own = task.model.first_stage_model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in decoder.state_dict().items())


def test_without_weight_the_background_is_left_alone(task: ReconstructionTask):
    result = restore("optimization", task, replace(QUICK, background_weight=0, optimization_steps=3))
    assert torch.equal(result.x, task.x_hat.clamp(-1, 1))


@pytest.mark.parametrize("kind", LEARNING_RATES)
def test_the_learning_rate_has_a_default_per_kind(kind: str, task, monkeypatch: pytest.MonkeyPatch):
    rates = []
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, **rest: rates.append(lr) or adam(p, lr=lr, **rest))
    restore(kind, task, ReconstructionOptions(optimization_steps=1))
    restore(kind, task, ReconstructionOptions(optimization_steps=1, learning_rate=0.5))
    assert rates == [LEARNING_RATES[kind], 0.5]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("kind", LEARNING_RATES)
def test_stopped_midway_the_model_is_what_it_was(kind: str, task: ReconstructionTask):
    def stop(now):
        if now.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(kind, task, QUICK, stop)


@pytest.mark.usefixtures("untouched")
def test_a_loss_that_is_no_number_is_an_error_with_its_mend(task: ReconstructionTask):
    with pytest.raises(UserError, match=r"diverged after \d+ steps at a learning rate of 1e\+30.*`learning_rate`"):
        restore("optimization", task, replace(QUICK, learning_rate=1e30))
    nowhere = replace(task, z0=task.z0 * math.nan)
    with pytest.raises(UserError, match="`precision=float32`"):
        restore("optimization", nowhere, QUICK)


def test_the_last_step_is_checked_too(task: ReconstructionTask):
    with pytest.raises(UserError, match="diverged after 1 steps"):
        restore("optimization", task, replace(QUICK, learning_rate=1e30, optimization_steps=1))


@pytest.mark.parametrize("kind", LEARNING_RATES)
def test_gradients_flow_in_float32_whatever_surrounds_it(kind: str, task: ReconstructionTask):
    with torch.inference_mode():
        z0, x_source = task.z0.clone(), task.x_source.clone()  # tensors that autograd refuses
        half = tiny_model().to(torch.bfloat16)
        within = replace(task, z0=z0, x_source=x_source, x_hat=decode_prediction(half, z0), model=half)
        with torch.autocast("cpu", torch.bfloat16):
            result = restore(kind, within, replace(QUICK, learning_rate=None, optimization_steps=3))
    outside = restore(kind, within, replace(QUICK, learning_rate=None, optimization_steps=3))
    assert torch.equal(result.x, outside.x)
    assert within.x_hat.dtype == result.x.dtype == torch.float32
    assert not torch.equal(result.x, within.x_hat.clamp(-1, 1))
    assert next(half.parameters()).dtype == torch.bfloat16


def test_an_optimisation_needs_what_it_starts_from(task: ReconstructionTask):
    for lacking in ({"z0": None}, {"model": None}, {"z0": task.z0[..., 1:]}, {"z0": task.z0.expand(2, -1, -1, -1)}):
        with pytest.raises(ValueError, match="z0"):
            restore("optimization", replace(task, **lacking), QUICK)


def test_a_prediction_without_latent_is_encoded(model: LatentDiffusion):
    x = tiny_picture(32, 48)
    torch.testing.assert_close(encode_prediction(model, x), model.encode(x))
    z0 = encode_prediction(tiny_model().to(torch.bfloat16), x)
    assert z0.dtype == torch.float32
    torch.testing.assert_close(decode_prediction(model, z0), model.decode(z0), atol=1e-5, rtol=1e-4)


# --- measures --------------------------------------------------------------------------------------------------------


def test_psnr_by_hand():
    x, region = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    region[..., :2] = 1
    off = x + 0.2 * region
    assert psnr(x, off, region) == pytest.approx(20, abs=1e-4)  # 10 log10(2^2 / 0.2^2)
    assert psnr(x, off, 1 - region) == math.inf
    assert psnr(x, off, 0 * region) is None
    assert psnr(x + 1, x + 1.5, region) == math.inf  # both are white on the screen


def test_the_loss_by_hand():
    mask = torch.zeros(1, 1, 2, 2)
    mask[0, 0, 0, 0] = 1  # one pixel of four
    x_hat, x_source = torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), -0.2)
    loss = reconstruction_loss(torch.zeros(1, 3, 2, 2), x_hat, x_source, mask, 100)
    assert loss.item() == pytest.approx(0.25 * 0.5**2 + 100 * 0.75 * 0.2**2)


def test_numbers_out_of_range_are_refused():
    for values in (
        {"optimization_steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"background_weight": -1.0},
    ):
        with pytest.raises(UserError, match=f"`{next(iter(values))}` is"):
            ReconstructionOptions(**values)


def test_shapes_that_do_not_belong_together_are_refused(task: ReconstructionTask):
    with pytest.raises(ValueError, match="one size"):
        replace(task, mask=task.mask[..., 1:])
    with pytest.raises(UserError, match='`reconstruction_type` is "magic": give one of optimization'):
        restore("magic", task)


@pytest.mark.parametrize("kind", RECONSTRUCTIONS)
def test_an_all_white_mask_gives_the_prediction(kind: str, task: ReconstructionTask):
    pytest.importorskip("cv2") if kind == "poisson" else None
    result = restore(kind, replace(task, mask=torch.ones_like(task.mask)), replace(QUICK, optimization_steps=2))
    assert result.background_psnr is None
    assert to_pil(result.x).tobytes() == to_pil(task.x_hat).tobytes()


# --- paste -----------------------------------------------------------------------------------------------------------


def test_pasting_is_exact_on_both_sides(task: ReconstructionTask):
    result = restore("pixel", task)
    inside = task.mask.bool().expand(-1, 3, -1, -1)
    assert torch.equal(result.x[inside], task.x_hat.clamp(-1, 1)[inside])
    assert torch.equal(result.x[~inside], task.x_source[~inside])
    assert (result.background_psnr, result.foreground_psnr, result.steps) == (math.inf, math.inf, 0)


# --- Poisson ---------------------------------------------------------------------------------------------------------

Y, X = np.mgrid[:48, :64]
MASKS = {
    "inside": (Y - 20) ** 2 + (X - 30) ** 2 < 150,
    "inside, of odd size": (abs(Y - 20) < 8) & (abs(X - 31) < 7),
    "of even size": (Y >= 10) & (Y < 30) & (X >= 21) & (X < 41),
    "near the edge": (Y >= 2) & (Y < 20) & (X >= 1) & (X < 30),
    "at the top": (Y < 17) & (X > 20) & (X < 41),
    "in the last corner": (Y > 25) & (X > 40),
    "left half": X < 32,
    "from side to side": (Y > 15) & (Y < 36),
    "nearly all": (Y > 5) | (X > 8),
    "thin": (Y > 20) & (Y < 24) & (X > 5),
}


def codes(height: int = 48, width: int = 64) -> np.ndarray:
    return np.asarray(to_pil(tiny_picture(height, width)))


@pytest.mark.parametrize("where", MASKS)
def test_cloning_displaces_nothing(where: str):
    pytest.importorskip("cv2")
    target, mask = codes(), MASKS[where]
    # Another brightness inside: the same gradients, so that the target itself must come out, pixel for pixel.
    out = seamless_clone(np.where(mask[..., None], target + 20, target).astype(np.uint8), target, mask)
    assert out.shape == target.shape and out.dtype == np.uint8
    assert np.abs(out.astype(int) - target).max() <= 2


@pytest.mark.parametrize("margin", [2, 3])
@pytest.mark.parametrize(("y", "x"), [(20, 30), (44, 60), (3, 3)])
def test_cloning_shows_an_edit_within_a_margin_of_two(y: int, x: int, margin: int):
    pytest.importorskip("cv2")
    target = np.full((48, 64, 3), 100, np.uint8)
    mask = (abs(Y - y) < 8) & (abs(X - x) < 8)
    bump = np.where((abs(Y - y) < 8 - margin) & (abs(X - x) < 8 - margin), 60, 0)[..., None]
    out = seamless_clone((target + bump).astype(np.uint8), target, mask)
    assert np.abs(out.astype(int) - target - bump).max() <= 1


def test_cloning_leaves_out_the_step_at_the_border():
    pytest.importorskip("cv2")
    target = np.full((48, 64, 3), 100, np.uint8)
    out = seamless_clone((target + 60 * MASKS["inside"][..., None]).astype(np.uint8), target, MASKS["inside"])
    assert np.abs(out.astype(int) - target).max() <= 1


def test_at_the_edge_of_the_picture_the_edit_is_free():
    pytest.importorskip("cv2")
    target = np.full((48, 64, 3), 100, np.uint8)
    ramp = np.clip(32 - X, 0, None)[..., None] * 3  # highest at the edge, nothing at the mask's border
    out = seamless_clone((target + ramp).astype(np.uint8), target, X < 32)
    # The gradients of four pixels about the border are the target's, 3 levels each, and OpenCV rounds down.
    assert np.abs(out.astype(int) - target - ramp).max() <= 13


def test_a_mask_too_thin_to_clone_gives_the_target_with_a_notice(caplog: pytest.LogCaptureFixture):
    pytest.importorskip("cv2")
    target = codes()
    assert (seamless_clone(target + 9, target, Y == 20) == target).all()
    assert "3 pixels thick" in caplog.text
    assert (seamless_clone(target + 9, target, Y < 0) == target).all()


def test_poisson_keeps_far_background_and_needs_no_model(task: ReconstructionTask):
    pytest.importorskip("cv2")
    result = restore("poisson", replace(task, model=None, z0=None))
    far = torch.ones(32, 48, dtype=bool)
    far[4:28, 6:34] = False  # the rectangle around the mask, and a bit more
    exact = np.asarray(to_pil(task.x_source))
    assert (np.asarray(to_pil(result.x))[far] == exact[far]).all()
    assert result.background_psnr > psnr(task.x_hat, task.x_source, 1 - task.mask) + 8


def test_without_opencv_the_extra_is_named(task: ReconstructionTask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r'pip install opencv-python-headless .the extra "poisson"'):
        restore("poisson", task)
