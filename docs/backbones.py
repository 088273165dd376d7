"""Write the tables of docs/backbones.md: python docs/backbones.py

What each family takes where it is told nothing, from `ldm.backbones.families`; and the bytes of each part of public
models. Their configs are typed from memory of the public repositories, for there was no network to read them from;
the parameters are then counted of diffusers' and transformers' own classes, on the meta device, so that no memory is
taken.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from ldm.backbones.families import FAMILIES
from ldm.files import atomic_file

PAGE = Path(__file__).with_suffix(".md")

CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32)
T5_XXL = dict(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, vocab_size=32128)
QWEN_4B = dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32)
QWEN_4B |= dict(num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True)

Part = tuple[str, dict[str, Any]]
MODELS: dict[str, tuple[Part, list[Part], Part]] = {
    # name: denoiser, text encoders, autoencoder
    "Stable Diffusion 1.5": (
        ("UNet2DConditionModel", dict(cross_attention_dim=768, attention_head_dim=8)),
        [("CLIPTextModel", CLIP_L)],
        ("AutoencoderKL", dict(latent_channels=4)),
    ),
    "Stable Diffusion 2.1": (
        (
            "UNet2DConditionModel",
            dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        ),
        [("CLIPTextModel", CLIP_H)],
        ("AutoencoderKL", dict(latent_channels=4)),
    ),
    "Stable Diffusion XL": (
        (
            "UNet2DConditionModel",
            dict(
                block_out_channels=[320, 640, 1280],
                down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                transformer_layers_per_block=[1, 2, 10],
                attention_head_dim=[5, 10, 20],
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
        ),
        [("CLIPTextModel", CLIP_L), ("CLIPTextModelWithProjection", CLIP_G | {"projection_dim": 1280})],
        ("AutoencoderKL", dict(latent_channels=4)),
    ),
    "Stable Diffusion 3 medium": (
        (
            "SD3Transformer2DModel",
            dict(
                sample_size=128,
                patch_size=2,
                in_channels=16,
                out_channels=16,
                num_layers=24,
                num_attention_heads=24,
                attention_head_dim=64,
                joint_attention_dim=4096,
                caption_projection_dim=1536,
                pooled_projection_dim=2048,
                pos_embed_max_size=192,
            ),
        ),
        [
            ("CLIPTextModelWithProjection", CLIP_L | {"projection_dim": 768}),
            ("CLIPTextModelWithProjection", CLIP_G | {"projection_dim": 1280}),
            ("T5EncoderModel", T5_XXL),
        ],
        ("AutoencoderKL", dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)),
    ),
    "FLUX.1 [dev]": (
        (
            "FluxTransformer2DModel",
            dict(
                in_channels=64,
                num_layers=19,
                num_single_layers=38,
                attention_head_dim=128,
                num_attention_heads=24,
                joint_attention_dim=4096,
                pooled_projection_dim=768,
                guidance_embeds=True,
            ),
        ),
        [("CLIPTextModel", CLIP_L), ("T5EncoderModel", T5_XXL)],
        ("AutoencoderKL", dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)),
    ),
    "Z-Image": (
        ("ZImageTransformer2DModel", dict(dim=3840, n_layers=30, n_refiner_layers=2, n_heads=30, n_kv_heads=30)),
        [("Qwen3Model", QWEN_4B)],
        ("AutoencoderKL", dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)),
    ),
}
UNET = dict(block_out_channels=[320, 640, 1280, 1280], layers_per_block=2)
VAE = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2)
VAE |= dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)


def parameters(name: str, config: dict[str, Any]) -> int:
    """How many a network has; shared ones count once."""
    with torch.device("meta"):
        if hasattr(transformers, name):
            cls = getattr(transformers, name)
            more = {"vocab_size": 49408} if name.startswith("CLIP") else {}
            more |= {"feed_forward_proj": "gated-gelu", "is_encoder_decoder": False} if name.startswith("T5") else {}
            network = cls(cls.config_class(**more | config))
        else:
            more = {"UNet2DConditionModel": UNET, "AutoencoderKL": VAE}.get(name, {})
            network = getattr(diffusers, name)(**more | config)
    return sum(one.numel() for one in network.parameters())


def families() -> Iterator[str]:
    """What each family takes where it is told nothing."""
    yield "| family | steps | guidance | size | sampler | from |"
    yield "|---|---:|---:|---:|---|---|"
    for family in FAMILIES.values():
        steps = f"{family.steps}, trailing" if family.trailing else str(family.steps)
        scale = f"{family.scale:g}" if family.scale != 1 else "1 (none)"
        yield f"| {family.about} | {steps} | {scale} | {family.size} | `{family.sampler}` | {family.source} |"


def sizes() -> Iterator[str]:
    """The parts of public models, in half precision."""
    yield "| model | denoiser | text encoders | autoencoder | together | with `--low_memory` |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, (denoiser, encoders, autoencoder) in MODELS.items():
        parts = [parameters(*denoiser), sum(parameters(*one) for one in encoders), parameters(*autoencoder)]
        cells = [f"{count / 1e6:,.0f}M, {_gib(count)}" for count in parts]
        cells += [_gib(sum(parts)), _gib(parts[0] + parts[2])]
        yield f"| {name} | {' | '.join(cells)} |"


def _gib(count: int) -> str:
    return f"{2 * count / 2**30:.2f} GiB"


def written(text: str, name: str, lines: Iterator[str]) -> str:
    """A page with a table between its marks."""
    begin, end = f"<!-- {name}: python docs/backbones.py -->", f"<!-- end of {name} -->"
    return re.sub(f"{re.escape(begin)}.*{re.escape(end)}", "\n".join([begin, *lines, end]), text, flags=re.DOTALL)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for each, rows in {"families": families(), "sizes": sizes()}.items():
        page = written(page, each, rows)
    with atomic_file(PAGE) as file:
        file.write(page.encode())
