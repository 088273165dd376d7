"""Blended latent diffusion: Algorithm 1 of the paper, with one mask per step (progressive shrinking, section 4.3)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.models.diffusion.sampling import Callback, Denoiser, NoiseSource, Step, noised, sample
from ldm.models.diffusion.schedule import SamplingSchedule

Within = Callable[[int, Tensor], Tensor]
"""`(i, z0) -> cells` (1 or b, 1, h, w) in {0, 1}: what of its mask step i edits, by all that was seen up to z0."""


class Autoencoder(Protocol):
    """What blending pixels needs of a model; see `ldm.backbones.contract.Backbone`."""

    @property
    def factor(self) -> int:
        """Pixels a side that one latent position stands for."""

    def encode(self, x: Tensor) -> Tensor:
        """x (b, 3, H, W) -> z (b, c, h, w)."""

    def decode(self, z: Tensor) -> Tensor:
        """z (b, c, h, w) -> x (b, 3, H, W)."""


@dataclass(frozen=True)
class PixelBlending:
    """Blend decoded pixels, not latents, over the last `fraction` (0 to 1) of the steps.

    Slower, but the border then follows the mask of the image and not that of the latent cells.

    x_source: (1, 3, H, W) in [-1, 1]; mask: (1, 1, H, W) in {0, 1}; or one of each for every sample of a batch.
    """

    model: Autoencoder
    x_source: Tensor
    mask: Tensor
    fraction: float

    def first_step(self, steps: int) -> int:
        """The first of `steps` that blends pixels; any fraction above 0 is at least one step."""
        return steps - math.ceil(self.fraction * steps - 1e-9)

    @property
    def latent_mask(self) -> Tensor:
        """(1 or b, 1, h, w): the latent positions that hold any masked pixel."""
        return F.max_pool2d(self.mask, self.model.factor)

    def change(self, z0: Tensor, cells: Tensor | None = None) -> Tensor:
        """What blending the pixels does to the estimate z0 (b, c, h, w): E(D(z0) m + x_source (1 - m)) - E(D(z0)).

        m is the mask, of which only what lies in the `cells` (1 or b, 1, h, w), where they are given.

        The released code goes on from the first term alone. But a round trip through the autoencoder is not exact, and
        its error is added again at each step: contrast burns in. In the difference it cancels, and well inside the
        mask hardly anything changes. One sample at a time, as the decoder needs far more memory a sample than the
        denoiser, and so that a prediction is the same alone and in a batch.
        """
        mask = self.mask
        if cells is not None:
            mask = mask * F.interpolate(cells, scale_factor=self.model.factor, mode="nearest")
        rows = zip(z0.split(1), self._each(self.x_source, z0), self._each(mask, z0), strict=True)
        return torch.cat([self._change(*row) for row in rows])

    def _change(self, z0: Tensor, x_source: Tensor, mask: Tensor) -> Tensor:
        x = self.model.decode(z0)
        blended = self.model.encode(x * mask + x_source * (1 - mask))
        return blended - self.model.encode(x)

    @staticmethod
    def _each(x: Tensor, z0: Tensor) -> tuple[Tensor, ...]:
        return x.expand(len(z0), -1, -1, -1).split(1)


def blended_sample(
    denoiser: Denoiser,
    schedule: SamplingSchedule,
    z_source: Tensor,
    masks: Tensor,
    noise: NoiseSource,
    *,
    shared_noise: bool | None = None,
    pixels: PixelBlending | None = None,
    within: Within | None = None,
    callback: Callback | None = None,
    step: Step | None = None,
    released: bool = False,
) -> Tensor:
    """Edit inside masks: z_source (1 or b, c, h, w) -> z_0 (b, c, h, w), one for each of the b seeds of `noise`.

    The trajectory starts from the source noised to the schedule's first level, so `skip_steps` keeps more of it. After
    every step the background is the source noised to the level that the step arrived at; after the last one it is
    `z_source` itself. Each generator draws in a fixed order: the start, then for each step the step's own noise (where
    eta is above 0) and the background's (where it is not shared).

    Args:
        masks: (steps, 1 or b, 1, h, w) in {0, 1}, the mask of each step; see `parts_of`.
        shared_noise: whether the background has the start's noise at every level, and not fresh noise at each as in
            the paper; None is as the schedule's sampler needs it.
        pixels: in its steps, cells that hold any masked pixel are edited, in place of the mask of the step.
        within: asked after each step what of that is edited, such as `ldm.models.diffusion.fitting.MaskFitting`, whose
            masks depend on the trajectory so far; None edits all of it.
        step: as of `sample`.
        released: the background has the level before each step, and not the one that the step arrived at, as in the
            program of Blended Diffusion.

    Raises:
        ValueError: masks of another shape.
    """
    steps, b, (c, h, w) = len(schedule), len(noise), z_source.shape[1:]
    if masks.shape not in ((steps, 1, 1, h, w), (steps, b, 1, h, w)):
        raise ValueError(f"masks are ({steps}, 1 or {b}, 1, {h}, {w}), one for each step, not {tuple(masks.shape)}")
    shared = schedule.multistep if shared_noise is None else shared_noise
    pixels_from = steps if pixels is None else pixels.first_step(steps)
    start = noise.draw((c, h, w), z_source)

    def blend(i: int, z: Tensor, z0: Tensor) -> Tensor:
        last, end, mask = i == steps - 1, schedule.levels[i + 1], masks[i]
        level = schedule.levels[i] if released else end
        exact = last and not released
        background = (
            z_source if exact else noised(z_source, level, start if shared else noise.draw((c, h, w), z_source))
        )
        cells = None if within is None else within(i, z0)
        if pixels is not None and i >= pixels_from:
            # Only the estimate changes, z' by a' times as much, and its noise stays. The released code noises the
            # blended estimate anew instead; but a guided estimate goes further than the noise it was made from, and
            # with other noise every step would go as far again: blotches of full contrast.
            change, mask = pixels.change(z0, cells), pixels.latent_mask
            z = z0 + change if last else z + end.a * change
        mask = mask if cells is None else mask * cells
        return torch.where(mask.bool(), z, background)

    return sample(denoiser, schedule, noised(z_source, schedule.levels[0], start), noise, blend, callback, step)
