"""Windows: all of the mask with its surroundings, no more than the image, there and back without a loss of parts."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.imaging.images import to_tensor
from ldm.imaging.region import Window, choose_window, cut, cut_levels, cut_mask, mask_box, resize_back


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rectangle(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask with boxes of (top, left, height, width)."""
    mask = np.zeros((height, width), bool)
    for top, left, h, w in boxes:
        mask[top : top + h, left : left + w] = True
    return mask


def random_cases(count: int = 200):
    rng = np.random.default_rng(1)
    for _ in range(count):
        height, width = rng.integers(20, 400, 2)
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask = rectangle(
            height, width, (top, left, rng.integers(1, height - top + 1), rng.integers(1, width - left + 1))
        )
        yield mask, tuple(int(side) for side in rng.choice([32, 48, 64, 128], 2)), float(rng.choice([0, 0.1, 0.5, 2]))


# --- which window ----------------------------------------------------------------------------------------------------


def test_a_window_holds_the_mask_has_the_models_aspect_and_is_no_larger_than_the_whole_image():
    for mask, size, context in random_cases():
        window = choose_window(mask, size, context=context)
        rows, columns = mask_box(mask)
        case = (mask.shape, mask_box(mask), size, context, window)
        assert window.top <= rows.start and rows.stop <= window.top + window.height, case
        assert window.left <= columns.start and columns.stop <= window.left + window.width, case
        assert -size[1] < window.width * size[0] - window.height * size[1] < size[0], (case, "to a pixel")
        scale = max(window.height / size[0], window.width / size[1])
        assert scale <= max(mask.shape[0] / size[0], mask.shape[1] / size[1]) + 1 / min(size), case
        for start, length, side in zip(
            (window.top, window.left), (window.height, window.width), mask.shape, strict=True
        ):
            low, high = sorted((0, side - length))
            assert low <= start <= high, (case, "it lies in the image where it fits, and around it where it does not")


def test_context_is_a_part_of_the_masks_extent_on_each_side():
    mask = rectangle(1000, 1200, (400, 500, 200, 100))
    assert choose_window(mask, (64, 64)) == Window(350, 300, 400, 400, (1000, 1200))
    assert choose_window(mask, (64, 64), context=1.0) == Window(250, 200, 600, 600, (1000, 1200))
    assert choose_window(mask, (64, 128)) == Window(150, 300, 800, 400, (1000, 1200)), "size is (H,W)"
    tight = choose_window(mask, (64, 64), context=0)
    assert (tight.height, tight.top) == (225, 387), "some room for the band is left without context"


def test_a_window_is_moved_into_the_image():
    corner = rectangle(1000, 1200, (0, 1100, 100, 100))
    assert choose_window(corner, (64, 64)) == Window(1000, 0, 200, 200, (1000, 1200))


def test_far_parts_share_one_window():
    mask = rectangle(1000, 1000, (100, 100, 10, 10), (600, 500, 20, 30))
    window = choose_window(mask, (64, 64), context=0.1)
    assert (window.top, window.height) == (48, 624), "from 100 to 620 with a tenth on each side"
    assert window.left <= 100 and window.left + window.width >= 530


