"""The pre-norm text transformer of the public model, after x-transformers (Wang 2020).

Layers alternate attention and feed-forward: `attn_layers.layers.{2i}` and `.{2i+1}`, each a pair [norm, block]. These
positions, and `net.0.0` within the feed-forward, are those of the public checkpoints and must not change.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

HEADS, DIM_HEAD = 8, 64  # x-transformers' defaults, which no config overrides


def embedding(count: int, dim: int) -> nn.Embedding:
    """A table of `count` vectors, small ones to begin with."""
    weight = torch.empty(count, dim)
    if not weight.is_meta:  # there it would import torch's compiler: more than a second at every start, for nothing
        nn.init.normal_(weight, std=0.02)
    return nn.Embedding.from_pretrained(weight, freeze=False)


class AbsolutePositionalEmbedding(nn.Module):
    """The learned embedding of positions 0..n-1: -> (n, dim)."""

    def __init__(self, dim: int, max_seq_len: int):
        super().__init__()
        self.emb = embedding(max_seq_len, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.emb.weight[: tokens.shape[1]]


class Attention(nn.Module):
    """Multi-head self-attention, (b, n, dim) -> (b, n, dim). Padding is attended to, as in the public model."""

    def __init__(self, dim: int, heads: int = HEADS, dim_head: int = DIM_HEAD):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_k = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_v = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(p(x), "b n (h d) -> b h n d", h=self.heads) for p in (self.to_q, self.to_k, self.to_v))
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """(b, n, dim) -> (b, n, dim) through a GELU layer `mult` times as wide."""

    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0):
        super().__init__()
        hidden = nn.Sequential(nn.Linear(dim, dim * mult), nn.GELU())
        self.net = nn.Sequential(hidden, nn.Dropout(dropout), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Encoder(nn.Module):
    """`depth` pairs of attention and feed-forward, each x + block(norm(x))."""

    def __init__(self, dim: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), Attention(dim)]))
            self.layers.append(nn.ModuleList([nn.LayerNorm(dim), FeedForward(dim)]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            norm, block = layer.children()
            x = x + block(norm(x))
        return x


class TransformerWrapper(nn.Module):
    """Token ids (b, n) -> embeddings (b, n, dim).

    Args:
        with_logits: build `to_logits`, which the public checkpoint holds and nothing reads. A model of our own
            leaves it out.
        emb_dropout: of the sum of both embeddings, in training.
    """

    def __init__(
        self,
        num_tokens: int,
        max_seq_len: int,
        dim: int,
        depth: int,
        with_logits: bool = True,
        emb_dropout: float = 0.0,
    ):
        super().__init__()
        self.token_emb = embedding(num_tokens, dim)
        self.pos_emb = AbsolutePositionalEmbedding(dim, max_seq_len)
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.attn_layers = Encoder(dim, depth)
        self.norm = nn.LayerNorm(dim)
        if with_logits:
            self.to_logits = nn.Linear(dim, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.attn_layers(self.emb_dropout(self.token_emb(tokens) + self.pos_emb(tokens))))
