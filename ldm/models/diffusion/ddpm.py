"""`LatentDiffusion`: first stage, denoiser, text encoder and noise schedule in one module (Rombach et al. 2022).

It is a plain module for inference and holds the keys of the public checkpoints. Training lives in `ldm.training`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.levels import VariancePreserving, make_beta_schedule, shift_log_snr
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.schedule import NoiseLevel
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import PreparedContext, ResBlock
from ldm.util import instantiate_from_config

PARAMETERIZATIONS = ("eps", "v")


class DiffusionWrapper(nn.Module):
    """Holds the UNet under the checkpoints' name, `model.diffusion_model`."""

    diffusion_model: Any  # what the config names, an `nn.Module`

    def __init__(self, diffusion_model: nn.Module):
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(self, z: Tensor, t: Tensor, context: Tensor | PreparedContext) -> Tensor:
        return self.diffusion_model(z, t, context)


def schedule_buffers(betas: Tensor) -> dict[str, Tensor]:
    """The twelve (T,) buffers of the checkpoints, in float32 (Ho et al. 2020, equations 4 to 7)."""
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    alphas_cumprod_prev = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": alphas_cumprod_prev,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas_cumprod).log(),
        "sqrt_recip_alphas_cumprod": alphas_cumprod.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
        "posterior_variance": posterior_variance,
        # The first variance is 0, whose logarithm is not a number.
        "posterior_log_variance_clipped": posterior_variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * alphas_cumprod_prev.sqrt() / (1 - alphas_cumprod),
        "posterior_mean_coef2": (1 - alphas_cumprod_prev) * (1 - betas).sqrt() / (1 - alphas_cumprod),
    }
    return {name: value.float() for name, value in buffers.items()}


