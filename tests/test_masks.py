"""Masks: white is where to edit, nothing is added by noise, nothing is lost by shrinking, tight comes last."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ldm.editing.latent_masks import (
    DOWNSAMPLING,
    adaptive,
    area,
    auto_dilation,
    cover,
    nearest,
    step_masks,
)
from ldm.errors import UserError
from ldm.imaging.masks import mask_from, mask_levels, resize_mask, thickness, thin_parts
from ldm.models.diffusion.levels import make_beta_schedule
from ldm.models.diffusion.schedule import SamplingSchedule, mask_parts
from tests.denoisers import trajectory

INPUTS = Path(__file__).parent.parent / "inputs"


def disc(size: int = 128, centre: float = 64, radius: float = 30) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return ((x - centre) ** 2 + (y - centre) ** 2 < radius**2).astype(np.uint8) * 255


def tensor(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels >= 128).float()[None, None]


def schedule(steps: int, sampler: str = "ddim") -> SamplingSchedule:
    betas = make_beta_schedule("linear", 1000, 0.00085, 0.012)
    return trajectory(torch.cumprod(1 - betas, 0), steps, sampler=sampler)


def shrinking(mask: torch.Tensor, iterations: int = 3, downsample: str = "adaptive") -> torch.Tensor:
    """The masks of progressive shrinking, widest first, each for one step: (iterations + 1,1,H/8,W/8)."""
    return step_masks(mask, 8, schedule(iterations + 1), iterations, downsample)


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
    mask = mask_from(saved(disc()), (128, 128))
    assert mask.shape == (1, 1, 128, 128) and mask.dtype == torch.float32
    assert torch.equal(mask, tensor(disc()))
    assert not caplog.records


def test_levels_are_parted_at_half_of_the_full_range(saved):
    levels = np.zeros((8, 8), np.uint8)
    levels[0, :4] = 1, 127, 128, 255
    mask = mask_from(saved(levels), (8, 8))
    assert mask[0, 0, 0, :4].tolist() == [0, 0, 1, 1]
    levels = np.zeros((8, 8), np.uint16)
    levels[0, :4] = 255, 127 * 257, 128 * 257, 65535
    assert mask_from(saved(levels, "deep.png"), (8, 8))[0, 0, 0, :4].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_jpeg_mask_does_not_grow(saved, quality):
    mask = mask_from(saved(disc(), "mask.jpg", quality=quality), (128, 128))
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
        assert torch.equal(mask_from(saved(image, name, **options), tuple(expected.shape[2:])), expected), name


@pytest.mark.parametrize("paint", [0, 255])
def test_alpha_of_a_flat_colour_is_the_mask(saved, caplog, paint):
    layer = Image.new("RGBA", (128, 128), (paint, paint, paint, 0))
    layer.putalpha(Image.fromarray(disc()))
    assert torch.equal(mask_from(saved(layer), (128, 128)), tensor(disc()))
    assert "alpha" in caplog.text
    layer = Image.merge("RGBA", [Image.fromarray(disc(radius=20))] * 3 + [Image.fromarray(disc())])
    assert torch.equal(mask_from(saved(layer), (128, 128)), tensor(disc(radius=20))), "here the colours are the mask"


def stroke(colour: tuple[int, int, int], hidden: tuple[int, int, int], alpha: np.ndarray) -> Image.Image:
    """A disc of one colour on a transparent layer, with another colour hidden where it is transparent."""
    layer = np.where((alpha >= 128)[..., None], colour, hidden).astype(np.uint8)
    return Image.fromarray(np.dstack([layer, alpha]))


def test_what_is_hidden_under_transparency_decides_nothing(saved):
    """Programs leave black, white or nothing in particular where a layer is empty."""
    for colour in ((0, 0, 0), (255, 255, 255), (220, 30, 30)):
        for hidden in ((0, 0, 0), (255, 255, 255), (90, 140, 20)):
            mask = mask_from(saved(stroke(colour, hidden, disc())), (128, 128))
            assert torch.equal(mask, tensor(disc())), (colour, hidden)


def test_black_and_white_with_transparent_parts_keeps_its_colours(saved, caplog):
    """A black and white mask that covers a part of the layer: what it leaves transparent is not edited."""
    levels, alpha = disc(radius=20), disc(radius=40)
    for hidden in (0, 255):
        layer = np.where(alpha >= 128, levels, hidden).astype(np.uint8)
        mask = mask_from(saved(Image.fromarray(np.dstack([layer] * 3 + [alpha]))), (128, 128))
        assert torch.equal(mask, tensor(levels))
    assert "count as black" in caplog.text


def test_a_hole_erased_into_a_photograph_is_edited(saved, caplog):
    photo = Image.open(INPUTS / "img.png").convert("RGB").resize((128, 128))
    photo.putalpha(Image.fromarray(255 - disc()))
    path = saved(photo)
    assert torch.equal(mask_from(path, (128, 128)), tensor(disc()))
    assert "the hole is edited" in caplog.text and "largely grey" not in caplog.text
    assert torch.equal(mask_from(path, (128, 128), invert=True), 1 - tensor(disc()))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("most", [1, 60, 127, 200])
def test_a_layer_or_a_brush_of_less_opacity_means_the_same(saved, mode, most):
    """As every editor of layers saves it: white paint of half opacity on an empty layer, white or not."""
    layer = stroke((255, 255, 255), (255, 255, 255), disc() // 255 * np.uint8(most)).convert(mode)
    assert torch.equal(mask_from(saved(layer)), tensor(disc()))
    assert torch.equal(mask_from(saved(layer), invert=True), 1 - tensor(disc()))
    levels = mask_levels(saved(layer))
    assert torch.allclose(levels, tensor(disc()) * most / 255), "a soft mask has the levels as they were painted"
    soft = np.uint8([[0, 40, 59, 60, 90, 120]]).repeat(6, 0)
    faint = Image.fromarray(np.dstack([np.full_like(soft, 255)] * 3 + [soft]))
    assert mask_from(saved(faint))[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1], "parted at half of its opacity"


def test_a_faded_layer_as_a_whole(saved):
    """Opacity that is the same everywhere says nothing: the colours are the mask, a hole stays a hole."""
    faded = Image.merge("RGBA", [Image.fromarray(disc())] * 3 + [Image.new("L", (128, 128), 90)])
    assert torch.equal(mask_from(saved(faded)), tensor(disc()))
    photo = Image.open(INPUTS / "img.png").convert("RGB").resize((128, 128))
    photo.putalpha(Image.fromarray((255 - disc()) // 3))
    assert torch.equal(mask_from(saved(photo)), tensor(disc()))
    assert torch.equal(mask_levels(saved(photo)), tensor(disc()))


@pytest.mark.parametrize("hidden", [(255, 255, 255), (0, 0, 0), (90, 140, 20)])
def test_on_an_empty_layer_there_is_nothing_to_edit(saved, hidden):
    empty = saved(Image.new("RGBA", (128, 128), (*hidden, 0)))
    for read in (mask_from, mask_levels):
        for invert in (False, True):
            with pytest.raises(UserError, match="nothing to edit") as caught:
                read(empty, invert=invert)
            assert "mask.png" in str(caught.value) and "\n" not in str(caught.value)


def test_masks_without_files():
    true = tensor(disc())
    codes = disc()
    for image in (
        codes,
        codes >= 128,
        (codes >= 128).astype(int),
        codes / 255,
        codes.astype(np.uint16) * 257,
        np.dstack([codes] * 3),
        np.dstack([codes] * 3 + [np.full_like(codes, 255)]),
        Image.fromarray(codes),
        Image.fromarray(codes).convert("1"),
        stroke((0, 200, 0), (0, 0, 0), codes),
    ):
        assert torch.equal(mask_from(image), true)
        assert torch.equal(mask_from(image, invert=True), 1 - true)
        assert mask_from(image, (64, 32)).shape == (1, 1, 64, 32)
    for array in (
        np.zeros(8),
        np.zeros((8, 8, 2)),
        np.zeros((0, 8)),
        codes - 1.0,
        np.full((8, 8), 256),
        np.full((8, 8), "white"),
        np.full((8, 8), None),
        np.ones((8, 8), complex),
        codes * np.nan,
    ):
        with pytest.raises(ValueError, match="a mask is") as caught:
            mask_from(array)
        assert ("NaN" in str(caught.value)) == (array.dtype.kind == "f" and bool(np.isnan(array).any()))


def test_grey_levels_are_kept_for_soft_masks(saved):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    levels = mask_levels(saved(ramp))
    assert torch.equal(levels[0, 0, 7] * 255, torch.arange(256.0))
    assert torch.allclose(mask_levels(ramp, invert=True), 1 - levels)
    for size in ((256, 256), (64, 128), (300, 300)):
        small = mask_levels(ramp, size)
        assert small.min() >= 0 and small.max() <= 1
        assert torch.equal((small >= 0.5).float(), mask_from(ramp, size)), "parted at half it is the hard mask"
    assert mask_levels(ramp // 4).any(), "a soft mask may be dark"
    with pytest.raises(UserError, match="all black"):
        mask_levels(saved(ramp * 0))


def test_another_size_is_resized_with_a_notice(saved, caplog):
    path = saved(disc(512, 256, 120))
    mask = mask_from(path, (128, 128))
    assert set(mask.unique().tolist()) == {0, 1}
    quarter = tensor(disc(128, 63.625, 30))  # pixel 256 of 512 has its middle at 256.5 / 4 - 0.5
    assert (mask - quarter).abs().sum() < 8
    assert "512x512" in caplog.text and "128x128" in caplog.text and len(caplog.records) == 1
    assert mask_from(path, (96, 160)).shape == (1, 1, 96, 160), "size is (H,W)"


def test_a_mask_of_the_size_of_its_image_gives_no_notice(saved, caplog):
    mask_from(saved(disc(400, 200, 90)), (400, 400))
    assert not caplog.records


def test_resizing_loses_no_line(saved):
    for width in (1, 2, 3):
        for offset in range(4):
            line = np.zeros((512, 512), np.uint8)
            line[200 + offset : 200 + offset + width] = 255
            mask = mask_from(saved(line), (128, 128))
            assert mask.amax(2).all(), "the line has no gap"
            assert 1 <= mask.sum(2).max() <= 2
    both = disc(512, 256, 120)
    both[10, 10] = 255
    mask = mask_from(saved(both), (128, 128))
    assert mask[0, 0, 2, 2] == 1, "a speck is kept beside a disc"
    both[10, 10] = 0
    without = mask_from(saved(both), (128, 128))
    assert mask.sum() - without.sum() == 1, "and the disc is as it was"
    assert mask_from(saved(disc(32, 16, 8)), (128, 128)).sum() > 0.9 * 16 * tensor(disc(32, 16, 8)).sum()


def test_full_size_then_model_size(saved):
    """A mask brought to a large image first, and then a window of it to the model: nothing thin is lost on the way."""
    line = np.zeros((2000, 3000), np.uint8)
    line[1001, 400:2600] = 255
    full = mask_from(saved(line), (1000, 1500))
    assert full.shape == (1, 1, 1000, 1500) and full.amax(2)[0, 0, 200:1300].all()
    window = full[..., 100:900, 300:1100]
    small = resize_mask(window, (128, 128))
    assert small.amax(2).all() and small.sum(2).max() <= 2
    assert torch.equal(resize_mask(window, (800, 800)), window)
    assert torch.equal(resize_mask(torch.zeros(1, 1, 40, 40), (8, 8)), torch.zeros(1, 1, 8, 8))


def test_inversion(saved):
    path = saved(disc(512, 256, 120))
    assert torch.equal(mask_from(path, (512, 512), invert=True), 1 - mask_from(path, (512, 512)))
    black_line = np.full((512, 512), 255, np.uint8)
    black_line[201] = 0
    mask = mask_from(saved(black_line), (128, 128), invert=True)
    assert mask.amax(2).all() and mask.mean() < 0.02


def test_inversion_comes_before_dilation(saved):
    path = saved(disc())
    stack = shrinking(mask_from(path, (128, 128), invert=True))
    sizes = stack.sum((1, 2, 3)).tolist()
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1], "shrinking must not become growing"
    assert torch.equal(stack[-1:], area(1 - tensor(disc()), 8))


def test_nothing_to_edit_names_the_mend(saved):
    black, white = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    for levels, invert, word in (
        (black, False, "invert_mask"),
        (white, True, "leave out"),
        (black + 1, False, "level above 1 of 255"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            mask_from(saved(levels), (16, 16), invert)
        assert "mask.png" in str(caught.value) and "\n" not in str(caught.value)


def test_all_white_is_allowed_with_a_notice(saved, caplog):
    assert mask_from(saved(np.full((16, 16), 255, np.uint8)), (16, 16)).all()
    assert "whole picture" in caplog.text and len(caplog.records) == 1
    caplog.clear()
    assert mask_from(saved(np.zeros((16, 16), np.uint8)), (16, 16), invert=True).all()
    assert "inverted" in caplog.text


def test_a_photograph_as_mask_gives_a_notice(saved, caplog):
    mask_from(INPUTS / "img.png", (400, 400))
    assert "largely grey" in caplog.text
    caplog.clear()
    for name in ("mask.png", "mask_thin.png", "scribble_mask.png"):
        mask_from(INPUTS / name, (400, 400))
    assert not caplog.records, "soft edges are no cause for one"


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="there is no"):
        mask_from(tmp_path / "missing.png", (8, 8))


# --- latent masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", range(6))
def test_the_stack_is_wide_to_tight_by_kernels_of_ones(iterations):
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 112:120, 120:128] = 1  # one cell, at (14, 15)
    stack = shrinking(mask, iterations)
    assert stack.shape == (iterations + 1, 1, 32, 32) and stack.dtype == torch.float32
    for k, level in zip(range(iterations, -1, -1), stack, strict=True):
        expected = torch.zeros(1, 32, 32)
        expected[:, 14 - k : 15 + k, 15 - k : 16 + k] = 1  # a kernel of 2k + 1
        assert torch.equal(level, expected)


def test_the_default_is_7_5_3_and_tight():
    stack = shrinking(tensor(disc()))
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
            tight = shrinking(turned, 0)
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


def thick_shapes(generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Discs, ellipses, rectangles, triangles: thicker than 14 pixels, of any size, place and turn, drawn finely."""

    def draw(low: float, high: float) -> float:
        return float(torch.rand(1, generator=generator)) * (high - low) + low

    circle = [(math.cos(a), math.sin(a)) for a in np.linspace(0, math.tau, 120)]
    square = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    triangle = [(2 * math.cos(a), 2 * math.sin(a)) for a in (0, math.tau / 3, 2 * math.tau / 3)]
    for outline, longer in ((circle, 1), (circle, 2), (square, 1), (square, 3), (triangle, 1)) * 20:
        radius, turn = draw(7.5, 24), draw(0, math.tau)  # radius of the inscribed circle
        spin = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        points = outline * np.array([radius * draw(1, longer), radius]) @ spin + (draw(60, 68), draw(60, 68))
        fine = Image.new("L", (1024, 1024))
        ImageDraw.Draw(fine).polygon([tuple(point) for point in points * 8], fill=255)
        yield tensor(np.asarray(fine.resize((128, 128), Image.Resampling.BOX)))


