"""What a model says of a prompt's words that it does not know."""

import logging
from collections.abc import Mapping

from ldm.backbones import zoo
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion

logger = logging.getLogger(__name__)

_LARGE = "text2img-large"
_SHOWN = 4  # of each kind: the line is to stay one that is read


def tell_unknown_words(model: LatentDiffusion, files: zoo.ModelFiles, prompt: str) -> None:
    """One notice where the model's vocabulary lacks words of the prompt: which, what it knows instead, who knows more.

    Args:
        files: where the model came from; the section `words` of its config lists what it knows, `{kind: [words]}`.

    Raises:
        UserError: the section is no such mapping.
    """
    unknown = model.cond_stage_model.tokenize.unknown_words(prompt)
    if not unknown:
        return
    parts = [f"the model does not know {', '.join(_quoted(word) for word in unknown[:5])} and paints without"]
    if known := known_words(files):
        parts.append("it knows " + ", ".join(f"{kind} ({_few(words)})" for kind, words in known.items() if words))
    if files.name != _LARGE:
        parts.append(f"{_LARGE} knows more words")
    logger.warning("; ".join(parts))


def known_words(files: zoo.ModelFiles) -> Mapping[str, list[str]]:
    """The section `words` of a model's config, commonest words first; empty where it has none.

    Raises:
        UserError: it is no mapping of kinds to lists of words.
    """
    words = zoo.read_config(files.config).get("words") or {}
    lists = words.values() if isinstance(words, dict) else [None]
    if not all(isinstance(listed, list) and all(isinstance(word, str) for word in listed) for listed in lists):
        raise UserError(f"{files.config}: the section `words` must hold lists of words, such as shapes: [ball, cube]")
    return words


def _quoted(word: str) -> str:
    return f'"{word if len(word) <= 24 else word[:23] + "…"}"'


def _few(words: list[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (" ..." if len(words) > _SHOWN else "")