class LatentDiffusion(nn.Module):
    """A text-to-image latent diffusion model.

    Images and latents go in and come out in the caller's precision, float32 as a rule, whatever that of the weights:
    the sampler's sums stay exact where the networks run in half precision.

    Args:
        first_stage_config, unet_config, cond_stage_config: what to build, as `{target, params}`.
        timesteps, beta_schedule, linear_start, linear_end: the forward process, see `make_beta_schedule`.
        log_snr_shift: see `shift_log_snr`.
        scale_factor: what the first stage's latents are multiplied by, so that their variance is about one.
        image_size, channels: nominal size and channels of z.
        parameterization: what the network predicts: `eps`, or `v` (Salimans & Ho 2022).
        conditioning_key: only `crossattn`.

    Raises:
        ValueError: a value that this class does not support.
    """

    guidance = "free"

    # The buffers of `schedule_buffers` that are read here or by samplers, and what the configs name.
    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    first_stage_model: Any
    cond_stage_model: Any

    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any],
        unet_config: Mapping[str, Any],
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        log_snr_shift: float = 0.0,
        scale_factor: float = 1.0,
        image_size: int = 256,
        channels: int = 3,
        parameterization: str = "eps",
        conditioning_key: str | None = "crossattn",
    ):
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(f"parameterization {parameterization!r} is unknown: one of {PARAMETERIZATIONS}")
        if conditioning_key not in (None, "crossattn"):
            raise ValueError(f"conditioning_key {conditioning_key!r} is not supported: crossattn")
        self.parameterization = parameterization
        self.scale_factor = scale_factor
        self.image_size, self.channels = image_size, channels
        self.model = DiffusionWrapper(instantiate_from_config(unet_config))
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.cond_stage_model = instantiate_from_config(cond_stage_config)
        # Not on the meta device, where `**` would import torch's compiler: more than a second at every start.
        with torch.device("cpu"):
            betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end)
            buffers = schedule_buffers(shift_log_snr(betas, log_snr_shift))
        for name, value in buffers.items():
            self.register_buffer(name, value.to(torch.get_default_device()))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.first_stage_model.quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs; the text encoder may be kept elsewhere."""
        return self.betas.device

    @property
    def factor(self) -> int:
        """Pixels a side that one latent position stands for."""
        return self.first_stage_model.factor

    def compile_denoiser(self, mode: str = "regions", backend: str = "inductor") -> None:
        """Compile the UNet in place, for as many shapes as it will see; the first call of each takes the time.

        Args:
            mode: `regions` compiles its residual blocks and transformers, each kind of them once, which is quick;
                `graphs` compiles it as a whole into CUDA graphs, which pays for small batches; there, what the UNet
                gives holds until its next call.
            backend: of `torch.compile`.
        """
        unet = self.model.diffusion_model
        if mode == "regions":
            # One limit for all regions of a class, which differ in width and size.
            torch._dynamo.config.recompile_limit = max(128, torch._dynamo.config.recompile_limit)
            for module in unet.modules():
                if isinstance(module, ResBlock | SpatialTransformer):
                    module.compile(backend=backend, dynamic=False)
        elif mode == "graphs":
            options = {"mode": "reduce-overhead"} if backend == "inductor" else {}
            unet.compile(backend=backend, dynamic=False, fullgraph=True, **options)
        else:
            raise ValueError(f"mode {mode!r} is unknown: regions or graphs")

    @property
    def unit(self) -> int:
        """Pixels that heights and widths must be multiples of."""
        return self.factor * self.model.diffusion_model.factor

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image_size * self.factor, self.image_size * self.factor

    @property
    def levels(self) -> VariancePreserving:
        """The noise levels that it was trained at."""
        return VariancePreserving(self.alphas_cumprod)

    @property
    def tokenize(self) -> Any:
        """What the text encoder reads of prompts; None where its tokenizer is not here."""
        return self.cond_stage_model.tokenize

    def encode(self, x: Tensor) -> Tensor:
        """x (b, 3, H, W) in [-1, 1] -> z (b, c, H/f, W/f): the mean of the posterior, scaled."""
        return self.first_stage_model.encode(x.to(self.dtype)).mode().to(x.dtype) * self.scale_factor

    def encode_exactly(self, x: Tensor) -> Tensor:
        """As `encode`, in float32 whatever the precision of the weights."""
        if self.dtype == torch.float32:
            return self.encode(x)
        return copy.deepcopy(self.first_stage_model).float().encode(x).mode() * self.scale_factor

    def decode(self, z: Tensor) -> Tensor:
        """z (b, c, h, w) -> x (b, 3, h*f, w*f), about [-1, 1], not clamped."""
        return self.first_stage_model.decode((z / self.scale_factor).to(self.dtype)).to(z.dtype)

    def get_learned_conditioning(self, prompts: list[str]) -> Tensor:
        """Prompts -> context (b, m, d)."""
        return self.cond_stage_model(prompts).to(self.device)

    def condition(
        self, prompts: Sequence[str], size: tuple[int, int] | None = None, scale: float | None = None
    ) -> "TextConditioning":
        """Prompts as conditioning, a row each; each is encoded by itself, so that it is the same in any company."""
        contexts = [self.get_learned_conditioning([prompt]) for prompt in prompts]
        return TextConditioning(self, torch.cat(contexts))

    def given(self, x_source: Tensor, mask: Tensor) -> "LatentDiffusion":
        """Itself: this network is told nothing of the picture."""
        return self

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: "TextConditioning") -> Prediction:
        """What the network says of z (b, c, h, w); each of the r rows of the conditioning serves b / r samples."""
        t = torch.full((len(z),), int(level.t), device=z.device)
        return Prediction(z, level, self.apply_model(z, t, conditioning.prepared), self.parameterization)

    def prepare_context(self, context: Tensor) -> PreparedContext:
        """A context (r, m, d) in the form that saves its work at every step; see `UNetModel` for its rows."""
        return self.model.diffusion_model.prepare_context(context)

    def apply_model(self, z: Tensor, t: Tensor, context: Tensor | PreparedContext) -> Tensor:
        """The network's own output at z_t, t (b,): eps or v, as `parameterization` says."""
        return self.model(z.to(context.dtype), t, context).to(z.dtype)

    def q_sample(self, z_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps, with t (b,) (Ho et al. 2020, eq. 4)."""
        signal = self.sqrt_alphas_cumprod[t].view(-1, 1, 1, 1)
        spread = self.sqrt_one_minus_alphas_cumprod[t].view(-1, 1, 1, 1)
        return signal * z_start + spread * noise

    def tunable_decoder(self) -> "FloatDecoder":
        """A copy of the decoder in float32, to be changed."""
        return FloatDecoder(self)


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """Contexts (r, m, d), one for each prompt, for a model."""

    model: LatentDiffusion
    contexts: Tensor

    def __len__(self) -> int:
        return len(self.contexts)

    def select(self, rows: Sequence[int]) -> "TextConditioning":
        """These rows, in this order."""
        return replace(self, contexts=self.contexts[list(rows)])

    @cached_property
    def prepared(self) -> PreparedContext:
        """In the form that saves its work at every step."""
        return self.model.prepare_context(self.contexts)


class FloatDecoder(nn.Module):
    """D as a copy of its own: z (1, c, h, w), scaled -> x (1, 3, h*f, w*f), in float32, as yet without gradients."""

    def __init__(self, model: LatentDiffusion):
        super().__init__()
        self.post_quant_conv = copy.deepcopy(model.first_stage_model.post_quant_conv)
        self.decoder = copy.deepcopy(model.first_stage_model.decoder)
        self.scale_factor = model.scale_factor
        self.float().eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.post_quant_conv.weight.device

    @property
    def levels(self) -> int:
        """How many levels of resolution it has."""
        return len(self.decoder.up)

    def begin(self, z: Tensor, levels: int) -> Tensor:
        """What the finest `levels` begin from."""
        return self.decoder.begin(self.post_quant_conv(z / self.scale_factor), levels)

    def finish(self, h: Tensor, levels: int) -> Tensor:
        """x from what `begin` gave."""
        return self.decoder.finish(h, levels)

    def tail(self, levels: int | None) -> nn.Module:
        """The modules of the finest `levels`; None is all of it."""
        if levels is None:
            return self
        return nn.ModuleList([*self.decoder.up[:levels], self.decoder.norm_out, self.decoder.conv_out])

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z / self.scale_factor))
