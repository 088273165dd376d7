"""Our weights under the names of `diffusers`: what a comparison with that library needs.

The rules follow from the two architectures. `diffusers` loads the result strictly, so a rule that is wrong or missing
fails at once; one that swaps two alike layers shows in the numbers.
"""

import re
from collections.abc import Iterable, Sequence

from torch import Tensor

from ldm.modules.diffusionmodules.openaimodel import input_block, output_block

Rule = tuple[str, str]

RESNET: list[Rule] = [
    (r"in_layers\.0", "norm1"),
    (r"in_layers\.2", "conv1"),
    (r"emb_layers\.1", "time_emb_proj"),
    (r"out_layers\.0", "norm2"),
    (r"out_layers\.3", "conv2"),
    (r"skip_connection|nin_shortcut", "conv_shortcut"),
]


def unet_to_diffusers(state: dict[str, Tensor], blocks: Sequence[int]) -> dict[str, Tensor]:
    """The UNet's state dict for `UNet2DConditionModel`; `blocks`: residual blocks of each level on the way down."""
    rules = [
        (r"^time_embed\.0", "time_embedding.linear_1"),
        (r"^time_embed\.2", "time_embedding.linear_2"),
        (r"^input_blocks\.0\.0", "conv_in"),
        (r"^middle_block\.0", "mid_block.resnets.0"),
        (r"^middle_block\.1", "mid_block.attentions.0"),
        (r"^middle_block\.2", "mid_block.resnets.1"),
        (r"^out\.0", "conv_norm_out"),
        (r"^out\.2", "conv_out"),
    ]
    for level, count in enumerate(blocks):
        for i in range(count):
            here = "^" + re.escape(input_block(blocks, level, i))
            rules.append((here + r"\.0", f"down_blocks.{level}.resnets.{i}"))
            rules.append((here + r"\.1", f"down_blocks.{level}.attentions.{i}"))
        here = "^" + re.escape(input_block(blocks, level, count))
        rules.append((here + r"\.0\.op", f"down_blocks.{level}.downsamplers.0.conv"))
        up = f"up_blocks.{len(blocks) - 1 - level}"
        for i in range(count + 1):
            here = "^" + re.escape(output_block(blocks, level, i))
            rules.append((here + r"\.[12]\.conv", f"{up}.upsamplers.0.conv"))
            rules.append((here + r"\.0", f"{up}.resnets.{i}"))
            rules.append((here + r"\.1", f"{up}.attentions.{i}"))
    return _renamed(state, [*rules, *RESNET])


def autoencoder_to_diffusers(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """`AutoencoderKL`'s state dict for the class of that name in diffusers, whose attention has linear projections."""
    rules = [
        (r"\.mid\.block_1", ".mid_block.resnets.0"),
        (r"\.mid\.attn_1", ".mid_block.attentions.0"),
        (r"\.mid\.block_2", ".mid_block.resnets.1"),
        (r"\.norm_out", ".conv_norm_out"),
    ]
    for level in range(levels):
        rules.append((rf"\.down\.{level}\.", f".down_blocks.{level}."))
        rules.append((rf"\.up\.{level}\.", f".up_blocks.{levels - 1 - level}."))
    rules += [
        (r"\.block\.", ".resnets."),
        (r"\.attn\.", ".attentions."),
        (r"\.(down|up)sample\.", r".\1samplers.0."),
        (r"(attentions\.\d+)\.norm", r"\1.group_norm"),
        (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
        (r"(attentions\.\d+)\.proj_out", r"\1.to_out.0"),
    ]
    return {
        name: tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor
        for name, tensor in _renamed(state, [*rules, *RESNET]).items()
    }


def text_encoder_to_diffusers(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """`TransformerWrapper`'s state dict for `LDMBertModel`."""
    rules = [
        (r"^token_emb", "model.embed_tokens"),
        (r"^pos_emb\.emb", "model.embed_positions"),
        (r"^norm", "model.layer_norm"),
    ]
    for i in range(depth):
        attention, feed_forward = (rf"^attn_layers\.layers\.{2 * i + j}" for j in (0, 1))
        rules += [
            (attention + r"\.0", f"model.layers.{i}.self_attn_layer_norm"),
            (attention + r"\.1\.to_([qkv])", rf"model.layers.{i}.self_attn.\1_proj"),
            (attention + r"\.1\.to_out", f"model.layers.{i}.self_attn.out_proj"),
            (feed_forward + r"\.0", f"model.layers.{i}.final_layer_norm"),
            (feed_forward + r"\.1\.net\.0\.0", f"model.layers.{i}.fc1"),
            (feed_forward + r"\.1\.net\.2", f"model.layers.{i}.fc2"),
        ]
    return _renamed(state, rules)


def _renamed(state: dict[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern + (r"(?![0-9])" if pattern[-1].isalnum() else ""), replacement, name)
        renamed[name] = tensor
    assert len(renamed) == len(state), "two of our tensors got one name"
    return renamed
