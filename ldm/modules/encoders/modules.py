"""`BERTEmbedder`: the text encoder of the text-to-image models, with its tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.modules.x_transformer import TransformerWrapper

if TYPE_CHECKING:
    import tokenizers

PAD, UNKNOWN = "[PAD]", "[UNK]"


class BERTTokenizer:
    """Prompts -> ids (b, max_length), padded and cut to that length: [CLS] words [SEP] [PAD] ...

    Args:
        name: a folder with a tokenizer.json, or with a vocab.txt and its configs for `transformers`, or a name on the
            hub. It is only opened when first used, so that building a network needs no vocabulary.
        vocab_size: how many ids the network knows; a tokenizer with more is refused.
    """

    def __init__(self, name: str, vocab_size: int, max_length: int = 77):
        self.name, self.vocab_size, self.max_length = name, vocab_size, max_length
        self._tokenizer: tokenizers.Tokenizer | None = None

    @property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        """The tokenizer, which pads and cuts to `max_length`.

        Raises:
            UserError: it can be had neither from the folder nor from the hub, or does not fit the network.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer

    def _load(self) -> "tokenizers.Tokenizer":
        try:
            tokenizer = self._open()
        except Exception as error:  # a damaged file may break a parser in any way
            mend = (
                "its files are missing or broken"
                if Path(self.name).is_absolute() or Path(self.name).exists()
                else "connect to the network once, or set cond_stage_config.params.tokenizer to a local folder"
            )
            raise UserError(f'cannot load the tokenizer "{self.name}": {mend}') from error
        size, pad = tokenizer.get_vocab_size(), tokenizer.token_to_id(PAD)
        if size > self.vocab_size:
            raise UserError(
                f'the tokenizer "{self.name}" knows {size} tokens and the text encoder {self.vocab_size}: '
                "they do not belong together"
            )
        if pad is None or tokenizer.token_to_id(UNKNOWN) is None:
            raise UserError(f'the tokenizer "{self.name}" lacks {PAD} or {UNKNOWN}: it is none of BERT\'s kind')
        tokenizer.enable_truncation(self.max_length)
        tokenizer.enable_padding(pad_id=pad, pad_token=PAD, length=self.max_length)
        return tokenizer

    def _open(self) -> "tokenizers.Tokenizer":
        # `transformers` takes most of a second to import, and a tokenizer.json needs nothing of it.
        if (file := Path(self.name) / "tokenizer.json").is_file():
            import tokenizers

            return tokenizers.Tokenizer.from_file(str(file))
        from transformers import AutoTokenizer

        # `from_pretrained` on a folder, never `BertTokenizerFast(vocab_file=...)`, which ignores the file.
        return AutoTokenizer.from_pretrained(self.name).backend_tokenizer

    def __call__(self, prompts: list[str]) -> Tensor:
        return torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(prompts)])

    def words(self, prompt: str) -> list[str]:
        """The words of a prompt, in lower case and in their order."""
        words = self.tokenizer.pre_tokenizer.pre_tokenize_str(prompt.lower())
        return [word for word, _ in words if any(map(str.isalnum, word))]

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the vocabulary has no piece for, in their order."""
        return [
            word
            for word in self.words(prompt)
            if UNKNOWN in self.tokenizer.encode(word, add_special_tokens=False).tokens
        ]

    def knows_all(self, prompt: str) -> bool:
        """Whether nothing of a prompt, punctuation and emoji included, is unknown."""
        return UNKNOWN not in self.tokenizer.encode(prompt).tokens

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that does not fit into `max_length` tokens; "" where all of it does."""
        encoding = self.tokenizer.encode(prompt)
        if not encoding.overflowing:
            return ""
        return prompt[max(end for _, end in encoding.offsets) :].strip()

    def vocabulary(self) -> list[str]:
        """Its whole words, without marks and special tokens."""
        return [token for token in self.tokenizer.get_vocab() if token.isalnum()]

    @property
    def is_closed(self) -> bool:
        """Whether the vocabulary is of whole words only: BERT's spells any other word in pieces such as `##ing`."""
        return not any(token.startswith("##") for token in self.tokenizer.get_vocab())


class BERTEmbedder(nn.Module):
    """Prompts -> context (b, max_seq_len, n_embed): a BERT-tokenized text through a pre-norm transformer.

    Args:
        n_embed: width; n_layer: pairs of attention and feed-forward.
        vocab_size, max_seq_len: as the checkpoint has them.
        device: a key of the original configs. The module lives where `.to(...)` puts it.
        use_tokenizer: a key of the original configs: without it, `forward` takes ids.
        embedding_dropout: dropout of the embeddings of tokens and places, in training alone.
        tokenizer: ours. A folder or a name on the hub.
        with_logits: ours. The public checkpoint holds `transformer.to_logits`, which nothing reads.
    """

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        device: str | None = None,
        use_tokenizer: bool = True,
        embedding_dropout: float = 0.0,
        tokenizer: str = "bert-base-uncased",
        with_logits: bool = True,
    ):
        super().__init__()
        self.tokenize = BERTTokenizer(tokenizer, vocab_size, max_seq_len) if use_tokenizer else None
        self.transformer = TransformerWrapper(
            vocab_size, max_seq_len, n_embed, n_layer, with_logits, emb_dropout=embedding_dropout
        )

    def forward(self, prompts: list[str] | Tensor) -> Tensor:
        if self.tokenize is None:
            assert isinstance(prompts, Tensor), "without a tokenizer, ids are given"
            tokens = prompts
        else:
            tokens = self.tokenize(cast(list[str], prompts))
        return self.transformer(tokens.to(self.transformer.token_emb.weight.device))
