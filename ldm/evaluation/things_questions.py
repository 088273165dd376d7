"""The questions about everyday things: photographs that no training sees, masks, nouns; and the same things pasted.

Two splits. "test" is what tables show; nothing is trained or selected on its photographs. "val" has other photographs
and other seeds, and is what weights are chosen by. A question depends on those before it and not on how many follow.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from torch import Generator

from ldm.backbones import zoo
from ldm.backbones.words import known_words
from ldm.data.scenes.captions import article
from ldm.data.scenes.draw import chance, choice, integer, uniform
from ldm.data.things.captions import is_plural
from ldm.data.things.colors import HUES
from ldm.data.things.cutouts import Cutout, read_cutouts
from ldm.data.things.nouns import NOUNS
from ldm.data.things.photographs import PHOTOGRAPHS, find, read
from ldm.errors import UserError
from ldm.evaluation.labels import NO_THINGS, scenes_labels
from ldm.evaluation.things_classes import CLASSES
from ldm.evaluation.triples import deal

SIZE = 256
"""Side in pixels at which all pictures of a question are compared, whatever the model's own."""

SHEET_SIZE = 384
"""The same on the contact sheet's own pictures."""

SPLITS = {"test": 0, "val": 5_000_011}
"""Split -> what is added to its seeds."""

MASKS = ("ellipse", "box", "freehand")
SHEET_MASKS = ("ellipse", "freehand", "person", "thin", "border")
FEW = 40
"""A model that knows fewer nouns than this is no model of things: on its sheet it is asked for what it knows."""


@dataclass(frozen=True)
class Question:
    """One edit to ask for.

    image: (h, w, 3) uint8, the whole photograph; mask: (h, w) uint8, white where it is edited. part: (left, top, side),
    the square of it that is looked at, scaled to `size`. pasted: the photograph with a real thing in the mask, by its
    own alpha; None where there is none to paste. classes: of ImageNet, any of which is right.
    """

    image: np.ndarray
    mask: np.ndarray
    prompt: str
    photo: str
    kind: str
    part: tuple[int, int, int]
    size: int = SIZE
    noun: str = ""
    classes: tuple[int, ...] = ()
    pasted: np.ndarray | None = field(default=None, repr=False)


def nouns_of(model: str) -> dict[str, str]:
    """Noun -> the word for it that a model knows; all of them where the vocabulary is open.

    A word counts where the model's config lists it for a thing: "orange" is also a colour.
    """
    known = known_words(zoo.resolve(model))
    if not known:
        return {name: name for name in NOUNS}
    listed = {word for kind, words in known.items() if kind not in NO_THINGS for word in words}
    return {name: word for name, noun in NOUNS.items() if (word := next((w for w in noun.words if w in listed), ""))}


def said(word: str) -> str:
    """A prompt of one noun: "a fox", "an apple", "jeans"."""
    return word if is_plural(word) else article(word)


class Album:
    """The photographs of a split, and parts of them.

    Raises:
        UserError: the packages that hold them have not been fetched.
    """

    def __init__(self, split: str, sources: Path):
        self.pictures = {one.file: read(find(one, sources)) for one in PHOTOGRAPHS if one.split == split}

    def deal(self, generator: Generator) -> Iterator[tuple[str, np.ndarray, tuple[int, int, int]]]:
        """Photographs with square parts of half their shorter side to all of it, dealt equally often."""
        for file in deal(generator, list(self.pictures)):
            picture = self.pictures[file]
            height, width = picture.shape[:2]
            side = round(min(height, width) * uniform(generator, 0.5, 1))
            left, top = integer(generator, width - side + 1), integer(generator, height - side + 1)
            yield file, picture, (left, top, side)


def split_seed(split: str, seed: int) -> int:
    """The seed of a split's draws: no number of the one is the other's."""
    return seed + SPLITS[split]


