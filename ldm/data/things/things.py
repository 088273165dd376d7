"""Draws captioned composites: which things, how large, where, before which background."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator

from ldm.data.epochs import seeded
from ldm.data.scenes.captions import caption as scene_caption
from ldm.data.scenes.draw import chance, choice, uniform, weighted
from ldm.data.scenes.render import SIZE as SCENE_SIZE
from ldm.data.scenes.scenes import CELL, Scenes, draw_look, paint
from ldm.data.scenes.scenes import place as place_shapes
from ldm.data.things.captions import Said, caption
from ldm.data.things.colors import HUES, name_of, turn_hue
from ldm.data.things.compose import SIZE, merge, place, spots
from ldm.data.things.cutouts import Cutout
from ldm.data.things.nouns import NOUNS, PORTRAITS
from ldm.data.things.photographs import Photographs

SHAPES_SHARE = 0.12
"""Share of our own twelve shapes."""

FAMILIAR_WEIGHT = 4.0
"""How many times as often as others familiar nouns are drawn."""

USUAL = (75.0, 32.0)
"""Azimuth either way, and elevation, in degrees, up to which a 3D model is shown: how one sees a thing mostly. A chair
from behind and above is another picture to learn, which nobody asks for."""

TURNED = 0.3
"""How often a thing of one hue is turned to another."""

LIES = {"food", "tool", "wear", "dish", "play"}
"""Kinds that may lie flat, turned any way; others stand."""

FLIES = {
    *("bird", "eagle", "owl", "parrot", "bat", "butterfly", "bee", "ladybug", "airplane", "helicopter", "rocket"),
    *("flying saucer", "balloon", "kite", "sun", "moon", "star", "cloud", "rainbow", "planet", "snowflake", "ghost"),
    *("whale", "dolphin", "shark", "fish", "octopus", "jellyfish", "heart", "window", "door", "chandelier"),
}
"""Nouns that are as often without a ground below them."""


def is_usual(cutout: Cutout) -> bool:
    """Whether a thing is seen from where it mostly is, see `USUAL`; pictures that are no views are."""
    if cutout.azimuth is None or cutout.elevation is None:
        return True
    return abs(cutout.azimuth) <= USUAL[0] and cutout.elevation <= USUAL[1]


def portrait(noun: str, sources: Mapping[str, Mapping[str, list[Cutout]]]) -> dict[str, dict[str, list[Cutout]]]:
    """One object of a noun, by source and instance: the rendered object of `PORTRAITS` or the first, and where there is
    none a 3D model.

    Of two pictures a small model paints the mean until it knows both, and each is seen half as often.
    """
    source = next(name for name in ("fluent", *sources) if name in sources)
    instances = sources[source]
    code = PORTRAITS.get(noun, "")
    chosen = next((one for one in instances if code and one.startswith(f"fluent-{code}")), next(iter(instances)))
    return {source: {chosen: instances[chosen]}}


def pictures_by_noun(cutouts: Iterable[Cutout]) -> dict[str, dict[str, dict[str, list[Cutout]]]]:
    """What composites show of these cut-outs, by noun, source and instance: see `is_usual` and `portrait`."""
    usual: dict[str, dict[str, dict[str, list[Cutout]]]] = {}
    for cutout in cutouts:
        if cutout.noun in NOUNS and is_usual(cutout):  # not of a table that has been cut since
            sources = usual.setdefault(cutout.noun, {})
            sources.setdefault(cutout.source, {}).setdefault(cutout.instance, []).append(cutout)
    return {noun: portrait(noun, sources) for noun, sources in usual.items()}


def shown_of(cutouts: Iterable[Cutout], split: str) -> list[Cutout]:
    """Those that composites of a split show. Of an object with a single picture ("both"), validation has the same one,
    before backgrounds of its own."""
    found = pictures_by_noun(cutout for cutout in cutouts if cutout.split in (split, "both"))
    return [
        cutout for sources in found.values() for one in sources.values() for views in one.values() for cutout in views
    ]


class Things:
    """Draws composites of cut-outs before backgrounds.

    cutouts: those to choose from, of one split. folder: of their pictures.
    """

    def __init__(self, cutouts: Iterable[Cutout], folder: Path, backgrounds: Photographs):
        self.folder, self.backgrounds = folder, backgrounds
        self.pictures = pictures_by_noun(cutouts)
        self.nouns = [noun for noun in NOUNS if noun in self.pictures]
        self.weights = [FAMILIAR_WEIGHT if NOUNS[noun].familiar else 1.0 for noun in self.nouns]

    def render(self, count: int, seed: int, shard: int) -> Scenes:
        """The composites of a shard: they depend on (seed, shard) and their number in it alone."""
        images = np.empty((count, SIZE, SIZE, 3), np.uint8)
        coverage = np.empty((count, SIZE // CELL, SIZE // CELL), np.float16)
        captions, attributes = [], []
        for i in range(count):
            generator = seeded(seed, shard, i)
            draw = self.shapes if chance(generator, SHAPES_SHARE) else self.composite
            image, cover, text, known = draw(generator)
            images[i] = (image * 255).round()
            coverage[i] = cover.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL).mean((1, 3))
            captions.append(text)
            attributes.append(known)
        return Scenes(images, captions, coverage, attributes)

    def shapes(self, generator: Generator) -> tuple[np.ndarray, np.ndarray, str, dict]:
        """One or two of the scenes' shapes at twice their size -> as `composite`."""
        ground = self.backgrounds.draw(generator)
        looks = [draw_look(generator) for _ in range(2 if chance(generator, 0.05) else 1)]
        scale = SIZE / SCENE_SIZE
        things = [
            replace(thing, center=(thing.center[0] * scale, thing.center[1] * scale), radius=thing.radius * scale)
            for thing in place_shapes(generator, 0, looks)
        ]
        canvas = ground.pixels[:, None].clone()
        cover = torch.from_numpy(paint(canvas, [[thing] for thing in things]).astype(np.float32))[0]
        alpha = cover.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1).numpy()
        text = scene_caption(generator, looks, ground.kind)
        if ground.words and not ground.kind and chance(generator, 0.5):
            text = f"{text} {ground.words}"
        shape, material, color = looks[0]
        thing = things[0]
        (x, y), reach = thing.center, thing.radius
        box = [int(min(max(edge, 0), SIZE)) for edge in (x - reach, y - reach, x + reach, y + reach)]
        known = {"noun": shape, "material": material, "color": color, "box": box, "count": len(looks)}
        return canvas[:, 0].permute(1, 2, 0).numpy(), alpha, text, known

    def composite(self, generator: Generator) -> tuple[np.ndarray, np.ndarray, str, dict]:
        """-> image (256, 256, 3) in [0, 1], alpha (256, 256), caption, and "noun", "color", "box", "count"."""
        ground = self.backgrounds.draw(generator)
        image = ground.pixels.permute(1, 2, 0).numpy()
        count = 0 if chance(generator, 0.04) else 2 if chance(generator, 0.04) else 1
        fills = count == 1 and chance(generator, 0.04)
        cut = count == 1 and not fills and chance(generator, 0.08)
        light = uniform(generator, -1, 1)
        cover, said, boxes = np.zeros((SIZE, SIZE), np.float32), [], []
        chosen = [self._choose(generator) for _ in range(count)]
        places: list = [None] * count
        if count == 2:
            places = spots(generator, 2, False, False, uniform(generator, -5, 5))
        for i, cutout in enumerate(chosen):
            lies = self._lies(generator, cutout)
            noun = NOUNS[cutout.noun]
            any_way = lies and noun.kind in LIES and not noun.familiar and chance(generator, 0.7)
            turn = uniform(generator, -180, 180) if any_way else uniform(generator, -5, 5)
            spot = places[i] or spots(generator, 1, fills, cut, turn)[0]
            picture, phrase = self._look(generator, cutout, fills)
            grounded = not fills and not (cutout.noun in FLIES and chance(generator, 0.75))
            mirror = chance(generator, 0.5)
            thing = place(picture, spot, mirror)
            if thing is None:
                continue
            # The picture's own light says where the shadow falls, where it has one.
            side = (-cutout.light if mirror else cutout.light) if abs(cutout.light) > 0.15 else light
            image = merge(image, thing, generator, side, lies, grounded)
            cover = np.maximum(cover, thing.alpha)
            said.append(phrase)
            boxes.append(list(thing.box))
        text = caption(generator, said, ground.words)
        known = {
            "noun": said[0].noun if said else None,
            "color": said[0].color if said else None,
            "box": boxes[0] if boxes else None,
            "count": len(said),
        }
        return image, cover, text, known

    def _choose(self, generator: Generator) -> Cutout:
        sources = self.pictures[weighted(generator, self.nouns, self.weights)]
        source = choice(generator, list(sources))
        instances = sources[source]
        return choice(generator, instances[choice(generator, list(instances))])

    def _lies(self, generator: Generator, cutout: Cutout) -> bool:
        kind = NOUNS[cutout.noun].kind
        if cutout.elevation is not None and cutout.elevation > 50:
            return True
        return kind in LIES and cutout.elevation is None and chance(generator, 0.5)

    def _look(self, generator: Generator, cutout: Cutout, close: bool) -> tuple[Image.Image, Said]:
        """The picture, its hue turned at times where it has but one, and what there is to say about it."""
        with Image.open(self.folder / cutout.file) as opened:
            picture = opened.convert("RGBA")
        color, turned = cutout.color, False
        person = NOUNS[cutout.noun].kind == "person"  # is not called by a colour
        if cutout.hue is not None and not person and chance(generator, TURNED):
            target = choice(generator, HUES)
            pixels = np.asarray(picture, np.float32) / 255
            rgb = turn_hue(pixels[..., :3], cutout.hue, target)
            if target != color and name_of(rgb[pixels[..., 3] > 0.9][::7], 0.5) == target:
                color, turned = target, True
                picture = Image.fromarray((np.dstack([rgb, pixels[..., 3]]) * 255).round().astype(np.uint8), "RGBA")
        return picture, Said(cutout.noun, cutout.source, color, turned, cutout.azimuth, cutout.elevation, close)


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Composites, (h, w, 3) uint8 each, with their captions under them."""
    from PIL import ImageDraw

    side, line = len(images[0]), 14
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + line)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (pixels, text) in enumerate(zip(images, captions, strict=True)):
        x, y = i % columns * side, i // columns * (side + line)
        sheet.paste(Image.fromarray(pixels), (x, y))
        pen.text((x + 2, y + side + 1), text[:48], fill="black")
    return sheet
