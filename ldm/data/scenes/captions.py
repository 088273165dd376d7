"""The grammar of the captions, and the list of its words for the tokenizer.

Every attribute is left out now and then, synonyms are drawn, and plain plastic is often not mentioned, so that a
model learns what each word means on its own. Words are lower case, separated by single spaces, without punctuation.
"""

from collections.abc import Sequence

import torch

from ldm.data.scenes.backgrounds import KINDS, Kind
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.draw import chance, choice
from ldm.data.scenes.materials import MATERIALS
from ldm.data.scenes.shapes import SHAPES

PREFIXES = ("a photo of", "a picture of", "an image of", "a rendering of")
JOINTS = ("and", "and", "next to", "beside")
EMPTY = ("a photo", "a picture", "a background", "an empty background", "nothing")


def article(phrase: str) -> str:
    """`phrase` with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _word(generator: torch.Generator, words: tuple[str, ...], synonym: float = 0.3) -> str:
    """The first of `words`, or with probability `synonym` one of the others."""
    if len(words) > 1 and chance(generator, synonym):
        return choice(generator, words[1:])
    return words[0]


def noun_phrase(
    generator: torch.Generator, shape: str, material: str | None, color: str | None, *, complete: bool = False
) -> str:
    """ "pink yarn ball", "ball made of pink yarn", "pink ball with stripes": no article.

    material, color: None is not named. complete: leave nothing out and use each word's commonest form only in the
    plain order (for evaluation prompts).
    """
    noun = SHAPES[shape].words[0] if complete else _word(generator, SHAPES[shape].words)
    hue = None if color is None else COLORS[color].words[0] if complete else _word(generator, COLORS[color].words)
    if complete:
        return " ".join(word for word in (hue, material and MATERIALS[material].adjectives[0], noun) if word)
    if hue and chance(generator, 0.10):
        hue = None
    unsaid = 0.5 if material == "plastic" else 0.09 if hue or color is None else 0.0
    if chance(generator, unsaid):
        material = None
    if material is None:
        return " ".join(word for word in (hue, noun) if word)
    words = MATERIALS[material]
    if words.nouns and chance(generator, 0.16):
        stuff = " ".join(word for word in (hue, _word(generator, words.nouns)) if word)
        return f"{noun} made of {stuff}"
    if words.patterns and chance(generator, 0.16):
        return " ".join(word for word in (hue, noun, "with", _word(generator, words.patterns)) if word)
    return " ".join(word for word in (hue, _word(generator, words.adjectives, 0.25), noun) if word)


def caption(
    generator: torch.Generator, things: Sequence[tuple[str, str | None, str | None]], background: str | None
) -> str:
    """The caption of an image of `things` (shape, material, color), in front of the background of that kind."""
    kind = KINDS[background] if background else None
    if not things:
        return _background_caption(generator, kind)
    phrases = [noun_phrase(generator, *thing) for thing in things]
    if len(things) > 1 or chance(generator, 0.8):
        phrases = [article(phrase) for phrase in phrases]
    text = f" {choice(generator, JOINTS)} ".join(phrases)
    if chance(generator, 0.15):
        text = f"{choice(generator, PREFIXES)} {text}"
    if kind and chance(generator, 0.65):
        text = f"{text} {_word(generator, kind.prepositions)} {_word(generator, kind.words)}"
    return text


def full_caption(thing: tuple[str, str | None, str | None] | None, background: str | None) -> str:
    """The caption that leaves nothing out, in the commonest words: "a pink yarn ball on grass"."""
    kind = KINDS[background] if background else None
    if thing is None:
        return kind.words[0] if kind else EMPTY[0]
    text = article(noun_phrase(torch.Generator(), *thing, complete=True))
    return f"{text} {kind.prepositions[0]} {kind.words[0]}" if kind else text


def _background_caption(generator: torch.Generator, kind: Kind | None) -> str:
    if kind is None:
        return choice(generator, EMPTY)
    text = _word(generator, kind.words)
    return f"{choice(generator, PREFIXES)} {text}" if chance(generator, 0.25) else text


def words_by_kind() -> dict[str, list[str]]:
    """Every single word of the grammar under "shape", "color", "material", "background" and "other", each sorted.

    A word is listed under the first kind that uses it ("wood" under material, not again under background).
    """
    phrases = {
        "shape": [word for shape in SHAPES.values() for word in shape.words],
        "color": [word for color in COLORS.values() for word in color.words],
        "material": [
            word for material in MATERIALS.values() for word in material.adjectives + material.nouns + material.patterns
        ],
        "other": ["a an made of with", *PREFIXES, *JOINTS, *(p for kind in KINDS.values() for p in kind.prepositions)],
        "background": [*(word for kind in KINDS.values() for word in kind.words), *EMPTY],
    }
    seen: set[str] = set()
    result = {}
    for kind, texts in phrases.items():
        words = {word for text in texts for word in text.split()} - seen
        seen |= words
        result[kind] = sorted(words)
    return result


def vocabulary() -> list[str]:
    """Every single word that a caption can hold, lower case, sorted."""
    return sorted(word for words in words_by_kind().values() for word in words)
