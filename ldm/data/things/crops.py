"""Things cut out of composites with true and false captions: what the ranker of everyday things learns from.

Crops are framed as `ldm.data.object_crops` frames those of the scenes. What a caption can be wrong in are the noun, the
colour where a thing has one, and of our own shapes the material.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ldm.data.epochs import seeded
from ldm.data.object_crops import UNSAID, ObjectCrops
from ldm.data.object_crops import VALUES as SCENE
from ldm.data.object_crops import write_captions as captions_of_scene
from ldm.data.scenes.captions import EMPTY, article
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.draw import chance, choice
from ldm.data.scenes.materials import MATERIALS
from ldm.data.scenes.shapes import SHAPES
from ldm.data.things.captions import PHOTO_WORDS, is_plural
from ldm.data.things.nouns import NOUNS


def _noun_of(shape: str) -> str:
    """The noun that is called what a shape is: a mug is a cup; else the shape itself."""
    word = SHAPES[shape].words[0]
    return next((name for name, noun in NOUNS.items() if word in noun.words), shape)


OF_SHAPE = {shape: _noun_of(shape) for shape in SHAPES}
"""Shape of the scenes -> the noun that it counts as."""

VALUES = {
    "noun": [*NOUNS, *(noun for noun in OF_SHAPE.values() if noun not in NOUNS)],
    "color": list(COLORS),
    "material": list(MATERIALS),
}
NOTHING = len(VALUES["noun"])
"""The noun of a composite without a thing: captions that name one are wrong about it."""

_KINDS: dict[str, list[str]] = {}
for _name, _noun in NOUNS.items():
    _KINDS.setdefault(_noun.kind, []).append(_name)

Known = dict[str, Any]
"""Of a thing: "noun" (a key of `NOUNS` or of `SHAPES`, or None), "color", and of a shape "material"."""


def encode(named: Known, nothing: bool = False) -> list[int]:
    """Numbers of (noun, color, material), `UNSAID` for None. nothing: no noun at all is the noun `NOTHING`."""
    noun = named.get("noun")
    known = {**named, "noun": OF_SHAPE.get(noun, noun) if noun else None}
    numbers = [values.index(known[key]) if known.get(key) else UNSAID for key, values in VALUES.items()]
    return [NOTHING, *numbers[1:]] if nothing and not noun else numbers


def plain_caption(noun: str) -> str:
    """ "a fox", "jeans"; of a shape "a ball"."""
    word = NOUNS[noun].name if noun in NOUNS else SHAPES[noun].words[0]
    return word if is_plural(word) else article(word)


def write_caption(generator: Generator, known: Known, colored: bool | None = None) -> tuple[str, Known]:
    """A caption of one thing of `NOUNS`, or of none, and what it names of it; colored: None names a colour at times."""
    noun, color = known["noun"], known.get("color")
    if not noun:
        return choice(generator, EMPTY), {}
    words = NOUNS[noun].words
    phrase = word = choice(generator, words[1:]) if len(words) > 1 and chance(generator, 0.3) else words[0]
    if colored is None:
        colored = NOUNS[noun].kind != "person" and chance(generator, 0.6)
    if color and colored:
        phrase = f"{COLORS[color].words[0]} {phrase}"
    if not is_plural(word) and chance(generator, 0.9):
        phrase = article(phrase)
    if chance(generator, 0.15):
        phrase = f"{choice(generator, PHOTO_WORDS)} {phrase}"
    return phrase, {"noun": noun, "color": color if colored else None}


def contradict(generator: Generator, known: Known, named: Known) -> Known:
    """`known` with another colour, where its caption names one, or another noun, as often of the same kind as any."""
    noun = known["noun"]
    if not noun:
        return {"noun": choice(generator, list(NOUNS)), "color": None}
    if named.get("color") and chance(generator, 0.5):
        return {**known, "color": choice(generator, [color for color in COLORS if color != known["color"]])}
    pool = _KINDS[NOUNS[noun].kind] if chance(generator, 0.5) else list(NOUNS)
    return {**known, "noun": choice(generator, [one for one in pool if one != noun])}


def write_captions(generator: Generator, known: Known, false: int) -> tuple[list[str], list[list[int]]]:
    """A true caption and `false` ones, each wrong in one thing; and the numbers of what each of them says."""
    if "material" in known:  # a shape: as the scenes' ranker learns it
        shape = {"shape": known["noun"], "material": known["material"], "color": known["color"], "background": None}
        texts, numbers = captions_of_scene(generator, shape, false)
        return texts, [_of_scene(row) for row in numbers]
    text, named = write_caption(generator, known)
    texts, told = [text], [encode(named)]
    for _ in range(false):
        wrong, says = write_caption(generator, contradict(generator, known, named), bool(named.get("color")))
        texts.append(wrong)
        told.append(encode(says))
    return texts, told


def _of_scene(numbers: list[int]) -> list[int]:
    """Numbers of a scene's attributes as numbers of `VALUES`."""
    shape, material, color, _ = (
        values[number] if number != UNSAID else None for values, number in zip(SCENE.values(), numbers, strict=True)
    )
    return encode({"noun": shape, "material": material, "color": color})


class ThingCrops(ObjectCrops):
    """As `ObjectCrops`, of composites that show one thing, or none."""

    def __init__(
        self, folder: Path | str, size: int, margin: float, false_captions: int, seed: int = 0, limit: int | None = None
    ):
        super().__init__(folder, size, margin, false_captions, seed, limit)
        self.rows = [i for i, known in enumerate(self.shards.attributes) if known["count"] < 2]

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor | list[str]]:
        """As of `ObjectCrops`; "attributes" (3,) and "said" (1 + false, 3) are numbers of `encode`."""
        epoch, index = place
        generator = seeded(self.seed, epoch, index)
        row = self.rows[index]
        known = self.shards.attributes[row]
        texts, told = write_captions(generator, known, self.false_captions)
        return {
            "image": self._crop(generator, row, known["box"]),
            "attributes": torch.tensor(encode(known, nothing=True)),
            "texts": texts,
            "said": torch.tensor(told),
        }

    def full_caption(self, row: int) -> str:
        """The composite's own caption."""
        return self.shards.captions[row]
