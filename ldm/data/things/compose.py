"""One composite: things before a background, with shadows on it and its light on them; all in display colours."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from torch import Generator

from ldm.data.scenes.draw import chance, uniform

SIZE = 256


@dataclass(frozen=True)
class Placed:
    """A thing on its canvas: rgb (256, 256, 3) and alpha (256, 256), float32 in [0, 1]; box (left, top, right, bottom)
    of what is seen of it, in pixels."""

    rgb: np.ndarray
    alpha: np.ndarray
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Spot:
    """Where a thing goes: the centre of its upright box, its longer side in pixels, its turn in degrees."""

    x: float
    y: float
    size: float
    turn: float


def place(image: Image.Image, spot: Spot, mirror: bool) -> Placed | None:
    """Put an RGBA picture on the canvas; None where nothing of it is seen."""
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = spot.size / max(image.size)
    size = (max(2, round(image.width * scale)), max(2, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if spot.turn:
        image = image.rotate(spot.turn, Image.Resampling.BICUBIC, expand=True)
    canvas = Image.new("RGBa", (SIZE, SIZE))
    canvas.paste(image, (round(spot.x - image.width / 2), round(spot.y - image.height / 2)))
    pixels = np.asarray(canvas.convert("RGBA"), np.float32) / 255
    box = canvas.getchannel("a").point(lambda value: 255 if value > 25 else 0).getbbox()
    return Placed(pixels[..., :3], pixels[..., 3], box) if box else None


def shadow(thing: Placed, generator: Generator, light: float, lies: bool) -> np.ndarray:
    """How much light (256, 256) the thing takes from its ground, in [0, 1].

    light: the side that the light comes from, -1 to 1. lies: it lies flat, seen from above, and its shadow is its own
    outline moved a little; else it stands: its outline is sheared onto the ground, and where it touches, it is dark.
    Drawn at half the size, for it is soft anyway.
    """
    alpha = Image.fromarray((thing.alpha * 255).astype(np.uint8)).resize((SIZE // 2, SIZE // 2), Image.Resampling.BOX)
    left, top, right, bottom = (edge / 2 for edge in thing.box)
    size = max(right - left, bottom - top)
    if lies:
        reach = size * uniform(generator, 0.03, 0.07)
        moved = _blurred(_shifted(alpha, -light * reach, reach * uniform(generator, 0.4, 1.0)), 0.035 * size)
        near = _blurred(_shifted(alpha, 0, 1), 0.018 * size)
        dark = np.maximum(0.85 * moved, 0.7 * near)
    else:
        # Up the picture, or towards the eye.
        fall = uniform(generator, 0.16, 0.38) * (-1 if chance(generator, 0.25) else 1)
        cast = _sheared(alpha, bottom, -light * uniform(generator, 0.3, 0.8), fall)
        soft, crisp = _blurred(cast, 0.035 * size), _blurred(cast, 0.012 * size)
        # A shadow's edge softens with the distance from what casts it.
        away = np.clip(np.abs(np.arange(SIZE // 2) - bottom)[:, None] / (0.35 * size), 0, 1)
        touch = _blurred(_foot(alpha, bottom, size), 0.016 * size)
        dark = np.maximum(crisp * (1 - away) + soft * away, np.clip(1.25 * touch, 0, 1))
    full = Image.fromarray((np.clip(dark, 0, 1) * 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(full, np.float32) / 255


def _blurred(image: Image.Image, radius: float) -> np.ndarray:
    return np.asarray(image.filter(ImageFilter.GaussianBlur(max(radius, 0.8))), np.float32) / 255


def _shifted(alpha: Image.Image, dx: float, dy: float) -> Image.Image:
    return alpha.transform(alpha.size, Image.Transform.AFFINE, (1, 0, -dx, 0, 1, -dy), Image.Resampling.BILINEAR)


def _sheared(alpha: Image.Image, bottom: float, shear: float, fall: float) -> Image.Image:
    """The outline laid on the ground: a point h above `bottom` comes to lie `shear` h aside and `fall` h up."""
    a = shear / fall
    coefficients = (1, a, -a * bottom, 0, 1 / fall, bottom - bottom / fall)
    return alpha.transform(alpha.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _foot(alpha: Image.Image, bottom: float, size: float) -> Image.Image:
    """The line where a standing thing's lowest parts meet the ground."""
    pixels, band = np.asarray(alpha, np.float32), max(2.0, 0.06 * size)
    touch = pixels[max(0, round(bottom - band)) : max(1, round(bottom))].max(axis=0)
    near = np.exp(-(((np.arange(len(pixels)) - (bottom - 0.2 * band)) / (0.5 * band)) ** 2))
    return Image.fromarray((near[:, None] * touch[None]).astype(np.uint8))


