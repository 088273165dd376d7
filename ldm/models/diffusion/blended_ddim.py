"""Blended latent diffusion: Algorithm 1 of the paper with progressive mask shrinking (section 4.3)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.ddim import Callback, Denoiser, NoiseSource, StepInfo, denoise_step, noised
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.schedule import SamplingSchedule


def mask_parts(steps: int, masks: int) -> tuple[int, ...]:
    """Which mask each step uses: `masks` parts of a walk of `steps`, as equal as whole numbers allow, in order.

    The last step always uses the last, tight mask. With fewer steps than masks some are left out, never that one.
    """
    return tuple(masks - 1 - (steps - 1 - i) * masks // steps for i in range(steps))


@dataclass(frozen=True)
class PixelBlending:
    """Blend decoded pixels, not latents, over the last `fraction` (0 to 1) of the walk's steps.

    Slower, but the border then follows the mask of the image and not that of the latent cells.

    x_source: (1, 3, H, W) in [-1, 1]; mask: (1, 1, H, W) in {0, 1}; or one of each for every sample of a batch.
    """

    model: LatentDiffusion
    x_source: Tensor
    mask: Tensor
    fraction: float

    def begins_at(self, steps: int) -> int:
        """The first step that blends pixels; any fraction above 0 is at least one step."""
        return steps - math.ceil(self.fraction * steps - 1e-9)

    @property
    def latent_mask(self) -> Tensor:
        """(1 or b, 1, h, w): the latent positions that hold any masked pixel."""
        return F.max_pool2d(self.mask, self.model.factor)

    def blend(self, z0: Tensor) -> Tensor:
        """E(D(z0) * m + x_source * (1 - m)): the clean latents of the blended picture, like z0."""
        x = self.model.decode_first_stage(z0) * self.mask + self.x_source * (1 - self.mask)
        return self.model.encode_first_stage(x)


class BlendedDDIMSampler:
    """Edits inside a mask; outside it the latents are the input's, at every level.

    Args:
        denoiser: `(z, t) -> eps`, guided or not.
        schedule: the steps to take.
        latent_masks: (K, 1, h, w) in {0, 1}, widest first, the tight mask last; or (K, b, 1, h, w), where each
            sample of a batch has its own.
        pixels: see `PixelBlending`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: SamplingSchedule,
        latent_masks: Tensor,
        pixels: PixelBlending | None = None,
    ):
        self.denoiser, self.schedule, self.pixels = denoiser, schedule, pixels
        self.pixels_from = len(schedule) if pixels is None else pixels.begins_at(len(schedule))
        stack = latent_masks if latent_masks.ndim == 5 else latent_masks[:, None]
        self.masks = [stack[k] for k in mask_parts(len(schedule), len(stack))]
        if pixels is not None:
            tail = len(schedule) - self.pixels_from
            self.masks[self.pixels_from :] = [pixels.latent_mask] * tail

    @torch.no_grad()
    def sample(self, z_source: Tensor, noise: NoiseSource, callback: Callback | None = None) -> Tensor:
        """z_source (1 or b, c, h, w) -> z_0 (b, c, h, w), one for each seed of `noise`.

        The walk starts from the input noised to the first step's level, so `skip_steps` keeps more of it. After
        every step the background is the input noised to the level that the step arrived at; after the last one that
        level is zero and the background is `z_source` itself. Each generator draws in a fixed order: the start, then
        for each step the step's own noise (where eta is above 0) and the background's.
        """
        schedule, shape = self.schedule, z_source.shape[1:]
        z = noised(z_source, schedule.alphas[0], noise.draw(shape, z_source))
        for i, (timestep, mask) in enumerate(zip(schedule.timesteps, self.masks, strict=True)):
            z_fg, z0 = denoise_step(self.denoiser, z, schedule, i, noise)
            level = schedule.alphas_prev[i] if i < len(schedule) - 1 else 1.0
            fresh = noise.draw(shape, z_source) if level < 1.0 else torch.zeros_like(z)
            if i >= self.pixels_from:
                z_fg = noised(self.pixels.blend(z0), level, fresh)
            z_bg = noised(z_source, level, fresh)
            z = torch.where(mask.bool(), z_fg, z_bg)
            if callback is not None:
                callback(StepInfo(i, len(schedule), timestep, z, z0))
        return z
