"""Guidance by losses: where gradients go, what each loss holds, and whose copies are whose."""

import math

import pytest
import torch
from torch import Tensor

from ldm.data.epochs import seeded
from ldm.editing.clip_encoder import Losses, RankerEncoder, clip_loss, find_lpips, guiding_precision
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.ranking import Framing
from ldm.errors import MissingExtra
from ldm.models.diffusion.loss_guidance import (
    Guide,
    augmented,
    background_l2,
    background_lpips,
    framed,
    guided_by_loss,
    homography,
    range_loss,
    spherical_distance,
    warped,
    weighted,
)
from ldm.models.diffusion.pixel import Classes
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.respacing import AncestralPrediction
from ldm.models.diffusion.schedule import NoiseLevel
from tests.tiny import normal, tiny_model, tiny_picture
from tests.tiny_pixels import clip as tiny_clip
from tests.tiny_pixels import pixel_model

LEVEL = NoiseLevel(0.8, 0.6, 400)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def same(x: Tensor) -> Tensor:
    return x


def guide(x0: Tensor, level: NoiseLevel = LEVEL) -> Guide:
    return Guide(x0, x0, level, same)


def generators(*seeds: int) -> list[torch.Generator]:
    return [seeded(seed, 1) for seed in seeds]


def half_mask(size: int = 16) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


def test_half_the_square_of_the_angle():
    angle = torch.tensor([0.0, 0.5, 2.0, math.pi])
    a = torch.stack([angle.cos(), angle.sin()], dim=1)
    torch.testing.assert_close(spherical_distance(a, torch.tensor([1.0, 0.0])), angle**2 / 2, rtol=1e-4, atol=1e-6)


def test_the_range_loss_pulls_values_back_and_leaves_those_within():
    x = torch.tensor([-1.5, -1.0, 0.3, 2.0]).view(1, 1, 2, 2).requires_grad_()
    range_loss(guide(x)).sum().backward()
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([-0.25, 0.0, 0.0, 0.5]))


def test_losses_of_the_background_see_nothing_inside_the_mask():
    mask, x_source = half_mask(), tiny_picture(16, 16)
    x = (x_source + 1).requires_grad_()
    loss = background_l2(x_source, mask)(guide(x))
    torch.testing.assert_close(loss, torch.tensor([0.5]))  # half of the pixels, each 1 off
    loss.sum().backward()
    assert not (x.grad * mask).any() and (x.grad * (1 - mask)).sum() > 0

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    x.grad = None
    background_lpips(x_source, mask, distance)(guide(x)).sum().backward()
    assert not (x.grad * mask).any() and (x.grad * (1 - mask)).any()


def test_losses_are_summed_by_weight_and_those_of_none_are_not_computed():
    def never(_: Guide) -> Tensor:
        raise AssertionError("it has no weight")

    total = weighted([(2.0, range_loss), (0.0, never), (3.0, range_loss)])
    x = normal(3, 3, 4, 4) * 3
    torch.testing.assert_close(total(guide(x)), 5 * range_loss(guide(x)))


# --- copies -----------------------------------------------------------------------------------------------------------


def test_copies_of_a_picture_stand_in_a_row_the_plain_one_first():
    x = torch.stack([torch.full((3, 8, 8), value) for value in (0.2, 0.9)])
    seen = augmented(x, 5, generators(0, 1))
    assert seen.shape == (10, 3, 8, 8)
    assert torch.equal(seen[0], x[0]) and torch.equal(seen[5], x[1])
    assert seen[:5].amax() == pytest.approx(0.2, abs=1e-5) and seen[5:].amax() == pytest.approx(0.9, abs=1e-5)


def test_copies_differ_and_are_the_same_in_any_batch():
    x = normal(2, 3, 16, 16)
    both, alone = augmented(x, 6, generators(4, 9)), augmented(x[1:], 6, generators(9))
    torch.testing.assert_close(both[6:], alone)
    assert len({round(float(one.sum()), 3) for one in alone}) > 3


def test_a_view_is_no_more_than_it_may_be():
    """Turned by 15 degrees and moved by a tenth at most, a white square of half the side stays in the picture."""
    x = torch.zeros(1, 1, 32, 32)
    x[..., 8:24, 8:24] = 1
    for one in augmented(x, 60, generators(3)):
        assert one.max() > 0.99 and one[..., :2, :2].max() == 0


def test_warps_are_where_they_should_be():
    x = normal(1, 2, 6, 6)
    eye = torch.eye(3)[None]
    torch.testing.assert_close(warped(x, eye, "zeros"), x)
    moved = eye.clone()
    moved[0, 0, 2] = 2 / 6  # a place one pixel to the right is looked at
    torch.testing.assert_close(warped(x, moved, "zeros")[..., :-1], x[..., 1:])
    assert not warped(x, moved, "zeros")[..., -1].any()
    torch.testing.assert_close(warped(x, moved, "border")[..., -1], x[..., -1])


