"""What a model does not read of a prompt: the words that it does not know, and what exceeds its tokens."""

import logging
from collections.abc import Mapping

from ldm.backbones import zoo
from ldm.backbones.contract import Backbone
from ldm.errors import UserError

logger = logging.getLogger(__name__)

_LARGE = "text2img-large"
_SHOWN = 4  # of each kind: the line is to stay one that is read
_SAY_NOTHING = {"a", "an", "the", "and", "at", "by", "from", "in", "next", "of", "on", "to", "with"}
_SAY_NOTHING |= {"made", "photo", "picture", "rendering"}


def check_words(
    model: Backbone, files: zoo.ModelFiles | None, prompt: str, force: bool = False, negative: str = ""
) -> None:
    """Refuse a prompt that says nothing to the model, and tell in one notice each what is left out of any other.

    Only the tokenizer is used, so that `zoo.outline(files)` does for the model. "" is unconditional and always fine.

    Args:
        files: where the model came from; the section `words` of its config lists what it knows, `{kind: [words]}`.
        force: take the prompt anyway.
        negative: a negative prompt, of which only what is cut off is told.

    Raises:
        UserError: the model's vocabulary is of whole words and holds none of the prompt's that says what to paint; or
            the section is no such mapping.
    """
    tokenize = model.tokenize
    if tokenize is None:
        return
    unknown = tokenize.unknown_words(prompt)
    known = set(tokenize.words(prompt)) - set(unknown) - _SAY_NOTHING
    if tokenize.is_closed and not (known or force or tokenize.knows_all(prompt)):
        raise UserError(f"the model knows no word of {_quoted(prompt)}{_known(files)} (`force` paints all the same)")
    if unknown:
        listed = ", ".join(_quoted(word) for word in unknown[:5])
        logger.warning(f"the model does not know {listed} and paints without{_known(files)}")
    for read in filter(None, (prompt, negative)):
        if cut := tokenize.cut_off(read):
            most = tokenize.max_length
            logger.warning(f"the model reads {most} tokens of a prompt: it does not see {_quoted(cut, 80)}")


def unknown_words(model: Backbone, prompt: str) -> list[str]:
    """The words of a prompt that the model does not know, as far as can be told."""
    return [] if model.tokenize is None else model.tokenize.unknown_words(prompt)


def _known(files: zoo.ModelFiles | None) -> str:
    """What it knows instead, and who knows more."""
    parts = []
    if known := known_words(files) if files else {}:
        parts.append("it knows " + ", ".join(f"{kind} ({_few(words)})" for kind, words in known.items() if words))
    if files is None or files.name != _LARGE:
        parts.append(f"{_LARGE} knows more words")
    return "".join(f"; {part}" for part in parts)


def known_words(files: zoo.ModelFiles) -> Mapping[str, list[str]]:
    """The section `words` of a model's config, commonest words first; empty where it has none.

    Raises:
        UserError: it is no mapping of kinds to lists of words.
    """
    words = files.section("words")
    lists = words.values() if isinstance(words, dict) else [None]
    if not all(isinstance(listed, list) and all(isinstance(word, str) for word in listed) for listed in lists):
        raise UserError(f"{files.config}: the section 'words' must hold lists of words, such as shapes: [ball, cube]")
    return words


def words_in_full(files: zoo.ModelFiles) -> list[str]:
    """All words that a model knows, as lines to be read: a kind and its words a line, and last what else it reads.

    Only the config and the tokenizer are read.
    """
    listed = {kind: words for kind, words in known_words(files).items() if words}
    tokenize = zoo.outline(files).tokenize
    if tokenize is None or not tokenize.is_closed:
        return [f"{files.name} reads any word"]
    named = set(tokenize.words(" ".join(word for words in listed.values() for word in words)))
    rest = sorted(word for word in tokenize.vocabulary() if word not in named)
    lines = [f"{kind}: {', '.join(words)}" for kind, words in listed.items()]
    return [*lines, *([f"other words: {', '.join(rest)}"] if rest else [])]


def _quoted(text: str, length: int = 24) -> str:
    text = " ".join(text.split())  # the line is to stay one
    return f'"{text if len(text) <= length else text[: length - 1] + "…"}"'


def _few(words: list[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (" ..." if len(words) > _SHOWN else "")
