"""Blended latent diffusion: Algorithm 1 of the paper with progressive mask shrinking (section 4.3)."""

import math
from dataclasses import dataclass
from itertools import pairwise

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


def parts_of(schedule: SamplingSchedule, masks: int) -> tuple[int, ...]:
    """Which of `masks` masks each step of a schedule uses; the last, tight one comes last in any case.

    The walk's timesteps are divided into equal parts. DDIM's are even, so that equal numbers of steps are the same;
    with another sampler the masks change at the noise level at which they change with DDIM.
    """
    if schedule.sampler == "ddim":
        return mask_parts(len(schedule), masks)
    arrivals = [*schedule.timesteps[1:], 0]
    return tuple(masks - 1 - t * masks // (schedule.timesteps[0] + 1) for t in arrivals)


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
            sample of a batch has its own. K is the number of steps, one mask for each, or they divide the walk by
            `parts_of`.
        pixels: see `PixelBlending`.
        fixed_noise: whether the background is noised with the start's noise at every level, and not with fresh noise
            as in the paper; None is as the schedule's sampler needs it.
        restarts: whether a second-order solver takes a first-order step after each change of a sample's mask, where
            the latents jump. Off, since it was measured to make no steady difference (docs/solvers.md).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: SamplingSchedule,
        latent_masks: Tensor,
        pixels: PixelBlending | None = None,
        fixed_noise: bool | None = None,
        restarts: bool = False,
    ):
        self.denoiser, self.schedule, self.pixels = denoiser, schedule, pixels
        self.pixels_from = len(schedule) if pixels is None else pixels.begins_at(len(schedule))
        stack = latent_masks if latent_masks.ndim == 5 else latent_masks[:, None]
        self.fixed_noise = schedule.one_trajectory if fixed_noise is None else fixed_noise
        parts = range(len(stack)) if len(stack) == len(schedule) else parts_of(schedule, len(stack))
        self.masks = [stack[k] for k in parts]
        if pixels is not None:
            tail = len(schedule) - self.pixels_from
            self.masks[self.pixels_from :] = [pixels.latent_mask] * tail
        self.goes_on: list[Tensor | bool] = [True] * len(schedule)
        if restarts:  # step i is the first that sees latents blended with the mask of step i - 1
            same = [(a == b).flatten(1).all(1).view(-1, 1, 1, 1) for a, b in pairwise(self.masks)]
            self.goes_on[2:] = same[: len(schedule) - 2]

    @torch.no_grad()
    def sample(self, z_source: Tensor, noise: NoiseSource, callback: Callback | None = None) -> Tensor:
        """z_source (1 or b, c, h, w) -> z_0 (b, c, h, w), one for each seed of `noise`.

        The walk starts from the input noised to the first step's level, so `skip_steps` keeps more of it. After
        every step the background is the input noised to the level that the step arrived at; after the last one that
        level is zero and the background is `z_source` itself. Each generator draws in a fixed order: the start, then
        for each step the step's own noise (where eta is above 0) and the background's (where it is fresh).
        """
        schedule, shape = self.schedule, z_source.shape[1:]
        start = noise.draw(shape, z_source)
        z, z0 = noised(z_source, schedule.alphas[0], start), None
        for i, (timestep, mask) in enumerate(zip(schedule.timesteps, self.masks, strict=True)):
            z_fg, z0 = denoise_step(self.denoiser, z, schedule, i, noise, z0, self.goes_on[i])
            level = schedule.alphas_prev[i] if i < len(schedule) - 1 else 1.0
            if level == 1.0:
                at_level = torch.zeros_like(z)
            else:
                at_level = start if self.fixed_noise else noise.draw(shape, z_source)
            if i >= self.pixels_from:
                z_fg = noised(self.pixels.blend(z0), level, at_level)
            z_bg = noised(z_source, level, at_level)
            z = torch.where(mask.bool(), z_fg, z_bg)
            if callback is not None:
                callback(StepInfo(i, len(schedule), timestep, z, z0))
        return z