def relight(thing: Placed, ground: np.ndarray, generator: Generator) -> np.ndarray:
    """The colours in `thing.box`, (h, w, 3), as the light of the background `ground` (256, 256, 3) would show them.

    Exposure and tint follow the mean of what is around it, in linear light; the ground shines back from below.
    """
    left, top, right, bottom = thing.box
    around = ground[max(0, top - 20) : bottom + 20, max(0, left - 20) : right + 20]
    mean = np.square(around[::3, ::3].reshape(-1, 3)).mean(0)
    level = float(mean @ (0.2126, 0.7152, 0.0722))
    tint = 0.72 + 0.28 * np.clip(mean / max(level, 0.02), 0.4, 2.0)
    gain = np.clip(0.62 + 0.62 * level**0.5, 0.5, 1.1) * uniform(generator, 0.9, 1.12)
    rgb = thing.rgb[top:bottom, left:right]
    light = np.square(rgb) * (gain * tint).astype(np.float32)
    below = ground[min(bottom, SIZE - 1) - 6 : bottom + 14, left:right]
    if below.size:
        low = np.square(np.linspace(0, 1, bottom - top, dtype=np.float32))[:, None, None]  # 1 at its foot
        bounce = np.square(below[::2, ::2].reshape(-1, 3)).mean(0)
        light = light * (1 - 0.14 * low) + 0.10 * low * bounce * rgb
    return np.sqrt(np.clip(light, 0, 1))


def merge(
    ground: np.ndarray, thing: Placed, generator: Generator, light: float, lies: bool, grounded: bool
) -> np.ndarray:
    """`ground` (256, 256, 3) in [0, 1] with the thing before it and its shadow on it.

    grounded: something is below it to take its shadow; else it is in the air, or fills the picture.
    """
    left, top, right, bottom = thing.box
    rgb, alpha = relight(thing, ground, generator), thing.alpha[top:bottom, left:right]
    out = ground.copy()
    if grounded:
        strength = uniform(generator, 0.5, 0.85)
        dark = shadow(thing, generator, light, lies)
        out *= np.sqrt(1 - strength * dark)[..., None]  # of linear light
    if chance(generator, 0.5):  # photographs are not as sharp as renders
        blur = uniform(generator, 0.3, 0.75)
        rgb, alpha = gaussian_filter(rgb, (blur, blur, 0), truncate=3), gaussian_filter(alpha, blur, truncate=3)
    seed = int(uniform(generator) * 2**31)
    grain = np.random.default_rng(seed).standard_normal(alpha.shape, np.float32) * uniform(generator, 0.0, 0.012)
    inside = out[top:bottom, left:right]
    inside += (rgb + grain[..., None] - inside) * alpha[..., None]
    return out.clip(0, 1)


def spots(generator: Generator, count: int, fills: bool, cut: bool, turn: float) -> list[Spot]:
    """Places of one or two things; `fills`: larger than the picture; `cut`: over a border."""
    if count == 2:
        middle, gap = uniform(generator, 118, 138), uniform(generator, 54, 66)
        return [
            Spot(middle + side * gap, uniform(generator, 110, 165), uniform(generator, 88, 130), turn)
            for side in (-1, 1)
        ]
    if fills:
        x, y = uniform(generator, 108, 148), uniform(generator, 108, 148)
        return [Spot(x, y, uniform(generator, 270, 380), turn)]
    # An edit's window has its mask in the middle, and a thing larger than the mask would be cut by it.
    size = 120 + 85 * uniform(generator) ** 0.8
    room = max(0.0, 0.94 * SIZE - size * (1 + 0.3 * abs(math.sin(math.radians(turn))))) / 2
    reach = min(16.0, room) if chance(generator, 0.75) else room
    x, y = 128 + uniform(generator, -reach, reach), 128 + uniform(generator, -reach, reach)
    if cut:
        away = 128 + uniform(generator, -0.15, 0.15) * size
        if chance(generator, 0.35):
            y = 128 + away
        else:
            x = 128 + away if chance(generator, 0.5) else 128 - away
    return [Spot(x, y, size, turn)]
