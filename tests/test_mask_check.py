"""The mask doctor: each finding when there is reason for it, and none for a mask in order."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ldm.editing import Editor, EditRequest
from ldm.editing.mask_check import hole_areas, parts
from ldm.imaging.images import load_image
from tests.tiny import tiny_model


def disc(radius: int = 30, size: tuple[int, int] = (128, 128), **changes) -> Image.Image:
    image = Image.new("L", size)
    x, y = size[0] // 2, size[1] // 2
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=changes.get("fill", 255))
    return image


@pytest.fixture(scope="module")
def editor():
    return Editor(tiny_model())


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return load_image(tmp_path / "photo.png")


@pytest.fixture
def check(photo, tmp_path, editor):
    def check(mask: Image.Image, name: str = "mask.png", **options):
        mask.save(tmp_path / name)
        return editor.check(photo, tmp_path / name, EditRequest("", **{"region": "whole", **options}))

    return check


def kinds(report) -> set[str]:
    return {finding.kind for finding in report.findings}


def test_a_mask_in_order(check):
    report = check(disc())
    assert not report.findings and report.lines()[-1].split() == ["odd:", "nothing"]
    assert report.coverage == pytest.approx(np.pi * 30**2 / 128**2, rel=0.05)
    assert report.thickness == pytest.approx(30, abs=2), "at the model's size, which is half as large"
    assert len(report.cells) == report.dilation + 1 and list(report.cells) == sorted(report.cells, reverse=True)
    assert report.picture.width > 200


def grey(image: Image.Image) -> Image.Image:
    return image.point(lambda level: level * 150 // 255)


def jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


def drawn(*boxes, on: Image.Image | None = None, fill: int = 255) -> Image.Image:
    image = on or disc()
    for box in boxes:
        ImageDraw.Draw(image).rectangle(box, fill=fill)
    return image


def inverted(image: Image.Image) -> Image.Image:
    return image.point(lambda level: 255 - level)


@pytest.mark.parametrize(
    ("kind", "mask", "options"),
    [
        ("inverted", inverted(disc()), {}),
        ("whole", Image.new("L", (128, 128), 255), {}),
        ("size", disc(60, (256, 256)), {}),
        ("grey", grey(disc()), {}),
        ("specks", drawn((3, 3, 5, 5)), {}),
        ("holes", drawn((63, 63, 66, 66), fill=0), {}),
        ("thin", drawn((10, 60, 110, 62), on=Image.new("L", (128, 128))), {}),
        ("shrinking", drawn((10, 50, 110, 70), on=Image.new("L", (128, 128))), {"mask_dilation_iterations": 0}),
        ("lost", drawn((2, 4, 120, 6)), {"mask_downsample": "area"}),
        ("wide", drawn((10, 50, 118, 70), on=Image.new("L", (128, 128))), {"mask_dilation_iterations": 8}),
    ],
)
def test_a_finding_has_its_reason(check, kind, mask, options):
    report = check(mask, **options)
    said = next(finding.text for finding in report.findings if finding.kind == kind)
    assert said in "\n".join(report.lines()) and len(said) > 20
    assert kind not in kinds(check(disc(), name="good.png"))


def test_noise_of_a_jpeg_is_told_from_a_soft_brush(check):
    assert "noise" in kinds(check(jpeg(drawn((40, 40, 60, 90))), "mask.jpg"))
    soft = disc().filter(ImageFilter.GaussianBlur(6))
    assert "noise" not in kinds(check(soft, "soft.png")) and "grey" in kinds(check(soft, "soft.png"))


def test_an_inverted_mask_is_in_order_when_it_is_said(check):
    assert not check(inverted(disc()), invert_mask=True).findings


def test_transparency_is_named(check):
    image = Image.new("RGBA", (128, 128), (255, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((34, 34, 94, 94), fill=(255, 0, 0, 255))
    assert "alpha" in kinds(check(image))


def test_the_window_counts(check):
    inside, whole = check(disc(8), region="auto"), check(disc(8))
    assert inside.coverage == whole.coverage and inside.window_coverage > 2 * whole.window_coverage
    assert inside.thickness > whole.thickness


@pytest.mark.parametrize("region", ["auto", "whole"])
@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 2), (2500, 3900)])
def test_a_speck_at_the_border_of_any_picture_is_drawn(editor, tmp_path, size, region):
    """A window of few pixels is less than its frame, and a long strip is less than a pixel of its panel."""
    mask = np.zeros(size, np.uint8)
    mask[0, size[1] // 2] = 255
    Image.fromarray(mask).save(tmp_path / "speck.png")
    Image.new("RGB", size[::-1]).save(tmp_path / "photo.png")
    report = editor.check(tmp_path / "photo.png", tmp_path / "speck.png", EditRequest("", region=region))
    assert report.picture.width > 200


def test_parts_and_holes():
    plane = np.zeros((9, 12), bool)
    plane[1:5, 1:5] = True
    plane[2:4, 2:4] = False
    plane[5, 5] = plane[7, 8:11] = True
    areas, touching = parts(plane)
    assert sorted(areas) == [3, 13] and not touching.any(), "the corner joins the ring"
    assert sorted(parts(plane, diagonal=False)[0]) == [1, 3, 12]
    assert hole_areas(plane).tolist() == [4]
    assert len(parts(np.zeros((3, 3), bool))[0]) == 0


def test_grey_levels_of_a_soft_mask_are_reported_as_the_edit_uses_them(check):
    dim = disc(fill=100)
    report = check(dim, soft_mask=True)
    assert "grey" not in kinds(report) and 0 < report.coverage < 0.3
    assert "and grey the later the darker" in report.lines()[0]
    assert report.cells[0] < report.cells[-1], "nothing is edited at first"
