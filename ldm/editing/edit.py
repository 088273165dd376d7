"""The method at the model's size: tasks -> ranked predictions (Algorithm 1 of Blended Latent Diffusion)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldm.backbones.contract import Backbone, Conditioning
from ldm.backbones.defaults import Defaults
from ldm.backbones.guidance import Observer, guided_denoiser, plain_denoiser
from ldm.editing.latent_masks import step_masks
from ldm.editing.mask_fit import mask_fit, plan_fit, told
from ldm.editing.ranking import CLIPRanker, rank
from ldm.editing.request import EditRequest, SamplingRequest
from ldm.editing.result import EditResult, EditTask, Predictions
from ldm.errors import UserError
from ldm.imaging.canvas import Canvas
from ldm.models.diffusion.blending import PixelBlending, blended_sample
from ldm.models.diffusion.fitting import MaskFitting
from ldm.models.diffusion.sampling import Denoiser, NoiseSource, StepInfo, sample
from ldm.models.diffusion.schedule import SamplingSchedule
from ldm.util import told_out_of_memory

logger = logging.getLogger(__name__)

Progress = Callable[[StepInfo], None]


def check_size(model: Backbone, height: int, width: int) -> None:
    """Refuse sizes that the networks cannot take.

    Raises:
        UserError: names the nearest size that fits.
    """
    unit = model.unit
    if height % unit or width % unit or height < unit or width < unit:
        fit = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise UserError(
            f"{width}x{height} does not fit the network, whose sizes are multiples of {unit}: "
            f"the nearest is `W={fit[1]}` `H={fit[0]}`"
        )


def sampling_schedule(model: Backbone, request: SamplingRequest) -> SamplingSchedule:
    """The steps of a request.

    Raises:
        UserError: more steps than the model was trained with, or a sampler that it has not.
    """
    assert request.ddim_steps is not None and request.sampler is not None  # `Defaults.fill` has filled them in
    skipped = request.skip_steps if isinstance(request, EditRequest) else 0
    height, width = size_of(request, model)
    size = (height // model.factor, width // model.factor)
    return model.levels.schedule(request.ddim_steps, request.ddim_eta, skipped, request.sampler, size)


def prompt_denoiser(
    model: Backbone,
    conditioning: Conditioning,
    prompted: Sequence[int],
    unprompted: Sequence[int],
    request: SamplingRequest,
    observe: Observer | None = None,
) -> Denoiser:
    """The model under the prompts of some rows, guided as it is made to be; see `guided_denoiser`."""
    assert request.scale is not None  # `Defaults.fill` has filled it in
    if model.guidance != "free":
        return plain_denoiser(model, conditioning.select(prompted))
    return guided_denoiser(model, conditioning, prompted, unprompted, request.scale, request.guidance_interval, observe)


def edit_image(
    model: Backbone,
    x_source: Tensor,
    mask: Tensor,
    request: EditRequest,
    ranker: CLIPRanker | None = None,
    on_step: Progress | None = None,
    keep_steps: bool = False,
) -> EditResult:
    """`edit_tasks` of one picture that has the model's size, `request.n_samples` predictions at a time."""
    task = EditTask.of(Canvas.of_tensors(x_source, mask), Defaults().fill(request), model.factor)
    (result,) = edit_tasks(model, [task], None, ranker, on_step, keep_steps)
    return result


@torch.no_grad()
@told_out_of_memory()
def edit_tasks(
    model: Backbone,
    tasks: Sequence[EditTask],
    batch_size: int | None = None,
    ranker: CLIPRanker | None = None,
    on_step: Progress | None = None,
    keep_steps: bool = False,
) -> list[EditResult]:
    """Edit pictures inside masks by prompts (Algorithm 1 of the paper), each several times, and rank the predictions.

    A prediction depends on its task and its seed alone, and not on what shares its batch.

    Args:
        model: in eval mode; its device and precision are used.
        tasks: of one size and one `batch_key`.
        batch_size: predictions sampled at a time, of whichever tasks; None is the first request's `n_samples`.
        ranker: None keeps the predictions in the order of their seeds.
        on_step: called after each step of each batch.
        keep_steps: keep the z0 estimates of all steps, for a video.

    Raises:
        OutOfMemory: smaller batches or sizes may fit.
        UserError: a size that does not fit the network, or steps out of range.
        ValueError: tasks that cannot share a batch.
    """
    request = tasks[0].request
    if len({(task.canvas.x_source.shape, task.request.batch_key) for task in tasks}) != 1:
        raise ValueError("the tasks of one batch have one size and one way of sampling")
    check_size(model, *tasks[0].canvas.x_source.shape[2:])
    inputs = _Inputs(model, tasks, sampling_schedule(model, request))
    seeds = [task.request.seeds for task in tasks]
    made = sample_all(model, seeds, batch_size or request.n_samples, inputs.sample, on_step, keep_steps)
    results = []
    for i, (task, one) in enumerate(zip(tasks, made, strict=True)):
        x, x_mask = torch.cat(one.x), task.canvas.x_mask
        x_reference = model.decode(inputs.z_source[i]).cpu()
        fits = [
            mask_fit(inputs.plans[i], *seen, cells, x_own, x_reference, x_mask, model.factor)
            for seen, cells, x_own in zip(one.seen, one.cells, x.split(1), strict=True)
        ]
        if task.request.fit_mask != "off":
            logger.info("fit_mask %s: %s", task.request.fit_mask, told(fits, x_mask))
        result = EditResult(
            task.request.prompt,
            x,
            torch.cat(one.z0),
            tuple(task.request.seeds),
            z0_steps=one.z0_steps,
            task=task,
            latent_masks=inputs.masks[i].cpu(),
            fits=fits,
            x_reference=x_reference,
        )
        masks = torch.cat([canvas.x_mask for canvas in result.canvases]) if any(fit.fitted for fit in fits) else x_mask
        results.append(ranked(result, ranker, masks))
    return results


