"""A denoiser of latents as the beginning of one whose patches stand where those latents stood: patches of pixels, or
of the finer latents of another first stage."""

import logging
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.backbones import zoo
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.openaimodel import UNetModel, input_block, output_block
from ldm.modules.encoders.modules import BERTEmbedder, BERTTokenizer
from ldm.training.deepen import PREFIX, blocks_a_level

logger = logging.getLogger(__name__)

FOLDED_BY = 256
"""Pictures to fit the matrix of `fold` by."""

STEM = "input_blocks.0.0"
FINE = "fine_in.0"


@torch.no_grad()
def fold(unet: UNetModel, latent: LatentDiffusion, x: Tensor, seen: Tensor) -> int:
    """Give `unet` what it can take of a latent model of about the same noise levels: the blocks at the same places.

    The latents are nearly linear in what lies at their place (those of `scenes` in the pixels: 79 to 95 % of their
    variance, in patches of 4x4 at half the size), so that noisy patches, through the matrix that fits them best, are
    nearly noisy latents: the first convolution is the latent model's after that matrix. Coarser levels than `unet` has,
    and further blocks of a level, are left out. Where it reads no prompts, attention to them is silent, and what the
    empty one adds to the time embedding becomes a part of that. The rest, and the last layer, keeps its fresh values.

    Args:
        x: pictures (n, 3, H, W) in [-1, 1] at the size of the latent model, to fit the matrix by; some hundred.
        seen: what `unet` is to denoise of them, (n, c, h, w).

    Returns:
        How many tensors it took.

    Raises:
        UserError: it is of another width, or the patches are not as many as the latents.
    """
    own = unet.state_dict()
    given = {
        name.removeprefix(PREFIX): value.float()
        for name, value in latent.state_dict().items()
        if name.startswith(PREFIX)
    }
    fitting = {name: value for name, value in _blocks(own, given).items() if own[name].shape == value.shape}
    if (width := len(own[f"{STEM}.weight"])) != (other := len(given[f"{STEM}.weight"])):
        raise UserError(f"a denoiser of {other} channels cannot become one of {width}: set `model_channels` to {other}")
    patches, z = F.pixel_unshuffle(seen.float(), unet.patch_size), latent.encode(x).float()
    if patches.shape[2:] != z.shape[2:]:
        raise UserError(f"{_size(patches)} patches cannot stand where {_size(z)} latents stood: change `patch_size`")
    matrix, bias = _fitted(patches, z)
    stem = given[f"{STEM}.weight"]
    # Besides, at a third of their size, the fresh values, which see what the matrix does not.
    fitting[f"{STEM}.weight"] = own[f"{STEM}.weight"] / 3
    fitting[f"{STEM}.weight"][:, : len(matrix)] += torch.einsum("o c h w, k c -> o k h w", stem, matrix)
    fitting[f"{STEM}.bias"] = given[f"{STEM}.bias"] + torch.einsum("o c h w, c -> o", stem, bias)
    if f"{FINE}.weight" in own:  # its first channels pass on what comes in
        weight = own[f"{FINE}.weight"].clone()
        passing = weight.shape[1]
        weight[:passing] = 0
        weight[:passing, :, 1, 1] = torch.eye(passing)
        fitting[f"{FINE}.weight"] = weight
        fitting[f"{FINE}.bias"] = torch.cat([torch.zeros(passing), own[f"{FINE}.bias"][passing:]])
    if unet.context_embed is None and latent.model.diffusion_model.context_embed is not None:
        pooled = latent.model.diffusion_model.context_embed(latent.condition([""]).contexts[0, 0])
        fitting["time_embed.2.bias"] = given["time_embed.2.bias"] + pooled
    silent = {
        name: torch.zeros_like(value)
        for name, value in own.items()
        if ".attn2.to_out.0." in name and f"{name.split('to_out')[0]}to_k.weight" not in fitting
    }
    unet.load_state_dict({**own, **fitting, **silent})
    return len(fitting)


def begin_folded(unet: UNetModel, path: str, x: Tensor, seen: Tensor) -> LatentDiffusion:
    """`fold` the model of a name or a folder, which is returned; pictures x of any size, on the CPU.

    Raises:
        UserError: there is no such model, or it does not fit.
    """
    latent = zoo.load_ours(zoo.resolve(path), torch.device("cpu"), torch.float32)
    # At the size at which a latent of that model lies where a patch of these does.
    height, width = (side // unet.patch_size * latent.factor for side in seen.shape[2:])
    device = next(unet.parameters()).device
    taken = fold(unet.cpu(), latent, F.interpolate(x, (height, width), mode="area"), seen)
    unet.to(device)
    logger.warning("%d of the denoiser's %d tensors are those of %s", taken, len(unet.state_dict()), path)
    return latent


@torch.no_grad()
def take_words(reader: BERTEmbedder, known: BERTEmbedder) -> int:
    """Give a text encoder the weights of another of its size, and of the words' embeddings those that both know.

    Returns:
        How many of its words the other knows.

    Raises:
        UserError: it has another size.
    """
    own, given = reader.transformer.state_dict(), known.transformer.state_dict()
    if own.keys() != given.keys() or any(
        own[name].shape != value.shape for name, value in given.items() if name != "token_emb.weight"
    ):
        raise UserError("the text encoder to begin with has another size than the one of this config")
    words, others = (cast(BERTTokenizer, one.tokenize).tokenizer.get_vocab() for one in (reader, known))
    shared = sorted(words.keys() & others.keys())
    rows = own["token_emb.weight"].clone()
    rows[[words[word] for word in shared]] = given["token_emb.weight"][[others[word] for word in shared]].to(rows)
    reader.transformer.load_state_dict({**given, "token_emb.weight": rows})
    return len(shared)


def _fitted(patches: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix (k, c) and the bias (c,) by which patches (n, k, h, w) are nearest z (n, c, h, w)."""
    a, b = (values.permute(0, 2, 3, 1).flatten(0, 2).double() for values in (patches, z))
    solution = torch.linalg.lstsq(torch.cat([a, torch.ones_like(a[:, :1])], dim=1), b).solution.float()
    return solution[:-1], solution[-1]


def _size(values: Tensor) -> str:
    return f"{values.shape[3]}x{values.shape[2]}"


def _blocks(own: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `given` under the names of `own`, whatever their shapes."""
    new, old = (blocks_a_level([PREFIX + name for name in state]) for state in (own, given))
    if len(new) > len(old) or any(now > before for now, before in zip(new, old, strict=False)):
        raise UserError(f"a denoiser of {old} residual blocks a level has no beginning for one of {new}")
    moved = {}
    for level, (now, before) in enumerate(zip(new, old, strict=False)):
        for i in range(now):
            moved[input_block(new, level, i)] = input_block(old, level, i)
        moved[input_block(new, level, now)] = input_block(old, level, before)  # the downsampling after them
        for i in range(now + 1):
            moved[output_block(new, level, i)] = output_block(old, level, i + (before - now if i else 0))
    coarsest = output_block(new, len(new) - 1, 0)
    taken = {}
    for name, value in own.items():
        block = ".".join(name.split(".")[:2])
        source = name.replace(block, moved[block], 1) if block in moved else name
        if source not in given or name.startswith((STEM, "out.2.")):
            continue
        found, width = given[source], len(value)
        if block == coarsest and value.ndim == 4 and len(found) == width and found.shape[1] > value.shape[1]:
            # It takes what came from further down and then what comes from beside: of other widths, the latter.
            found = torch.cat([value[:, :-width], found[:, -width:]], dim=1)
        taken[name] = found
    return taken
