"""The grammar of the things' captions, and the list of all words for the tokenizer.

As with the scenes: lower case, every attribute left out now and then, synonyms drawn.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Generator

from ldm.data.scenes.captions import EMPTY, JOINTS, article
from ldm.data.scenes.captions import vocabulary as scene_vocabulary
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.draw import chance, choice
from ldm.data.things.nouns import NOUNS
from ldm.data.things.photographs import PHOTOGRAPHS

PHOTO_WORDS = ("a photo of", "a picture of", "an image of")
STYLES = {
    "fluent": ("a 3d icon of", "a cute 3d render of", "a toy-like"),
    "furniture": ("a 3d model of", "a 3d render of"),
}
"""What captions call the look of a source's pictures, now and then."""

CLOSE = ("a close-up of", "a close up of")
MASS = {"bread", "cheese", "salad", "popcorn", "chocolate", "candy", "fire", "flame", "corn", "sushi", "broccoli"}
"""Nouns that stand without "a"."""


FACING = {"animal", "vehicle", "furniture", "machine"}
"""Kinds that have a front, and whose models all face it."""


@dataclass(frozen=True)
class Said:
    """What there is to say about a thing. turned: the colour is not the one that its picture came with. azimuth,
    elevation: of its view in degrees, where known. close: it fills the picture."""

    noun: str
    source: str
    color: str | None = None
    turned: bool = False
    azimuth: float | None = None
    elevation: float | None = None
    close: bool = False


def is_plural(word: str) -> bool:
    """Whether a noun is said without "a"."""
    last = word.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "bus", "cactus", "hippopotamus", "rhinoceros"))
    return word in MASS or (plural and word not in ("bus", "octopus", "cactus"))


def view_words(said: Said) -> str | None:
    """How a view is called: None for the usual ones."""
    if said.azimuth is None or said.elevation is None:
        return None
    if said.elevation > 44:
        return "from above"
    if NOUNS[said.noun].kind not in FACING:
        return None
    turn = abs(said.azimuth)
    if 65 < turn < 115:
        return "from the side"
    return "from behind" if turn > 140 else "from the front" if turn < 18 else None


def thing_phrase(generator: Generator, said: Said) -> str:
    """ "a red sports car seen from the side"."""
    words = NOUNS[said.noun].words
    noun = choice(generator, words[1:]) if len(words) > 1 and chance(generator, 0.3) else words[0]
    phrase = noun
    if said.color and NOUNS[said.noun].kind != "person" and chance(generator, 0.97 if said.turned else 0.35):
        hues = COLORS[said.color].words
        phrase = f"{hues[0] if chance(generator, 0.85) else choice(generator, hues)} {noun}"
    if not is_plural(noun) and chance(generator, 0.85):
        phrase = article(phrase)
    style = chance(generator, 0.12)
    if said.close and chance(generator, 0.4):
        phrase = f"{choice(generator, CLOSE)} {phrase}"
    elif style:
        words_of = choice(generator, STYLES[said.source])
        bare = phrase.removeprefix("a ").removeprefix("an ") if words_of.endswith("like") else phrase
        phrase = f"{words_of} {bare}"
    view = view_words(said)
    if view and chance(generator, 0.35):
        phrase = f"{phrase} {'seen ' if chance(generator, 0.3) else ''}{view}"
    return phrase


def caption(generator: Generator, things: Sequence[Said], ground: str | None) -> str:
    """The caption of things before a background, which `ground` ("on grass") describes where it has words."""
    if not things:
        return ground.split(" ", 1)[1] if ground and ground.startswith(("on ", "in a ")) else choice(generator, EMPTY)
    text = f" {choice(generator, JOINTS)} ".join(thing_phrase(generator, said) for said in things)
    if chance(generator, 0.12) and not text.startswith(tuple(style for group in STYLES.values() for style in group)):
        text = f"{choice(generator, PHOTO_WORDS)} {text}"
    if ground and chance(generator, 0.55):
        text = f"{text} {ground}"
    return text


def split_words(text: str) -> list[str]:
    """As the tokenizer splits: at spaces, and every mark for itself."""
    return re.findall(r"\w+|[^\w\s]", text)


def _texts() -> Iterable[str]:
    yield from scene_vocabulary()
    for noun in NOUNS.values():
        yield from noun.words
    for photograph in PHOTOGRAPHS:
        yield from photograph.words
    yield from (*PHOTO_WORDS, *CLOSE, *JOINTS, *EMPTY, "seen from above behind the side front")
    for styles in STYLES.values():
        yield from styles


def vocabulary() -> list[str]:
    """Every single word that a caption of things or of scenes can hold, lower case, sorted."""
    return sorted({word for text in _texts() for word in split_words(text)})