@torch.no_grad()
@told_out_of_memory()
def generate(
    model: Backbone,
    request: SamplingRequest,
    ranker: CLIPRanker | None = None,
    on_step: Progress | None = None,
) -> Predictions:
    """Paint a prompt from noise, several times, and rank the pictures. Each depends on its seed alone.

    Args:
        model, ranker, on_step: as of `edit_tasks`.
        request: with every value filled in, see `Defaults.fill`.

    Raises:
        UserError: a size that does not fit the network, or steps out of range.
    """
    height, width = size_of(request, model)
    check_size(model, height, width)
    schedule = sampling_schedule(model, request)
    conditioning = model.condition([request.prompt, request.negative_prompt], (height, width), request.scale)
    denoiser = prompt_denoiser(model, conditioning, [0], [1], request)
    shape = (model.channels, height // model.factor, width // model.factor)

    def paint(_: Sequence[int], noise: NoiseSource, see: Progress) -> Sampled:
        z_start = noise.draw(shape, torch.empty(0, device=model.device))  # float32, whatever the networks' precision
        return Sampled(sample(denoiser, schedule, z_start, noise, callback=see))

    (made,) = sample_all(model, [request.seeds], request.n_samples, paint, on_step, False)
    return ranked(
        Predictions(request.prompt, torch.cat(made.x), torch.cat(made.z0), tuple(request.seeds)), ranker, None
    )


def size_of(request: SamplingRequest, model: Backbone) -> tuple[int, int]:
    """(H, W) that a request is worked at: its own, or the model's."""
    height, width = model.native_size
    return request.H or height, request.W or width


class _Inputs:
    """What the samples of a batch need of their tasks, each computed once."""

    def __init__(self, model: Backbone, tasks: Sequence[EditTask], schedule: SamplingSchedule):
        self.model, self.tasks, self.schedule = model, tasks, schedule
        prompts = dict.fromkeys(
            prompt for task in tasks for prompt in (task.request.negative_prompt, task.request.prompt)
        )
        self.row_of = {prompt: row for row, prompt in enumerate(prompts)}
        self.conditioning = model.condition(list(prompts), tasks[0].canvas.size, tasks[0].request.scale)
        self.z_source = [model.encode(task.canvas.x_source.to(model.device)) for task in tasks]
        self.masks = [self._masks(task) for task in tasks]
        self.plans = [
            plan_fit(task.canvas, task.request, z_source, masks[-1:], model.factor)
            for task, z_source, masks in zip(tasks, self.z_source, self.masks, strict=True)
        ]

    def _masks(self, task: EditTask) -> Tensor:
        """(steps, 1, h, w), on the model's device."""
        iterations, downsample = task.request.mask_dilation_iterations, task.request.mask_downsample
        assert iterations is not None  # `EditTask.of` has filled it in
        return step_masks(task.canvas.x_levels, self.model.factor, self.schedule, iterations, downsample).to(
            self.model.device
        )

    def sample(self, rows: Sequence[int], noise: NoiseSource, see: Progress) -> "Sampled":
        """One batch; `rows` names the task of each sample."""
        rows = rows[:1] if len(set(rows)) == 1 else rows  # what all samples share is broadcast
        request, device = self.tasks[rows[0]].request, self.model.device
        prompted = [self.row_of[self.tasks[i].request.prompt] for i in rows]
        unprompted = [self.row_of[self.tasks[i].request.negative_prompt] for i in rows]
        if len(set(unprompted)) == 1:
            unprompted = unprompted[:1]
        canvases = [self.tasks[i].canvas for i in rows]
        x_source, x_mask = (torch.cat([getattr(one, name) for one in canvases]) for name in ("x_source", "x_mask"))
        model = self.model.given(x_source, x_mask)
        z_source = torch.cat([self.z_source[i] for i in rows])
        masks = torch.stack([self.masks[i] for i in rows], dim=1)  # (steps, 1 or b, 1, h, w)
        wanted = [self.plans[i].wanted for i in rows]
        fitting = MaskFitting(self.schedule, masks, z_source, wanted) if any(wanted) else None
        observe = None if fitting is None else fitting.observe
        denoiser = prompt_denoiser(model, self.conditioning, prompted, unprompted, request, observe)
        pixels = None
        if request.percentage_of_pixel_blending > 0:
            share = request.percentage_of_pixel_blending
            pixels = PixelBlending(self.model, x_source.to(device), x_mask.to(device), share)
        z0 = blended_sample(
            denoiser,
            self.schedule,
            z_source,
            masks,
            noise,
            shared_noise=request.background_noise == "shared",
            pixels=pixels,
            within=fitting,
            callback=see,
        )
        cells = (masks[-1] if pixels is None else pixels.latent_mask).expand(len(z0), -1, -1, -1)
        if fitting is None or fitting.cells is None:
            return Sampled(z0, cells.cpu(), [(None, False)] * len(z0))
        seen = list(zip(fitting.separations, fitting.fitted, strict=True))
        return Sampled(z0, (cells * fitting.cells).cpu(), seen)


@dataclass(frozen=True)
class Sampled:
    """One batch: z_0 (b, c, h, w); and of edits the cells (b, 1, h, w) that the last step edited, on the CPU, and the
    `separations` and `fitted` of `MaskFitting`."""

    z0: Tensor
    cells: Tensor | Sequence[None] = ()
    seen: Sequence[tuple[float | None, bool]] = ()


@dataclass(frozen=True)
class _Made:
    """All predictions of one input, in the order of their seeds: x (1, 3, H, W) and z0 (1, c, h, w) of each, its z0 at
    each step (steps, c, h, w), and what `Sampled` has of it."""

    x: list[Tensor] = field(default_factory=list)
    z0: list[Tensor] = field(default_factory=list)
    z0_steps: list[Tensor] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)
    seen: list[tuple[float | None, bool]] = field(default_factory=list)


