"""Files <-> tensors: every kind of file as its author meant it, and no code changed on the way."""

import errno
import io
import logging
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin
from PIL.ExifTags import IFD, Base

from ldm.errors import UserError
from ldm.files import atomic_file
from ldm.imaging import images
from ldm.imaging.images import as_picture, load_image, make_grid, read_png_text, save_png, to_pil, to_tensor

RED, GREEN, BLUE = (230, 20, 30), (20, 220, 40), (30, 40, 210)


def picture(size=(31, 24), seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colour(image: Image.Image, xy=(5, 5)) -> np.ndarray:
    return np.array(image.getpixel(xy)).astype(int)


def png16(codes: np.ndarray, transparent: bytes = b"") -> bytes:
    """A 16-bit PNG of (h,w) or (h,w,2..4), which Pillow itself writes only for grey; `transparent` is one colour."""
    height, width, channels = (*codes.shape, 1)[:3]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in codes)
    key = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + pixels + chunk(b"IEND", b"")


def icc(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A colour profile (ICC.1:2001): header, tag table, tags."""
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    d50 = struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x", 132 + 12 * len(tags) + len(body), 0x02100000, b"prtr", space, pcs, b"acsp"
    )
    return (head + d50).ljust(128, b"\0") + table + body


def swapped_rgb() -> bytes:
    """sRGB with the primaries red and blue exchanged: a profile whose use is seen at once."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


def cmyk_profile() -> bytes:
    """Ink to Lab by a table of two points an axis: without cyan all is white, with cyan all is black."""
    ramp = bytes(range(256))
    table = b"".join(bytes((0 if corner >= 8 else 255, 128, 128)) for corner in range(16))
    identity = struct.pack(">9i", *(0x10000 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + table + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return icc(b"CMYK", b"Lab ", {b"A2B0": lut, b"wtpt": white})


def grey_profile(gamma: float) -> bytes:
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return icc(b"GRAY", b"XYZ ", {b"kTRC": curve, b"wtpt": white})


# --- tensors ---------------------------------------------------------------------------------------------------------


def test_all_256_codes_survive_the_round_trip():
    codes = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.stack([codes, codes[::-1], np.roll(codes, 9)], -1).reshape(16, 16, 3))
    x = to_tensor(image)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(to_pil(x), image)
    assert np.array_equal(to_pil(x[0]), image)


def test_to_pil_rounds_and_clips():
    levels = torch.tensor([-3.0, -1 + 1.4 / 127.5, -1 + 1.6 / 127.5, 7.0]).expand(3, 1, 4)
    assert np.array(to_pil(levels))[0, :, 0].tolist() == [0, 1, 2, 255]
    assert np.array(to_pil(levels.to(torch.bfloat16)))[0, -1, 0] == 255
    for wrong in (torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4), torch.zeros(4, 4)):
        with pytest.raises(ValueError, match=r"\(3,h,w\)"):
            to_pil(wrong)


def test_to_tensor_resizes_to_height_and_width_with_antialiasing():
    lines = Image.fromarray(np.tile(np.array([[255], [0], [0], [0]], np.uint8), (16, 48)))  # every fourth row is white
    x = to_tensor(lines, (8, 24))
    assert x.shape == (1, 3, 8, 24)
    grey = (x + 1) * 127.5
    assert (grey[..., 2:-2, :] - 255 / 4).abs().max() < 12, "rows were skipped instead of averaged"
    assert torch.equal(x, to_tensor(to_pil(x))), "the input as used must be kept exactly by a PNG"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_grey_palette_alpha_and_bilevel(tmp_path):
    image = Image.new("RGB", (12, 12), RED)
    ImageDraw.Draw(image).rectangle((6, 0, 11, 11), fill=GREEN)
    path = tmp_path / "p.png"

    image.quantize(4).save(path)
    loaded = load_image(path)
    assert np.array_equal(loaded.rgb, image) and loaded.alpha is None and loaded.path == path

    palette = image.quantize(4)
    palette.save(path, transparency=palette.getpixel((8, 8)))
    loaded = load_image(path)
    assert np.array_equal(loaded.rgb, image), "colours under transparency stay those of the file"
    assert (loaded.alpha.getpixel((2, 2)), loaded.alpha.getpixel((8, 8))) == (255, 0)

    image.convert("L").save(path)
    loaded = load_image(path)
    assert loaded.rgb.mode == "RGB" and np.array_equal(loaded.rgb, image.convert("L").convert("RGB"))

    rgba = image.copy()
    rgba.putalpha(Image.linear_gradient("L").resize((12, 12)))
    rgba.save(path)
    loaded = load_image(path)
    assert loaded.rgb.mode == "RGB" and loaded.alpha.mode == "L"
    assert np.array_equal(loaded.rgb, image) and np.array_equal(loaded.alpha, rgba.getchannel("A"))

    rgba.convert("LA").save(path)
    loaded = load_image(path)
    assert np.array_equal(loaded.rgb.getchannel(1), image.convert("L"))
    assert np.array_equal(loaded.alpha, rgba.getchannel("A"))

    image.convert("1", dither=0).save(path)
    assert load_image(path).rgb.mode == "RGB"


def test_sixteen_bits_are_scaled_and_rounded(tmp_path, caplog):
    path = tmp_path / "deep.png"
    codes = np.random.default_rng(0).integers(0, 65536, (9, 7, 4))
    codes[0, :4, 0] = 0, 65535, 255, 33023  # the last two: 0.99 and 128.49 of 255; their high bytes are 0 and 128
    expected = np.rint(codes / 257).astype(np.uint8)
    for channels in (1, 2, 3, 4):
        caplog.clear()
        path.write_bytes(png16(codes[..., :channels].squeeze(-1) if channels == 1 else codes[..., :channels]))
        loaded = load_image(path)
        colours = 3 if channels > 2 else 1
        assert np.array_equal(np.array(loaded.rgb)[..., :colours], expected[..., :colours]), channels
        assert (loaded.alpha is None) == (channels % 2 == 1)
        if loaded.alpha is not None:
            assert np.array_equal(loaded.alpha, expected[..., channels - 1])
        assert [r.levelno for r in caplog.records] == [logging.WARNING] and "16 bits" in caplog.text
    for deep in (png16(codes[..., :3], bytes(6)), png16(codes[..., 0], b"\0\0")):
        path.write_bytes(deep)
        assert load_image(path).alpha is None, "one transparent colour of 16 bits is no use in 8"
    Image.fromarray(codes[..., 0].astype(np.uint16)).save(tmp_path / "deep.tif")
    assert np.array_equal(np.array(load_image(tmp_path / "deep.tif").rgb)[..., 0], expected[..., 0])


@pytest.mark.parametrize(("bits", "order"), [(8, "<"), (8, ">"), (16, "<")])  # Pillow reads none of 16 and ">"
def test_tiffs_in_which_zero_is_white(tmp_path, bits, order):
    codes = np.random.default_rng(0).integers(0, 2**bits, (24, 31))
    tags = {256: 31, 257: 24, 258: bits, 259: 1, 262: 0, 273: 122, 277: 1, 278: 24, 279: codes.size * bits // 8}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack(f"{order}2sHIH", {"<": b"II", ">": b"MM"}[order], 42, 8, len(tags))
    data = (head + entries + bytes(4)).ljust(122, b"\0") + codes.astype(f"{order}u{bits // 8}").tobytes()
    (tmp_path / "white.tif").write_bytes(data)
    expected = np.rint((2**bits - 1 - codes) / (257 if bits == 16 else 1))
    assert np.array_equal(np.array(load_image(tmp_path / "white.tif").rgb)[..., 0], expected)
    with Image.open(tmp_path / "white.tif") as opened:
        assert np.array_equal(np.array(as_picture(opened).rgb)[..., 0], expected)


def test_32_bits_are_refused(tmp_path):
    for name, image in (("float.tif", Image.new("F", (4, 4), 0.5)), ("long.tif", Image.new("I", (4, 4), 70000))):
        image.save(tmp_path / name)
        with pytest.raises(UserError, match="save it"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    upright = Image.new("RGB", (40, 24), GREEN)
    ImageDraw.Draw(upright).rectangle((0, 0, 9, 7), fill=RED)
    ImageDraw.Draw(upright).rectangle((30, 16, 39, 23), fill=BLUE)
    move = Image.Transpose
    how = dict(enumerate((move.FLIP_LEFT_RIGHT, move.ROTATE_180, move.FLIP_TOP_BOTTOM, move.TRANSPOSE), 2))
    how |= dict(enumerate((move.ROTATE_90, move.TRANSVERSE, move.ROTATE_270), 6))
    stored = upright if orientation == 1 else upright.transpose(how[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    path.write_bytes(encoded(stored, kind, exif=exif))
    rgb = load_image(path).rgb
    assert rgb.size == (40, 24)
    for xy, expected in (((3, 3), RED), ((36, 20), BLUE), ((36, 3), GREEN)):
        assert np.abs(colour(rgb, xy) - expected).max() < 30


def test_orientation_of_alpha_and_of_16_bits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.new("RGBA", (40, 24)).save(path, exif=exif)
    loaded = load_image(path)
    assert loaded.rgb.size == loaded.alpha.size == (24, 40)
    Image.fromarray(np.zeros((24, 40), np.uint16)).save(path, exif=exif)
    assert load_image(path).rgb.size == (24, 40)


GARBAGE = (b"Exif\0\0\0\1\2garbage", b"\0\1\2garbage", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0\x08\xff")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's own, where the test opens the file
@pytest.mark.parametrize("exif", GARBAGE)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_ignored_with_a_notice(tmp_path, caplog, kind, exif):
    path = tmp_path / "damaged"
    exif = b"Exif\0\0" + exif if kind == "JPEG" and exif[0] == 0 else exif  # there, else it is no EXIF data at all
    path.write_bytes(encoded(picture(), kind, exif=exif))
    loaded = load_image(path)
    with Image.open(path) as image:
        assert np.array_equal(loaded.rgb, image.convert("RGB")) and "exif" not in loaded.metadata
    assert "EXIF" in caplog.text and "damaged" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_with_damage_in_it_is_read_as_far_as_it_goes(tmp_path, kind):
    """Whatever bytes of it are wrong, the pixels are read, upright or as they are stored."""
    image, rng = Image.new("RGB", (40, 24), GREEN), np.random.default_rng(1)
    whole = photo_exif(6).tobytes()
    for _ in range(100):
        exif = bytearray(whole)
        for _ in range(3):
            exif[rng.integers(6, len(exif))] = rng.integers(256)
        try:
            (tmp_path / "damaged").write_bytes(encoded(image, kind, exif=bytes(exif)))
        except Exception:  # Pillow looks into some of it
            continue
        loaded = load_image(tmp_path / "damaged")
        assert loaded.rgb.size in ((40, 24), (24, 40))
        result = loaded.rgb.copy()
        result.info |= loaded.metadata
        save_png(result, tmp_path / "kept.png")
        assert load_image(tmp_path / "kept.png").rgb.size == loaded.rgb.size


def photo_exif(orientation: int) -> Image.Exif:
    """As a camera writes it: with a thumbnail, and the size of the pixels as they are stored, 40x24."""
    exif = Image.Exif()
    exif[Base.Orientation], exif[Base.Make], exif[Base.Copyright] = orientation, "A camera", "An author"
    exif[IFD.Exif] = {
        Base.DateTimeOriginal: "2024:05:06 07:08:09",
        Base.ExifImageWidth: 40,
        Base.ExifImageHeight: 24,
        Base.FNumber: 2.8,
    }
    exif[IFD.GPSInfo] = {1: "N", 2: (48.0, 30.0, 0.0)}
    return exif


def with_thumbnail(exif: bytes) -> bytes:
    """The first directory of EXIF data made to point to another one behind it, of a thumbnail."""
    order = {b"II": "<", b"MM": ">"}[exif[6:8]]
    count = struct.unpack(f"{order}H", exif[14:16])[0]
    end = 16 + 12 * count
    second = struct.pack(f"{order}HHHII", 1, 0x0103, 3, 1, 6) + bytes(4)
    return exif[:end] + struct.pack(f"{order}I", len(exif) - 6) + exif[end + 4 :] + second + b"the thumbnail"


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_is_kept_but_made_upright_and_without_a_thumbnail(tmp_path, kind, orientation):
    exif = with_thumbnail(photo_exif(orientation).tobytes())
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.new("RGB", (40, 24), GREEN), kind, exif=exif))
    with Image.open(path) as image:
        assert image.getexif().get_ifd(IFD.IFD1), "there is a thumbnail"
    loaded = load_image(path)
    again = Image.Exif()
    again.load(loaded.metadata["exif"])
    assert (again[Base.Orientation], again[Base.Make], again[Base.Copyright]) == (1, "A camera", "An author")
    details = again.get_ifd(IFD.Exif)
    assert details[Base.DateTimeOriginal] == "2024:05:06 07:08:09" and details[Base.FNumber] == pytest.approx(2.8)
    assert (details[Base.ExifImageWidth], details[Base.ExifImageHeight]) == loaded.rgb.size
    assert again.get_ifd(IFD.GPSInfo)[1] == "N"
    assert not again.get_ifd(IFD.IFD1) and b"thumbnail" not in loaded.metadata["exif"]


def test_a_tiff_keeps_what_it_says_of_its_picture_and_not_of_its_strips(tmp_path):
    image = Image.new("RGB", (12, 12), RED)
    image.save(tmp_path / "a.tif", tiffinfo={Base.Artist: "An author"}, dpi=(240, 240), compression="tiff_lzw")
    metadata = load_image(tmp_path / "a.tif").metadata
    exif = Image.Exif()
    exif.load(metadata["exif"])
    assert dict(exif) == {Base.Artist: "An author", Base.Orientation: 1} and metadata["dpi"] == (240, 240)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_resolution_is_kept(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(encoded(picture(), kind, dpi=(300, 150)))
    result = picture()
    result.info |= load_image(path).metadata
    save_png(result, tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as kept:
        assert kept.info["dpi"] == pytest.approx((300, 150), abs=0.03)
    if kind in ("PNG", "JPEG"):
        path.write_bytes(encoded(picture(), kind, dpi=(300, 150), exif=photo_exif(6)))
        assert load_image(path).metadata["dpi"] == pytest.approx((150, 300), abs=0.03), "it turns with the picture"


@pytest.mark.parametrize("dpi", [(0, 0), (0, 72), (-72, 72), (float("nan"), 72), (1e12, 72), None])
def test_a_resolution_that_no_file_can_have_is_left_out(tmp_path, dpi):
    image = picture()
    image.info["dpi"] = dpi
    assert as_picture(image).metadata == {}


def test_what_a_png_says_of_its_colours_is_kept_to_the_last_digit(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    values = (31270, 32900, 64000, 33001, 30000, 60000, 15000, 6001)
    chunks.add(b"gAMA", struct.pack(">I", 45455))
    chunks.add(b"cHRM", struct.pack(">8I", *values))
    chunks.add(b"sRGB", b"\2")
    image = picture()
    image.save(tmp_path / "a.png", pnginfo=chunks)
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal(loaded.rgb, image)
    result = image.copy()
    result.info |= loaded.metadata
    save_png(result, tmp_path / "kept.png")
    data = (tmp_path / "kept.png").read_bytes()
    assert data.index(b"gAMA") < data.index(b"IDAT")
    for name, value in ((b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *values)), (b"sRGB", b"\2")):
        assert data[data.index(name) + 4 :].startswith(value)


def test_codes_that_became_srgb_keep_no_other_meaning(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", 100000))
    Image.new("L", (12, 12), 128).save(tmp_path / "grey.png", icc_profile=grey_profile(1.0), pnginfo=chunks)
    assert "gamma" not in load_image(tmp_path / "grey.png").metadata


def test_rgb_profile_is_converted_and_kept(tmp_path):
    path, profile = tmp_path / "profile.png", swapped_rgb()
    Image.new("RGB", (12, 12), RED).save(path, icc_profile=profile)
    loaded = load_image(path)
    assert np.abs(colour(loaded.rgb) - RED[::-1]).max() < 8, "red and blue are exchanged by this profile"
    assert loaded.icc_profile == profile
    assert "icc_profile" not in loaded.rgb.info, "or it would be written into files that are sRGB"
    save_png(loaded.rgb, path)
    assert np.array_equal(load_image(path).rgb, loaded.rgb)


def test_srgb_profile_changes_no_pixel(tmp_path):
    path, image = tmp_path / "srgb.png", picture()
    image.save(path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert np.array_equal(load_image(path).rgb, image)
    nearly = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    start = int.from_bytes(nearly[nearly.find(b"rXYZ") + 4 :][:4], "big") + 8
    nearly[start : start + 4] = (int.from_bytes(nearly[start : start + 4], "big") + 40).to_bytes(4, "big")
    image.save(path, icc_profile=bytes(nearly))
    assert np.array_equal(load_image(path).rgb, image), "sRGB as another maker rounds it"


def test_broken_and_foreign_profiles(tmp_path, caplog):
    path, image = tmp_path / "broken.png", picture()
    image.save(path, icc_profile=b"no profile at all")
    loaded = load_image(path)
    assert np.array_equal(loaded.rgb, image) and loaded.icc_profile is None
    assert "profile" in caplog.text and len(caplog.records) == 1
    caplog.clear()
    image.save(path, icc_profile=grey_profile(1.0))
    loaded = load_image(path)
    assert np.array_equal(loaded.rgb, image) and loaded.icc_profile is None
    image.convert("L").save(path, icc_profile=swapped_rgb())
    assert np.array_equal(load_image(path).rgb.getchannel(0), image.convert("L"))
    assert not caplog.records, "many a file carries the profile of what it was before"


def test_grey_profile_is_converted(tmp_path):
    path = tmp_path / "linear.png"
    Image.new("L", (12, 12), 128).save(path, icc_profile=grey_profile(1.0))
    loaded = load_image(path)
    assert np.abs(colour(loaded.rgb) - 188).max() <= 3, "half of the light is level 188 in sRGB"
    assert loaded.icc_profile is None, "it is no profile for RGB pixels"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(tmp_path, kind):
    path = tmp_path / "inks"
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    path.write_bytes(encoded(inks, kind))
    assert np.abs(colour(load_image(path).rgb) - (255, 0, 0)).max() < 12
    path.write_bytes(encoded(inks, kind, icc_profile=cmyk_profile()))
    loaded = load_image(path)
    assert colour(loaded.rgb).min() > 240 and loaded.icc_profile is None, "this profile knows but one ink, cyan"
    path.write_bytes(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), kind, icc_profile=cmyk_profile()))
    assert colour(load_image(path).rgb).max() < 15


def test_first_frame_of_an_animation_with_a_notice(tmp_path, caplog):
    first, second = Image.new("RGB", (12, 12), RED), Image.new("RGB", (12, 12), GREEN)
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        caplog.clear()
        path = tmp_path / f"moving.{kind.lower()}"
        path.write_bytes(encoded(first, kind, save_all=True, append_images=[second, first]))
        assert np.abs(colour(load_image(path).rgb) - RED).max() < 20
        assert "3 frames" in caplog.text


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_arrays_of_codes_and_of_floats_are_the_same_picture(channels):
    codes = np.random.default_rng(0).integers(0, 256, (24, 31, *channels), dtype=np.uint8)
    expected = as_picture(codes)
    assert expected.rgb.size == (31, 24) and (expected.alpha is not None) == (channels == (4,))
    for kind in (np.float16, np.float32, np.float64):
        given = as_picture((codes / 255).astype(kind))
        assert np.array_equal(given.rgb, expected.rgb), kind
        assert channels != (4,) or np.array_equal(given.alpha, expected.alpha)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((1, 8, 8, 3)), r"\(1, 8, 8, 3\) of float64"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\) of uint8"),
        (np.zeros((0, 8)), r"\(0, 8\)"),
        (np.zeros((8, 8), bool), "of bool"),
        (np.zeros((8, 8), np.uint16), "of uint16"),
        (np.full((8, 8), 2.0), "from 2 to 2"),
        (np.linspace(-1, 1, 64).reshape(8, 8), "from -1 to 1"),
        (np.full((8, 8), np.inf), "inf"),
        (np.where(np.eye(8), np.nan, 0.5), "NaN"),
        (torch.zeros(3, 8, 8), "Tensor"),
        (None, "NoneType"),
    ],
)
def test_what_is_not_an_image_is_refused_by_shape_and_range(wrong, words):
    with pytest.raises(ValueError, match=words) as caught:
        as_picture(wrong)
    assert "image" in str(caught.value) and "\n" not in str(caught.value)


# --- bad files -------------------------------------------------------------------------------------------------------


def test_each_bad_file_is_one_line_with_its_name(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "cut.png").write_bytes(encoded(picture((300, 200)), "PNG")[:-20000])
    (tmp_path / "cut.jpg").write_bytes(encoded(picture((300, 200)), "JPEG")[:-20000])
    for name, word in (
        ("missing.png", "there is no"),
        ("empty.png", "is empty"),
        ("text.png", "is not an image"),
        ("folder.png", "is a folder"),
        ("cut.png", "cannot be read"),
        ("cut.jpg", "cannot be read"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value) and ": " in str(caught.value)
    with pytest.raises(UserError):
        load_image("nul\0byte.png")


def test_reasons_of_several_lines_are_cut(tmp_path, monkeypatch):
    def fail(path):
        raise OSError("first line\nsecond line")

    (tmp_path / "a.png").write_bytes(b"a")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match="first line") as caught:
        load_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (400, 400)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70_000)
    with pytest.raises(UserError, match="million pixels"):
        load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow warns of this one, and so must not we
    assert load_image(path).rgb.size == (400, 400)


def test_text_bomb(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "0" * 70_000_000, zip=True)
    path = tmp_path / "bomb.png"
    Image.new("1", (4, 4)).save(path, pnginfo=info)
    with pytest.raises(UserError, match="cannot be read"):
        load_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    rng = np.random.default_rng(7)
    whole = encoded(picture(), kind)
    path = tmp_path / "damaged"
    refused = 0
    for i in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole))] if i % 3 == 0 else whole)
        for _ in range(3):
            data[rng.integers(min(len(data), 120))] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert load_image(path).rgb.mode == "RGB"
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused


