"""A denoiser's weights for the same network with more residual blocks a level, computing what they computed."""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.modules.diffusionmodules.openaimodel import input_block, output_block

PREFIX = "model.diffusion_model."
"""Of the denoiser in the state dict of a `LatentDiffusion`."""


def deepened(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the names of `own`, whose `UNetModel` may have more residual blocks a level (Net2DeeperNet, Chen
    et al. 2016).

    A level's new blocks follow its old ones on the way down. On the way up they come after its first, which still
    takes the last features from down there; the others keep theirs too. A new block passes on what comes in: its last
    convolution starts at zero, as that of its transformer, and the one past it leaves out what came from down there.

    Args:
        state, own: state dicts of a `LatentDiffusion`. Only their denoiser's blocks are renamed.

    Raises:
        UserError: `own` has other levels, or fewer blocks in one.
    """
    old, new = blocks_a_level(state), blocks_a_level(own)
    if old == new or not old or not new:
        return dict(state)
    if len(old) != len(new) or any(before > now for before, now in zip(old, new, strict=True)):
        raise UserError(
            f"a denoiser of {old} residual blocks a level cannot become one of {new}: give channel_mult as many levels "
            "and num_res_blocks at least as many blocks in each"
        )
    moved = {"input_blocks.0": "input_blocks.0"}
    added = []
    for level, (before, now) in enumerate(zip(old, new, strict=True)):
        for i in range(before):
            moved[input_block(old, level, i)] = input_block(new, level, i)
        moved[input_block(old, level, before)] = input_block(new, level, now)  # the downsampling after them
        for i in range(before + 1):
            moved[output_block(old, level, i)] = output_block(new, level, i + (now - before if i else 0))
        added += [output_block(new, level, 1 + i) for i in range(now - before)]
    grown = {}
    for name, value in state.items():
        block = re.match(rf"{re.escape(PREFIX)}((?:input|output)_blocks\.\d+)(\..+)", name)
        grown[PREFIX + moved[block[1]] + block[2] if block else name] = value
    for name in added:
        weight = f"{PREFIX}{name}.0.skip_connection.weight"
        grown[weight] = torch.eye(*own[weight].shape[:2])[:, :, None, None]
        grown[f"{PREFIX}{name}.0.skip_connection.bias"] = torch.zeros(len(own[weight]))
    return grown


def blocks_a_level(names: Iterable[str]) -> list[int]:
    """`num_res_blocks` of each level, the finest first, of the denoiser with these names; [] where there is none."""
    resamples = {}
    for name in names:
        if block := re.match(rf"{re.escape(PREFIX)}input_blocks\.(\d+)\.0\.(op\.)?", name):
            resamples[int(block[1])] = bool(block[2])
    if not resamples:
        return []
    stop = 1 + max(resamples)
    bounds = [0, *(i for i in range(stop) if resamples.get(i, True)), stop]  # a mean has no weights, hence no name
    return [end - start - 1 for start, end in pairwise(bounds)]
