"""Masks: white is where to edit, nothing is added by noise, nothing is lost by shrinking, tight comes last."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ldm.editing.masks import DOWNSAMPLING, adaptive, area, cover, latent_masks, load_mask, nearest
from ldm.errors import UserError

INPUTS = Path(__file__).parent.parent / "inputs"


def disc(size: int = 128, centre: float = 64, radius: float = 30) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return ((x - centre) ** 2 + (y - centre) ** 2 < radius**2).astype(np.uint8) * 255


def tensor(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels >= 128).float()[None, None]


@pytest.fixture
def saved(tmp_path):
    """Saves levels or a picture as a file of any kind."""

    def save(image, name="mask.png", **options) -> Path:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


# --- files -----------------------------------------------------------------------------------------------------------


def test_white_is_one_and_black_is_zero(saved, caplog):
    mask = load_mask(saved(disc()), (128, 128))
    assert mask.shape == (1, 1, 128, 128) and mask.dtype == torch.float32
    assert torch.equal(mask, tensor(disc()))
    assert not caplog.records


def test_levels_are_parted_at_half_of_the_full_range(saved):
    levels = np.zeros((8, 8), np.uint8)
    levels[0, :4] = 1, 127, 128, 255
    mask = load_mask(saved(levels), (8, 8))
    assert mask[0, 0, 0, :4].tolist() == [0, 0, 1, 1]
    levels = np.zeros((8, 8), np.uint16)
    levels[0, :4] = 255, 127 * 257, 128 * 257, 65535
    assert load_mask(saved(levels, "deep.png"), (8, 8))[0, 0, 0, :4].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_jpeg_mask_does_not_grow(saved, quality):
    mask = load_mask(saved(disc(), "mask.jpg", quality=quality), (128, 128))
    true = tensor(disc())
    assert abs(mask.sum() / true.sum() - 1) < 0.01
    assert (mask - true).abs().sum() < 0.02 * true.sum()


def test_other_kinds_of_files(saved):
    true = tensor(disc())
    grey = Image.fromarray(disc())
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.zeros((64, 128), np.uint8)
    half[:, :40] = 255  # turned upright, the stored left is on top
    for name, image, expected, options in (
        ("rgb.png", grey.convert("RGB"), true, {}),
        ("palette.png", grey.quantize(2), true, {}),
        ("bilevel.png", grey.convert("1"), true, {}),
        ("rgba.png", grey.convert("RGBA"), true, {}),
        ("turned.png", Image.fromarray(half), tensor(np.rot90(half, -1).copy()), {"exif": exif}),
    ):
        assert torch.equal(load_mask(saved(image, name, **options), tuple(expected.shape[2:])), expected), name


@pytest.mark.parametrize("paint", [0, 255])
def test_alpha_of_a_flat_colour_is_the_mask(saved, caplog, paint):
    layer = Image.new("RGBA", (128, 128), (paint, paint, paint, 0))
    layer.putalpha(Image.fromarray(disc()))
    assert torch.equal(load_mask(saved(layer), (128, 128)), tensor(disc()))
    assert "alpha" in caplog.text
    layer = Image.merge("RGBA", [Image.fromarray(disc(radius=20))] * 3 + [Image.fromarray(disc())])
    assert torch.equal(load_mask(saved(layer), (128, 128)), tensor(disc(radius=20))), "here the colours are the mask"


def test_another_size_is_resized_with_a_notice(saved, caplog):
    path = saved(disc(512, 256, 120))
    mask = load_mask(path, (128, 128))
    assert set(mask.unique().tolist()) == {0, 1}
    quarter = tensor(disc(128, 63.625, 30))  # pixel 256 of 512 has its middle at 256.5 / 4 - 0.5
    assert (mask - quarter).abs().sum() < 8
    assert "512x512" in caplog.text and "128x128" in caplog.text and len(caplog.records) == 1
    assert load_mask(path, (96, 160)).shape == (1, 1, 96, 160), "size is (H,W)"


def test_a_mask_of_the_size_of_its_image_gives_no_notice(saved, caplog):
    path = saved(disc(400, 200, 90))
    load_mask(path, (128, 128), image_size=(400, 400))
    assert not caplog.records
    load_mask(path, (128, 128), image_size=(400, 300))
    assert "400x400" in caplog.text and "300x400" in caplog.text


def test_resizing_loses_no_line(saved):
    for width in (1, 2, 3):
        for offset in range(4):
            line = np.zeros((512, 512), np.uint8)
            line[200 + offset : 200 + offset + width] = 255
            mask = load_mask(saved(line), (128, 128))
            assert mask.amax(2).all(), "the line has no gap"
            assert 1 <= mask.sum(2).max() <= 2
    both = disc(512, 256, 120)
    both[10, 10] = 255
    mask = load_mask(saved(both), (128, 128))
    assert mask[0, 0, 2, 2] == 1, "a speck is kept beside a disc"
    both[10, 10] = 0
    without = load_mask(saved(both), (128, 128))
    assert mask.sum() - without.sum() == 1, "and the disc is as it was"
    assert load_mask(saved(disc(32, 16, 8)), (128, 128)).sum() > 0.9 * 16 * tensor(disc(32, 16, 8)).sum()


def test_inversion(saved):
    path = saved(disc(512, 256, 120))
    assert torch.equal(load_mask(path, (512, 512), invert=True), 1 - load_mask(path, (512, 512)))
    black_line = np.full((512, 512), 255, np.uint8)
    black_line[201] = 0
    mask = load_mask(saved(black_line), (128, 128), invert=True)
    assert mask.amax(2).all() and mask.mean() < 0.02


def test_inversion_comes_before_dilation(saved):
    path = saved(disc())
    stack = latent_masks(load_mask(path, (128, 128), invert=True), 8)
    sizes = stack.sum((1, 2, 3)).tolist()
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1], "shrinking must not become growing"
    assert torch.equal(stack[-1:], area(1 - tensor(disc()), 8))


def test_nothing_to_edit_names_the_mend(saved):
    black, white = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    for levels, invert, word in (
        (black, False, "--invert_mask"),
        (white, True, "leave out"),
        (black + 1, False, "level above 1 of 255"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            load_mask(saved(levels), (16, 16), invert)
        assert "mask.png" in str(caught.value) and "\n" not in str(caught.value)


def test_all_white_is_allowed_with_a_notice(saved, caplog):
    assert load_mask(saved(np.full((16, 16), 255, np.uint8)), (16, 16)).all()
    assert "whole picture" in caplog.text and len(caplog.records) == 1
    caplog.clear()
    assert load_mask(saved(np.zeros((16, 16), np.uint8)), (16, 16), invert=True).all()
    assert "inverted" in caplog.text


def test_a_photograph_as_mask_gives_a_notice(saved, caplog):
    load_mask(INPUTS / "img.png", (400, 400))
    assert "largely grey" in caplog.text
    caplog.clear()
    for name in ("mask.png", "mask_thin.png", "scribble_mask.png"):
        load_mask(INPUTS / name, (128, 128), image_size=(400, 400))
    assert not caplog.records, "soft edges are no cause for one"


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="there is no"):
        load_mask(tmp_path / "missing.png", (8, 8))


# --- latent masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", range(6))
def test_the_stack_is_wide_to_tight_by_kernels_of_ones(iterations):
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 112:120, 120:128] = 1  # one cell, at (14, 15)
    stack = latent_masks(mask, 8, iterations)
    assert stack.shape == (iterations + 1, 1, 32, 32) and stack.dtype == torch.float32
    for k, level in zip(range(iterations, -1, -1), stack, strict=True):
        expected = torch.zeros(1, 32, 32)
        expected[:, 14 - k : 15 + k, 15 - k : 16 + k] = 1  # a kernel of 2k + 1
        assert torch.equal(level, expected)


def test_the_default_is_7_5_3_and_tight():
    stack = latent_masks(tensor(disc()), 8)
    tight = stack[-1:]
    for level, kernel in zip(stack, (7, 5, 3), strict=False):
        assert torch.equal(level[None], F.max_pool2d(tight, kernel, 1, kernel // 2))
    assert len(stack) == 4


@pytest.mark.parametrize("width", range(1, 17))
def test_no_line_is_lost_at_any_offset(width, caplog):
    for offset in range(8):
        mask = torch.zeros(1, 1, 128, 128)
        mask[..., 40 + offset : 40 + offset + width, 16:112] = 1
        for turned in (mask, mask.mT):
            tight = latent_masks(turned, 8, 0)
            across = cover(turned, 8)
            along = tight.amax(2 if turned is mask else 3)[0, 0]
            assert along[2:14].all() and along.sum() == 12, "no gap, nothing beyond the ends"
            assert (tight <= across).all()
    assert ("thinner than a latent cell" in caplog.text) == (width < 7)


def test_nearest_loses_lines_as_in_the_paper_and_the_default_does_not():
    lost = {"nearest": {1: 0, 4: 0}, "area": {1: 0, 4: 0}, "cover": {1: 0, 4: 0}, "adaptive": {1: 0, 4: 0}}
    for width in (1, 4):
        for offset in range(8):
            mask = torch.zeros(1, 1, 256, 256)
            mask[..., 120 + offset : 120 + offset + width, :] = 1
            for name, function in DOWNSAMPLING.items():
                lost[name][width] += not function(mask, 8).any()
    assert lost == {
        "nearest": {1: 7, 4: 4},
        "area": {1: 8, 4: 3},  # four pixels are half of a cell unless they straddle two
        "cover": {1: 0, 4: 0},
        "adaptive": {1: 0, 4: 0},
    }


def test_thin_parts_are_kept_beside_thick_ones():
    y, x = np.mgrid[:128, :128]
    balloon = disc(128, 40, 24)
    balloon[(abs(y - x) < 2) & (x > 50) & (x < 120)] = 255  # a string
    balloon[8:10, 100:102] = 255  # and a speck
    mask = tensor(balloon)
    tight = adaptive(mask, 8)
    assert tight[0, 0, 1, 12] == 1
    assert torch.equal(tight[..., 8:, 8:], cover(mask, 8)[..., 8:, 8:]), "the string, whole"
    kept = tight.clone()
    kept[0, 0, 1, 12] = 0
    reached = torch.zeros_like(kept)
    reached[0, 0, 5, 5] = 1
    for _ in range(32):
        reached = F.max_pool2d(reached, 3, 1, 1) * kept
    assert torch.equal(reached, kept), "the string is tied to the balloon"


@pytest.mark.parametrize("radius", [14, 20, 27, 30.5, 45])
def test_thick_parts_have_the_outline_of_area(radius):
    for shift in range(0, 8, 3):
        mask = tensor(disc(128, 60 + shift, radius))
        assert torch.equal(adaptive(mask, 8), area(mask, 8))
    shipped = load_mask(INPUTS / "mask.png", (128, 128), image_size=(400, 400))
    assert torch.equal(adaptive(shipped, 8), area(shipped, 8))


def test_adaptive_leaves_no_pixel_without_a_cell_nearby():
    generator = torch.Generator().manual_seed(0)
    for factor, size in ((8, 128), (4, 64), (2, 32), (1, 16)):
        for blur in (1, 3, 5, 9, 15):
            noise = torch.rand((1, 1, size, size), generator=generator)
            smooth = F.avg_pool2d(noise, blur, 1, blur // 2, count_include_pad=False)
            mask = (smooth > smooth.quantile(0.7)).float()
            kept = F.interpolate(adaptive(mask, factor), scale_factor=factor)
            reach = 2 * factor - 2 + factor // 2  # across the square that holds the cell, and the rim around it
            near = F.max_pool2d(kept, 2 * reach + 1, 1, reach)
            assert (mask <= near).all()
            assert (adaptive(mask, factor) >= area(mask, factor)).all()
            assert (adaptive(mask, factor) <= cover(mask, factor)).all()
    assert torch.equal(adaptive(mask, 1), mask), "in pixel space there is nothing to shrink"


@pytest.mark.parametrize("name", ["nearest", "area"])
def test_a_mask_that_vanishes_is_covered_with_a_notice(name, caplog):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 13, 5:60] = 1
    assert not DOWNSAMPLING[name](mask, 8).any()
    stack = latent_masks(mask, 8, 2, name)
    assert torch.equal(stack[-1:], cover(mask, 8)) and stack[-1].sum() == 8
    assert "8 pixels" in caplog.text and len(caplog.records) == 1


def test_named_downsampling():
    mask = tensor(disc())
    for name in ("area", "nearest", "cover", "adaptive"):
        assert torch.equal(latent_masks(mask, 8, 0, name), DOWNSAMPLING[name](mask, 8))
    assert torch.equal(nearest(mask, 8), mask[..., 4::8, 4::8])
    pillow = Image.fromarray(disc()).resize((16, 16), Image.Resampling.NEAREST)
    assert torch.equal(nearest(mask, 8), tensor(np.asarray(pillow))), "as the paper's code does it"


def test_an_empty_mask_stays_empty(caplog):
    assert not latent_masks(torch.zeros(1, 1, 64, 64), 8).any() and not caplog.records


def test_mistakes_of_the_caller():
    good = torch.ones(1, 1, 64, 64)
    for arguments, word in (
        ((torch.ones(1, 1, 60, 64), 8), "64x60"),
        ((torch.ones(1, 1, 64, 60), 8), "60x64"),
        ((good * 255, 8), "zeros and ones"),
        ((good * 0.5, 8), "zeros and ones"),
        ((good[0], 8), "1,1,H,W"),
        ((good.expand(2, 1, 64, 64), 8), "1,1,H,W"),
        ((good, 8, -1), "-1"),
        ((good, 8, 3, "bicubic"), "bicubic"),
        ((good, 0), "0x0"),
    ):
        with pytest.raises(ValueError, match=word):
            latent_masks(*arguments)


# --- the files that come with the project ----------------------------------------------------------------------------


def test_shipped_inputs_are_of_one_size_and_usable():
    for name in ("img.png", "mask.png", "mask_thin.png", "scribble.png", "scribble_mask.png"):
        with Image.open(INPUTS / name) as image:
            assert image.size == (400, 400)
    mask = load_mask(INPUTS / "mask.png", (400, 400))
    assert 0.3 < mask.amax(2).mean() < 0.5, "a good third of the width"
    thin = load_mask(INPUTS / "mask_thin.png", (128, 128), image_size=(400, 400))
    assert not area(thin, 8).any() and latent_masks(thin, 8)[-1].sum() > 10
    photo, scribble = (np.asarray(Image.open(INPUTS / n)).astype(int) for n in ("img.png", "scribble.png"))
    painted = (photo != scribble).any(-1)
    inside = load_mask(INPUTS / "scribble_mask.png", (400, 400))[0, 0].bool().numpy()
    assert painted.sum() > 10_000 and not (painted & ~inside).any()


def test_drawn_outline_is_kept(saved):
    ring = Image.new("L", (128, 128))
    ImageDraw.Draw(ring).ellipse((20, 20, 108, 108), outline=255, width=2)
    mask = load_mask(saved(ring), (128, 128))
    assert torch.equal(latent_masks(mask, 8, 0), cover(mask, 8))