Sample = Callable[[Sequence[int], NoiseSource, Progress], Sampled]


def sample_all(
    model: Backbone,
    seeds: Sequence[Sequence[int]],
    batch_size: int,
    sample: Sample,
    on_step: Progress | None,
    keep_steps: bool,
) -> list[_Made]:
    """All predictions of each input, whose seeds are given, `batch_size` at a time."""
    places = [(i, seed) for i, own in enumerate(seeds) for seed in own]
    made = [_Made() for _ in seeds]
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        kept: list[Tensor] = []

        def see(info: StepInfo, kept: list[Tensor] = kept) -> None:
            if keep_steps:
                kept.append(info.z0.cpu())
            if on_step is not None:
                on_step(info)

        sampled = sample([i for i, _ in batch], NoiseSource([seed for _, seed in batch]), see)
        for row, (i, _) in enumerate(batch):
            # One at a time: the decoder needs far more memory a sample than the denoiser, and the same seed gives
            # the same picture whatever the batch.
            z0 = sampled.z0[row : row + 1]
            made[i].x.append(model.decode(z0).cpu())
            made[i].z0.append(z0.cpu())
            made[i].cells.extend(sampled.cells[row : row + 1])
            made[i].seen.extend(sampled.seen[row : row + 1])
            if keep_steps:
                made[i].z0_steps.append(torch.stack([z0_step[row] for z0_step in kept]))
    return made


Made = TypeVar("Made", bound=Predictions)


def ranked(made: Made, ranker: CLIPRanker | None, mask: Tensor | None) -> Made:
    """Predictions in the ranker's order, or as they are; `mask` is as the ranker takes it.

    Raises:
        UserError: pictures of NaN, as of half precision that overflowed.
    """
    if not torch.isfinite(made.x).all():
        raise UserError("the model gave NaN instead of pictures: try `precision=float32`, or a smaller `scale`")
    if ranker is None:
        return made
    distances = ranker.distances(made.x, mask, made.prompt)
    order = rank(distances).tolist()
    of_edits: dict[str, Any] = {"fits": [made.fits[i] for i in order]} if isinstance(made, EditResult) else {}
    return replace(
        made,
        **of_edits,
        x=made.x[order],
        z0=made.z0[order],
        seeds=tuple(made.seeds[i] for i in order),
        distances=tuple(distances[order].tolist()),
        z0_steps=[made.z0_steps[i] for i in order] if made.z0_steps else (),
    )
