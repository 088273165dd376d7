"""Draws captioned scenes: what stands where, rendered in front of a background."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ldm.data.scenes.backgrounds import Backgrounds
from ldm.data.scenes.captions import caption
from ldm.data.scenes.colors import COLORS, jitter
from ldm.data.scenes.draw import chance, choice, integer, uniform
from ldm.data.scenes.materials import MATERIALS
from ldm.data.scenes.render import SIZE, Thing, cast_shadows, draw
from ldm.data.scenes.shapes import SHAPES

CELL = 8
CHUNK = 192
"""Scenes rendered at a time: enough of each shape to vectorise over, few enough for the cache."""


@dataclass(frozen=True)
class Scenes:
    """n captioned images.

    images: uint8 (n, 128, 128, 3); captions: n texts; coverage: float16 (n, 16, 16), the share of each 8x8 cell that
    objects cover; attributes: n dicts with "shape", "material", "color" (None where the material shows its natural
    colour) and "background" (a key of `KINDS` or None), "box" (left, top, right, bottom of the object in pixels,
    within the image), and for two objects "second", a dict of the same for the other one. A scene without an object
    has None for shape, material, color and box.
    """

    images: np.ndarray
    captions: list[str]
    coverage: np.ndarray
    attributes: list[dict]


def render_scenes(count: int, seed: int | torch.Generator, pool: Backgrounds | None = None) -> Scenes:
    """`count` random captioned scenes. The same seed gives the same scenes.

    About 88 % show one object, 4 % two, 8 % none. pool: the backgrounds; by default those of training.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    pool = pool or Backgrounds()
    parts = [_render_chunk(min(CHUNK, count - start), generator, pool) for start in range(0, count, CHUNK)]
    return Scenes(
        np.concatenate([part.images for part in parts]) if parts else np.empty((0, SIZE, SIZE, 3), np.uint8),
        [text for part in parts for text in part.captions],
        np.concatenate([part.coverage for part in parts]) if parts else np.empty((0, 16, 16), np.float16),
        [attributes for part in parts for attributes in part.attributes],
    )


def _render_chunk(count: int, generator: torch.Generator, pool: Backgrounds) -> Scenes:
    canvas = torch.empty(3, count, SIZE, SIZE)
    layers: list[list[Thing]] = [[], []]
    captions, attributes = [], []
    for scene in range(count):
        objects = (0, 1, 2)[int(torch.bucketize(uniform(generator), torch.tensor([0.08, 0.96])))]
        named = True if objects == 0 and chance(generator, 0.8) else None
        canvas[:, scene], background = pool.draw(generator, named)
        looks = [draw_look(generator) for _ in range(objects)]
        things = place(generator, scene, looks)
        for layer, thing in zip(layers, things, strict=False):
            layer.append(thing)
        captions.append(caption(generator, looks, background))
        attributes.append(_attributes(looks, things, background))
    coverage = paint(canvas, layers)
    images = (canvas.permute(1, 2, 3, 0) * 255).round_().to(torch.uint8).numpy()
    return Scenes(images, captions, coverage, attributes)


def paint(canvas: torch.Tensor, layers: list[list[Thing]]) -> np.ndarray:
    """Draw the things of each layer, the farthest first, over `canvas` (3, n, size, size), in place.

    A layer holds at most one thing for each scene. Returns the coverage (n, size / 8, size / 8) in
    float16.
    """
    cover = torch.zeros(canvas.shape[1:])
    groups: list[list[Thing]] = []
    for layer in layers:
        by_shape: dict[str, list[Thing]] = defaultdict(list)
        for thing in layer:
            by_shape[thing.shape].append(thing)
        groups.extend(by_shape.values())
    for things in groups:
        cast_shadows(canvas, things)
    for things in groups:
        draw(canvas, cover, things)
    return F.avg_pool2d(cover[:, None], CELL)[:, 0].to(torch.float16).numpy()


def draw_look(generator: torch.Generator) -> tuple[str, str, str | None]:
    """A random (shape, material, color); color is None, at times, for materials that have a natural one."""
    shape = choice(generator, list(SHAPES))
    material = choice(generator, [name for name in MATERIALS if name not in SHAPES[shape].avoids])
    color = choice(generator, list(COLORS))
    natural = MATERIALS[material].natural and chance(generator, 0.2)
    return shape, material, None if natural else color


def place(generator: torch.Generator, scene: int, looks: list[tuple[str, str, str | None]]) -> list[Thing]:
    """Things that look like `looks` (one or two), at random sizes, places and poses under one light; far ones first."""
    azimuth = uniform(generator, -0.9, 0.9)
    direction = torch.tensor([azimuth, uniform(generator, 0.7, 1.2), uniform(generator, 0.45, 1.0)])
    x, y, z = (direction / direction.norm()).tolist()
    shadow = uniform(generator, 0.35, 0.7)
    spots = _spots(generator, len(looks))
    return [_thing(generator, scene, look, spot, (x, y, z), shadow) for look, spot in zip(looks, spots, strict=True)]


def _spots(generator: torch.Generator, count: int) -> list[tuple[float, float, float]]:
    """Centre (x, y) and radius in pixels for each object: one in seven reaches over the border; two stand apart."""
    if count == 2:
        middle, gap = uniform(generator, 54, 74), uniform(generator, 27, 34)
        sides = (-1, 1) if chance(generator, 0.5) else (1, -1)
        return sorted(
            ((middle + side * gap, uniform(generator, 48, 88), uniform(generator, 21, 32)) for side in sides),
            key=lambda spot: spot[1],
        )
    if count == 0:
        return []
    radius = 21 + 37 * uniform(generator) ** 0.6  # mostly large: an edit's window shows the mask and little more
    margin = min(0.95 * radius, 58)
    place = [uniform(generator, margin, SIZE - margin) for _ in range(2)]
    if chance(generator, 0.14):  # over one border, by up to nearly half
        near = radius * uniform(generator, 0.1, 0.7)
        place[integer(generator, 2)] = near if chance(generator, 0.5) else SIZE - near
    return [(place[0], place[1], radius)]


def _thing(
    generator: torch.Generator,
    scene: int,
    look: tuple[str, str, str | None],
    spot: tuple[float, float, float],
    light: tuple[float, float, float],
    shadow: float,
) -> Thing:
    shape, material, color = look
    solid = SHAPES[shape]
    natural = MATERIALS[material].natural
    base = COLORS[color].rgb if color else natural
    assert base is not None, "only a material with a colour of its own goes without one"
    rgb = jitter(base, generator)
    return Thing(
        scene=scene,
        shape=shape,
        material=material,
        rgb=rgb,
        center=spot[:2],
        radius=spot[2],
        pitch=uniform(generator, *solid.pitch),
        yaw=uniform(generator, *choice(generator, solid.yaws)),
        roll=uniform(generator, -0.12, 0.12),
        light=light,
        seed=uniform(generator),
        shadow=shadow,
    )


def _attributes(looks: list[tuple[str, str, str | None]], things: list[Thing], background: str | None) -> dict:
    described = []
    for (shape, material, color), thing in zip(looks, things, strict=True):
        (x, y), reach = thing.center, thing.radius * SHAPES[shape].bound
        box = [min(max(round(value), 0), SIZE) for value in (x - reach, y - reach, x + reach, y + reach)]
        described.append({"shape": shape, "material": material, "color": color, "box": box})
    if not described:
        described.append({"shape": None, "material": None, "color": None, "box": None})
    first = {**described[0], "background": background}
    return {**first, "second": described[1]} if len(described) > 1 else first