def test_thick_parts_have_the_outline_of_area():
    """No spikes of a cell on round outlines, corners and tips, wherever they lie on the grid of cells."""
    for mask in thick_shapes(torch.Generator().manual_seed(0)):
        assert torch.equal(adaptive(mask, 8), area(mask, 8))
    shipped = mask_from(INPUTS / "mask.png", (128, 128))
    assert torch.equal(adaptive(shipped, 8), area(shipped, 8))


def curve(generator: torch.Generator, width: float, balloon: float = 0) -> torch.Tensor:
    """A random curve as wide everywhere, from a disc of radius `balloon`."""
    ends = torch.rand((4, 2), generator=generator) * 108 + 10
    t = torch.linspace(0, 1, 200)[:, None]
    points = sum(c * (1 - t) ** (3 - k) * t**k * ends[k] for k, c in enumerate((1, 3, 3, 1)))
    fine = Image.new("L", (512, 512))
    pen = ImageDraw.Draw(fine)
    for i, (x, y) in enumerate((points * 4).tolist()):
        radius = 4 * (width / 2 if i or not balloon else balloon)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return tensor(np.asarray(fine.resize((128, 128), Image.Resampling.BOX)))


def parts(mask: torch.Tensor) -> int:
    """How many parts there are that do not touch, not even by a corner."""
    count, mask = 0, mask.clone()
    while mask.any():
        part = torch.zeros_like(mask)
        part.view(-1)[mask.view(-1).argmax()] = 1
        while not torch.equal(part, grown := F.max_pool2d(part, 3, 1, 1) * mask):
            part = grown
        count, mask = count + 1, mask - part
    return count


