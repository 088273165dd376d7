"""edit_image: what a user of the Python function can rely on."""

import pytest
import torch

from ldm.editing.edit import edit_image
from ldm.editing.request import EditRequest
from ldm.errors import OutOfMemory, UserError
from ldm.imaging.images import to_pil
from ldm.models.diffusion.sampling import StepInfo
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def x_source():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture(scope="module")
def mask():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:40] = 1
    return mask


class FixedRanker:
    """Gives the distances it was told to, in the order of the seeds."""

    def __init__(self, distances):
        self.values = distances
        self.asked = []

    def distances(self, x, mask, prompt):
        self.asked.append((len(x), prompt))
        return torch.tensor(self.values)


def request(**options) -> EditRequest:
    return EditRequest("a red ball", **{"ddim_steps": 4, "n_samples": 2, **options})


def pixels(x) -> list[bytes]:
    return [to_pil(one).tobytes() for one in x]


def test_background_latents_are_the_source_and_the_inside_is_not(model, x_source, mask):
    edit = edit_image(model, x_source, mask, request())
    z_source = model.encode(x_source)
    outside = (edit.latent_masks[-1:] == 0).expand_as(z_source)
    for z0 in edit.z0.split(1):
        assert torch.equal(z0[outside], z_source[outside])
        assert not torch.allclose(z0[~outside], z_source[~outside], atol=0.1)


def test_prediction_is_the_same_alone_in_a_batch_and_with_n_iter(model, x_source, mask):
    batch = edit_image(model, x_source, mask, request(n_samples=4, ddim_eta=0.5))
    iterated = edit_image(model, x_source, mask, request(n_samples=2, n_iter=2, ddim_eta=0.5))
    alone = edit_image(model, x_source, mask, request(n_samples=1, seed=request().seed + 2, ddim_eta=0.5))
    assert batch.seeds == iterated.seeds
    for one, other in ((batch.x, iterated.x), (batch.x[2:3], alone.x)):
        assert ((one.clamp(-1, 1) - other.clamp(-1, 1)).abs() * 127.5).max() < 0.5
    assert len(set(pixels(batch.x))) == 4  # other seeds, other pictures


def test_the_global_generator_is_left_alone(model, x_source, mask):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    edit_image(model, x_source, mask, request(ddim_eta=1.0))
    assert torch.equal(before, torch.get_rng_state())


def test_ranking_sorts_everything_that_belongs_to_a_prediction(model, x_source, mask):
    plain = edit_image(model, x_source, mask, request(n_samples=3), keep_steps=True)
    ranker = FixedRanker([0.9, 0.1, 0.5])
    ranked = edit_image(model, x_source, mask, request(n_samples=3), ranker, keep_steps=True)
    first = request().seed
    assert plain.distances is None and plain.seeds == (first, first + 1, first + 2)
    assert ranked.seeds == (first + 1, first + 2, first)
    assert ranked.distances == pytest.approx((0.1, 0.5, 0.9))
    for place, seed_place in enumerate((1, 2, 0)):
        assert torch.equal(ranked.x[place], plain.x[seed_place])
        assert torch.equal(ranked.z0[place], plain.z0[seed_place])
        assert torch.equal(ranked.z0_steps[place], plain.z0_steps[seed_place])


def test_a_single_prediction_is_ranked_too(model, x_source, mask):
    ranker = FixedRanker([0.4])
    assert edit_image(model, x_source, mask, request(n_samples=1), ranker).distances == pytest.approx((0.4,))
    assert ranker.asked == [(1, "a red ball")]


def test_each_prompt_is_encoded_once_a_run_and_without_gradients(model, x_source, mask, monkeypatch):
    asked = []
    encode = model.cond_stage_model.transformer.forward

    def watch(tokens):
        asked.append((len(tokens), torch.is_grad_enabled()))
        return encode(tokens)

    monkeypatch.setattr(model.cond_stage_model.transformer, "forward", watch)
    edit_image(model, x_source, mask, request(n_samples=2, n_iter=2))
    assert asked == [(1, False), (1, False)]


