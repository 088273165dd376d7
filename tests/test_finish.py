"""Finishing: the mask shows what was made, everything beyond the band is the input's bit for bit, no jump between."""

import json
import math
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from ldm.imaging.finish import (
    Finished,
    auto_feather,
    deliver,
    feather_alpha,
    finish,
    measure,
    seam_score,
)
from ldm.imaging.images import Picture, load_image, save_png, to_pil, to_tensor
from ldm.imaging.region import Window, choose_window, cut, cut_mask, resize_back


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ramp(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([40 + x, 30 + y, 200 - x], -1).astype(np.uint8))


def random_x(size: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2.4 - 1.2


def disc(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def measured(finished: Finished, picture: Image.Image, mask: np.ndarray):
    return measure(finished.image, Picture(picture, None, None, Path("a.png")), mask, finished.feather)


def distance(mask: np.ndarray) -> np.ndarray:
    """Euclidean, of each pixel to the mask, from the definition."""
    here, there = np.argwhere(np.ones_like(mask)), np.argwhere(mask)
    squared = np.square(here[:, None] - there[None]).sum(-1).min(1)
    return np.sqrt(squared).reshape(mask.shape)


CASES = {
    "enlarged": ((61, 83), disc(61, 83, 30, 40, 6), (64, 64)),
    "shrunk": ((93, 71), disc(93, 71, 40, 38, 17), (16, 24)),
    "at the corner": ((97, 120), disc(97, 120, 0, 119, 15), (32, 32)),
    "partly outside": ((30, 101), disc(30, 101, 12, 50, 30), (16, 16)),
    "far parts": ((131, 90), disc(131, 90, 20, 20, 5) | disc(131, 90, 100, 70, 9), (48, 32)),
    "a line": ((80, 80), np.eye(80, dtype=bool), (32, 32)),
    "all": ((21, 34), np.ones((21, 34), bool), (32, 32)),
}


# --- the result ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["auto", "whole"])
@pytest.mark.parametrize("feather", [0, 1, 2.5, 7])
@pytest.mark.parametrize("name", CASES)
def test_beyond_the_band_the_result_is_the_input_bit_for_bit(name, feather, region):
    (height, width), mask, size = CASES[name]
    picture = noise(height, width)
    window = choose_window(mask, size, region)
    finished = finish(picture, window, mask, random_x(size, 1), random_x(size, 2), feather)
    assert finished.image.size == picture.size and finished.image.mode == "RGB"
    changed = (np.asarray(finished.image) != np.asarray(picture)).any(-1)
    assert not (changed & (distance(mask) > feather)).any()
    assert changed[mask].mean() > 0.9, "while the mask is new"
    assert measured(finished, picture, mask).max_difference == 0


@pytest.mark.parametrize("name", CASES)
def test_inside_the_mask_the_result_is_what_the_method_made(name):
    (height, width), mask, size = CASES[name]
    window = choose_window(mask, size)
    x = random_x(size, 1)
    finished = finish(noise(height, width), window, mask, x, random_x(size, 2), 4)
    made = np.zeros((height, width, 3), np.uint8)
    made[window.in_image] = np.asarray(to_pil(resize_back(x, window)))[window.in_window]
    assert np.array_equal(np.asarray(finished.image)[mask], made[mask])


def test_the_band_follows_the_equation():
    (height, width), mask, size = CASES["shrunk"]
    picture, window = noise(height, width), choose_window(CASES["shrunk"][1], size)
    x_method, x_ref = random_x(size, 1), random_x(size, 2)
    finished = finish(picture, window, mask, x_method, x_ref, 5)
    up, up_ref = (resize_back(t, window)[0].permute(1, 2, 0).numpy()[window.in_window] for t in (x_method, x_ref))
    x = (np.asarray(picture) / 127.5 - 1)[window.in_image]
    a = feather_alpha(mask, 5)[window.in_image][..., None]
    assert ((a > 0) & (a < 1)).any()
    expected = ((x + a * (up + (1 - a) * (x - up_ref) - x)).clip(-1, 1) + 1) * 127.5
    assert np.abs(np.asarray(finished.image)[window.in_image] - expected).max() <= 0.51


def test_at_equal_sizes_without_a_band_a_paste_is_a_paste():
    picture, made, mask = noise(32, 48), noise(32, 48, 1), disc(32, 48, 15, 20, 9)
    window = choose_window(mask, (32, 48))
    assert window == Window(0, 0, 48, 32, (32, 48))
    x = to_tensor(picture)
    pasted = torch.where(torch.from_numpy(mask), to_tensor(made), x)
    finished = finish(picture, window, mask, pasted, x, 0)
    assert np.array_equal(finished.image, np.where(mask[..., None], made, picture))
    assert measured(finished, picture, mask).band_psnr is None


def test_what_the_method_loses_of_the_input_leaves_no_seam():
    """A decoder that makes all colours brighter, here by 20 levels, is known by what it makes of the input."""
    picture, mask, size = ramp(120, 140), disc(120, 140, 60, 70, 25), (32, 32)
    window = choose_window(mask, size)
    x = to_tensor(cut(picture, window, size))
    brighter = x + 20 / 127.5
    hard = measured(finish(picture, window, mask, brighter, x, 0), picture, mask)
    soft = measured(finish(picture, window, mask, brighter, brighter, 8), picture, mask)
    assert 15 < hard.seam < 21 and soft.seam < 2
    assert soft.source_seam == hard.source_seam == 0
    unchanged = finish(picture, window, mask, x, x, 8)
    assert np.abs(np.asarray(unchanged.image).astype(int) - np.asarray(picture)).max() <= 1, "nothing new, nothing lost"


def test_detail_that_is_lost_everywhere_comes_back_outside_the_mask():
    """z0 = z_source: both pictures are the same blurred input, and the result differs from it only by a^2 of that."""
    picture, mask, size = noise(90, 90), disc(90, 90, 45, 45, 12), (24, 24)
    window = choose_window(mask, size, context=1.0)
    blurred = to_tensor(cut(picture, window, size))
    finished = finish(picture, window, mask, blurred, blurred, 6)
    up = ((resize_back(blurred, window)[0].permute(1, 2, 0).numpy() + 1) * 127.5)[window.in_window]
    before, after = (np.asarray(image)[window.in_image].astype(float) for image in (picture, finished.image))
    a = finished.alpha[window.in_image][..., None]
    assert np.abs(before - a**2 * (before - up) - after).max() <= 0.51


def test_the_band_ends_where_the_window_does():
    """Else a wide band would break off with a jump where nothing is known any more."""
    picture, mask = noise(80, 80), disc(80, 80, 40, 40, 10)
    window = Window(26, 24, 32, 32, (80, 80))
    finished = finish(picture, window, mask, random_x((32, 32), 1), random_x((32, 32), 2), 30)
    assert finished.feather == 4, "the mask begins at column 30"
    changed = (np.asarray(finished.image) != np.asarray(picture)).any(-1)
    assert changed[window.in_image].sum() == changed.sum() > mask.sum()
    at_the_border = finish(
        picture, Window(0, 0, 60, 60, (80, 80)), disc(80, 80, 5, 5, 8), *[random_x((32, 32), 1)] * 2, 9
    )
    assert at_the_border.feather == 9, "the image's own borders do not count"


def test_ten_edits_keep_what_none_of_them_touched():
    rng = np.random.default_rng(3)
    first = picture = noise(100, 130)
    touched = np.zeros((100, 130), bool)
    for i in range(10):
        mask = disc(100, 130, rng.integers(0, 100), rng.integers(0, 130), rng.integers(2, 14))
        window = choose_window(mask, (32, 32))
        finished = finish(picture, window, mask, random_x((32, 32), i), to_tensor(cut(picture, window, (32, 32))), 3)
        picture = finished.image
        touched |= finished.alpha > 0
    assert 0.05 < touched.mean() < 0.95
    assert np.array_equal(np.asarray(picture)[~touched], np.asarray(first)[~touched])


def test_what_does_not_belong_together_is_refused():
    picture, mask = noise(40, 40), disc(40, 40, 20, 20, 5)
    window, x = choose_window(mask, (16, 16)), random_x((16, 16), 0)
    for message, arguments in (
        ("do not match", (noise(40, 41), window, mask, x, x, 2)),
        ("do not match", (picture, window, mask[1:], x, x, 2)),
        ("one picture", (picture, window, mask, x, random_x((16, 8), 0), 2)),
        ("one picture", (picture, window, mask, x.repeat(2, 1, 1, 1), x.repeat(2, 1, 1, 1), 2)),
        ("feather", (picture, window, mask, x, x, -1)),
        ("feather", (picture, window, mask, x, x, math.nan)),
        ("leaves", (picture, Window(16, 16, 20, 20, (40, 40)), mask, x, x, 2)),
        ("empty", (picture, window, mask & False, x, x, 2)),
        ("levels", (picture, window, mask, x, x, 2, mask[1:] * 1.0)),
        ("levels", (picture, window, mask, x, x, 2, mask * 1.5)),
        ("levels", (picture, window, mask, x, x, 2, mask * math.nan)),
    ):
        with pytest.raises(ValueError, match=message):
            finish(*arguments)


# --- soft masks ------------------------------------------------------------------------------------------------------


def soft_case(level: float):
    """A picture with fine detail, a disc of one level, and a method that loses detail and shifts colours."""
    picture, mask, size = noise(90, 90), disc(90, 90, 45, 45, 20), (32, 32)
    window = choose_window(mask, size, context=1.0)
    lossy = to_tensor(cut(picture, window, size)) * 0.8 + 0.1
    return picture, window, mask, lossy, np.where(mask, level, 0.0)


@pytest.mark.parametrize("feather", [0, 2.5, 6])
def test_a_soft_mask_of_white_is_the_hard_one_bit_for_bit(feather):
    for (height, width), mask, size in CASES.values():
        picture, window = noise(height, width), choose_window(mask, size)
        given = (picture, window, mask, random_x(size, 1), random_x(size, 2), feather)
        hard = finish(*given)
        for levels in (mask.astype(float), torch.from_numpy(mask).float()[None, None]):
            soft = finish(*given, levels)
            assert np.array_equal(soft.image, hard.image)
            assert np.array_equal(soft.new, hard.alpha) and np.array_equal(soft.alpha, hard.alpha)


def test_what_is_edited_little_keeps_its_own_detail():
    """Of all that the method loses, a level of 12 % takes 12 %, inside the mask and in the band: no edge is seen."""
    level = 32 / 255
    picture, window, mask, lossy, levels = soft_case(level)
    soft, hard = (finish(picture, window, mask, lossy, lossy, 6, given) for given in (levels, None))
    source, light, full = (np.asarray(image).astype(float) for image in (picture, soft.image, hard.image))
    for where in (mask, hard.alpha > 0):
        lost, taken = np.abs(full - source)[where].mean(), np.abs(light - source)[where].mean()
        assert lost > 25 and taken == pytest.approx(level * lost, rel=0.1)
    up = ((resize_back(lossy, window)[0].permute(1, 2, 0).numpy() + 1) * 127.5)[window.in_window]
    x, a = source[window.in_image], soft.alpha[window.in_image][..., None]
    assert np.abs((x - a * a * level * (x - up)).clip(0, 255) - light[window.in_image]).max() <= 0.51
    smooth = ramp(90, 90)
    shifted = to_tensor(cut(smooth, window, (32, 32))) + 40 / 127.5
    result = finish(smooth, window, mask, shifted, shifted, 6, levels)
    assert measured(result, smooth, mask).seam < 1
    assert measured(result, smooth, mask).max_difference == 0


def test_what_was_made_is_shown_where_the_mask_is_soft():
    """The difference that the method made is not faded once more: it has followed the levels already."""
    picture, window, mask, lossy, levels = soft_case(0.5)
    made = finish(picture, window, mask, lossy + 30 / 127.5, lossy, 0, levels)
    alone = finish(picture, window, mask, lossy, lossy, 0, levels)
    before, after = np.asarray(alone.image)[mask].astype(int), np.asarray(made.image)[mask].astype(int)
    inside = (before > 0) & (after < 255)
    assert np.abs(after - before - 30)[inside].max() <= 1


def test_levels_go_on_beside_the_mask_and_fall_beside_higher_ones():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:50] = True
    levels = np.where(mask, np.where(np.arange(60) < 30, 0.25, 1.0), 0)
    finished = finish(noise(40, 60), Window(0, 0, 60, 40, (40, 60)), mask, *[random_x((16, 24), 1)] * 2, 4, levels)
    for row in (8, 20):  # in the band, in the mask
        a, w = finished.alpha[row], finished.new[row]
        assert np.allclose(w[10:26], 0.25 * a[10:26]) and np.array_equal(w[30:50], a[30:50]) and (w[10:50] > 0).all()
        assert (np.diff(w[25:31]) > 0).all() and np.diff(w[25:31]).max() < 0.4 * a[30], "no jump from 0.25 to 1"
    assert (finished.alpha[20, 10:50] == 1).all()


# --- the band --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feather", [0, 0.5, 1, 1.5, 3, 8.2, 40])
def test_alpha_falls_with_the_euclidean_distance(feather):
    rng = np.random.default_rng(0)
    for mask in (rng.random((31, 37)) < 0.01, disc(31, 37, 0, 30, 6), np.eye(31, 37, dtype=bool)):
        alpha, d = feather_alpha(mask, feather), distance(mask)
        assert alpha.dtype == np.float32 and alpha.shape == mask.shape
        t = 1 - d / (feather + 1)
        assert np.allclose(alpha, np.where(d <= feather, t * t * (3 - 2 * t), d == 0), atol=1e-6)
        assert np.array_equal(alpha > 0, d <= feather)
    assert not feather_alpha(np.zeros((5, 5), bool), feather).any()


def test_the_default_band_is_half_a_latent_cell_of_the_input():
    def window(height, width):
        return Window(0, 0, width, height, (height, width))

    assert auto_feather(window(256, 256), (256, 256), 8) == 4
    assert auto_feather(window(1024, 1024), (256, 256), 8) == 16
    assert auto_feather(window(512, 1024), (256, 256), 8) == 16, "squashed: the wider side"
    assert auto_feather(window(64, 64), (256, 256), 8) == 2


# --- measures --------------------------------------------------------------------------------------------------------


def test_the_seam_score_is_calibrated():
    """0 for what goes on smoothly, the step for a pasted patch of another brightness, less where it is blurred."""
    mask = disc(120, 140, 60, 70, 25)
    smooth = ramp(120, 140)
    assert seam_score(smooth, mask) == 0
    for step in (5, 40):
        patched = np.asarray(smooth) + np.uint8(step) * mask[..., None]
        assert abs(seam_score(patched, mask) - step) < 0.05 * step + 0.5
        assert seam_score(patched.swapaxes(0, 1), mask.T) == seam_score(patched, mask)
    faded = np.asarray(smooth) + (40 * feather_alpha(mask, 10)).astype(np.uint8)[..., None]
    assert seam_score(faded, mask) < 4
    texture = noise(120, 140)
    assert seam_score(texture, mask) > 10, "a texture has jumps of its own: judge a result by its input's score"


def test_the_seam_score_by_hand():
    line = np.array([[10, 12, 30, 31]], np.uint8)[..., None].repeat(3, 2)
    assert seam_score(line, np.array([[0, 0, 1, 1]], bool)) == 18 - (2 + 1) / 2
    assert seam_score(line[:, 1:], np.array([[0, 1, 1]], bool)) == 18 - 1, "one side where the image ends"
    assert seam_score(line[:, 1:3], np.array([[0, 1]], bool)) == 0, "two pixels are no line to judge by"
    assert seam_score(line, np.ones((1, 4), bool)) == 0


def test_what_is_measured_is_what_is_there():
    picture, mask = noise(40, 40), disc(40, 40, 20, 20, 8)
    result = np.array(picture)
    result[0, 0] ^= 4
    result[20, 29] ^= 16  # at a distance of 1
    file = Picture(picture, None, None, Path("a.png"))
    measures = measure(Image.fromarray(result), file, mask, 2)
    assert measures.max_difference == 4
    band = (feather_alpha(mask, 2) > 0).sum() - mask.sum()
    assert measures.band_psnr == pytest.approx(10 * math.log10(255**2 / (16**2 / band)))
    same = measure(picture, file, torch.from_numpy(mask)[None, None], 2)
    assert same.band_psnr == math.inf and same.seam == same.source_seam
    assert json.loads(json.dumps(same.info(), allow_nan=False))["band_psnr"] == "inf"


# --- files -----------------------------------------------------------------------------------------------------------


def wide_profile() -> bytes:
    """sRGB with the primaries of Display P3 (adapted to D50)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for tag, xyz in primaries.items():
        start = struct.unpack(">I", profile[profile.find(tag) + 4 :][:4])[0] + 8
        profile[start : start + 12] = struct.pack(">3i", *(round(value * 65536) for value in xyz))
    return bytes(profile)


def finished_noise(picture: Image.Image) -> Finished:
    """A disc of noise in the middle of a picture of 60x80."""
    mask, size = disc(60, 80, 30, 40, 10), (32, 32)
    return finish(picture, choose_window(mask, size), mask, to_tensor(noise(*size, 5)), random_x(size, 2), 4)


def test_a_result_has_its_inputs_alpha_and_profile(tmp_path):
    image, alpha = noise(60, 80), noise(60, 80, 1).getchannel(0)
    finished = finished_noise(image)
    plain = deliver(finished, Picture(image, None, None, Path("a.png")))
    assert plain.mode == "RGB" and "icc_profile" not in plain.info
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = deliver(finished, Picture(image, alpha, profile, Path("a.png")))
    assert np.array_equal(result.getchannel("A"), alpha)
    assert np.array_equal(result.convert("RGB"), finished.image)
    assert finished.image.mode == "RGB" and "icc_profile" not in finished.image.info, "it is left as it was"
    save_png(result, tmp_path / "result.png")
    again = load_image(tmp_path / "result.png")
    assert np.array_equal(again.alpha, alpha) and again.icc_profile == profile


def with_alpha(image: Image.Image, alpha: np.ndarray, **changes) -> Picture:
    return Picture(image, Image.fromarray(alpha), None, Path("a.png"), **changes)


@pytest.mark.parametrize("levels", [None, 0.6])
def test_an_edit_in_a_transparent_hole_is_opaque(levels):
    """Or nobody would see it; the edge of a hole may be antialiased."""
    image, hole = noise(60, 80), disc(60, 80, 30, 40, 10)
    soft = np.clip(255 * (np.hypot(*(np.mgrid[:60, :80] - np.array([30, 40])[:, None, None])) - 9), 0, 255)
    picture = with_alpha(image, soft.astype(np.uint8))
    mask = soft < 128
    given = None if levels is None else np.where(mask, levels, 0)
    window = choose_window(mask, (32, 32))
    finished = finish(image, window, mask, random_x((32, 32), 1), random_x((32, 32), 2), 4, given)
    result = deliver(finished, picture)
    alpha = np.asarray(result.getchannel("A"))
    assert (alpha[mask] == 255).all() and (alpha[hole] > 250).all()
    assert measure(result, picture, mask, 4).max_difference == 0
    assert np.array_equal(np.asarray(result.convert("RGB"))[mask], np.asarray(finished.image)[mask])


def test_what_is_cut_out_keeps_its_outline():
    """The mask of a thing on a transparent ground, drawn roughly: its outline is not what was asked to change."""
    image, thing = noise(60, 80), disc(60, 80, 30, 40, 9)
    picture = with_alpha(image, thing.astype(np.uint8) * 255)
    mask = disc(60, 80, 30, 40, 10)
    finished = finish(image, choose_window(mask, (32, 32)), mask, *[random_x((32, 32), 1)] * 2, 4)
    assert np.array_equal(deliver(finished, picture).getchannel("A"), picture.alpha)
    faded = with_alpha(image, np.tile(np.linspace(60, 120, 80).astype(np.uint8), (60, 1)))
    assert np.array_equal(deliver(finished, faded).getchannel("A"), faded.alpha), "nor that of a picture that fades out"


def test_measures_are_of_what_is_delivered(tmp_path):
    """A fault on the way to the file's colours and alpha is seen, though the sRGB result is exact."""
    noise(60, 80).save(tmp_path / "wide.png", icc_profile=wide_profile())
    picture, mask = load_image(tmp_path / "wide.png"), disc(60, 80, 30, 40, 10)
    picture = replace(picture, alpha=noise(60, 80, 1).getchannel(0))
    result = deliver(finished_noise(picture.rgb), picture)
    good = measure(result, picture, mask, 4)
    assert good.max_difference == 0 and good.source_seam == seam_score(picture.own, mask) > 10
    assert good.seam == seam_score(result.convert("RGB"), mask)
    for channel in range(4):
        wrong = np.array(result)
        wrong[0, 0, channel] ^= 8
        assert measure(Image.fromarray(wrong), picture, mask, 4).max_difference == 8
    unconverted = finished_noise(picture.rgb).image.copy()
    unconverted.putalpha(picture.alpha)
    assert measure(unconverted, picture, mask, 4).max_difference > 8


def test_metadata_comes_along_unless_it_is_stripped(tmp_path):
    exif = Image.Exif()
    exif[271], exif[0x0112] = "A camera", 6
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", 55556))
    noise(80, 60).save(tmp_path / "photo.png", exif=exif, dpi=(300, 300), pnginfo=chunks)
    picture = load_image(tmp_path / "photo.png")
    assert picture.rgb.size == (80, 60)
    for strip, kept in ((False, {"exif", "dpi", "gamma"}), (True, {"gamma"})):
        save_png(deliver(finished_noise(picture.rgb), picture, strip), tmp_path / "result.png")
        with Image.open(tmp_path / "result.png") as result:
            assert set(result.info) == kept and result.info["gamma"] == 0.55556
            assert strip or dict(result.getexif()) == {271: "A camera", 0x0112: 1}
        again = load_image(tmp_path / "result.png")
        assert np.array_equal(again.rgb, finished_noise(picture.rgb).image), "it is upright, and is not turned again"


def test_a_wide_gamut_file_keeps_its_own_pixels(tmp_path):
    profile = wide_profile()
    noise(60, 80).save(tmp_path / "wide.png", icc_profile=profile)
    picture = load_image(tmp_path / "wide.png")
    wide, srgb = ImageCms.getOpenProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")

    def convert(image, source, target):
        return ImageCms.profileToProfile(image, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC)

    lost = np.asarray(convert(picture.rgb, srgb, wide)).astype(int) - np.asarray(picture.own)
    assert np.abs(lost).max() > 20, "sRGB holds not all of these colours"
    finished = finished_noise(picture.rgb)
    save_png(deliver(finished, picture), tmp_path / "result.png")
    with Image.open(tmp_path / "result.png") as result, Image.open(tmp_path / "wide.png") as source:
        far = finished.alpha == 0
        assert np.array_equal(np.asarray(result)[far], np.asarray(source)[far])
        assert result.info["icc_profile"] == profile
        shown = np.asarray(convert(result, wide, srgb)).astype(int)
    inside = np.abs(shown - np.asarray(finished.image))[finished.alpha == 1]
    assert inside.max() <= 8 and inside.mean() < 1, "and the edit looks the same"


def test_masks_of_the_window_and_of_the_picture_agree():
    """What the model sees as the mask lies, on the way back, within a pixel of its size about the mask itself."""
    mask, size = disc(300, 280, 140, 130, 45), (32, 32)
    window = choose_window(mask, size)
    seen = resize_back(cut_mask(mask, window, size).expand(1, 3, -1, -1), window)[0, 0].numpy()[window.in_window]
    differ = (seen > 0.5) != mask[window.in_image]
    cell = math.ceil(window.width / size[1])
    band = (feather_alpha(mask, cell) > 0) & (feather_alpha(~mask, cell) > 0)
    assert not (differ & ~band[window.in_image]).any()