@pytest.mark.parametrize("balloon", [0, 12, 25])
@pytest.mark.parametrize("width", [1.5, 3, 6, 9, 12, 13, 16])
def test_curves_are_not_broken_nor_lost(width, balloon):
    generator = torch.Generator().manual_seed(round(width * 10 + balloon))
    for _ in range(8):
        mask = curve(generator, width, balloon)
        cells = adaptive(mask, 8)
        if parts(mask) == 1:
            assert parts(cells) == 1
        assert (cells <= cover(mask, 8)).all() and (cells >= area(mask, 8)).all()
        near = F.max_pool2d(F.interpolate(cells, scale_factor=8), 17, 1, 8)
        assert (mask <= near).all(), "no pixel is farther than a cell from one that is edited"


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16])
def test_a_disc_that_counts_as_thick_always_keeps_a_cell(factor):
    """The width of 1.6 cells in `adaptive`: such a disc fills some cell by half wherever it lies."""
    at = np.arange(6 * factor)
    for y in np.arange(0, factor + 0.1, 0.5):
        for x in np.arange(0, factor + 0.1, 0.5):
            dy, dx = (np.clip(c, at, at + 1) - c for c in (2.5 * factor + y, 2.5 * factor + x))
            touched = dy[:, None] ** 2 + dx**2 < (0.8 * factor) ** 2
            assert area(torch.from_numpy(touched).float()[None, None], factor).any()


