"""The autoencoder's two networks: `Encoder` and `Decoder` (Esser et al. 2021; Rombach et al. 2022, appendix E).

Module names and their nesting (`down.0.block.1.conv2`, `mid.attn_1.q`, `nin_shortcut` ...) are those of the public
checkpoints and must not change.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def Normalize(channels: int, num_groups: int = 32) -> nn.GroupNorm:
    """The group norm of the autoencoder and of `SpatialTransformer`; the UNet's own has an epsilon of 1e-5."""
    return nn.GroupNorm(num_groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 convolution on the shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = Normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = Normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions; its projections are 1x1 convolutions in the checkpoint."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = Normalize(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[-2]
        n = self.norm(x)
        q, k, v = (rearrange(p(n), "b c h w -> b 1 (h w) c") for p in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "b 1 (h w) c -> b c h w", h=height))


class Downsample(nn.Module):
    """Half the size by a strided convolution, or by a mean where `with_conv` is false."""

    def __init__(self, channels: int, with_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        # The public weights were trained with one row and one column of zeros, at the bottom and the right only.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size by repetition, then a convolution where `with_conv` is true."""

    def __init__(self, channels: int, with_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class _Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention or not. Holds names, computes nothing itself."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool, dropout: float):
        super().__init__()
        widths = [in_channels, *[out_channels] * blocks]
        self.block = nn.ModuleList(ResnetBlock(widths[i], widths[i + 1], dropout) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(blocks if attention else 0))

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if self.attn:
                h = self.attn[i](h)
        return h


class _Middle(nn.Module):
    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Encoder(nn.Module):
    """x (b, in_channels, H, W) in [-1, 1] -> moments (b, 2 * z_channels, H/f, W/f).

    f is `patch_size * 2 ** (len(ch_mult) - 1)`.

    Args:
        ch: width of the first level; `ch_mult` gives each level's multiple of it.
        out_ch: the decoder's; accepted so that one `ddconfig` serves both networks.
        num_res_blocks: residual blocks a level.
        attn_resolutions: resolutions, counted from `resolution`, that get attention after each block.
        resolution: the nominal image size; it only says where `attn_resolutions` lie, any size can be encoded.
        resamp_with_conv: strided convolutions (else means) between levels.
        double_z: mean and log-variance (else the mean alone).
        patch_size: ours. Squares of this many pixels a side are folded into channels before the first convolution,
            which makes a small model's full-resolution level `patch_size**2` times cheaper. 1 is the original.
    """

    def __init__(
        self,
        *,
        ch: int,
        in_channels: int,
        z_channels: int,
        resolution: int,
        num_res_blocks: int,
        out_ch: int | None = None,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        attn_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        double_z: bool = True,
        patch_size: int = 1,
    ):
        super().__init__()
        self.patch_size = patch_size
        widths = [ch * m for m in ch_mult]
        size = resolution // patch_size
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([ch, *widths[:-1]], widths, strict=True)):
            level = _Level(before, width, num_res_blocks, size in attn_resolutions, dropout)
            if i < len(widths) - 1:
                level.downsample = Downsample(width, resamp_with_conv)
                size //= 2
            self.down.append(level)
        self.mid = _Middle(widths[-1], dropout)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch_size))
        for level in self.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # type: ignore[operator]
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """z (b, z_channels, h, w) -> x (b, out_ch, h*f, w*f), not clamped. The arguments are `Encoder`'s.

    Each level has one residual block more than the encoder's. `up.0` is the finest level, which the checkpoints
    number first and the network runs last.

    Args:
        tanh_out: squash the output into (-1, 1).
        give_pre_end: return the features before the last norm and convolution.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        z_channels: int,
        resolution: int,
        num_res_blocks: int,
        in_channels: int | None = None,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        attn_resolutions: Sequence[int] = (),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        double_z: bool = True,
        patch_size: int = 1,
        give_pre_end: bool = False,
        tanh_out: bool = False,
    ):
        super().__init__()
        self.patch_size, self.give_pre_end, self.tanh_out = patch_size, give_pre_end, tanh_out
        widths = [ch * m for m in ch_mult]
        size = resolution // patch_size // 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], dropout)
        levels: list[_Level] = []
        for i, (before, width) in reversed(list(enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)))):
            level = _Level(before, width, num_res_blocks + 1, size in attn_resolutions, dropout)
            if i > 0:
                level.upsample = Upsample(width, resamp_with_conv)
                size *= 2
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = Normalize(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_ch * patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.finish(self.begin(z, len(self.up)), len(self.up))

    def begin(self, z: Tensor, levels: int) -> Tensor:
        """z -> the features before the `levels` finest levels."""
        return self._climb(self.mid(self.conv_in(z)), range(levels, len(self.up)))

    def finish(self, h: Tensor, levels: int) -> Tensor:
        """What `begin` gave -> x."""
        h = self._climb(h, range(levels))
        if self.give_pre_end:
            return h
        x = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch_size)
        return torch.tanh(x) if self.tanh_out else x

    def _climb(self, h: Tensor, levels: range) -> Tensor:
        for i in reversed(levels):
            h = self.up[i](h)
            if i > 0:
                h = self.up[i].upsample(h)  # type: ignore[operator]
        return h
