"""Which labels a benchmark may ask of a model: classes of ImageNet, or what the judge of scenes tells apart.

A model of an open vocabulary is asked for any class by its name, as in the paper. One that knows few words is asked
only for those that are the last word of a class's name, `mug` for "coffee mug", and every such class is right.
"""

import re
from collections.abc import Sequence
from itertools import islice

from torch import Generator

from ldm.backbones import zoo
from ldm.backbones.words import known_words
from ldm.data.scenes.captions import article
from ldm.errors import UserError
from ldm.evaluation.classifiers import class_names
from ldm.evaluation.inputs import Label
from ldm.evaluation.triples import dealt_looks

KINDS = ("imagenet", "scenes")
NO_THINGS = {"colours", "colors", "materials", "backgrounds"}
"""Kinds of words, in a model's config, that name no thing."""

SCENES = 144
"""Prompts that `scenes` chooses from: each shape, material and colour equally often."""


def labels(kind: str, model: str | None = None, seed: int = 0) -> list[Label]:
    """The labels of a kind of `KINDS` that a model knows; all, where none is named or its vocabulary is open.

    Raises:
        UserError: another kind, or no such model.
        MissingExtra: the names of the classes are a package's.
    """
    if kind == "scenes":
        return scenes_labels(seed)
    if kind != "imagenet":
        raise UserError(f'`labels` is "{kind}": give one of {", ".join(KINDS)}')
    return imagenet_labels(class_names(), words_of(model) if model else None)


def imagenet_labels(names: Sequence[str], words: Sequence[str] | None) -> list[Label]:
    """A label of each class, or for each of `words` one of all classes whose name ends in it.

    Args:
        names: of the classes, by their numbers.
    """
    if words is None:
        same: dict[str, list[int]] = {}
        for index, name in enumerate(names):  # "maillot" and "crane" are two classes each
            same.setdefault(name, []).append(index)
        return [Label(name, name, tuple(classes)) for name, classes in same.items()]
    last = [re.findall(r"[a-z]+", name.lower())[-1:] for name in names]
    found = {word: tuple(i for i, one in enumerate(last) if one == [word.lower()]) for word in words}
    return [Label(article(word), word, classes) for word, classes in found.items() if classes]


def words_of(model: str) -> list[str] | None:
    """The words for things that a model's config lists; None where it lists none: its vocabulary is open."""
    known = known_words(zoo.resolve(model))
    return [word for kind, words in known.items() if kind not in NO_THINGS for word in words] if known else None


def scenes_labels(seed: int) -> list[Label]:
    """Prompts of a shape, a material and a colour, for the judge of scenes."""
    series = islice(dealt_looks(Generator().manual_seed(seed)), SCENES)
    return [Label(prompt, prompt, expected=expected) for prompt, expected in series]