def test_thin_parts_by_width():
    both = torch.zeros(1, 1, 128, 128)
    both[..., 20:50, 20:50] = 1
    both[..., 80:86, 10:120] = 1
    both[..., 34:36, 50:90] = 1  # a handle of the square
    line, handle = both.clone(), both.clone()
    line[..., :60, :], handle[..., 60:, :], handle[..., :50] = 0, 0, 0
    assert not thin_parts(both, 2).any()
    rest = thin_parts(both, 3)
    assert (rest >= handle).all() and rest.sum() <= handle.sum() + 8, "the handle, and what it springs from"
    assert torch.equal(thin_parts(both, 6)[..., 60:, :], line[..., 60:, :] * 0)
    assert torch.equal(thin_parts(both, 7)[..., 60:, :], line[..., 60:, :])
    assert torch.equal(thin_parts(both, 31), both)
    assert torch.equal(adaptive(both, 1), both), "in pixel space there is nothing to shrink"


@pytest.mark.parametrize("name", ["nearest", "area"])
def test_a_mask_that_vanishes_is_covered_with_a_notice(name, caplog):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 13, 5:60] = 1
    assert not DOWNSAMPLING[name](mask, 8).any()
    stack = shrinking(mask, 2, name)
    assert torch.equal(stack[-1:], cover(mask, 8)) and stack[-1].sum() == 8
    assert "8 pixels" in caplog.text and len(caplog.records) == 1


