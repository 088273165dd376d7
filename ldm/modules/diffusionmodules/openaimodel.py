"""`UNetModel`: the denoiser, eps = UNet(z_t, t, context): that of Dhariwal & Nichol 2021, and with the transformers of
Rombach et al. 2022.

Positions such as `input_blocks.4.1`, `in_layers.2` or `out_layers.3` are state-dict keys of the public checkpoints:
the order within every `nn.Sequential` here is frozen by them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.modules.attention import AttentionBlock, KeysValues, SpatialTransformer
from ldm.modules.diffusionmodules.util import normalization, timestep_embedding, zero_module


@dataclass(frozen=True)
class PreparedContext:
    """What `UNetModel.prepare_context` makes of a context (r, m, context_dim), once for all steps of sampling.

    keys_values: for each stage of the network, in the order in which it runs, those of its transformer; empty where
    it has none. pooled: (r, e), what the context adds to the time embedding, or None.
    """

    keys_values: tuple[tuple[KeysValues, ...], ...]
    pooled: Tensor | None
    dtype: torch.dtype


class TimestepEmbedSequential(nn.Sequential):
    """Passes the time embedding to residual blocks and the text to attention; the rest takes the features alone.

    It has one transformer or attention at most.
    """

    def project(self, context: Tensor) -> tuple[KeysValues, ...]:
        """The keys and values of its transformer or attention."""
        attention = (layer for layer in self if isinstance(layer, SpatialTransformer | AttentionBlock))
        return next((layer.project(context) for layer in attention), ())

    def forward(  # type: ignore[override]
        self, h: Tensor, emb: Tensor, context: tuple[KeysValues, ...] | None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer | AttentionBlock):
                h = layer(h, context)
            else:
                h = layer(h)
        return h


class Upsample(nn.Module):
    """Twice the size by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int, use_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the size by a strided 3x3 convolution, or by a mean."""

    def __init__(self, channels: int, use_conv: bool = True):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h)


class ResBlock(nn.Module):
    """A residual block that the time embedding steers: h (b, c, h, w), emb (b, e) -> (b, out_channels, h, w).

    Args:
        use_scale_shift_norm: steer by a scale and a shift after the second norm, not by an addition before it.
        resample: what changes the size on both ways through the block, between its first norm and convolution and on
            the way around; without weights (Dhariwal & Nichol 2021, section 3). None keeps the size.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_checkpoint: bool = False,
        use_scale_shift_norm: bool = False,
        resample: nn.Module | None = None,
    ):
        super().__init__()
        self.use_checkpoint, self.use_scale_shift_norm = use_checkpoint, use_scale_shift_norm
        self.resample = resample
        self.in_layers = nn.Sequential(
            normalization(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        # Recomputing activations saves memory in training and would only cost time at inference.
        if self.use_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(self._forward, h, emb, use_reentrant=False)
        return self._forward(h, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample is None:
            h = self.in_layers(x)
        else:
            h, x = self.in_layers[2](self.resample(self.in_layers[:2](x))), self.resample(x)
        steer = self.emb_layers(emb)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = steer.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + steer)
        return self.skip_connection(x) + h


def input_block(blocks: Sequence[int], level: int, i: int) -> str:
    """The name of a level's residual block `i` on the way down; the one after its last is the downsampling.

    blocks: `num_res_blocks` of each level, the finest first.
    """
    return f"input_blocks.{1 + level + sum(blocks[:level]) + i}"  # the first is the stem


def output_block(blocks: Sequence[int], level: int, i: int) -> str:
    """The name of a level's residual block `i` on the way up, of one more than on the way down."""
    return f"output_blocks.{sum(count + 1 for count in blocks[level + 1 :]) + i}"


class UNetModel(nn.Module):
    """z (b, in_channels, h, w), t (b,), context (r, m, context_dim) -> (b, out_channels, h, w).

    Each of the r rows of the context serves b / r rows of z, in their order: (2, m, d) is enough for guidance of any
    batch. Where it stays the same over many calls, `prepare_context` takes its work out of them.

    h and w must be multiples of `patch_size * 2 ** (len(channel_mult) - 1)`.

    Args:
        image_size: nominal latent size; the network takes any that fits.
        model_channels: width of the first level; `channel_mult` gives each level's multiple of it.
        num_res_blocks: residual blocks a level on the way down, one more on the way up; or a number for each level,
            the finest first.
        attention_resolutions: downsampling factors (1, 2, 4, ...) whose levels get a `SpatialTransformer` a block.
        num_heads, num_head_channels: heads of attention, by number or by width (one of them; -1 is "not this one").
        conv_resample: resample by convolutions, not by means.
        use_checkpoint: recompute the residual blocks' activations in training.
        pooled_context: ours. Adds a projection of the context's first token, [CLS], to the time embedding, so that
            the levels without attention depend on the prompt too; needs `context_dim`. False is the original.
        patch_size: ours. Squares of this many positions a side are folded into channels before the first level (the
            patches of DiT, Peebles & Xie 2023), so that larger latents cost what smaller ones did. 1 is the original.
        fine_channels: ours. Width of a thin level before the folding, which sees what lies within a patch. 0 is
            without; needs a `patch_size` above 1.
        fine_blocks: ours. Residual blocks of the thin level on each way.
        use_spatial_transformer: False has guided-diffusion's attention over positions alone in the transformers'
            place, and with a `context_dim` GLIDE's, in which the context joins the positions. The stem is then as
            wide as the first level.
        resblock_updown: resample within residual blocks, not by layers of their own.
        num_classes: adds an embedding of the class to that of the time; `forward` then takes `y`.
        dims, use_fp16, legacy: keys of the original configs. Only these values are supported: 2, False and any.

    Raises:
        ValueError: a key has a value that this network does not support.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        use_spatial_transformer: bool = True,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        legacy: bool = True,
        pooled_context: bool = False,
        patch_size: int = 1,
        fine_channels: int = 0,
        fine_blocks: int = 1,
        resblock_updown: bool = False,
    ):
        super().__init__()
        if dims != 2 or use_fp16:
            raise ValueError(f"UNetModel supports dims=2, use_fp16=False; got {dims=}, {use_fp16=}")
        if (num_heads == -1) == (num_head_channels == -1):
            raise ValueError(f"give one of num_heads and num_head_channels; got {num_heads=}, {num_head_channels=}")
        blocks = [num_res_blocks] * len(channel_mult) if isinstance(num_res_blocks, int) else list(num_res_blocks)
        if len(blocks) != len(channel_mult):
            raise ValueError(f"num_res_blocks {blocks} must have as many numbers as channel_mult {list(channel_mult)}")
        if fine_channels and patch_size == 1:
            raise ValueError(f"fine_channels {fine_channels} needs a patch_size above 1")
        self.model_channels, self.patch_size = model_channels, patch_size
        self.factor = patch_size * 2 ** (len(channel_mult) - 1)
        emb_channels = model_channels * 4
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )

        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, emb_channels)

        # Starts at zero, so that a network trained without it can go on with it.
        self.context_embed: nn.Module | None = None
        if pooled_context:
            if context_dim is None:
                raise ValueError("pooled_context needs context_dim, the width of the context")
            self.context_embed = zero_module(nn.Linear(context_dim, emb_channels))

        def res_block(channels: int, out: int, resample: nn.Module | None = None) -> ResBlock:
            return ResBlock(channels, emb_channels, dropout, out, use_checkpoint, use_scale_shift_norm, resample)

        def transformer(channels: int) -> SpatialTransformer | AttentionBlock:
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            if not use_spatial_transformer:
                return AttentionBlock(channels, heads, context_dim)
            return SpatialTransformer(channels, heads, channels // heads, transformer_depth, dropout, context_dim)

        def stage(channels: int, out: int, ds: int) -> list[nn.Module]:
            return [res_block(channels, out), *([transformer(out)] if ds in attention_resolutions else [])]

        def half(channels: int) -> nn.Module:
            if resblock_updown:
                return res_block(channels, channels, Downsample(channels, use_conv=False))
            return Downsample(channels, conv_resample)

        def double(channels: int) -> nn.Module:
            if resblock_updown:
                return res_block(channels, channels, Upsample(channels, use_conv=False))
            return Upsample(channels, conv_resample)

        widths = [int(mult * model_channels) for mult in channel_mult]
        ch, ds = model_channels if use_spatial_transformer else widths[0], 1
        area = patch_size**2
        self.fine_in: nn.Module | None = None
        self.fine_out: nn.Module | None = None
        if fine_channels:
            first = nn.Conv2d(in_channels, fine_channels, 3, padding=1)
            more = [[res_block(fine_channels, fine_channels) for _ in range(fine_blocks - 1)] for _ in range(2)]
            self.fine_in = TimestepEmbedSequential(first, res_block(fine_channels, fine_channels), *more[0])
            self.fine_up = nn.Conv2d(widths[0], fine_channels * area, 1)
            self.fine_out = TimestepEmbedSequential(res_block(2 * fine_channels, fine_channels), *more[1])
        stem = nn.Conv2d((fine_channels or in_channels) * area, ch, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(stem)])
        skips = [ch]
        for level, width in enumerate(widths):
            for _ in range(blocks[level]):
                self.input_blocks.append(TimestepEmbedSequential(*stage(ch, width, ds)))
                ch = width
                skips.append(ch)
            if level < len(widths) - 1:
                self.input_blocks.append(TimestepEmbedSequential(half(ch)))
                skips.append(ch)
                ds *= 2

        self.middle_block = TimestepEmbedSequential(res_block(ch, ch), transformer(ch), res_block(ch, ch))

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(blocks[level] + 1):
                layers = stage(ch + skips.pop(), width, ds)
                ch = width
                if level > 0 and i == blocks[level]:
                    layers.append(double(ch))
                    ds //= 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        last, channels = (fine_channels, out_channels) if fine_channels else (ch, out_channels * area)
        self.out = nn.Sequential(normalization(last), nn.SiLU(), zero_module(nn.Conv2d(last, channels, 3, padding=1)))

    @property
    def stages(self) -> list[TimestepEmbedSequential]:
        """In the order in which they run."""
        return [*self.input_blocks, self.middle_block, *self.output_blocks]

    def prepare_context(self, context: Tensor) -> PreparedContext:
        """What depends on the context alone."""
        pooled = None if self.context_embed is None else self.context_embed(context[:, 0])
        return PreparedContext(tuple(stage.project(context) for stage in self.stages), pooled, context.dtype)

    def forward(
        self,
        z: Tensor,
        timesteps: Tensor,
        context: Tensor | PreparedContext | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """See the class; y (b,) are classes, of a network that has them."""
        if isinstance(context, Tensor):
            context = self.prepare_context(context)
        seen = iter((None,) * len(self.stages) if context is None else context.keys_values)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(z.dtype))
        if self.label_emb is not None:
            assert y is not None, "a network with classes needs one for each sample"
            emb = emb + self.label_emb(y)
        if self.context_embed is not None:
            assert context is not None and context.pooled is not None, "a network with pooled_context needs a context"
        if context is not None and context.pooled is not None:
            emb = emb + context.pooled.repeat_interleave(len(z) // len(context.pooled), dim=0)
        h, skips = z, []
        fine = h = self.fine_in(h, emb, None) if self.fine_in is not None else h
        h = F.pixel_unshuffle(h, self.patch_size)  # (b, c p^2, h / p, w / p)
        for block in self.input_blocks:
            h = block(h, emb, next(seen))
            skips.append(h)
        h = self.middle_block(h, emb, next(seen))
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, next(seen))
        if self.fine_out is not None:
            h = F.pixel_shuffle(self.fine_up(h), self.patch_size)
            return self.out(self.fine_out(torch.cat([h, fine], dim=1), emb, None))
        return F.pixel_shuffle(self.out(h), self.patch_size)
