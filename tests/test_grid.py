import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ldm.imaging.region import Window
from ldm.runs import grid
from ldm.runs.grid import edit_grid

GREY, RED, BLUE = (120, 120, 120), (200, 30, 30), (30, 30, 200)


def a_mask(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def painted(width: int, height: int, box: tuple[int, int, int, int], colour=RED, ground=GREY) -> Image.Image:
    picture = Image.new("RGB", (width, height), ground)
    picture.paste(colour, box)
    return picture


def a_grid(width, height, box, window, colours=(RED,), cells=8, **more) -> Image.Image:
    window = Window(*window, (height, width))
    results = [painted(width, height, box, colour) for colour in colours]
    options = {"seeds": range(len(results)), "distances": None, "latent_mask": torch.ones(1, 1, cells, cells)} | more
    picture = Image.new("RGB", (width, height), GREY)
    return edit_grid(picture, a_mask(width, height, box), window, results, **options)


def areas(page: Image.Image, colour: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of the patches of about one colour, from the top."""
    from scipy import ndimage

    near = (np.abs(np.asarray(page).astype(int) - colour) < 12).all(axis=2)
    found = ndimage.find_objects(ndimage.label(near)[0])
    boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in found]
    return [box for box in boxes if (box[2] - box[0]) * (box[3] - box[1]) > 60]


@pytest.mark.parametrize("window", [(430, 230, 100, 100), (0, 0, 600, 400)])
def test_fitted_masks_stand_below_with_what_they_leave_out_in_grey(window):
    box, own = (440, 240, 520, 320), a_mask(600, 400, (440, 240, 480, 320))
    plain = a_grid(600, 400, box, window)
    page = a_grid(600, 400, box, window, fitted=[own])
    assert page.height > plain.height
    below = page.crop((0, plain.height - 16, *page.size))
    ((left, top, right, bottom),) = areas(below, (110, 110, 110))
    assert right - left == pytest.approx((bottom - top) / 2, abs=2), "half of the mask is left out"
    with pytest.raises(ValueError, match="fitted"):
        a_grid(600, 400, box, window, fitted=[own, own])


def test_each_result_is_seen_in_place_and_then_enlarged():
    page = a_grid(600, 400, (440, 240, 520, 320), (430, 230, 100, 100), (RED, BLUE))
    for colour in (RED, BLUE):
        in_place, enlarged = areas(page, colour)
        assert in_place[2] - in_place[0] == pytest.approx(80, abs=3), "a photograph of this size is shown at its own"
        assert enlarged[2] - enlarged[0] > 2 * 80 and enlarged[1] > in_place[3]
    assert areas(page, RED)[1][0] < areas(page, BLUE)[1][0], "the best stands before the others"


def test_a_window_that_reaches_beyond_the_photograph_is_shown_as_far_as_that_goes():
    """The painted half of the photograph lies at its upper border: mirrored, it would be seen twice as high."""
    page = a_grid(600, 200, (200, 0, 400, 100), (150, -100, 300, 300))
    _, enlarged = areas(page, RED)
    assert (enlarged[2] - enlarged[0]) / (enlarged[3] - enlarged[1]) == pytest.approx(2, rel=0.05)


def test_latent_cells_lie_over_what_they_cover():
    """With a window from 100 pixels above the photograph on, the upper third of the cells is not in it."""
    cells = torch.zeros(1, 1, 12, 12)
    cells[..., 4:8, 4:8] = 1  # from the photograph's border on, 100 pixels high and wide
    page = a_grid(600, 200, (250, 0, 350, 100), (150, -100, 300, 300), latent_mask=cells)
    enlarged = areas(page, RED)[-1]
    row = np.asarray(page)[enlarged[1] + 5]
    dark = np.flatnonzero((row == 0).all(axis=1))
    white = np.flatnonzero((row[dark[0] : dark[-1]] == 255).all(axis=1))
    assert len(white) == pytest.approx(enlarged[2] - enlarged[0], abs=2)


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), (255, 221, 51), (127, 127, 127)])
def test_the_mask_and_the_window_are_marked_on_any_ground(ground):
    picture = Image.new("RGB", (300, 200), ground)
    window = Window(150, 80, 80, 80, (200, 300))
    ones = torch.ones(1, 1, 8, 8)
    page = edit_grid(picture, a_mask(300, 200, (170, 100, 210, 140)), window, [picture], ones, [7])
    shown = np.asarray(page).astype(int)[grid._GAP : grid._GAP + 200, grid._GAP : grid._GAP + 300]
    contrast = np.abs(shown - ground).max(axis=2)
    assert contrast[77:80, 150:230].max(axis=0).min() > 100, "the frame lies around the window"
    assert contrast[97:100, 172:208].max(axis=0).min() > 100, "the outline lies around the mask"
    assert not contrast[100:140, 170:210].any() and not contrast[:70].any()


def test_a_photograph_that_is_its_own_window_is_shown_once():
    page = a_grid(128, 128, (30, 30, 90, 90), (0, 0, 128, 128))
    assert len(areas(page, RED)) == 1
    assert areas(page, (255, 221, 51)) == [], "nothing to frame"
    nearly = a_grid(600, 400, (100, 50, 500, 350), (0, -100, 600, 600))
    assert len(areas(nearly, RED)) == 1


def test_transparency_and_colour_profiles_are_shown_as_viewers_show_them():
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # no profile for RGB: not used
    picture, window = Image.new("RGB", (300, 200), GREY), Window(100, 50, 100, 100, (200, 300))
    result = painted(300, 200, (110, 60, 190, 140)).convert("RGBA")
    result.putalpha(Image.new("L", result.size))
    result.info["icc_profile"] = wide
    page = edit_grid(picture, a_mask(300, 200, (110, 60, 190, 140)), window, [result], torch.ones(1, 1, 8, 8), [1])
    assert page.mode == "RGB" and "icc_profile" not in page.info
    assert areas(page, RED) == [] and len(areas(page, (232, 232, 232))) > 8, "checks show through"


@pytest.mark.parametrize("count", [1, 2, 5, 24, 100])
@pytest.mark.parametrize("size", [(8, 8), (600, 400), (3000, 75), (75, 3000)])
def test_any_number_of_any_shape_fits_a_page(size, count):
    width, height = size
    side = min(4, *size)
    x, y = width // 2, height // 2
    box, window = (x, y, x + side // 2, y + side // 2), (x - 1, y - 1, side, side)
    page = a_grid(width, height, box, window, [RED] * count, distances=[0.5] * count)
    assert page.width <= 2400 and page.height < 6000
    assert (np.asarray(page)[:, -grid._GAP :] == 255).all(), "nothing is cut off at the right"


def test_a_speck_in_a_large_photograph_is_outlined_and_little_memory_is_taken(monkeypatch):
    picture = Image.new("RGB", (5000, 4000), GREY)
    seen = []
    monkeypatch.setattr(grid, "as_picture", lambda image, own=grid.as_picture: seen.append(image.size) or own(image))
    mask, window = a_mask(5000, 4000, (4001, 2001, 4002, 2002)), Window(3986, 1986, 32, 32, (4000, 5000))
    page = edit_grid(picture, mask, window, [picture], torch.ones(1, 1, 8, 8), [1])
    assert max(width * height for width, height in seen) < 1e6, "colours are converted when a picture is small"
    photograph = np.asarray(page)[grid._GAP : 400, grid._GAP : 500]
    assert (photograph == (255, 255, 255)).all(axis=2).any()


def test_captions_wrap_between_their_parts_and_keep_numbers_with_their_names():
    font = grid.ImageFont.load_default(12)
    lines = grid._lines("12 · seed 1234567890 · CLIP distance 0.863", font, 150)
    assert lines == ["12 · seed 1234567890", "CLIP distance 0.863"]
    assert grid._lines("input · the mask outlined, the window framed", font, 130) == [
        "input", "the mask outlined, the", "window framed"
    ]  # fmt: skip
    assert all(font.getlength(line) <= 150 for line in lines)
    assert grid._names([42], None) == ["0 · seed 42"]
    assert grid._names([42], [0.8629]) == ["0 · seed 42 · CLIP distance 0.863"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"colours": ()},
        {"seeds": [1, 2]},
        {"distances": [0.1, 0.2]},
        {"latent_mask": torch.ones(8, 8)},
    ],
)
def test_what_does_not_belong_together_is_refused(wrong):
    with pytest.raises(ValueError):
        a_grid(300, 200, (100, 50, 150, 100), (90, 40, 70, 70), **wrong)
    other = Image.new("RGB", (10, 10))
    with pytest.raises(ValueError):
        edit_grid(other, np.ones((10, 10)), Window(0, 0, 9, 9, (9, 9)), [other], torch.ones(1, 1, 2, 2), [1])