def thing_questions(split: str, seed: int, words: Mapping[str, str], data: Path) -> Iterator[Question]:
    """Nouns of `CLASSES` into masks around where a thing of that noun stands in the pasted picture.

    Args:
        words: noun -> how a model is asked for it. data: the folder of `scripts/make_things.py`.

    Raises:
        UserError: no such noun, no cut-outs, or no photographs.
    """
    nouns = [noun for noun in CLASSES if noun in words]
    if not nouns:
        raise UserError("the model's vocabulary names no thing that the classifier knows: leave out the part `things`")
    generator = Generator().manual_seed(split_seed(split, seed))
    objects: dict[str, dict[str, list[Cutout]]] = {}
    for cutout in read_cutouts(data / "cutouts"):
        if cutout.split != "train" and (cutout.elevation or 0) <= 40:
            objects.setdefault(cutout.noun, {}).setdefault(cutout.instance, []).append(cutout)
    album, masks = Album(split, data / "sources").deal(generator), deal(generator, MASKS)
    for noun in deal(generator, [noun for noun in nouns if noun in objects]):
        file, picture, part = next(album)
        kind = next(masks)
        cutout = choice(generator, objects[noun][choice(generator, list(objects[noun]))])
        with Image.open(data / "cutouts" / cutout.file) as opened:
            thing = opened.convert("RGBA")
        pasted, box = paste(generator, picture, part, thing)
        mask = mask_around(generator, picture.shape[:2], box, kind)
        yield Question(picture, mask, said(words[noun]), file, kind, part, SIZE, noun, CLASSES[noun], pasted)


def paste(
    generator: Generator, picture: np.ndarray, part: tuple[int, int, int], thing: Image.Image
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """A photograph with a cut-out in a part of it, by its own alpha and in its own light; and the box of the cut-out.

    Its longer side is 0.4 to 0.85 of the part's, and it lies wholly within the part.
    """
    left, top, side = part
    longer = side * uniform(generator, 0.4, 0.85)
    width, height = (max(2, round(edge * longer / max(thing.size))) for edge in thing.size)
    if chance(generator, 0.5):
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    thing = thing.convert("RGBa").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0).convert("RGBA")
    x, y = left + integer(generator, side - width + 1), top + integer(generator, side - height + 1)
    canvas = Image.fromarray(picture)
    canvas.paste(thing, (x, y), thing)
    return np.array(canvas), (x, y, x + width, y + height)


def mask_around(
    generator: Generator, shape: tuple[int, int], box: tuple[float, float, float, float], kind: str
) -> np.ndarray:
    """A mask (h, w) in {0, 255} of a kind of `MASKS` around a box (left, top, right, bottom), with a little room."""
    left, top, right, bottom = box
    room = uniform(generator, 0.02, 0.1) * max(right - left, bottom - top)
    x, y, rx, ry = (left + right) / 2, (top + bottom) / 2, (right - left) / 2 + room, (bottom - top) / 2 + room
    canvas = Image.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(canvas)
    if kind == "box":
        pen.rectangle((x - rx, y - ry, x + rx, y + ry), fill=255)
    elif kind == "ellipse":
        pen.ellipse((x - 1.12 * rx, y - 1.12 * ry, x + 1.12 * rx, y + 1.12 * ry), fill=255)
    else:
        pen.polygon(_wobbly(generator, x, y, 1.12 * rx, 1.12 * ry, 0.05), fill=255)
    return np.array(canvas)


def _wobbly(generator: Generator, x: float, y: float, rx: float, ry: float, most: float) -> list[tuple[float, float]]:
    """An ellipse as a hand draws it: its radius off by up to `most` of itself at each of several wave lengths."""
    waves = [(n, uniform(generator, 0, most), uniform(generator, 0, 2 * math.pi)) for n in (2, 3, 4, 5, 7)]
    points = []
    for angle in np.linspace(0, 2 * math.pi, 120, endpoint=False):
        edge = 1 + sum(strength * math.cos(n * angle + phase) for n, strength, phase in waves)
        points.append((x + rx * edge * math.cos(angle), y + ry * edge * math.sin(angle)))
    return points


def sheet_questions(split: str, seed: int, words: Mapping[str, str], sources: Path) -> Iterator[Question]:
    """Edits for people to look at: all nouns that a model knows, now and then with a colour, into masks of every kind.

    A model that knows fewer than `FEW` is asked for shapes, colours and materials of the scenes.
    """
    generator = Generator().manual_seed(split_seed(split, seed) + 1)
    prompts = _prompts(generator, words, seed)
    masks = deal(generator, SHEET_MASKS)
    for file, picture, part in Album(split, sources).deal(generator):
        kind = next(masks)
        mask, part = sheet_mask(generator, picture.shape[:2], part, kind)
        noun, prompt = next(prompts)
        yield Question(picture, mask, prompt, file, kind, part, SHEET_SIZE, noun)


def _prompts(generator: Generator, words: Mapping[str, str], seed: int) -> Iterator[tuple[str, str]]:
    """Nouns, and prompts that name them."""
    if len(words) < FEW:
        yield from (("", label.prompt) for label in deal(generator, scenes_labels(seed)))
    for noun in deal(generator, list(words)):
        colored = NOUNS[noun].kind != "person" and chance(generator, 0.25)
        yield noun, said(f"{choice(generator, HUES)} {words[noun]}" if colored else words[noun])


