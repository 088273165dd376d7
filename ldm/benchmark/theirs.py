"""The networks of `diffusers`' LDMTextToImagePipeline with our weights, and what that pipeline does with them."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.benchmark.convert import autoencoder_to_diffusers, text_encoder_to_diffusers, unet_to_diffusers
from ldm.errors import MissingExtra
from ldm.models.diffusion.ddpm import LatentDiffusion


def require_diffusers() -> None:
    """Raises MissingExtra where it is not installed."""
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise MissingExtra("diffusers", "dev", "comparing with diffusers") from error


class TheirModel:
    """`UNet2DConditionModel`, `AutoencoderKL` and `LDMBertModel` with the weights of `model`, on its device.

    What theirs lack is left out: the pooled context's share of the time embedding. Pictures are folded into channels
    outside of their autoencoder where ours does so inside (`patch_size`).

    Args:
        params: of the config that `model` was built from.
    """

    def __init__(self, model: LatentDiffusion, params: Mapping[str, Any]):
        unet, first_stage, text = (params[f"{name}_config"]["params"] for name in ("unet", "first_stage", "cond_stage"))
        self.ours, self.scale_factor = model, model.scale_factor
        self.patch_size = first_stage["ddconfig"].get("patch_size", 1)
        self.unet = _unet(model, unet)
        self.vae = _autoencoder(model, first_stage["ddconfig"], self.patch_size)
        self.bert = _text_encoder(model, text)
        self.scheduler = _scheduler(params)
        for network in (self.unet, self.vae, self.bert):
            network.to(model.device, model.dtype).eval().requires_grad_(False)

    def context(self, prompts: list[str]) -> Tensor:
        """Prompts -> context (b, m, d)."""
        return self.bert(self.ours.cond_stage_model.tokenize(prompts).to(self.ours.device))[0]

    def step(self, z: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        """One call of the denoiser: z (b, c, h, w), timesteps t, context (b, m, d) -> (b, c, h, w)."""
        return self.unet(z, t, encoder_hidden_states=context).sample

    def encode(self, x: Tensor) -> Tensor:
        """Pictures x (b, 3, H, W) -> the mean of their unscaled latents (b, c, h, w)."""
        return self.vae.encode(F.pixel_unshuffle(x.to(self.ours.dtype), self.patch_size)).latent_dist.mode()

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents z (b, c, h, w) -> pictures (b, 3, H, W)."""
        return F.pixel_shuffle(self.vae.decode(z).sample, self.patch_size)

    def generate(self, prompt: str, seeds: range, steps: int, scale: float, size: int) -> Tensor:
        """Pictures (b, 3, H, W): `LDMTextToImagePipeline.__call__`, without its fixed length of the text."""
        b, dtype = len(seeds), self.ours.dtype
        context = torch.cat([self.context([""] * b), self.context([prompt] * b)])
        noise = [torch.randn(self.ours.channels, size, size, generator=torch.Generator().manual_seed(s)) for s in seeds]
        z = torch.stack(noise).to(self.ours.device, dtype)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            empty, prompted = self.step(torch.cat([z] * 2), t, context).chunk(2)
            z = self.scheduler.step(empty + scale * (prompted - empty), t, z).prev_sample
        return self.decode(z / self.scale_factor).float()


def _unet(model: LatentDiffusion, config: Mapping[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    mults, blocks = config["channel_mult"], config["num_res_blocks"]
    blocks = [blocks] * len(mults) if isinstance(blocks, int) else list(blocks)
    widths = [config["model_channels"] * mult for mult in mults]
    kinds = ["CrossAttn" * (2**level in config["attention_resolutions"]) for level in range(len(widths))]
    heads = [config["num_heads"] if "num_heads" in config else width // config["num_head_channels"] for width in widths]
    theirs = UNet2DConditionModel(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        cross_attention_dim=config["context_dim"],
        attention_head_dim=heads,  # in spite of its name, how many heads
        transformer_layers_per_block=config.get("transformer_depth", 1),
    )
    state = {k: v for k, v in model.model.diffusion_model.state_dict().items() if not k.startswith("context_embed.")}
    return _load(theirs, unet_to_diffusers(state, blocks))


def _autoencoder(model: LatentDiffusion, config: Mapping[str, Any], patch_size: int) -> Any:
    from diffusers import AutoencoderKL

    levels = len(config["ch_mult"])
    sizes = [config["resolution"] // patch_size // 2**level for level in range(levels)]
    kinds = ["Attn" * (size in config["attn_resolutions"]) for size in sizes]
    theirs = AutoencoderKL(
        in_channels=config["in_channels"] * patch_size**2,
        out_channels=config["out_ch"] * patch_size**2,
        block_out_channels=[config["ch"] * mult for mult in config["ch_mult"]],
        layers_per_block=config["num_res_blocks"],
        down_block_types=[f"{kind}DownEncoderBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        latent_channels=config["z_channels"],
    )
    return _load(theirs, autoencoder_to_diffusers(model.first_stage_model.state_dict(), levels))


def _text_encoder(model: LatentDiffusion, config: Mapping[str, Any]) -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    ours = model.cond_stage_model.transformer
    sizes = LDMBertConfig(
        vocab_size=ours.token_emb.num_embeddings,
        max_position_embeddings=ours.pos_emb.emb.num_embeddings,
        encoder_layers=config["n_layer"],
        encoder_ffn_dim=4 * config["n_embed"],
        d_model=config["n_embed"],
    )
    theirs = LDMBertModel(sizes)
    if not hasattr(ours, "to_logits"):
        del theirs.to_logits  # which nothing reads
    return _load(theirs, text_encoder_to_diffusers(ours.state_dict(), config["n_layer"]))


def _scheduler(params: Mapping[str, Any]) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=params["timesteps"],
        beta_start=params["linear_start"],
        beta_end=params["linear_end"],
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[params.get("parameterization", "eps")],
    )


def _load(theirs: Any, state: Mapping[str, Tensor]) -> Any:
    theirs.load_state_dict(state, strict=True)
    return theirs
