"""What a model says of a prompt's words that it does not know, and of what exceeds its tokens."""

import logging

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from ldm.backbones import zoo
from ldm.backbones.words import check_words, known_words
from ldm.errors import UserError
from ldm.modules.encoders.modules import BERTTokenizer
from tests.tiny import save_tiny_model, tiny_model

WORDS = {"colours": ["red", "blue"], "shapes": ["ball", "cube", "cone", "mug", "ring"]}


@pytest.fixture
def files(tmp_path) -> zoo.ModelFiles:
    return zoo.resolve(str(save_tiny_model(tmp_path / "model", words=WORDS)))


@pytest.fixture
def told(files, caplog):
    """The notices for a prompt; no weights are loaded, the outline of the model is enough."""
    outline = zoo.outline(files)

    def told(prompt: str, force: bool = False) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="ldm"):
            check_words(outline, files, prompt, force)
        return caplog.messages

    return told


@pytest.mark.parametrize("prompt", ["a pink yarn ball", "", " ", "a"])
def test_nothing_is_told_of_what_is_known(told, prompt: str):
    assert told(prompt) == []


def test_unknown_words_are_told_with_the_known_ones_by_kind(told):
    (line,) = told("a spaceship, a ball and a rocket")
    assert '"spaceship", "and", "rocket"' in line
    assert "it knows colours (red, blue), shapes (ball, cube, cone, mug ...); text2img-large" in line
    (line,) = told("ball " + " ".join(f"{'x' * 500}{i}" for i in range(50)))
    assert len(line) < 400 and "\n" not in line  # stays readable whatever the prompt


@pytest.mark.parametrize("prompt", ["fire", "a fire", "a spaceship on fire!", "!!!", "🔥", "feu\nfeu", "feuer " * 100])
def test_a_prompt_without_any_known_word_is_refused_unless_forced(told, prompt: str):
    with pytest.raises(UserError, match=r"knows no word of.*it knows colours \(red, blue\).*`force`") as caught:
        told(prompt)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    told(prompt, force=True)


def test_what_is_cut_is_told(told):
    """[CLS] and [SEP] leave 75 of 77 tokens: 25 times three words."""
    fits = " ".join(["a red ball"] * 25)
    assert told(fits) == []
    (line,) = told(fits + " , a pink cube")
    assert "77 tokens" in line and '", a pink cube"' in line
    (line,) = told(fits + " yarn" * 1000)
    assert len(line) < 200


def test_an_open_vocabulary_never_refuses_and_tells_the_cut(files, told, caplog):
    """BERT spells what it does not know: a character that it lacks is no reason to refuse."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "f", "##i", "##r", "##e"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(files.config.parent / "tokenizer" / "tokenizer.json"))
    outline = zoo.outline(files)
    with caplog.at_level(logging.WARNING, logger="ldm"):
        for prompt in ("fire", "🔥", "z"):
            check_words(outline, files, prompt)
        caplog.clear()
        check_words(outline, files, "fire " * 19 + "fir fie")  # four pieces a word, 77 in all
    assert len(caplog.messages) == 1 and '"ir fie"' in caplog.messages[0]


def test_models_without_a_list_of_words_and_the_large_one_itself(tmp_path, caplog):
    files = zoo.resolve(str(save_tiny_model(tmp_path / "plain")))
    for name, more in (("plain", True), ("text2img-large", False)):
        caplog.clear()
        check_words(
            tiny_model(), zoo.ModelFiles(name, *(files.config, files.weights), None, files.given), "a ball, lit"
        )
        (line,) = caplog.messages
        assert '"lit"' in line and "it knows" not in line and ("text2img-large" in line) == more


def test_a_damaged_list_of_words_is_one_line(tmp_path):
    files = zoo.resolve(str(save_tiny_model(tmp_path / "model", words={"shapes": "ball"})))
    with pytest.raises(UserError, match="section 'words'"):
        check_words(tiny_model(), files, "a spaceship")


def test_scenes_tells_words_that_it_knows():
    files = zoo.resolve("scenes")
    words = known_words(files)
    assert words.keys() == {"shapes", "colours", "materials", "backgrounds"}
    tokenize = BERTTokenizer(str(files.config.parent / "tokenizer"), 128)
    for listed in words.values():
        assert len(listed) >= 5 and not tokenize.unknown_words(" ".join(listed))