def test_named_downsampling():
    mask = tensor(disc())
    for name in ("area", "nearest", "cover", "adaptive"):
        assert torch.equal(shrinking(mask, 0, name), DOWNSAMPLING[name](mask, 8))
    assert torch.equal(nearest(mask, 8), mask[..., 4::8, 4::8])
    pillow = Image.fromarray(disc()).resize((16, 16), Image.Resampling.NEAREST)
    assert torch.equal(nearest(mask, 8), tensor(np.asarray(pillow))), "as the paper's code does it"


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 15, 24, 40])
def test_thickness_of_lines_discs_and_squares(width):
    line = torch.zeros(1, 1, 64, 64)
    line[..., 11 : 11 + width, 3:60] = 1
    assert thickness(line) == thickness(line.mT) == width
    border = torch.zeros(1, 1, 64, 64)
    border[..., :width, :] = 1
    assert thickness(border) == width, "what lies beyond the image is not edited"
    square = torch.zeros(1, 1, 64, 64)
    square[..., 5 : 5 + width, 9 : 9 + width] = 1
    assert thickness(square) == width
    if width > 4:
        assert abs(thickness(tensor(disc(64, 32, width / 2))) - width) <= 2
    assert thickness(line, 6) == min(width, 6)


def test_thickness_is_that_of_the_thinnest_part_that_counts():
    mask = torch.zeros(1, 1, 128, 128)
    assert thickness(mask) == 0
    mask[..., 20:70, 20:70] = 1
    assert thickness(mask) == 50
    mask[..., 100, 100:104] = 1
    assert thickness(mask) == 50, "a speck of 4 pixels beside 2500 does not"
    mask[..., 100, 20:120] = 1
    assert thickness(mask) == 1


