"""Prompts -> ids -> context: the exact ids of our own vocabulary and of BERT-style folders, without a network."""

import json
from pathlib import Path

import pytest
import torch

from ldm.data.tokenizer import SPECIAL, write_tokenizer
from ldm.errors import UserError
from ldm.modules.encoders.modules import BERTEmbedder, BERTTokenizer

PAD, UNK, CLS, SEP, MASK = range(5)
A, BALL, CAFE, PINK, YARN = range(5, 10)  # the words follow in the order of the alphabet
WORDS = ["yarn", "pink", "a", "cafe", "ball", "pink"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert write_tokenizer(WORDS, tmp_path / "tokenizer", max_length=8) == 10
    return tmp_path / "tokenizer"


def ids(folder: Path, *prompts: str, vocab_size: int = 10, max_length: int = 8) -> list[list[int]]:
    tokens = BERTTokenizer(str(folder), vocab_size, max_length)(list(prompts))
    assert tokens.dtype == torch.long and tokens.shape == (len(prompts), max_length)
    return tokens.tolist()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a pink yarn ball", [CLS, A, PINK, YARN, BALL, SEP, PAD, PAD]),
        ("", [CLS, SEP, PAD, PAD, PAD, PAD, PAD, PAD]),
        ("  a\n\tball ", [CLS, A, BALL, SEP, PAD, PAD, PAD, PAD]),
        ("A PINK Ball", [CLS, A, PINK, BALL, SEP, PAD, PAD, PAD]),
        ("a zorble ball", [CLS, A, UNK, BALL, SEP, PAD, PAD, PAD]),
        ("yarns", [CLS, UNK, SEP, PAD, PAD, PAD, PAD, PAD]),
        ("yarn/ball", [CLS, YARN, UNK, BALL, SEP, PAD, PAD, PAD]),
        ("Café 🧶", [CLS, CAFE, UNK, SEP, PAD, PAD, PAD, PAD]),
        ("pink " * 6, [CLS, PINK, PINK, PINK, PINK, PINK, PINK, SEP]),
        ("pink " * 5000, [CLS, PINK, PINK, PINK, PINK, PINK, PINK, SEP]),
    ],
)
def test_ids_of_our_own_vocabulary(folder: Path, prompt: str, expected: list[int]):
    assert ids(folder, prompt) == [expected]


def test_a_batch_has_the_ids_of_its_prompts(folder: Path):
    prompts = ["a ball", "", "pink " * 20]
    assert ids(folder, *prompts) == [ids(folder, prompt)[0] for prompt in prompts]


def test_the_length_is_the_text_encoder_s_and_not_the_folder_s(folder: Path):
    assert ids(folder, "a ball", max_length=77)[0] == [CLS, A, BALL, SEP] + [PAD] * 73
    assert ids(folder, "pink " * 100, max_length=77)[0] == [CLS] + [PINK] * 75 + [SEP]


def test_ids_come_from_this_folder_s_vocabulary(folder: Path, tmp_path: Path):
    write_tokenizer(["pink", "a", "zorble"], tmp_path / "other", max_length=8)
    assert ids(tmp_path / "other", "a pink zorble ball") == [[CLS, 5, 6, 7, UNK, SEP, PAD, PAD]]
    assert ids(folder, "a pink zorble ball") == [[CLS, A, PINK, UNK, BALL, SEP, PAD, PAD]]


def test_unknown_words_are_told(folder: Path):
    tokenizer = BERTTokenizer(str(folder), 10, 8)
    assert tokenizer.unknown_words("A zorble yarn ball Café and GLORP") == ["zorble", "and", "glorp"]
    assert tokenizer.unknown_words("") == tokenizer.unknown_words("Pink yarn") == []


BERT_VOCABULARY = [*SPECIAL, "yarn", "a", "##s", "ball", "pink", "##ing", ",", "cafe"]
BERT_FILES = {
    "config of the model": {"config.json": {"model_type": "bert", "vocab_size": 13}},
    "as bert-base-uncased": {
        "config.json": {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 13},
        "tokenizer_config.json": {"do_lower_case": True, "model_max_length": 512},
    },
    "config of the tokenizer": {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True}},
}