# --- writing ---------------------------------------------------------------------------------------------------------


def test_png_text_of_any_kind(tmp_path):
    text = {"parameters": "a ball\nSteps: 50", "ldm": '{"prompt": "ein Knäuel, 糸玉, 🧶"}', "odd": "byte \udcff"}
    path = tmp_path / "a.png"
    save_png(picture(), path, text)
    assert read_png_text(path) == text | {"odd": "byte ?"}
    assert np.array_equal(load_image(path).rgb, picture())
    path.write_bytes(encoded(picture(), "JPEG"))
    assert read_png_text(path) == {}
    with pytest.raises(UserError, match="there is no"):
        read_png_text(tmp_path / "missing.png")


def test_file_permissions_are_the_usual_ones(tmp_path):
    (tmp_path / "plain").touch()
    save_png(picture(), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writing_fails_with_one_line_and_no_trace(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    save_png(picture(seed=1), target)
    before = target.read_bytes()
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "a.png", tmp_path / "file" / "a.png", tmp_path / ("x" * 300 + ".png")):
        with pytest.raises(UserError, match="cannot write") as caught:
            save_png(picture(), path)
        assert "\n" not in str(caught.value) and "folder" in str(caught.value)

    def full(self, file, *args, **kwargs):
        file.write(b"half a picture")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="free some space"):
        save_png(picture(), target)
    assert target.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "file"]


