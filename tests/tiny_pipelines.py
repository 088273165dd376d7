"""Tiny random pipelines of diffusers, built from its classes in a blink, with vocabularies of a few dozen words."""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

WORDS = ("a", "red", "ball", "blue", "cube", "pink", "yarn", "of", "on", "the")


_FOLDERS: list[tempfile.TemporaryDirectory] = []


def new_folder(prefix: str) -> Path:
    """A folder that goes with the process."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix=prefix))
    return Path(_FOLDERS[-1].name)


def seeded(make: Callable[[], Any]) -> Any:
    """What a function makes under a fixed seed, in eval mode, its weights such that no branch is at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
        for parameter in module.parameters():
            if parameter.ndim == 1 or parameter.std() == 0:
                parameter.data += 0.02 * torch.randn_like(parameter)
    return module.eval()


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Of whole words and letters, 77 tokens."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{c}</w>" for c in letters)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *(f"{w}</w>" for w in WORDS if len(w) > 1)])}
    merges = ["#version: 0.2"]
    for word in WORDS:
        left = [*word[:-1], f"{word[-1]}</w>"]
        while len(left) > 1:
            merges.append(f"{left[0]} {left[1]}")
            joined = left[0] + left[1]
            vocabulary.setdefault(joined, len(vocabulary))
            left = [joined, *left[2:]]
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def word_tokenizer(length: int, chat: bool = False) -> PreTrainedTokenizerFast:
    """Of whole words, for text encoders that need no pieces."""
    words = ["<pad>", "</s>", "<unk>", *WORDS, "user", "assistant", "<think>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )
    if chat:
        fast.chat_template = "{% for m in messages %}user {{ m['content'] }}{% endfor %} assistant"
    return fast


def clip_text(projected: bool = False, width: int = 32) -> Any:
    """A text encoder of CLIP."""
    config = CLIPTextConfig(
        vocab_size=200,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        num_hidden_layers=2,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return seeded(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def vae(channels: int = 4, **options: Any) -> Any:
    """An autoencoder f4 whose posterior has next to no variance, so that a draw of it is its mean."""
    from diffusers import AutoencoderKL

    def make() -> Any:
        made = AutoencoderKL(
            block_out_channels=[8, 16, 16],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=32,
            **options,
        )
        certain(made)
        return made

    made = seeded(make)
    certain(made)
    return made


def certain(made: Any) -> None:
    """Take the variance from a posterior."""
    last = made.quant_conv if made.quant_conv is not None else made.encoder.conv_out
    n = last.weight.shape[0] // 2
    last.weight.data[n:] = 0
    last.bias.data[n:] = -30


def unet(channels: int = 4, **options: Any) -> Any:
    """A UNet of two levels, for latents of 16x16."""
    from diffusers import UNet2DConditionModel

    base = dict(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    return seeded(lambda: UNet2DConditionModel(**base | options))


def scheduler(**options: Any) -> Any:
    """The schedule of Stable Diffusion, by DDIM."""
    from diffusers import DDIMScheduler

    base = dict(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
    )
    return DDIMScheduler(**base | options)


def sd(folder: Path, channels: int = 4, **options: Any) -> Any:
    """Stable Diffusion; `options` are the scheduler's."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae(scaling_factor=0.18215),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(folder / "words"),
        unet=unet(channels),
        scheduler=scheduler(**options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path, channels: int = 4) -> Any:
    """Stable Diffusion XL."""
    from diffusers import StableDiffusionXLPipeline

    own = unet(
        channels,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(True),
        tokenizer=clip_tokenizer(folder / "words"),
        tokenizer_2=clip_tokenizer(folder / "words"),
        unet=own,
        scheduler=scheduler(),
    )


def t5() -> Any:
    """T5's encoder."""
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return seeded(lambda: T5EncoderModel(config))


def sd3(folder: Path) -> Any:
    """Stable Diffusion 3."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=32,
        )
    )
    return StableDiffusion3Pipeline(
        vae=vae(16, shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(True),
        text_encoder_2=clip_text(True),
        text_encoder_3=seeded(
            lambda: T5EncoderModel(T5Config(vocab_size=64, d_model=64, d_kv=8, d_ff=37, num_layers=2, num_heads=4))
        ),
        tokenizer=clip_tokenizer(folder / "words"),
        tokenizer_2=clip_tokenizer(folder / "words"),
        tokenizer_3=word_tokenizer(256),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(folder: Path, guidance: bool = True) -> Any:
    """FLUX.1; [schnell] has no guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = seeded(
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=guidance,
        )
    )
    return FluxPipeline(
        vae=vae(4, shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(),
        text_encoder_2=t5(),
        tokenizer=clip_tokenizer(folder / "words"),
        tokenizer_2=word_tokenizer(512),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance),
    )


def z_image(folder: Path) -> Any:
    """Z-Image."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    transformer = seeded(
        lambda: ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 4, 8],
            axes_lens=[256, 32, 32],
        )
    )
    return ZImagePipeline(
        vae=vae(16, shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=seeded(lambda: Qwen3Model(config)),
        tokenizer=word_tokenizer(512, chat=True),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPELINES: dict[str, Callable[[Path], Any]] = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "z_image": z_image}


@functools.cache
def saved(name: str, **options: Any) -> Path:
    """The folder of a pipeline, made once a process."""
    folder = new_folder(f"{name}-")
    PIPELINES[name](folder, **options).save_pretrained(folder / name, safe_serialization=True)
    return folder / name


@functools.cache
def lora(name: str, seed: int = 0) -> Path:
    """A LoRA of rank 2 for the attention of a pipeline's network, whose factors are not small."""
    from peft import LoraConfig, get_peft_model_state_dict

    folder = new_folder(f"lora-{name}-")
    pipe = PIPELINES[name](folder)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    network = getattr(pipe, part)
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: torch.randn(weight.shape, generator=generator) * 0.2
        for key, weight in get_peft_model_state_dict(network).items()
    }
    adapter = {part: network.peft_config["default"]} if name == "sd" else {}
    metadata = {f"{one}_lora_adapter_metadata": config.to_dict() for one, config in adapter.items()}
    type(pipe).save_lora_weights(folder, **{f"{part}_lora_layers": weights}, **metadata)
    return folder / "pytorch_lora_weights.safetensors"


@functools.cache
def original_checkpoint() -> tuple[dict[str, torch.Tensor], Path]:
    """A tiny Stable Diffusion in its makers' layout, and the same in diffusers'.

    The widths are multiples of 32, as the makers' layout knows no other groups.
    """
    from diffusers import StableDiffusionPipeline

    from ldm.models.autoencoder import AutoencoderKL as OurAutoencoder
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from tests.convert import autoencoder_to_diffusers, randomise, unet_to_diffusers

    folder = new_folder("original-")
    own_unet = UNetModel(
        image_size=16,
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_heads=4,
        context_dim=32,
        transformer_depth=1,
    )
    ddconfig = dict(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=4, double_z=True)
    ddconfig |= dict(resolution=64, in_channels=3, out_ch=3, attn_resolutions=(), dropout=0.0)
    own_vae = OurAutoencoder(ddconfig=ddconfig, embed_dim=4)
    for module in (own_unet, own_vae):
        randomise(module)
    text = clip_text()
    state = {f"model.diffusion_model.{key}": weight for key, weight in own_unet.state_dict().items()}
    state |= {f"first_stage_model.{key}": weight for key, weight in own_vae.state_dict().items()}
    inner = {key if key.startswith("text_model.") else f"text_model.{key}": w for key, w in text.state_dict().items()}
    state |= {f"cond_stage_model.transformer.{key}": weight for key, weight in inner.items()}
    their_unet = unet(block_out_channels=(32, 64), attention_head_dim=4, norm_num_groups=32)
    their_unet.load_state_dict(unet_to_diffusers(own_unet.state_dict(), (1, 1)))
    their_vae = vae(scaling_factor=0.18215)
    their_vae = type(their_vae).from_config(
        dict(their_vae.config) | {"block_out_channels": [32, 32, 32], "norm_num_groups": 32, "layers_per_block": 1}
    )
    their_vae.load_state_dict(autoencoder_to_diffusers(own_vae.state_dict(), 3))
    pipe = StableDiffusionPipeline(
        vae=their_vae,
        text_encoder=text,
        tokenizer=clip_tokenizer(folder / "words"),
        unet=their_unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "original", safe_serialization=True)
    return {key: weight.contiguous() for key, weight in state.items()}, folder / "original"