@pytest.mark.parametrize("files", BERT_FILES.values(), ids=BERT_FILES)
def test_a_bert_folder_with_vocab_txt_gives_its_ids(tmp_path: Path, files: dict[str, dict]):
    """`BertTokenizerFast(vocab_file=...)` of transformers 5 ignores the file and makes every word [UNK]."""
    (tmp_path / "vocab.txt").write_text("\n".join(BERT_VOCABULARY) + "\n")
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    expected = [CLS, 6, 9, 11, 8, 7, 5, 10, UNK, 12, SEP, PAD]  # a pink , ball ##s yarn ##ing [UNK] cafe
    assert ids(tmp_path, "A pink, Balls yarning zorble CAFÉ", vocab_size=13, max_length=12) == [expected]
    assert ids(tmp_path, "ball " * 20, vocab_size=13, max_length=5) == [[CLS, 8, 8, 8, SEP]]


def error_of(name: Path | str, vocab_size: int = 10) -> str:
    tokenizer = BERTTokenizer(str(name), vocab_size, 8)  # made when first used: this alone opens nothing
    with pytest.raises(UserError) as error:
        tokenizer(["a ball"])
    assert "\n" not in str(error.value) and str(name) in str(error.value)
    return str(error.value)


def test_a_tokenizer_larger_than_the_network_is_refused(folder: Path):
    assert "10 tokens and the text encoder 9" in error_of(folder, vocab_size=9)
    assert ids(folder, "a", vocab_size=128)[0][:3] == [CLS, A, SEP]  # a network may know more than its tokenizer


def test_a_missing_folder_is_one_line(tmp_path: Path, monkeypatch):
    assert "missing or broken" in error_of(tmp_path / "none")
    assert "local folder" in error_of("folders/that/are/not/there")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "missing or broken" in error_of("empty")


def test_without_a_network_the_public_tokenizer_is_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "connect to the network once" in error_of("google-bert/no-such-tokenizer-here")


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "none"}, "added_tokens": []}', "\0\1\2"])
def test_damaged_files_are_one_line(folder: Path, content: str):
    (folder / "tokenizer.json").write_text(content)
    assert "missing or broken" in error_of(folder)


def test_embedder_gives_one_context_a_prompt(folder: Path):
    torch.manual_seed(0)
    embedder = BERTEmbedder(16, 1, vocab_size=10, max_seq_len=8, tokenizer=str(folder), with_logits=False).eval()
    context = embedder(["a pink ball", ""])
    assert context.shape == (2, 8, 16)
    by_ids = embedder.transformer(torch.tensor(ids(folder, "a pink ball", "")))
    torch.testing.assert_close(context, by_ids, rtol=0, atol=0)
    assert not torch.allclose(context[0], context[1])
    assert not torch.allclose(embedder(["pink a ball"]), context[:1], atol=1e-4), "the order of words has no effect"


def test_embedder_without_a_tokenizer_takes_ids():
    embedder = BERTEmbedder(16, 1, vocab_size=10, max_seq_len=8, use_tokenizer=False)
    assert embedder(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, 16)
    assert "transformer.to_logits.weight" in embedder.state_dict()


def test_embedding_dropout_acts_in_training_alone(folder: Path):
    """Also on ids, as the training of the denoiser gives them to the transformer itself."""
    encoder = BERTEmbedder(16, 1, vocab_size=10, max_seq_len=8, tokenizer=str(folder), embedding_dropout=0.5)
    plain = BERTEmbedder(16, 1, vocab_size=10, max_seq_len=8, tokenizer=str(folder))
    plain.load_state_dict(encoder.state_dict())
    tokens = encoder.tokenize(["a pink ball"])
    expected = plain.eval()(["a pink ball"])
    torch.testing.assert_close(encoder.eval()(["a pink ball"]), expected)
    torch.testing.assert_close(plain.train()(["a pink ball"]), expected)
    encoder.train()
    assert not torch.equal(encoder.transformer(tokens), encoder.transformer(tokens))
    assert encoder(["a pink ball"]).ne(0).all()  # of the embeddings that go in, not of what comes out
