"""Models of diffusers as backbones: what the families have in common, and an adapter for each.

diffusers brings networks, text encoders and their tokenizers. Sampling, guidance, blending and reconstruction are ours.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ldm.backbones.families import PREDICTION_KINDS, Family
from ldm.errors import UserError
from ldm.models.diffusion.levels import Flow, NoiseLevels, VariancePreserving
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.schedule import NoiseLevel


@dataclass(frozen=True, eq=False)
class PromptRows:
    """Prompts as a network reads them: for each a mapping of the network's arguments to tensors (1, ...)."""

    rows: tuple[Mapping[str, Tensor], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int]) -> "PromptRows":
        """These rows, in this order."""
        return replace(self, rows=tuple(self.rows[i] for i in rows))

    @cached_property
    def stacked(self) -> dict[str, Tensor]:
        """One tensor (r, ...) an argument."""
        return {name: torch.cat([row[name] for row in self.rows]) for name in self.rows[0]}

    def serving(self, samples: int) -> dict[str, Tensor]:
        """The same for so many samples, of which each row serves an equal part."""
        each = samples // len(self)
        return {name: x if each == 1 else x.repeat_interleave(each, dim=0) for name, x in self.stacked.items()}


@dataclass(frozen=True)
class TokenLimit:
    """What a tokenizer of pieces reads of a prompt: everything, up to a number of tokens; see `PromptReader`."""

    tokenizer: Any
    max_length: int
    is_closed = False

    def words(self, prompt: str) -> list[str]:
        """None that are looked up as a whole."""
        return []

    def unknown_words(self, prompt: str) -> list[str]:
        """None."""
        return []

    def knows_all(self, prompt: str) -> bool:
        """Always."""
        return True

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that exceeds the limit."""
        special = self.tokenizer.num_special_tokens_to_add()
        tokens = self.tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        return self.tokenizer.decode(tokens[max(self.max_length - special, 0) :], skip_special_tokens=True).strip()


class DiffusersBackbone:
    """A pipeline of diffusers as a `Backbone`.

    Args:
        pipe: in eval mode, its networks on `device`.
        family: what it is of.
        device: where the networks run.
        text_device: where prompts are encoded; None is on `device`.
    """

    part = "unet"

    def __init__(self, pipe: Any, family: Family, device: torch.device, text_device: torch.device | None = None):
        self.pipe, self.family, self.device = pipe, family, device
        self.text_device = text_device or device
        self.network = getattr(pipe, self.part)
        self.vae = pipe.vae

    # --- sizes and levels ------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the denoiser's weights."""
        return self.network.dtype

    @property
    def factor(self) -> int:
        """Pixels a side that one latent position stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def unit(self) -> int:
        """Pixels that heights and widths must be multiples of."""
        return self.factor * 2 ** (len(self.network.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Of z."""
        return self.vae.config.latent_channels

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels, as the network's config says it, or else the family."""
        side = getattr(self.network.config, "sample_size", None)
        sides = [side, side] if isinstance(side, int) else side
        height, width = [s * self.factor for s in sides] if sides else [self.family.size] * 2
        return height // self.unit * self.unit, width // self.unit * self.unit

    @property
    def guidance(self) -> str:
        """See `Backbone`."""
        return "free"

    @cached_property
    def levels(self) -> NoiseLevels:
        """The noise levels of the pipeline's scheduler."""
        config = self.pipe.scheduler.config
        if config._class_name.startswith("FlowMatch"):
            return self.flow_levels(config)
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(config)
        own = config.get("timestep_spacing") == "trailing" or config.get("rescale_betas_zero_snr", False)
        spacing = "trailing" if own or self.family.trailing else "leading"
        return VariancePreserving(scheduler.alphas_cumprod, spacing, float(scheduler.final_alpha_cumprod))

    def flow_levels(self, config: Mapping[str, Any]) -> Flow:
        """Those of a scheduler of flow matching."""
        dynamic = None
        if config.get("use_dynamic_shifting"):
            least = (config.get("base_image_seq_len", 256), config.get("base_shift", 0.5))
            dynamic = (least, (config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)))
        height, width = self.native_size
        return Flow(
            shift=config.get("shift", 1.0),
            dynamic=dynamic,
            native=(height // self.factor, width // self.factor),
            train_steps=config.get("num_train_timesteps", 1000),
            shift_terminal=config.get("shift_terminal"),
        )

    @property
    def kind(self) -> str:
        """What the network predicts, see `Prediction`."""
        config = self.pipe.scheduler.config
        if config._class_name.startswith("FlowMatch"):
            return "flow"
        return PREDICTION_KINDS[config.get("prediction_type", "epsilon")]

    @cached_property
    def tokenize(self) -> TokenLimit | None:
        """What the text encoder reads of prompts."""
        tokenizer = getattr(self.pipe, "tokenizer", None)
        return None if tokenizer is None else TokenLimit(tokenizer, self.most_tokens(tokenizer))

    def most_tokens(self, tokenizer: Any) -> int:
        """How many tokens of a prompt are read."""
        return tokenizer.model_max_length

    # --- pictures --------------------------------------------------------------------------------------------------

    @cached_property
    def _scaling(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (1, c or 1, 1, 1): z = (latent - shift) * scale."""
        config = self.vae.config
        scale, shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean and std:
            each = torch.tensor(std).view(1, -1, 1, 1), torch.tensor(mean).view(1, -1, 1, 1)
            return scale / each[0], each[1]
        return torch.full((1, 1, 1, 1), scale), torch.full((1, 1, 1, 1), shift)

    def _scaled(self, latent: Tensor) -> Tensor:
        scale, shift = (x.to(latent) for x in self._scaling)
        return (latent - shift) * scale

    def unscaled(self, z: Tensor) -> Tensor:
        """z as the decoder takes it."""
        scale, shift = (x.to(z) for x in self._scaling)
        return z / scale + shift

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """x (b, 3, H, W) in [-1, 1] -> z (b, c, h, w): the mean of the posterior, scaled."""
        return self._scaled(self.vae.encode(x.to(self.device, self.vae.dtype)).latent_dist.mode().to(x.dtype))

    @torch.no_grad()
    def encode_exactly(self, x: Tensor) -> Tensor:
        """As `encode`, in float32 whatever the precision of the weights."""
        if self.vae.dtype == torch.float32:
            return self.encode(x)
        exact = copy.deepcopy(self.vae).float()
        return self._scaled(exact.encode(x.to(self.device, torch.float32)).latent_dist.mode())

    def decode(self, z: Tensor) -> Tensor:
        """z (b, c, h, w) -> x (b, 3, H, W), about [-1, 1], not clamped."""
        return self.vae.decode(self.unscaled(z).to(self.device, self.vae.dtype)).sample.to(z.dtype)

    def tunable_decoder(self) -> "AutoencoderDecoder":
        """A copy of the decoder in float32, to be changed."""
        return AutoencoderDecoder(self)

    # --- the network -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], size: tuple[int, int], scale: float | None = None) -> PromptRows:
        """Prompts as conditioning, a row each, encoded by itself, so that it is the same in any company."""
        rows = []
        for prompt in prompts:
            row = self.encode_prompt(prompt, size, scale)
            rows.append({name: x.to(self.device, self.dtype) for name, x in row.items()})
        return PromptRows(tuple(rows))

    def encode_prompt(self, prompt: str, size: tuple[int, int], scale: float | None) -> dict[str, Tensor]:
        """The arguments of the network for one prompt, each (1, ...)."""
        raise NotImplementedError

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: PromptRows) -> Prediction:
        """What the network says of z (b, c, h, w). Each of the r rows of the conditioning serves b / r samples."""
        return Prediction(z, level, self.call(z, z, level, conditioning).to(z.dtype), self.kind)

    def call(self, z: Tensor, shown: Tensor, level: NoiseLevel, conditioning: PromptRows) -> Tensor:
        """The network's own output for z; `shown` (b, c', h, w) is what it is given of it."""
        raise NotImplementedError

    def given(self, x_source: Tensor, mask: Tensor) -> "DiffusersBackbone":
        """The same, told what an inpainting network wants to know: the picture (1 or b, 3, H, W) and its mask.

        What it sees of the picture is grey inside the mask (1 or b, 1, H, W); blending goes on on top. Other networks
        are not told anything.
        """
        if self.part != "unet" or self.network.config.in_channels == self.channels:
            return self
        x = x_source.to(self.device) * (mask.to(self.device) < 0.5)
        z_masked = torch.cat([self.encode(one) for one in x.split(1)])
        cells = nn.functional.interpolate(mask.to(z_masked), z_masked.shape[2:])
        told = copy.copy(self)
        told.extra = torch.cat([cells, z_masked], dim=1)  # type: ignore[attr-defined]
        return told

    def compile_denoiser(self, mode: str = "regions", backend: str = "inductor") -> None:
        """Compile the network in place; see `LatentDiffusion.compile_denoiser`."""
        if mode == "regions":
            self.network.compile_repeated_blocks(backend=backend)
        elif mode == "graphs":
            options = {"mode": "reduce-overhead"} if backend == "inductor" else {}
            self.network.compile(backend=backend, **options)
        else:
            raise ValueError(f"mode {mode!r} is unknown: regions or graphs")


class StableDiffusion(DiffusersBackbone):
    """Stable Diffusion 1.x and 2.x, of eps and of v; latent consistency models; nine input channels are inpainting."""

    extra: Tensor | None = None

    @property
    def guidance(self) -> str:
        """Latent consistency models are told the scale."""
        return "embedded" if self.network.config.time_cond_proj_dim else "free"

    def encode_prompt(self, prompt: str, size: tuple[int, int], scale: float | None) -> dict[str, Tensor]:
        """The text encoder's states, and for consistency models the scale's embedding."""
        states, _ = self.pipe.encode_prompt(prompt, self.text_device, 1, False)
        return {"encoder_hidden_states": states} | self._scale_embedding(scale)

    def _scale_embedding(self, scale: float | None) -> dict[str, Tensor]:
        width = self.network.config.time_cond_proj_dim
        if not width:
            return {}
        half = width // 2
        rates = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(half) / (half - 1))
        angles = 1000.0 * ((scale or 1.0) - 1.0) * rates  # of w, which counts one less (Luo et al. 2023, eq. 14)
        return {"timestep_cond": torch.cat([angles.sin(), angles.cos()])[None]}

    def call(self, z: Tensor, shown: Tensor, level: NoiseLevel, conditioning: PromptRows) -> Tensor:
        """See `DiffusersBackbone`."""
        if self.network.config.in_channels != self.channels:
            if self.extra is None:
                raise UserError("this model only fills masks, and paints nothing without a picture: take another one")
            shown = torch.cat([shown, self.extra.repeat(len(z) // len(self.extra), 1, 1, 1)], dim=1)
        return self.network(shown.to(self.dtype), level.t, **self.arguments(conditioning.serving(len(z)))).sample

    def arguments(self, given: dict[str, Tensor]) -> dict[str, Any]:
        """The network's arguments from the conditioning's."""
        return given


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: two text encoders, a pooled text, and the size of what is painted."""

    def encode_prompt(self, prompt: str, size: tuple[int, int], scale: float | None) -> dict[str, Tensor]:
        """The states, the pooled text, and the six numbers of the size: that of the window that is edited."""
        pipe = self.pipe
        states, _, pooled, _ = pipe.encode_prompt(
            prompt, device=self.text_device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if not prompt and pipe.config.force_zeros_for_empty_prompt:
            states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
        width = pooled.shape[-1] if pipe.text_encoder_2 is None else pipe.text_encoder_2.config.projection_dim
        ids = pipe._get_add_time_ids(size, (0, 0), size, states.dtype, text_encoder_projection_dim=width)
        return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": ids} | self._scale_embedding(scale)

    def arguments(self, given: dict[str, Tensor]) -> dict[str, Any]:
        """See `StableDiffusion`."""
        added = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
        return {**given, "added_cond_kwargs": added}


class _Transformer(DiffusersBackbone):
    """What the transformers of flow matching have in common: patches of two latent positions a side."""

    part = "transformer"

    @property
    def unit(self) -> int:
        """Pixels that heights and widths must be multiples of."""
        return 2 * self.factor


class StableDiffusion3(_Transformer):
    """Stable Diffusion 3 and 3.5: flow matching, 16 channels, three text encoders."""

    def flow_levels(self, config: Mapping[str, Any]) -> Flow:
        """They end above 0, at one of the training's timesteps."""
        levels = super().flow_levels(config)
        return replace(levels, least=1 / levels.train_steps)

    def most_tokens(self, tokenizer: Any) -> int:
        """What is beyond CLIP's 77 tokens T5 reads, where it is here."""
        return tokenizer.model_max_length if self.pipe.tokenizer_3 is None else 256

    def encode_prompt(self, prompt: str, size: tuple[int, int], scale: float | None) -> dict[str, Tensor]:
        """The states of all text encoders, and the pooled text."""
        states, _, pooled, _ = self.pipe.encode_prompt(
            prompt, None, None, device=self.text_device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def call(self, z: Tensor, shown: Tensor, level: NoiseLevel, conditioning: PromptRows) -> Tensor:
        """See `DiffusersBackbone`."""
        t = torch.full((len(z),), level.t, device=z.device)
        return self.network(shown.to(self.dtype), timestep=t, **conditioning.serving(len(z))).sample


class Flux(_Transformer):
    """FLUX.1: flow matching over packed latents; [dev] is told the scale, [schnell] knows none."""

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.family.size, self.family.size

    @property
    def channels(self) -> int:
        """Of z, before it is packed."""
        return self.network.config.in_channels // 4

    @property
    def guidance(self) -> str:
        """See `Backbone`."""
        return "embedded" if self.network.config.guidance_embeds else "none"

    def most_tokens(self, tokenizer: Any) -> int:
        """T5's; CLIP's 77 only tell the style."""
        return 512

    def encode_prompt(self, prompt: str, size: tuple[int, int], scale: float | None) -> dict[str, Tensor]:
        """T5's states, CLIP's pooled text, and the scale."""
        states, pooled, _ = self.pipe.encode_prompt(prompt, None, device=self.text_device)
        row = {"encoder_hidden_states": states, "pooled_projections": pooled}
        return row | ({"guidance": torch.tensor([float(scale or 1.0)])} if self.guidance == "embedded" else {})

    def call(self, z: Tensor, shown: Tensor, level: NoiseLevel, conditioning: PromptRows) -> Tensor:
        """See `DiffusersBackbone`."""
        b, c, h, w = z.shape
        packed = shown.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
        given = conditioning.serving(b)
        out = self.network(
            hidden_states=packed.to(self.dtype),
            timestep=torch.full((b,), level.s, device=z.device, dtype=self.dtype),
            img_ids=self.pipe._prepare_latent_image_ids(b, h // 2, w // 2, z.device, self.dtype),
            txt_ids=torch.zeros(given["encoder_hidden_states"].shape[1], 3, device=z.device, dtype=self.dtype),
            **given,
        ).sample
        return out.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


class ZImage(_Transformer):
    """Z-Image: flow matching, texts of any length, time that runs the other way."""

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.family.size, self.family.size

    def most_tokens(self, tokenizer: Any) -> int:
        """Of the language model that reads prompts."""
        return 512

    def encode_prompt(self, prompt: str, size: tuple[int, int], scale: float | None) -> dict[str, Tensor]:
        """The language model's states (1, m, d), m being the prompt's own length."""
        states, _ = self.pipe.encode_prompt(prompt, device=self.text_device, do_classifier_free_guidance=False)
        return {"states": states[0][None]}

    def call(self, z: Tensor, shown: Tensor, level: NoiseLevel, conditioning: PromptRows) -> Tensor:
        """See `DiffusersBackbone`."""
        each = len(z) // len(conditioning)
        states = [row["states"][0] for row in conditioning.rows for _ in range(each)]
        t = torch.full((len(z),), level.a, device=z.device)
        out = self.network(list(shown.to(self.dtype).unsqueeze(2)), t, states, return_dict=False)[0]
        return -torch.stack(list(out)).squeeze(2).float()


ADAPTERS: dict[str, type[DiffusersBackbone]] = {
    adapter.__name__: adapter for adapter in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, ZImage)
}


class AutoencoderDecoder(nn.Module):
    """The decoder of diffusers' `AutoencoderKL` as a copy of its own, in float32; see `TunableDecoder`."""

    def __init__(self, backbone: DiffusersBackbone):
        super().__init__()
        vae = backbone.vae
        self.post_quant_conv = copy.deepcopy(getattr(vae, "post_quant_conv", None)) or nn.Identity()
        self.decoder = copy.deepcopy(vae.decoder)
        self.unscaled = backbone.unscaled
        self.float().eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.decoder.conv_out.weight.device

    @property
    def levels(self) -> int:
        """How many levels of resolution it has."""
        return len(self.decoder.up_blocks)

    def begin(self, z: Tensor, levels: int) -> Tensor:
        """What the finest `levels` begin from."""
        h = self.decoder.mid_block(self.decoder.conv_in(self.post_quant_conv(self.unscaled(z))))
        for block in self.decoder.up_blocks[: len(self.decoder.up_blocks) - levels]:
            h = block(h)
        return h

    def finish(self, h: Tensor, levels: int) -> Tensor:
        """x from what `begin` gave."""
        for block in self.decoder.up_blocks[len(self.decoder.up_blocks) - levels :]:
            h = block(h)
        return self.decoder.conv_out(self.decoder.conv_act(self.decoder.conv_norm_out(h)))

    def tail(self, levels: int | None) -> nn.Module:
        """The modules of the finest `levels`; None is all of it."""
        if levels is None:
            return self
        decoder = self.decoder
        blocks = decoder.up_blocks[len(decoder.up_blocks) - levels :]
        return nn.ModuleList([*blocks, decoder.conv_norm_out, decoder.conv_out])

    def forward(self, z: Tensor) -> Tensor:
        return (
            self.finish(self.begin(z, 0), 0)
            if not self.levels
            else self.finish(self.begin(z, self.levels), self.levels)
        )
