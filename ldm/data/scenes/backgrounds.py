"""Backgrounds: crops of photographs under free licences, and painted grounds, walls and skies with words.

The photographs come with the wheels of scikit-image and scikit-learn: nothing is downloaded.

All pictures here are (3, 128, 128) display colours in [0, 1].
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.scenes.colors import COLORS, jitter
from ldm.data.scenes.draw import chance, choice, integer, uniform, weighted
from ldm.errors import MissingExtra

SIZE = 128

HELD_OUT = ("chelsea.png", "coffee.png", "rocket.jpg", "camera.png")
"""Photographs that no training ever sees: the demonstrations and the evaluation are made on them."""


@dataclass(frozen=True)
class Photo:
    """A photograph of the wheel of `package`: `kind` is the captioned background it shows (with `tint`), if any."""

    file: str
    weight: float
    kind: str | None = None
    tint: tuple[float, float, float] | None = None
    package: str = "skimage"


PHOTOS = (
    Photo("astronaut.png", 3.0),
    Photo("china.jpg", 3.0, package="sklearn"),
    Photo("flower.jpg", 2.0, package="sklearn"),
    Photo("hubble_deep_field.jpg", 0.8, "night sky"),
    Photo("grass.png", 1.3, "grass", (0.62, 1.12, 0.40)),
    Photo("gravel.png", 1.3, "gravel", (1.03, 1.0, 0.93)),
    Photo("brick.png", 1.2, "brick wall", (1.35, 0.72, 0.58)),
    Photo("ihc.png", 0.9),
    Photo("retina.jpg", 0.6),
    Photo("coins.png", 0.9),
    Photo("text.png", 0.3),
)
"""Those of free or known licence only; `models/ldm/scenes/README.md` names each licence."""

PACKAGES = {"skimage": ("scikit-image", "data"), "sklearn": ("scikit-learn", "datasets/images")}
"""Import name -> name on the package index, folder of its photographs."""


@dataclass(frozen=True)
class Kind:
    """A captioned background: what captions call it, the preposition before it, and how it is painted, if it is."""

    name: str
    words: tuple[str, ...]
    prepositions: tuple[str, ...]
    paint: Callable[["Backgrounds", torch.Generator], Tensor] | None = None


def read_photo(photo: Photo) -> Tensor:
    """A photograph (3, h, w) in [0, 1]; gray ones get three equal channels. Raises MissingExtra without its wheel."""
    import numpy as np
    from PIL import Image

    name, folder = PACKAGES[photo.package]
    spec = importlib.util.find_spec(photo.package)
    if spec is None or spec.origin is None:
        raise MissingExtra(name, "train", "rendering scenes in front of photographs")
    with Image.open(Path(spec.origin).parent / folder / photo.file) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _spectral_noise(generator: torch.Generator, size: int, slope: float) -> Tensor:
    """(size, size) noise that repeats, with amplitude falling as frequency ** -slope, of unit deviation."""
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None].square() + frequency[None, :].square()).sqrt() * size
    spectrum = torch.fft.fft2(torch.randn(size, size, generator=generator))
    spectrum = spectrum * radius.clamp(min=1) ** -slope * (radius > 0)
    field = torch.fft.ifft2(spectrum).real
    return field / field.std()


class Backgrounds:
    """Draws backgrounds; holds the photographs, shrunk by halves, and four noise textures.

    photos: the photographs to crop, those of `PHOTOS` unless said otherwise.
    Raises MissingExtra without the packages of the photographs, ValueError when a held-out photograph is asked for.
    """

    def __init__(self, photos: tuple[Photo, ...] = PHOTOS, *, allow_held_out: bool = False):
        held_out = [photo.file for photo in photos if photo.file in HELD_OUT]
        if held_out and not allow_held_out:
            raise ValueError(f"held-out photographs must not be trained on: {held_out}")
        self.photos = photos
        self.levels = {photo.file: _halves(read_photo(photo)) for photo in photos}
        generator = torch.Generator().manual_seed(11)
        noise = torch.stack([_spectral_noise(generator, 256, slope) for slope in (0.6, 1.1, 1.6, 2.2)])
        self.noise = F.pad(noise[None], (0, 1, 0, 1), mode="circular")

    def draw(self, generator: torch.Generator, named: bool | None = None) -> tuple[Tensor, str | None]:
        """One background (3, 128, 128) and the name of its kind (a key of `KINDS`), or None where it has no words.

        named: True draws only such as have words; None draws 65 % photographs and 35 % painted ones.
        """
        if named:
            if chance(generator, 0.25):
                return self._photo(weighted(generator, *self._weights(named=True)), generator, tinted=True)
            return self.painted(generator)
        if chance(generator, 0.65):
            photo = weighted(generator, *self._weights(named=False))
            return self._photo(photo, generator, tinted=chance(generator, 0.7))
        return self.painted(generator) if chance(generator, 0.72) else (self._nameless(generator), None)

    def _weights(self, named: bool) -> tuple[list[Photo], list[float]]:
        photos = [photo for photo in self.photos if photo.kind or not named]
        return photos, [photo.weight for photo in photos]

    def painted(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """One of the painted kinds (3, 128, 128), and its name."""
        painters = [(kind.name, kind.paint) for kind in KINDS.values() if kind.paint]
        plain, scenic = (
            [one for one in painters if one[0].endswith(" background") is is_plain] for is_plain in (True, False)
        )
        name, paint = choice(generator, plain if chance(generator, 0.15) else scenic)
        return paint(self, generator).clamp_(0, 1), name

    def _photo(self, photo: Photo, generator: torch.Generator, tinted: bool) -> tuple[Tensor, str | None]:
        levels = self.levels[photo.file]
        height, width = levels[0].shape[-2:]
        low, high = min(110, height, width), min(height, width)
        if photo.tint:  # textures: from further away, their grains are too small for cells of 8x8 pixels
            high = high * 6 // 10
        side = int(low + (high - low) * uniform(generator) ** 1.3)
        top, left = integer(generator, height - side + 1), integer(generator, width - side + 1)
        level = 0
        while level + 1 < len(levels) and side / 2 ** (level + 1) >= SIZE:
            level += 1
        image = levels[level]
        y, x, s = (round(value / 2**level) for value in (top, left, side))
        crop = image[:, y : y + s, x : x + s]
        crop = F.interpolate(crop[None], (SIZE, SIZE), mode="bilinear", antialias=crop.shape[-1] > SIZE)[0]
        if chance(generator, 0.5):
            crop = crop.flip(2)
        if photo.kind and photo.kind != "night sky" and chance(generator, 0.3):
            crop = crop.flip(1)
        kind = photo.kind
        if photo.tint:
            if tinted:
                crop = crop * torch.tensor(photo.tint)[:, None, None]
            elif photo.kind != "gravel":
                kind = None  # gray grass is not what people call grass
        return _recolor(crop, generator, hue=kind is None and not photo.tint), kind

    def _nameless(self, generator: torch.Generator) -> Tensor:
        """Two colours: a gradient, a ground and a sky, or clouds of noise."""
        first, second = (torch.rand(3, 1, 1, generator=generator) for _ in range(2))
        y = torch.linspace(0, 1, SIZE)[:, None].expand(SIZE, SIZE)
        style = integer(generator, 3)
        if style == 0:
            share = y if chance(generator, 0.6) else y.t()
        elif style == 1:
            share = torch.sigmoid((y - uniform(generator, 0.25, 0.65)) * uniform(generator, 15, 70))
        else:
            share = torch.sigmoid(self.field(generator, 3, uniform(generator, 0.2, 0.6)) * 1.6)
        grain = self.field(generator, 1, uniform(generator, 0.3, 0.8)) * uniform(generator, 0.0, 0.05)
        return (torch.lerp(first, second, share[None]) + grain).clamp_(0, 1)

    def field(
        self,
        generator: torch.Generator,
        channel: int,
        scale: float | tuple[float, float],
        plane: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(128, 128) noise of unit deviation at a random place; channel 0 is the roughest, 3 the cloudiest.

        scale: how much of the 256-pixel texture a picture spans, half of it being pixel for pixel; plane: x and y
        coordinates (128, 128) that run from 0 to 1 over a flat picture.
        """
        x, y = plane or _flat()
        sx, sy = scale if isinstance(scale, tuple) else (scale, scale)
        u = (x * sx + uniform(generator)) % 1.0 * 2 - 1
        v = (y * sy + uniform(generator)) % 1.0 * 2 - 1
        texture = self.noise[:, channel : channel + 1]
        return F.grid_sample(texture, torch.stack([u, v], -1)[None], align_corners=True)[0, 0]