def test_a_homography_takes_each_corner_to_its_image():
    corners = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    images = corners * torch.tensor([[0.5, 0.7], [0.9, 1.0], [0.8, 0.6], [1.0, 0.4]], dtype=torch.float64)
    through = torch.cat([corners, torch.ones(4, 1)], dim=1) @ homography(corners, images).T
    torch.testing.assert_close(through[:, :2] / through[:, 2:], images)


def test_a_frame_cuts_its_square_and_means_over_pixels():
    x = normal(1, 3, 16, 16)
    torch.testing.assert_close(framed((4, 2, 8), (4, 4))(x), torch.nn.functional.avg_pool2d(x[..., 4:12, 2:10], 2))
    assert framed((-4, 10, 12), (4, 4))(x).shape == (1, 3, 4, 4)  # as far as it lies in the picture
    torch.testing.assert_close(framed(None, (8, 8))(x), torch.nn.functional.avg_pool2d(x, 2))


# --- CLIP -------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_each_pictures_own_copies(clip):
    x = normal(2, 3, 16, 16).clamp(-1, 1)
    loss = clip_loss(clip, "a red ball", half_mask(), 4, generators(0, 1))
    own = [clip_loss(clip, "a red ball", half_mask(), 4, generators(i))(guide(x[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(loss(guide(x)), torch.cat(own))


def test_clip_sees_what_the_mask_holds_alone(clip):
    mask, x = half_mask(), normal(1, 3, 16, 16)
    loss = clip_loss(clip, "a red ball", mask, 1, generators(0))
    torch.testing.assert_close(loss(guide(x)), loss(guide(x * mask + 5 * (1 - mask))))


def test_a_ranker_of_crops_guides_by_the_same_crop(clip):
    """Where it ranks nothing but the square around the mask, before black."""
    cropping = type(clip)(clip.model, clip.tokenizer, framing=Framing(crop=True))
    x, mask = normal(1, 3, 32, 32).clamp(-1, 1), torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 4:20] = 1
    distance = clip_loss(cropping, "a red ball", mask, 1, generators(0))(guide(x))
    ranked = cropping.distances(x, mask, "a red ball")
    expected = spherical_distance(torch.tensor([math.sqrt(2 * ranked.item())]), torch.zeros(1))
    assert distance.item() == pytest.approx(expected.item(), rel=0.05)


def test_the_encoder_gives_unit_vectors_with_gradients(clip):
    x = normal(2, 3, 16, 16).requires_grad_()
    embedded = RankerEncoder(clip)(x)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))
    embedded[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0


# --- the wrapper ------------------------------------------------------------------------------------------------------


def pixel_denoiser(z: Tensor, level: NoiseLevel) -> Prediction:
    return pixel_model().predict(z, level, Classes(1))


def losses(clip, prompt: str, **options) -> Losses:
    told = GuidanceOptions(aug_num=2, lpips_sim_lambda=0.0, **options)
    return Losses(clip, prompt, tiny_picture(16, 16), half_mask(), told, 1000.0)


def test_in_bfloat16_the_encoder_and_its_gradients_are_the_same_but_for_rounding(clip):
    x = tiny_picture(16, 16).repeat(2, 1, 1, 1) + 0.1 * normal(2, 3, 16, 16)
    embedded, gradients = [], []
    for precision in (torch.float32, guiding_precision(torch.bfloat16)):
        own = x.clone().requires_grad_()
        embedding = RankerEncoder(clip, precision)(own)
        (gradient,) = torch.autograd.grad((embedding @ clip.text_embedding("a red ball").T).sum(), own)
        assert embedding.dtype == gradient.dtype == torch.float32
        embedded.append(embedding)
        gradients.append(gradient.flatten())
    assert (embedded[0] * embedded[1]).sum(dim=1).min() > 0.999
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert next(clip.model.parameters()).dtype == torch.float32  # ranking is as it was
    assert guiding_precision(torch.float16) == torch.float32


def test_the_network_sees_planes_whatever_order_a_file_has_its_channels_in():
    """In bfloat16 on a CPU group norms of interleaved channels take twenty times as long."""
    model, seen = pixel_model(), []
    model.diffusion_model.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    z = tiny_picture(16, 16).contiguous(memory_format=torch.channels_last)
    denoise = guided_by_loss(lambda z, level: model.predict(z, level, Classes(1)), range_loss, same, "mean")
    made = denoise(z, LEVEL)
    assert seen == [True] and made.gradient.is_contiguous()


def test_the_gradient_is_that_of_the_loss_through_the_network(clip):
    """Against a difference quotient along a random direction."""
    z, total = normal(1, 3, 16, 16), losses(clip, "a red ball").total
    made = guided_by_loss(pixel_denoiser, total(generators(0)), same, "mean")(z, LEVEL)

    def loss(z: Tensor) -> float:
        return float(total(generators(0))(Guide(z, pixel_denoiser(z, LEVEL).z0, LEVEL, same)))

    direction, h = normal(1, 3, 16, 16, seed=8), 1e-3
    slope = (loss(z + h * direction) - loss(z - h * direction)) / (2 * h)
    assert abs(slope) > 1
    assert float((made.gradient * direction).sum()) == pytest.approx(slope, rel=0.02)


def test_an_empty_prompt_guides_by_nothing(clip):
    assert losses(clip, "").total(generators(0)) is None


def test_where_no_loss_depends_on_z_the_gradient_vanishes():
    made = guided_by_loss(pixel_denoiser, weighted([]), same, "mean")(normal(1, 3, 16, 16), LEVEL)
    assert not made.gradient.any()


def test_the_mean_is_shifted_by_the_step_and_the_noise_by_the_wrapper(clip):
    z, loss = normal(2, 3, 16, 16), range_loss
    plain = pixel_denoiser(z, LEVEL)
    mean, eps = (guided_by_loss(pixel_denoiser, loss, same, shift)(z, LEVEL) for shift in ("mean", "eps"))
    torch.testing.assert_close(mean.z0, plain.z0)
    torch.testing.assert_close(mean.fraction, plain.fraction)
    torch.testing.assert_close(eps.eps, plain.eps + LEVEL.s * mean.gradient)
    assert mean.gradient.abs().max() > 0 and isinstance(mean, AncestralPrediction)
    with pytest.raises(ValueError, match="eps or mean"):
        guided_by_loss(pixel_denoiser, loss, same, "score")


def test_a_step_down_the_gradient_makes_the_loss_smaller(clip):
    z, total = normal(2, 3, 16, 16), losses(clip, "a red ball").total
    with torch.no_grad():
        gradient = guided_by_loss(pixel_denoiser, total(generators(0, 1)), same, "mean")(z, LEVEL).gradient
    before, after = (
        total(generators(0, 1))(Guide(one, pixel_denoiser(one, LEVEL).z0, LEVEL, same))
        for one in (z, z - 0.02 * gradient / gradient.norm())
    )
    assert (after < before).all()


def test_a_latent_backbone_is_guided_through_its_decoder(clip):
    model = tiny_model()
    conditioning = model.condition([""])
    z, mask = normal(1, 4, 8, 8), half_mask(64)
    loss = clip_loss(clip, "a red ball", mask, 2, generators(0))
    made = guided_by_loss(lambda z, level: model.predict(z, level, conditioning), loss, model.decode)(z, LEVEL)
    plain = model.predict(z, LEVEL, conditioning)
    assert made.eps.shape == z.shape and not torch.equal(made.eps, plain.eps)
    assert torch.isfinite(made.z0).all()


def test_a_decoder_without_gradients_is_told(clip):
    blind = torch.no_grad()(lambda z: 1 * z)
    with pytest.raises(RuntimeError, match="no gradients"):
        guided_by_loss(pixel_denoiser, losses(clip, "a red ball").total(generators(0)), blind)(
            normal(1, 3, 16, 16), LEVEL
        )


def test_lpips_itself_is_a_number_for_each_picture_and_sees_nothing_inside_the_mask():
    from lpips import LPIPS

    with torch.random.fork_rng(devices=[]), pytest.warns(UserWarning):
        torch.manual_seed(0)
        distance = LPIPS(net="vgg", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    x_source, mask = tiny_picture(32, 32), half_mask(32)
    x = (x_source.repeat(2, 1, 1, 1) + torch.tensor([0.0, 0.3]).view(2, 1, 1, 1)).requires_grad_()
    values = background_lpips(x_source, mask, distance)(guide(x))
    assert values.shape == (2,) and values[0] < 1e-5 < values[1]
    values.sum().backward()
    assert not (x.grad * mask).any() and (x.grad * (1 - mask)).any()


def test_lpips_is_an_extra_and_only_where_it_has_a_weight(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lpips", None)
    device = torch.device("cpu")
    assert find_lpips(GuidanceOptions(), device) is None
    assert find_lpips(GuidanceOptions(background_preservation_loss=True, lpips_sim_lambda=0), device) is None
    with pytest.raises(MissingExtra, match="lpips"):
        find_lpips(GuidanceOptions(background_preservation_loss=True), device)