def test_auto_dilation_makes_up_for_what_a_mask_lacks():
    """With k dilations a mask is 2 k cells wider at the start; the paper's three make one cell 7."""
    for cells, iterations in ((0.125, 3), (1, 3), (2.9, 3), (3, 2), (4.9, 2), (5, 1), (6.9, 1), (7, 0), (12, 0)):
        mask = torch.zeros(1, 1, 128, 128)
        mask[..., 30 : 30 + round(cells * 8), 5:120] = 1
        chosen, reason = auto_dilation(mask, 8)
        assert chosen == iterations
        assert reason.startswith(f"{iterations},") and f"{min(7, round(cells * 8) / 8):.1f} latent cells" in reason
        wide = shrinking(mask, chosen)[0]
        assert wide.sum(1).max() >= 7
    assert auto_dilation(torch.ones(1, 1, 128, 128), 8)[0] == 0


# --- soft masks ------------------------------------------------------------------------------------------------------


def test_each_level_joins_at_the_same_noise_level_with_every_sampler():
    levels = torch.arange(1, 10).view(1, 1, 1, 9).repeat_interleave(8, -1).repeat_interleave(8, -2) / 10
    joins = {}
    for sampler in ("ddim", "dpmpp_2m"):
        steps = schedule(200, sampler)
        masks = step_masks(levels, 8, steps, 0)[:, 0, 0]  # (steps, 9)
        first = masks.argmax(0)  # of the steps that edit each level
        joins[sampler] = torch.tensor(steps.timesteps)[first]
    assert (joins["ddim"] - joins["dpmpp_2m"]).abs().max() < 20


def test_each_level_joins_at_its_own_time():
    """Level g is edited over the last g of the trajectory; Levin and Fried 2023."""
    for steps in (1, 10, 50, 1000):
        levels = torch.zeros(1, 1, 16, 16 * 11)
        for tenths in range(11):
            levels[..., 16 * tenths : 16 * (tenths + 1)] = tenths / 10
        masks = step_masks(levels, 8, schedule(steps), 0)
        assert masks.shape == (steps, 1, 2, 22) and set(masks.unique().tolist()) <= {0.0, 1.0}
        assert (masks[1:] >= masks[:-1]).all(), "what has joined stays"
        edited = masks.sum(0)[0, 0, ::2]
        assert (edited - torch.arange(11) / 10 * steps).abs().max() <= 0.5
        assert edited[0] == 0 and edited[-1] == steps


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 3, 4, 50])
def test_a_soft_mask_of_black_and_white_is_the_hard_one(steps, iterations):
    mask = tensor(disc())
    hard = shrinking(mask, iterations)
    expected = hard[list(mask_parts(steps, iterations + 1))]
    assert torch.equal(step_masks(mask, 8, schedule(steps), iterations), expected)
    noisy = (mask * 250 + 2) / 255  # as from a JPEG
    assert torch.equal(step_masks(noisy, 8, schedule(steps), iterations)[-1], expected[-1])


