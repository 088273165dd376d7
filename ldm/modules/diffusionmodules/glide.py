"""GLIDE's networks (Nichol et al. 2021): guided-diffusion's UNet, told of a text and of a picture to fill in.

Names and positions are those of the public checkpoints and must not change.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.diffusionmodules.openaimodel import PreparedContext, UNetModel


class _Attention(nn.Module):
    """Self-attention over a text, whose `c_qkv` has head after head, in each its q, its k and its v."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.c_qkv(x), "b n (heads parts d) -> parts b heads n d", heads=self.heads, parts=3)
        return self.c_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


class _Feedforward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = _Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _Feedforward(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.resblocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class InpaintText2ImUNet(UNetModel):
    """x_t with a picture to fill in, its known part and a text -> the noise and the variances (b, 6, h, w).

    The last token joins the time embedding, all tokens join each attention as further keys and values.

    Args:
        text_ctx: tokens of a text. xf_width, xf_layers, xf_heads: the text transformer. n_vocab: tokens that there are.
        low_res: whether the network is told a smaller picture too, as the upsampler is.
        unet: the arguments of `UNetModel`, without `in_channels`, `context_dim` and `use_spatial_transformer`.
    """

    def __init__(
        self,
        text_ctx: int = 128,
        xf_width: int = 512,
        xf_layers: int = 16,
        xf_heads: int = 8,
        n_vocab: int = 50257,
        low_res: bool = False,
        **unet: Any,
    ):
        channels = 3 + 3 + 1 + (3 if low_res else 0)
        super().__init__(in_channels=channels, context_dim=xf_width, use_spatial_transformer=False, **unet)
        self.low_res, self.text_ctx = low_res, text_ctx
        self.transformer = _Transformer(xf_width, xf_layers, xf_heads)
        self.final_ln = nn.LayerNorm(xf_width)
        self.token_embedding = nn.Embedding(n_vocab, xf_width)
        self.positional_embedding = nn.Parameter(torch.empty(text_ctx, xf_width).normal_(std=0.01))
        self.padding_embedding = nn.Parameter(torch.empty(text_ctx, xf_width).normal_(std=0.01))
        self.transformer_proj = nn.Linear(xf_width, self.model_channels * 4)

    def read(self, tokens: Tensor, known: Tensor) -> PreparedContext:
        """Tokens (r, text_ctx), of which `known` (r, text_ctx) are no padding -> what `forward` is told of them."""
        x = self.token_embedding(tokens) + self.positional_embedding
        x = torch.where(known[..., None], x, self.padding_embedding)
        x = self.final_ln(self.transformer(x))  # (r, n, xf_width)
        keys_values = tuple(stage.project(x) for stage in self.stages)
        return PreparedContext(keys_values, self.transformer_proj(x[:, -1]), x.dtype)

    def fill_in(
        self,
        x: Tensor,
        timesteps: Tensor,
        text: PreparedContext,
        image: Tensor,
        known: Tensor,
        low_res: Tensor | None = None,
    ) -> Tensor:
        """The network's output (b, 6, h, w).

        Args:
            x: (b, 3, h, w) at the timesteps (b,). text: of `read`, for each r rows that serve b / r samples.
            image: (1 or b, 3, h, w) in [-1, 1]; known: (1 or b, 1, h, w), 1 where it is known.
            low_res: (b, 3, h', w') in [-1, 1], of the upsampler.
        """
        known = known.expand(len(x), -1, -1, -1)
        parts = [x, image * known, known]
        if low_res is not None:
            parts.append(F.interpolate(low_res, x.shape[2:], mode="bilinear", align_corners=False))
        return self(torch.cat(parts, dim=1), timesteps, text)


def padded(tokens: Sequence[int], length: int, end: int) -> tuple[list[int], list[bool]]:
    """Tokens cut or padded to a length, by `end`, and which of them are no padding."""
    kept = list(tokens)[:length]
    rest = length - len(kept)
    return kept + [end] * rest, [True] * len(kept) + [False] * rest
