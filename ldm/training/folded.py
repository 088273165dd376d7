"""The denoiser of latents as the beginning of a denoiser of pictures, whose patches stand where the latents stood."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.pixel import PixelDiffusion
from ldm.modules.diffusionmodules.openaimodel import input_block, output_block
from ldm.training.deepen import PREFIX, blocks_a_level

STEM = "diffusion_model.input_blocks.0.0"


@torch.no_grad()
def fold(pixels: PixelDiffusion, latent: LatentDiffusion, x: Tensor) -> int:
    """Give `pixels` what it can take of a latent model of about the same noise levels: the blocks at the same places.

    The latents are nearly linear in the pixels beneath them (for `scenes`, 79 to 95 % of their variance in patches of
    4x4 at half the size), so that patches of noisy pixels, through the matrix that fits them best, are nearly noisy
    latents: the first convolution is the latent model's after that matrix. What the empty prompt adds to the time
    embedding becomes a part of it. Coarser levels than `pixels` has, further blocks of a level, and attention to the
    prompt are left out; what then has no counterpart, and the last layer, keeps its fresh values.

    Args:
        x: pictures (n, 3, H, W) in [-1, 1] at the size of the latent model, to fit the matrix by; some hundred.

    Returns:
        How many tensors it took.

    Raises:
        UserError: nothing fits, or the patches are not as many as the latents.
    """
    unet = pixels.diffusion_model
    own, given = pixels.state_dict(), latent.state_dict()
    own = {f"diffusion_model.{name}": value for name, value in own.items()}
    taken = _blocks({f"model.{name}": value for name, value in own.items()}, given)
    fitting = {name: value for name, value in taken.items() if own[name].shape == value.shape}
    if not fitting:
        raise UserError("nothing of the latent model's denoiser fits the one of this config")
    small = F.interpolate(x, (pixels.image_size, pixels.image_size), mode="area")
    patches, z = F.pixel_unshuffle(small, unet.patch_size), latent.encode(x)
    if patches.shape[2:] != z.shape[2:]:
        raise UserError(f"{_size(patches)} patches cannot stand where {_size(z)} latents stood: change `patch_size`")
    ones = torch.ones_like(patches[:, :1])
    a, b = (
        values.permute(0, 2, 3, 1).flatten(0, 2).double() for values in (torch.cat([patches, ones], dim=1), z.float())
    )
    matrix = torch.linalg.lstsq(a, b).solution.float()  # (channels of a patch + 1, channels of z)
    weight, bias = (given[f"model.{STEM}.{kind}"].float() for kind in ("weight", "bias"))
    # Besides, at a third of their size, the fresh values, that see the rest of a patch.
    fitting[f"{STEM}.weight"] = torch.einsum("o c h w, k c -> o k h w", weight, matrix[:-1])
    fitting[f"{STEM}.weight"] += own[f"{STEM}.weight"] / 3
    fitting[f"{STEM}.bias"] = bias + torch.einsum("o c h w, c -> o", weight, matrix[-1])
    if latent.model.diffusion_model.context_embed is not None:
        pooled = latent.model.diffusion_model.context_embed(latent.condition([""]).contexts[0, 0])
        fitting["diffusion_model.time_embed.2.bias"] = given["model.diffusion_model.time_embed.2.bias"] + pooled
    silent = {name: torch.zeros_like(value) for name, value in own.items() if ".attn2.to_out.0." in name}
    whole = {**own, **fitting, **silent}
    pixels.load_state_dict({name.removeprefix("diffusion_model."): value for name, value in whole.items()})
    return len(fitting)


def _size(values: Tensor) -> str:
    return f"{values.shape[3]}x{values.shape[2]}"


def _blocks(own: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `given` under the names of `own` without `model.`, whatever their shapes."""
    new, old = blocks_a_level(own), blocks_a_level(given)
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
        block = ".".join(name.removeprefix(PREFIX).split(".")[:2])
        source = name.replace(f"{PREFIX}{block}.", f"{PREFIX}{moved[block]}.") if block in moved else name
        if source not in given:
            continue
        found = given[source].float()
        if block == coarsest and found.ndim == value.ndim == 4 and found.shape[1] > value.shape[1]:
            # It takes what came from further down and then what comes from beside: of other widths, the latter.
            beside = value.shape[1] - value.shape[1] // 2
            found = torch.cat([value[:, :-beside], found[:, -beside:]], dim=1)
        taken[name.removeprefix("model.")] = found
    return taken