def sheet_mask(
    generator: Generator, shape: tuple[int, int], part: tuple[int, int, int], kind: str
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A mask (h, w) in {0, 255} of a kind of `SHEET_MASKS` in a part of a photograph; and the part, which is moved to
    the photograph's edge where the mask is to be cut by it."""
    left, top, side = part
    height, width = shape
    radius = side * uniform(generator, 0.18, 0.36)
    x, y = (uniform(generator, radius, side - radius) for _ in range(2))
    if kind == "border":
        edge = integer(generator, 3)  # left, right or bottom: little stands at the top
        left, top = (0, width - side, left)[edge], (top, top, height - side)[edge]
        x, y = ((0, y), (side, y), (x, side))[edge]
    x, y = left + x, top + y
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    if kind == "freehand":
        _brush(generator, pen, x, y, radius)
    elif kind == "thin":
        _stroke(generator, pen, (left, top, side), side * uniform(generator, 0.02, 0.05))
    elif kind == "person":
        _person(generator, pen, x, y, 1.2 * radius)
        canvas = canvas.filter(ImageFilter.GaussianBlur(side / 150)).point(lambda value: 255 if value > 127 else 0)
    else:
        rx, ry = radius, radius * uniform(generator, 0.75, 1)
        pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=255)
    return np.array(canvas), (left, top, side)


def _brush(generator: Generator, pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """What a round brush leaves that goes back and forth over a place."""
    width = radius * uniform(generator, 0.4, 0.55)
    points = [
        (x + uniform(generator, -0.6, 0.6) * radius, y + (row / 3 - 1) * 0.6 * radius + side * 0.12 * radius)
        for row in range(7)
        for side in (-1, 1)
    ]
    pen.line(points, fill=255, width=round(width), joint="curve")
    for px, py in points:
        pen.ellipse((px - width / 2, py - width / 2, px + width / 2, py + width / 2), fill=255)


def _stroke(generator: Generator, pen: ImageDraw.ImageDraw, part: tuple[int, int, int], width: float) -> None:
    """A thin curved line across most of a part."""
    left, top, side = part
    ends = [(uniform(generator, low, low + 0.25), uniform(generator, 0.2, 0.8)) for low in (0.08, 0.67)]
    bend = uniform(generator, -0.25, 0.25)
    if chance(generator, 0.5):
        ends = [(b, a) for a, b in ends]
    points = []
    for t in np.linspace(0, 1, 40):
        (x0, y0), (x1, y1) = ends
        away = bend * math.sin(math.pi * t)
        points.append((left + side * (x0 + (x1 - x0) * t - away * (y1 - y0)), top + side * (y0 + (y1 - y0) * t + away)))
    pen.line(points, fill=255, width=max(2, round(width)), joint="curve")


def _person(generator: Generator, pen: ImageDraw.ImageDraw, x: float, y: float, reach: float) -> None:
    """The outline of somebody who stands there, `reach` up and down from the middle."""
    lean = uniform(generator, -0.05, 0.05)

    def at(u: float, v: float) -> tuple[float, float]:
        return x + reach * (u + lean * v), y + reach * v

    def limb(points: Sequence[tuple[float, float]], width: float) -> None:
        pen.line([at(*point) for point in points], fill=255, width=max(2, round(width * reach)), joint="curve")

    head = [*at(-0.14, -1.0), *at(0.14, -0.66)]
    pen.ellipse((min(head[0], head[2]), head[1], max(head[0], head[2]), head[3]), fill=255)
    pen.polygon([at(*p) for p in ((-0.3, -0.6), (0.3, -0.6), (0.22, 0.1), (-0.22, 0.1))], fill=255)
    pen.polygon([at(*p) for p in ((-0.08, -0.72), (0.08, -0.72), (0.1, -0.55), (-0.1, -0.55))], fill=255)
    bent = uniform(generator, 0.3, 0.5)
    limb(((-0.28, -0.54), (-bent, -0.2), (-0.34, 0.12)), 0.13)
    limb(((0.28, -0.54), (bent, -0.2), (0.34, 0.12)), 0.13)
    stride = uniform(generator, 0.1, 0.28)
    limb(((-0.12, 0.05), (-stride, 0.55), (-stride, 1.0)), 0.18)
    limb(((0.12, 0.05), (stride, 0.55), (stride, 1.0)), 0.18)
