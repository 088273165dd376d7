"""Blended Diffusion and its baseline at the model's size: a task -> ranked predictions, by any backbone under CLIP's
guidance (Avrahami, Lischinski and Fried, CVPR 2022, Algorithm 1)."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.backbones.contract import Backbone
from ldm.backbones.guidance import plain_denoiser
from ldm.data.epochs import seeded
from ldm.editing.clip_encoder import LAMBDA, Losses, find_lpips, guiding_precision
from ldm.editing.edit import Progress, Sampled, check_size, ranked, sample_all
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.latent_masks import step_masks
from ldm.editing.mask_fit import MaskFit
from ldm.editing.ranking import CLIPRanker
from ldm.editing.result import EditResult, EditTask
from ldm.errors import OutOfMemory, UserError
from ldm.models.diffusion.blending import blended_sample
from ldm.models.diffusion.loss_guidance import guided_by_loss
from ldm.models.diffusion.pixel import Classes
from ldm.models.diffusion.respacing import RespacedLevels, ancestral_step, space_timesteps
from ldm.models.diffusion.sampling import Denoiser, NoiseSource, StepInfo, noised, sample
from ldm.models.diffusion.schedule import SamplingSchedule
from ldm.util import told_out_of_memory

logger = logging.getLogger(__name__)

TRAIN_STEPS = 1000


def guided_schedule(model: Backbone, options: GuidanceOptions) -> SamplingSchedule:
    """The steps of a request.

    Raises:
        UserError: a respacing that there is not, or one that this model has not.
    """
    levels = model.levels
    if isinstance(levels, RespacedLevels):
        return levels.respaced(options.timestep_respacing, options.skip_timesteps)
    steps = len(space_timesteps(options.timestep_respacing, TRAIN_STEPS))
    if options.skip_timesteps >= steps:
        raise UserError(f"`skip_timesteps` is {options.skip_timesteps}: give 0 to {steps - 1}")
    return levels.schedule(steps, skip_steps=options.skip_timesteps)


@torch.no_grad()
def guide_task(
    model: Backbone,
    task: EditTask,
    options: GuidanceOptions,
    clip: CLIPRanker,
    strength: float | None = None,
    on_step: Progress | None = None,
    keep_steps: bool = False,
    batch_size: int | None = None,
) -> EditResult:
    """Edit a picture inside its mask under CLIP's guidance, `task.request.n_samples` predictions at a time, and rank.

    A prediction depends on the task and its seed alone. A batch that is too large for the memory is halved.

    Args:
        model: in eval mode. clip: what guides, and ranks.
        task: all white where there is no mask; of its request what is not said by the `options`.
        strength: of CLIP's guidance where the options leave it open.
        on_step, keep_steps: as of `ldm.editing.edit.edit_tasks`.
        batch_size: the most predictions at a time, if these are to be fewer.

    Raises:
        OutOfMemory: for a single prediction.
        UserError: a size that does not fit the network, steps that there are not, or guidance that ends in NaN.
    """
    check_size(model, *task.canvas.size)
    run = _Guided(model, task, options, clip, strength)
    (made,) = _halving(model, task, run, on_step, keep_steps, batch_size)
    x = torch.cat(made.x)
    x_mask = task.canvas.x_mask
    fits = [MaskFit(False, "this method fits none", run.masks[-1].cpu(), x_mask[0]) for _ in made.x]
    shown = task
    if options.no_enforce_background or options.local_clip_guided_diffusion:
        # Nothing is put back: all of the window is the model's.
        shown = replace(task, canvas=replace(task.canvas, mask=_window_mask(task)))
    result = EditResult(
        task.request.prompt,
        x,
        torch.cat(made.z0),
        tuple(task.request.seeds),
        z0_steps=made.z0_steps,
        task=shown,
        latent_masks=run.masks.cpu(),
        fits=fits,
        x_reference=model.decode(run.z_source).cpu(),
    )
    return ranked(result, clip, x_mask)


def _halving(
    model: Backbone, task: EditTask, run: "_Guided", on_step: Progress | None, keep_steps: bool, most: int | None
) -> Any:
    batch = min(task.request.n_samples, most or task.request.n_samples)
    while True:
        try:
            with told_out_of_memory():
                return sample_all(model, [task.request.seeds], batch, run.sample, on_step, keep_steps)
        except OutOfMemory:
            if batch == 1:
                raise
            batch = (batch + 1) // 2
            logger.warning("memory does not suffice for the batch: going on with `batch_size=%d`", batch)


def _window_mask(task: EditTask) -> Tensor:
    mask = torch.zeros_like(task.canvas.mask)
    rows, columns = task.canvas.window.in_image
    mask[..., rows, columns] = 1
    return mask


class _Guided:
    """What all batches of a task share, and the sampling of one."""

    def __init__(
        self, model: Backbone, task: EditTask, options: GuidanceOptions, clip: CLIPRanker, strength: float | None
    ):
        canvas, request = task.canvas, task.request
        model = model.given(canvas.x_source, canvas.x_mask)
        self.model, self.options = model, options
        self.schedule = guided_schedule(model, options)
        self.z_source = model.encode(canvas.x_source.to(model.device))
        iterations = request.mask_dilation_iterations or 0
        self.masks = step_masks(canvas.x_levels, model.factor, self.schedule, iterations, request.mask_downsample)
        self.masks = self.masks.to(model.device)
        own = LAMBDA if strength is None else strength
        chosen = own if options.clip_guidance_lambda is None else options.clip_guidance_lambda
        lpips, precision = find_lpips(options, model.device), guiding_precision(model.dtype)
        self.losses = Losses(clip, request.prompt, canvas.x_source, canvas.x_mask, options, chosen, lpips, precision)
        self.conditioning: Any = model.condition([""], canvas.size)

    def denoiser(self, noise: NoiseSource) -> Denoiser:
        """The model under the guidance of a batch."""
        conditioning = self.conditioning
        if isinstance(conditioning, Classes):
            conditioning = Classes(len(conditioning), noise)
        plain = plain_denoiser(self.model, conditioning)
        # Apart from the trajectory's own draws, so that more copies are no other noise.
        loss = self.losses.total([seeded(seed, 1) for seed in noise.seeds])
        if loss is None:
            return plain
        return guided_by_loss(plain, loss, self.model.decode, "eps" if self.options.ddim else "mean")

    def sample(self, rows: Sequence[int], noise: NoiseSource, see: Progress) -> Sampled:
        """One batch: the estimate of z_0 that the last step makes, with the source around the mask."""
        last: list[Tensor] = []

        def keep(info: StepInfo) -> None:
            if not torch.isfinite(info.z0).all():
                raise UserError(
                    f"step {info.step + 1} of {info.total} gave NaN: try `precision=float32`, or smaller weights such "
                    "as `clip_guidance_lambda`"
                )
            last[:] = [info.z0]
            see(info)

        denoiser, step = self.denoiser(noise), None if self.options.ddim else ancestral_step
        mask = self.masks[-1:]  # (1, 1, h, w)
        if self.options.local_clip_guided_diffusion:
            start = noised(self.z_source, self.schedule.levels[0], noise.draw(self.z_source.shape[1:], self.z_source))
            sample(denoiser, self.schedule, start, noise, callback=keep, step=step)
        else:
            blended_sample(
                denoiser,
                self.schedule,
                self.z_source,
                self.masks[:, None],
                noise,
                callback=keep,
                step=step,
                released=self.options.released_blend,
            )
        (z0,) = last
        if not (self.options.no_enforce_background or self.options.local_clip_guided_diffusion):
            z0 = torch.where(mask.bool(), z0, self.z_source)
        return Sampled(z0, mask.expand(len(z0), -1, -1, -1).cpu(), [(None, False)] * len(z0))