def test_callbacks_see_every_step_with_an_estimate(model, x_source, mask):
    seen: list[StepInfo] = []
    edit = edit_image(model, x_source, mask, request(ddim_steps=7, skip_steps=2), on_step=seen.append, keep_steps=True)
    assert [info.step for info in seen] == [0, 1, 2, 3, 4]
    assert all(info.total == 5 and info.z0.shape == edit.z0.shape for info in seen)
    assert [len(steps) for steps in edit.z0_steps] == [5, 5]


def test_skipping_steps_keeps_more_of_the_input(model, x_source, mask):
    z_source = model.encode(x_source)
    change = [
        (edit_image(model, x_source, mask, request(ddim_steps=50, skip_steps=s, n_samples=1)).z0 - z_source).norm()
        for s in (0, 47)
    ]
    assert change[1] < change[0] / 2


def test_pixel_blending_keeps_the_background_latents(model, x_source, mask):
    edit = edit_image(model, x_source, mask, request(percentage_of_pixel_blending=0.5))
    latents_only = edit_image(model, x_source, mask, request())
    z_source = model.encode(x_source)
    outside = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    outside[..., 2:6, 2:5] = False
    assert torch.equal(edit.z0[:1][outside.expand_as(z_source)], z_source[outside.expand_as(z_source)])
    assert not torch.allclose(edit.z0, latents_only.z0)


@pytest.mark.parametrize(
    "options",
    [
        {"n_samples": 0},
        {"n_iter": 0},
        {"scale": -1.0},
        {"scale": float("nan")},
        {"seed": -1},
        {"percentage_of_pixel_blending": 1.5},
        {"mask_dilation_iterations": -1},
    ],
)
def test_numbers_out_of_range_are_named(options):
    name, value = next(iter(options.items()))
    with pytest.raises(UserError, match=f"`{name}` is {value}: give "):
        request(**options)


@pytest.mark.parametrize("options", [{"ddim_steps": 0}, {"ddim_steps": 1001}, {"ddim_steps": 5, "skip_steps": 5}])
def test_steps_out_of_range_are_refused(model, x_source, mask, options):
    with pytest.raises(UserError, match="step"):
        edit_image(model, x_source, mask, request(**options))


def test_a_size_that_does_not_fit_names_the_nearest(model, mask):
    with pytest.raises(UserError, match="`W=64` `H=48`"):
        edit_image(model, torch.zeros(1, 3, 50, 64), mask, request())


def test_an_oblong_image_is_edited_at_its_own_shape(model):
    mask = torch.zeros(1, 1, 32, 80)
    mask[..., 8:24, 16:56] = 1
    assert edit_image(model, torch.zeros(1, 3, 32, 80), mask, request()).x.shape == (2, 3, 32, 80)


def test_weights_in_half_precision_leave_the_latents_in_float32(x_source, mask):
    half = tiny_model()
    schedule = {name: buffer for name, buffer in half.named_buffers(recurse=False)}
    half.to(torch.bfloat16)
    for name, buffer in schedule.items():  # as `ldm.checkpoint.load_model` keeps it
        setattr(half, name, buffer)
    edit = edit_image(half, x_source, mask, request(n_samples=1))
    exact = edit_image(tiny_model(), x_source, mask, request(n_samples=1))
    assert edit.x.dtype == edit.z0.dtype == torch.float32
    assert (edit.z0 - exact.z0).abs().mean() < 0.05 * exact.z0.abs().mean()
    z_source = half.encode(x_source)
    outside = (edit.latent_masks[-1:] == 0).expand_as(z_source)
    assert torch.equal(edit.z0[outside], z_source[outside])


def test_too_little_memory_is_one_line_with_its_mend(model, x_source, mask, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(model.first_stage_model, "encode", full)
    with pytest.raises(OutOfMemory, match=r"too little memory \(CUDA out of memory\): try a smaller `H`"):
        edit_image(model, x_source, mask, request())