def test_atomic_file_leaves_no_trace_of_a_broken_block(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="cannot write mode"), atomic_file(tmp_path / "a.txt"):
        raise OSError("cannot write mode F as PNG")  # Pillow's way to tell of our mistake, not of the user's


# --- grids -----------------------------------------------------------------------------------------------------------


def test_grid_places_pictures_with_thin_white_gaps():
    colours = [RED, GREEN, BLUE, (90, 90, 90), (10, 10, 10)]
    grid = np.array(make_grid([Image.new("RGB", (128, 96), c) for c in colours], columns=3))
    assert grid.shape == (2 * 98 + 2, 3 * 130 + 2, 3)
    for i, c in enumerate(colours):
        top, left = 2 + i // 3 * 98, 2 + i % 3 * 130
        assert (grid[top : top + 96, left : left + 128] == c).all()
    assert (grid[:2] == 255).all() and (grid[:, 130:132] == 255).all() and (grid[100:, 2 + 260 :] == 255).all()


def test_grid_enlarges_small_masks_by_whole_blocks():
    cells = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
    grid = np.array(make_grid([Image.new("RGB", (128, 128)), cells], columns=8))
    assert np.array_equal(grid[2:130, 132:260, 0], np.kron(np.eye(16), np.ones((8, 8))).astype(np.uint8) * 255)
    wide = np.array(make_grid([Image.new("RGB", (128, 128)), Image.new("RGB", (64, 32))], columns=2))
    assert (wide[34:98, 132:260] == 0).all() and (wide[:34, 132:260] == 255).all(), "proportions stay"


def test_grid_captions():
    tiles = [Image.new("RGB", (64, 64))] * 2
    plain, captioned = make_grid(tiles, 2), make_grid(tiles, 2, ["input\nimage", "a very long caption " * 9])
    assert captioned.height > plain.height + 8 and captioned.width == plain.width
    below = np.array(captioned.convert("L"))[68:]
    left, right = below[:, 2:66], below[:, 68:132]
    assert left.min() < 128 and right.min() < 128
    assert (below[:, 66:68] == 255).all(), "a long caption must not run into its neighbour"
    assert images._fit("", images.ImageFont.load_default(10), 50) == ""


def test_grid_refuses_nonsense():
    tile = Image.new("RGB", (8, 8))
    for arguments in (([], 2), ([tile], 0), ([tile], 1, ["a", "b"])):
        with pytest.raises(ValueError):
            make_grid(*arguments)