def test_masks_shrink_beside_soft_levels():
    levels = torch.zeros(1, 1, 128, 128)
    levels[..., 56:72, 24:40], levels[..., 56:72, 80:96] = 1, 0.4
    masks = step_masks(levels, 8, schedule(20), 3)
    assert torch.equal(masks[-1:], shrinking((levels > 0).float(), 0)), "the last mask is tight and holds all"
    white, grey = masks[..., :8].sum((1, 2, 3)).tolist(), masks[..., 8:].sum((1, 2, 3)).tolist()
    assert white == [64] * 5 + [36] * 5 + [16] * 5 + [4] * 5
    assert grey == [0] * 12 + [16] * 3 + [4] * 5


def test_thin_soft_masks_are_not_lost(caplog):
    levels = torch.zeros(1, 1, 64, 64)
    levels[..., 13, 5:60] = 0.5
    masks = step_masks(levels, 8, schedule(10), 0)
    assert masks.sum((1, 2, 3)).tolist() == [0] * 5 + [8] * 5
    assert "8 pixels" in caplog.text and len(caplog.records) == 1


def test_an_empty_mask_stays_empty(caplog):
    assert not shrinking(torch.zeros(1, 1, 64, 64)).any() and not caplog.records


def test_mistakes_of_the_caller():
    good, steps = torch.ones(1, 1, 64, 64), schedule(5)
    for arguments, word in (
        ((torch.ones(1, 1, 60, 64), 8, steps), "64x60"),
        ((torch.ones(1, 1, 64, 60), 8, steps), "60x64"),
        ((good * 2, 8, steps), "2.0"),
        ((-good, 8, steps), "-1.0"),
        ((good[0], 8, steps), "1,1,H,W"),
        ((good.expand(2, 1, 64, 64), 8, steps), "1,1,H,W"),
        ((good, 8, steps, -1), "-1"),
        ((good, 8, steps, 3, "bicubic"), "bicubic"),
        ((good, 0, steps), "0x0"),
    ):
        with pytest.raises(ValueError, match=word):
            step_masks(*arguments)


# --- the files that come with the project ----------------------------------------------------------------------------


def test_shipped_inputs_are_of_one_size_and_usable():
    for name in (
        "img.png",
        "mask.png",
        "mask_thin.png",
        "scribble.png",
        "scribble_mask.png",
        "donut_mask.png",
        "spoon_mask.png",
    ):
        with Image.open(INPUTS / name) as image:
            assert image.size == (400, 400)
    mask = mask_from(INPUTS / "mask.png", (400, 400))
    assert 0.3 < mask.amax(2).mean() < 0.5, "a good third of the width"
    thin = mask_from(INPUTS / "mask_thin.png", (128, 128))
    assert not area(thin, 8).any() and shrinking(thin)[-1].sum() > 10
    photo, scribble = (np.asarray(Image.open(INPUTS / n)).astype(int) for n in ("img.png", "scribble.png"))
    painted = (photo != scribble).any(-1)
    inside = mask_from(INPUTS / "scribble_mask.png", (400, 400))[0, 0].bool().numpy()
    assert painted.sum() > 5_000 and not (painted & ~inside).any()


def test_drawn_outline_is_kept(saved):
    ring = Image.new("L", (128, 128))
    ImageDraw.Draw(ring).ellipse((20, 20, 108, 108), outline=255, width=2)
    mask = mask_from(saved(ring), (128, 128))
    assert torch.equal(shrinking(mask, 0), cover(mask, 8))