def _halves(image: Tensor) -> list[Tensor]:
    levels = [image]
    while min(levels[-1].shape[-2:]) >= 2 * SIZE:
        levels.append(F.avg_pool2d(levels[-1][None], 2)[0])
    return levels


def _recolor(image: Tensor, generator: torch.Generator, hue: bool) -> Tensor:
    """`image` with other contrast, brightness and cast, and at times another hue or no colour."""
    if hue and chance(generator, 0.3):
        image = image[torch.randperm(3, generator=generator)] if chance(generator, 0.6) else image.mean(0, keepdim=True)
        image = image.expand(3, SIZE, SIZE)
    cast = 1 + 0.09 * torch.randn(3, 1, 1, generator=generator)
    contrast, brightness = uniform(generator, 0.75, 1.2), uniform(generator, -0.1, 0.1)
    return ((image * cast - 0.5) * contrast + 0.5 + brightness).clamp_(0, 1)


def _flat() -> tuple[Tensor, Tensor]:
    ticks = torch.linspace(0, 1, SIZE)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return x, y


def _rgb(*rgb: float) -> Tensor:
    return torch.tensor(rgb)[:, None, None]


def _shaded(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(low.expand(3, SIZE, SIZE), high.expand(3, SIZE, SIZE), share.clamp(0, 1)[None])


def _sky(pool: Backgrounds, generator: torch.Generator) -> Tensor:
    """A daylight sky, clear to cloudy, or an evening."""
    _, y = _flat()
    zenith, low = choice(
        generator,
        (
            (_rgb(0.25, 0.48, 0.85), _rgb(0.75, 0.87, 0.97)),
            (_rgb(0.45, 0.65, 0.90), _rgb(0.85, 0.92, 0.97)),
            (_rgb(0.60, 0.66, 0.74), _rgb(0.82, 0.84, 0.86)),
            (_rgb(0.40, 0.42, 0.65), _rgb(0.97, 0.75, 0.55)),
        ),
    )
    sky = _shaded(zenith, low, y * 2.2)
    clouds = torch.sigmoid((pool.field(generator, 3, (0.35, 0.7)) - uniform(generator, 0.3, 2.0)) * 2.5)
    return torch.lerp(sky, torch.ones(3, 1, 1) * 0.97, clouds[None] * 0.8)


def _ground(
    pool: Backgrounds, generator: torch.Generator, texture: Callable[[tuple[Tensor, Tensor]], Tensor]
) -> Tensor:
    """`texture(plane)` (3, 128, 128) seen from above, or as a ground that runs to a horizon under a sky."""
    x, y = _flat()
    if chance(generator, 0.5):
        zoom = uniform(generator, 0.7, 1.1)
        return texture((x * zoom, y * zoom))
    horizon = uniform(generator, 0.12, 0.45)
    below = (y - horizon).clamp(min=0)
    depth = 1 / (below + 0.10)
    plane = ((x - 0.5) * depth * 0.35, depth * 0.40)
    ground = texture(plane)
    haze = torch.exp(-below * 14)[None]  # also hides what the texture cannot resolve far away
    ground = torch.lerp(ground, ground.mean((1, 2), keepdim=True), haze)
    return torch.lerp(_sky(pool, generator), ground, torch.sigmoid((y - horizon) * 130)[None])


def _grass(pool: Backgrounds, generator: torch.Generator) -> Tensor:
    tone = _rgb(uniform(generator, 0.30, 0.50), uniform(generator, 0.58, 0.75), uniform(generator, 0.12, 0.22))

    def texture(plane):
        blades = pool.field(generator, 0, (0.9, 0.28), plane) + 0.7 * pool.field(generator, 2, 0.5, plane)
        return _shaded(tone * 0.28, tone * 1.12, 0.5 + 0.24 * blades)

    return _ground(pool, generator, texture)


def _sand(pool: Backgrounds, generator: torch.Generator) -> Tensor:
    tone = _rgb(uniform(generator, 0.84, 0.93), uniform(generator, 0.71, 0.79), uniform(generator, 0.47, 0.58))
    ripple, slope = uniform(generator, 30, 60), uniform(generator, -0.5, 0.5)

    def texture(plane):
        x, y = plane
        bend = pool.field(generator, 3, 0.3, plane)
        waves = torch.sin((y + slope * x) * ripple + bend * 2.5)
        grain = pool.field(generator, 0, 0.6, plane)
        return tone * (0.93 + 0.07 * waves + 0.035 * grain + 0.02 * bend)[None]

    return _ground(pool, generator, texture)


def _snow(pool: Backgrounds, generator: torch.Generator) -> Tensor:
    def texture(plane):
        drifts = pool.field(generator, 3, 0.35, plane) + 0.25 * pool.field(generator, 1, 0.5, plane)
        return _shaded(_rgb(0.70, 0.79, 0.92), _rgb(0.98, 0.985, 1.0), 0.72 + 0.26 * drifts)

    return _ground(pool, generator, texture)


def _water(pool: Backgrounds, generator: torch.Generator) -> Tensor:
    deep = _rgb(uniform(generator, 0.0, 0.08), uniform(generator, 0.24, 0.42), uniform(generator, 0.48, 0.66))

    def texture(plane):
        swell = pool.field(generator, 2, (0.22, 0.75), plane)
        glints = (1 - pool.field(generator, 2, (0.30, 1.0), plane).abs() * 2.2).clamp(min=0).square()
        body = _shaded(deep * 0.65, deep + 0.22, 0.5 + 0.25 * swell)
        return torch.lerp(body, _rgb(0.85, 0.95, 1.0).expand_as(body), (0.6 * glints)[None])

    return _ground(pool, generator, texture)


def _wooden_floor(pool: Backgrounds, generator: torch.Generator) -> Tensor:
    tone = choice(generator, (_rgb(0.66, 0.44, 0.25), _rgb(0.52, 0.33, 0.19), _rgb(0.78, 0.60, 0.40)))
    planks, turned = uniform(generator, 4.0, 6.5), chance(generator, 0.5)
    noise = torch.rand(64, generator=generator)
    x, y = _flat()
    if chance(generator, 0.5):  # seen along the floor, walls out of sight
        depth = 1 / (0.45 + 0.75 * y)
        x, y, turned = (x - 0.5) * depth + 0.5, depth * 1.2, False
    if turned:
        x, y = y, x
    column = (x * planks + 20).floor()
    across = x * planks + 20 - column
    along = y * 1.3 + noise[column.long() % 64] * 3
    board = along.floor()
    shade = noise[(column.long() * 7 + board.long() * 13) % 64]
    grain = pool.field(generator, 2, (1.1, 0.12), (x, along))
    seam = torch.maximum(
        torch.sigmoid((0.05 - torch.minimum(across, 1 - across)) * 60),
        torch.sigmoid((0.015 - torch.minimum(along - board, board + 1 - along)) * 200),
    )
    value = (0.78 + 0.34 * shade + 0.10 * grain) * (1 - 0.65 * seam)
    return (tone * value[None]).clamp(0, 1)


def _brick_wall(pool: Backgrounds, generator: torch.Generator) -> Tensor:
    tone = choice(generator, (_rgb(0.66, 0.28, 0.20), _rgb(0.58, 0.32, 0.24), _rgb(0.72, 0.42, 0.28)))
    mortar = _rgb(0.78, 0.75, 0.70) * uniform(generator, 0.75, 1.1)
    rows = uniform(generator, 6.5, 11.0)
    noise = torch.rand(256, generator=generator)
    x, y = _flat()
    v = y * rows + uniform(generator)
    row = v.floor()
    u = x * rows / 2.3 + 0.5 * (row % 2) + uniform(generator)
    column = u.floor()
    fu, fv = u - column, v - row
    edge = torch.minimum(torch.minimum(fu, 1 - fu) * 2.3, torch.minimum(fv, 1 - fv))
    joint = torch.sigmoid((0.10 - edge) * 35)
    shade = 0.75 + 0.4 * noise[(row.long() * 37 + column.long() * 11) % 256]
    rough = pool.field(generator, 0, 0.5)
    bricks = tone * (shade * (1 + 0.06 * rough))[None]
    light = 1 - uniform(generator, 0, 0.35) * (x if chance(generator, 0.5) else y)
    return torch.lerp(bricks, mortar.expand_as(bricks) * (1 + 0.04 * rough)[None], joint[None]) * light[None]


def _night_sky(pool: Backgrounds, generator: torch.Generator) -> Tensor:
    _, y = _flat()
    top = _rgb(0.01, 0.01, uniform(generator, 0.03, 0.10))
    low = _rgb(uniform(generator, 0.03, 0.16), uniform(generator, 0.05, 0.13), uniform(generator, 0.15, 0.36))
    sky = _shaded(top, low, y)
    haze = torch.sigmoid(pool.field(generator, 3, 0.4) * 2 - 1.5)
    sky = sky + haze[None] * _rgb(0.10, 0.09, 0.16) * uniform(generator, 0, 1.3)
    count = 25 + integer(generator, 60)
    stars = torch.zeros(1, 1, SIZE, SIZE)
    place = torch.randint(SIZE * SIZE, (count,), generator=generator)
    stars.view(-1)[place] = 0.5 + 2.2 * torch.rand(count, generator=generator) ** 3
    tap = torch.tensor([0.28, 0.9, 0.28])
    glow = F.conv2d(stars, (tap[:, None] * tap[None, :])[None, None], padding=1)[0]
    return (sky + glow * _rgb(1.0, 0.97, 0.92)).clamp(0, 1)


def _plain(color: str) -> Callable[[Backgrounds, torch.Generator], Tensor]:
    def paint(pool: Backgrounds, generator: torch.Generator) -> Tensor:
        x, y = _flat()
        tone = _rgb(*jitter(COLORS[color].rgb, generator, 0.03))
        cx, cy = uniform(generator, 0.2, 0.8), uniform(generator, 0.0, 0.7)
        fall = ((x - cx).square() + (y - cy).square()) * uniform(generator, 0.0, 0.45)
        return tone * (1 - fall)[None]

    return paint


def _kinds() -> dict[str, Kind]:
    kinds = [
        Kind("grass", ("grass", "green grass", "a lawn"), ("on",), _grass),
        Kind("sand", ("sand", "yellow sand", "a beach"), ("on",), _sand),
        Kind("snow", ("snow", "white snow"), ("on", "in"), _snow),
        Kind("water", ("water", "blue water"), ("on", "in"), _water),
        Kind("gravel", ("gravel", "stones"), ("on",)),
        Kind("wooden floor", ("a wooden floor", "a wood floor", "wooden planks"), ("on",), _wooden_floor),
        Kind("brick wall", ("a brick wall", "a wall of bricks"), ("in front of",), _brick_wall),
        Kind("night sky", ("a night sky", "a starry sky", "stars at night"), ("in front of", "in"), _night_sky),
    ]
    for color in COLORS.values():
        words = tuple(f"{'an' if word[0] in 'aeiou' else 'a'} {word} background" for word in color.words)
        kinds.append(Kind(f"{color.name} background", words, ("on", "in front of"), _plain(color.name)))
    return {kind.name: kind for kind in kinds}


KINDS: dict[str, Kind] = _kinds()