def test_a_tiny_mask_is_enlarged_four_times_at_most_and_less_in_a_small_image():
    for side, expected in ((4000, 64), (1024, 64), (512, 128), (300, 219), (257, 256), (256, 256), (100, 100)):
        window = choose_window(rectangle(side, side, (side // 2, side // 2, 2, 2)), (256, 256))
        assert window.width == window.height == expected, side
    window = choose_window(rectangle(150, 200, (10, 10, 2, 2)), (256, 256))
    assert window == Window(0, -50, 200, 200, (150, 200)), "a small image is used whole, the mask near the middle"


def test_a_mask_that_spans_the_image_takes_all_of_it():
    assert choose_window(np.ones((300, 300), bool), (64, 64)) == Window(0, 0, 300, 300, (300, 300))
    spanning = choose_window(rectangle(300, 500, (100, 0, 50, 500)), (64, 64))
    assert (spanning.left, spanning.width, spanning.height) == (0, 500, 500)
    assert spanning.in_image == (slice(0, 300), slice(0, 500))
    assert spanning.in_window[0].stop - spanning.in_window[0].start == 300


def test_context_gives_way_before_the_window_leaves_the_image():
    """A square window on a 3:2 photograph: half as much real context serves better than mirrored bands."""
    window = choose_window(rectangle(300, 450, (75, 110, 150, 190)), (64, 64))
    assert (window.height, window.width, window.top) == (300, 300, 0)
    wide = choose_window(rectangle(300, 450, (75, 70, 150, 300)), (64, 64))
    assert wide.width == 450, "a mask as wide as the image is high needs more"


def test_whole_squashes_all_of_the_image():
    image, mask = picture(30, 50), rectangle(30, 50, (3, 3, 2, 2))
    window = choose_window(mask, (16, 16), "whole")
    assert window == Window(0, 0, 50, 30, (30, 50))
    assert torch.equal(to_tensor(cut(image, window, (16, 16))), to_tensor(image, (16, 16)))


def test_tensors_and_arrays_choose_the_same():
    mask = rectangle(90, 70, (10, 20, 30, 10))
    tensor = torch.from_numpy(mask).float()
    assert (
        choose_window(mask, (32, 32)) == choose_window(tensor, (32, 32)) == choose_window(tensor[None, None], (32, 32))
    )
    with pytest.raises(ValueError, match="mask"):
        choose_window(tensor[None], (32, 32))


def test_nonsense_is_refused():
    mask = rectangle(90, 70, (10, 20, 30, 10))
    for bad in ({"region": "half"}, {"context": -1.0}, {"context": float("nan")}, {"context": float("inf")}):
        with pytest.raises(ValueError):
            choose_window(mask, (32, 32), **bad)
    with pytest.raises(ValueError, match="empty"):
        choose_window(np.zeros((9, 9), bool), (32, 32))
    with pytest.raises(ValueError, match="nothing of the image"):
        Window(70, 0, 10, 10, (90, 70))
    window = choose_window(mask, (32, 32))
    with pytest.raises(ValueError, match="not a window of an image"):
        cut(picture(70, 90), window, (32, 32))
    with pytest.raises(ValueError, match="not a window of an image"):
        cut_mask(mask.T, window, (32, 32))


def test_a_window_survives_json():
    for mask, size, context in random_cases(20):
        window = choose_window(mask, size, context=context)
        assert Window(**json.loads(json.dumps(asdict(window)))) == window


# --- there -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(-7, -30, 40, 90), (3, 5, 20, 11), (-3, 4, 10, 60), (10, -60, 9, 200)])
def test_beyond_its_borders_an_image_is_mirrored(window):
    image = picture(37, 23)
    window = Window(*window, (37, 23))
    around = 150
    padded = np.pad(np.asarray(image), ((around, around), (around, around), (0, 0)), mode="symmetric")
    top, left = window.top + around, window.left + around
    expected = padded[top : top + window.height, left : left + window.width]
    pixels = np.asarray(cut(image, window, (window.height, window.width)))
    assert np.array_equal(pixels, expected)
    assert np.array_equal(pixels[window.in_window], np.asarray(image)[window.in_image])


def test_cutting_is_antialiased_and_of_the_models_size():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = cut(Image.fromarray(stripes), Window(0, 0, 64, 64, (64, 64)), (16, 8))
    assert small.size == (8, 16) and small.mode == "RGB"
    assert np.abs(np.asarray(small)[:, 1:-1].astype(int) - 128).max() < 12


def test_a_mask_cut_at_its_own_size_is_itself():
    mask = np.random.default_rng(0).random((40, 30)) < 0.3
    window = Window(5, 8, 20, 16, (40, 30))
    part = cut_mask(torch.from_numpy(mask).float()[None, None], window, (16, 20))
    assert part.shape == (1, 1, 16, 20) and part.dtype == torch.float32
    assert np.array_equal(part[0, 0] == 1, mask[8:24, 5:25])


@pytest.mark.parametrize("width", [1, 2, 5])
def test_no_thin_part_is_lost_on_the_way_down(width):
    for offset in range(17):
        mask = rectangle(500, 700, (100 + offset, 60, 300, width), (40, 40 + offset, width, 600), (450, 650, 1, 1))
        window = choose_window(mask, (64, 64))
        small = cut_mask(mask, window, (64, 64))[0, 0]
        y, x = np.nonzero(mask)
        y = ((y - window.top + 0.5) * 64 / window.height).astype(int)
        x = ((x - window.left + 0.5) * 64 / window.width).astype(int)
        near = torch.nn.functional.max_pool2d(small[None], 3, stride=1, padding=1)[0]
        assert near[y, x].all(), "each pixel of the mask has white where it came to lie, or next to it"
        assert small.sum() < 3 * 64 * 3, "and it is still a thin cross"


def test_enlarging_keeps_the_area():
    mask = rectangle(60, 60, (20, 25, 3, 7), (30, 30, 1, 1))
    large = cut_mask(mask, Window(20, 15, 20, 20, (60, 60)), (80, 80))
    assert abs(large.sum() / (22 * 16) - 1) < 0.1


def test_levels_are_cut_as_the_mask_is():
    levels = torch.zeros(1, 1, 20, 40)
    levels[..., 5:15, 5:15], levels[..., 8:12, 8:12] = 0.3, 0.9
    levels[..., 0, 30:35], levels[..., 1, 30:35], levels[..., 2, 30:35] = 0.4, 0.8, 0.2
    window = Window(0, -10, 40, 40, (20, 40))
    whole = cut_levels(levels, window, (40, 40))
    assert torch.equal(whole[..., 10:30, :], levels)
    assert torch.allclose(whole[0, 0, :10, 31], torch.tensor([0.0] * 7 + [0.2, 0.4, 0.4])), "no level rises outside"
    assert torch.equal(
        cut_levels((levels > 0.5).float(), window, (16, 16)) >= 0.5, cut_mask(levels > 0.5, window, (16, 16)) == 1
    )


def test_beyond_the_image_a_mask_extends_only_where_it_meets_the_border():
    mask = rectangle(20, 40, (0, 5, 4, 6), (8, 20, 5, 5), (15, 30, 5, 10))
    whole = cut_mask(mask, Window(0, -10, 40, 40, (20, 40)), (40, 40))[0, 0].bool().numpy()
    assert np.array_equal(whole[10:30], mask)
    above, below = np.zeros((10, 40), bool), np.zeros((10, 40), bool)
    above[6:, 5:11] = True
    below[:5, 30:] = True
    assert np.array_equal(whole[:10], above) and np.array_equal(whole[30:], below), "the middle part stays alone"
    corner = cut_mask(rectangle(8, 8, (0, 0, 2, 3)), Window(-4, -4, 8, 8, (8, 8)), (8, 8))[0, 0].bool().numpy()
    assert np.array_equal(corner, rectangle(8, 8, (2, 1, 4, 6)))


# --- and back --------------------------------------------------------------------------------------------------------


def test_the_way_back_is_the_identity_at_equal_sizes_and_exact_for_flat_and_linear_pictures():
    x = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(resize_back(x, Window(3, 4, 24, 16, (60, 60))), x)
    for height, width in ((37, 91), (7, 9), (40, 10)):
        window = Window(0, 0, width, height, (100, 100))
        assert torch.allclose(resize_back(torch.full_like(x, 0.3), window), torch.tensor(0.3), atol=1e-5)
        across = (torch.arange(24) + 0.5) / 24
        back = resize_back(across.expand(1, 3, 16, 24), window)
        assert back.shape == (1, 3, height, width) and back.dtype == torch.float32
        expected = (torch.arange(width) + 0.5) / width
        middle = slice(width // 4, -(width // 4))
        assert torch.allclose(back[0, 0, 0, middle], expected[middle], atol=2e-3), "places are kept"


def test_there_and_back_restores_a_smooth_picture():
    y, x = np.mgrid[:300, :200] / 40
    smooth = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    image = Image.fromarray(((smooth + 1) * 127.5).round().astype(np.uint8))
    window = choose_window(rectangle(300, 200, (120, 60, 70, 80)), (64, 64), context=0.5)
    back = resize_back(to_tensor(cut(image, window, (64, 64))), window)[0].permute(1, 2, 0).numpy()
    assert np.abs(back[window.in_window] - smooth[window.in_image]).mean() < 0.01
