"""Attention of the UNet: cross-attention to the text and self-attention over positions (Rombach et al. 2022, eq. 3).

The names and positions within `nn.Sequential` are those of the public checkpoints and must not change.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import Normalize


class GEGLU(nn.Module):
    """x -> a(x) * gelu(b(x)), both halves of one projection (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """(b, n, dim) -> (b, n, dim) through a gated hidden layer `mult` times as wide."""

    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * mult), nn.Dropout(dropout), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class KeysValues(NamedTuple):
    """A context as one attention sees it: k and v, each (r, heads, m, d_head)."""

    k: Tensor
    v: Tensor


class CrossAttention(nn.Module):
    """softmax(QK^T / sqrt(d)) V; without a context the tokens attend to each other.

    x (b, n, query_dim), context (r, m, context_dim) or what `project` made of it -> (b, n, query_dim). Each of the r
    rows of a context serves b / r rows of x, in their order.
    """

    def __init__(
        self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64, dropout: float = 0.0
    ):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(dropout))

    def project(self, context: Tensor) -> KeysValues:
        """The part of the work that does not depend on x."""
        k, v = (rearrange(p(context), "r m (h d) -> r h m d", h=self.heads) for p in (self.to_k, self.to_v))
        return KeysValues(k, v)

    def forward(self, x: Tensor, context: Tensor | KeysValues | None = None) -> Tensor:
        k, v = context if isinstance(context, KeysValues) else self.project(x if context is None else context)
        # Queries that share a row of the context stand in one line: its keys and values need no copies.
        q = rearrange(self.to_q(x), "(r b) n (h d) -> r h (b n) d", r=len(k), h=self.heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "r h (b n) d -> (r b) n (h d)", n=x.shape[1]))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with its layer norm before and a residual around."""

    def __init__(self, dim: int, n_heads: int, d_head: int, dropout: float = 0.0, context_dim: int | None = None):
        super().__init__()
        self.attn1 = CrossAttention(dim, None, n_heads, d_head, dropout)
        self.ff = FeedForward(dim, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | KeysValues | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map: x (b, c, h, w), context (r, m, d) -> (b, c, h, w).

    See `CrossAttention` for the rows of a context; `project` does for all blocks what does not depend on x.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | None = None,
    ):
        super().__init__()
        inner = n_heads * d_head
        self.norm = Normalize(in_channels)
        self.proj_in = nn.Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, n_heads, d_head, dropout, context_dim) for _ in range(depth)
        )
        self.proj_out = nn.Conv2d(inner, in_channels, 1)
        # A new block begins as the identity.
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def project(self, context: Tensor) -> tuple[KeysValues, ...]:
        """The keys and values of a context (r, m, context_dim), a pair for each block."""
        blocks = cast(Iterable[BasicTransformerBlock], self.transformer_blocks)
        return tuple(block.attn2.project(context) for block in blocks)

    def forward(self, x: Tensor, context: Tensor | tuple[KeysValues, ...] | None = None) -> Tensor:
        contexts = context if isinstance(context, tuple) else (context,) * len(self.transformer_blocks)
        height = x.shape[-2]
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block, seen in zip(self.transformer_blocks, contexts, strict=True):
            h = block(h, seen)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height))


class AttentionBlock(nn.Module):
    """Self-attention over the positions of x (b, c, h, w) with a residual around (Dhariwal & Nichol 2021, section 3).

    With a context (r, m, context_dim) its m rows join the positions as further keys and values (GLIDE, Nichol et al.
    2021, section 3); see `CrossAttention` for its rows.

    The output channels of `qkv` are the checkpoints': head after head, and in each its q, its k and its v.
    """

    def __init__(self, channels: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = None if context_dim is None else nn.Conv1d(context_dim, 2 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def project(self, context: Tensor) -> tuple[KeysValues, ...]:
        """The keys and values of a context (r, m, context_dim)."""
        if self.encoder_kv is None:
            return ()
        k, v = self._split(self.encoder_kv(context.mT), 2)
        return (KeysValues(k, v),)

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """(b, heads * parts * d, n) -> (parts, b, heads, n, d)."""
        return rearrange(x, "b (heads parts d) n -> parts b heads n d", heads=self.heads, parts=parts)

    def forward(self, x: Tensor, context: Tensor | tuple[KeysValues, ...] | None = None) -> Tensor:
        seen = self.project(context) if isinstance(context, Tensor) else context or ()
        height = x.shape[-2]
        h = self.qkv(rearrange(self.norm(x), "b c h w -> b c (h w)"))
        q, k, v = self._split(h, 3)
        for more in seen:
            times = len(x) // len(more.k)
            k = torch.cat([more.k.repeat_interleave(times, dim=0), k], dim=2)
            v = torch.cat([more.v.repeat_interleave(times, dim=0), v], dim=2)
        h = self.proj_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b (heads d) n"))
        return x + rearrange(h, "b c (h w) -> b c h w", h=height)
