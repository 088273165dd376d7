"""The main job, at the model's size: images, masks and prompts -> ranked predictions."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ldm.backbones.defaults import Defaults
from ldm.editing.latent_masks import DOWNSAMPLING, auto_dilation, latent_masks, soft_latent_masks
from ldm.editing.ranking import CLIPRanker, rank
from ldm.errors import UserError
from ldm.models.diffusion.blending import PixelBlending, blended_sample
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.guidance import check_guidance_interval, guided_denoiser
from ldm.models.diffusion.sampling import NoiseSource, StepInfo
from ldm.models.diffusion.schedule import SamplingSchedule, make_sampling_schedule, parts_of

logger = logging.getLogger(__name__)

BACKGROUND_NOISE = ("fresh", "one")


@dataclass(frozen=True)
class EditRequest:
    """What to do, apart from the image and the mask.

    Attributes:
        prompt: what to paint inside the mask; empty paints whatever fits.
        seed: of the first prediction; prediction i has `seed + i`, whatever its batch.
        n_samples: predictions in one batch; n_iter: how many batches.
        ddim_steps: steps of a full walk; skip_steps: how many of them to leave out at its noisy end, which keeps
            more of what lies under the mask.
        ddim_eta: 0 is deterministic, 1 as noisy as DDPM.
        scale: of classifier-free guidance; 1 is without; None is the model's, see `Defaults`.
        guidance_interval: (low, high), the noise levels at which to guide, 0 is the cleanest and 1 the noisiest; None
            is all of them.
        sampler: one of `SAMPLERS`: "ddim" as in the paper, or "dpmpp_2m", which needs fewer steps (`ddim_steps` counts
            those of either).
        background_noise: one of `BACKGROUND_NOISE`: "fresh" at every step as in the paper, or "one" for the whole
            walk; None is the model's, see `Defaults`, or else as the sampler needs it ("one" for "dpmpp_2m").
        percentage_of_pixel_blending: 0 to 1, the last part of the walk that blends decoded pixels.
        mask_dilation_iterations: how many wider masks come before the tight one (progressive mask shrinking); None
            lets the mask's thickness decide, see `auto_dilation`.
        mask_downsample: how pixels of the mask become latent cells, a name of `DOWNSAMPLING`.

    Raises:
        UserError: a number is out of its range.
    """

    prompt: str
    seed: int = 42
    n_samples: int = 4
    n_iter: int = 1
    ddim_steps: int = 50
    ddim_eta: float = 0.0
    scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    sampler: str = "ddim"
    background_noise: str | None = None
    skip_steps: int = 0
    percentage_of_pixel_blending: float = 0.0
    mask_dilation_iterations: int | None = None
    mask_downsample: str = "adaptive"

    def __post_init__(self):
        for name, low, high in (
            ("seed", 0, 2**63 - 1),
            ("n_samples", 1, None),
            ("n_iter", 1, None),
            ("scale", 0, None),
            ("percentage_of_pixel_blending", 0, 1),
            ("mask_dilation_iterations", 0, 16),
        ):
            value = getattr(self, name)
            if value is None and name in ("scale", "mask_dilation_iterations"):
                continue
            if not low <= value < float("inf") or (high is not None and value > high):
                span = f"from {low} to {high}" if high is not None else f"of at least {low}"
                raise UserError(f"{name} is {value}: give a number {span}")
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))  # JSON has lists only
            check_guidance_interval(self.guidance_interval)
        if self.background_noise not in (None, *BACKGROUND_NOISE):
            raise UserError(f"background_noise is {self.background_noise!r}: give {' or '.join(BACKGROUND_NOISE)}")
        if self.background_noise == "fresh" and self.sampler != "ddim":
            raise UserError(f"background_noise fresh needs the sampler ddim: {self.sampler} builds on one")
        if self.mask_downsample not in DOWNSAMPLING:
            raise UserError(f"mask_downsample is {self.mask_downsample!r}: give one of {', '.join(DOWNSAMPLING)}")

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.n_samples * self.n_iter)

    @property
    def walk(self) -> "EditRequest":
        """What requests must have in common to be sampled in one batch."""
        return replace(self, prompt="", seed=0, n_samples=1, n_iter=1)


@dataclass(frozen=True)
class EditInput:
    """One image to edit, at the model's size.

    x_source: (1, 3, H, W) in [-1, 1]. mask: (1, 1, H, W) in {0, 1}, 1 where to edit. levels: (1, 1, H, W) in [0, 1]
    for a soft mask, whose cells join the walk by their level (see `soft_latent_masks`); None for a hard one.
    """

    x_source: Tensor
    mask: Tensor
    request: EditRequest
    levels: Tensor | None = None


@dataclass(frozen=True)
class Edit:
    """Predictions in rank order, the best first.

    x: (n, 3, H, W) in [-1, 1]; z0: (n, c, h, w), scaled latents; seeds: of each; distances: CLIP's, lower is better,
    or None where nothing ranked them; latent_masks: (K, 1, h, w), widest first; x_reference: (1, 3, H, W), what the
    autoencoder makes of the input; z0_steps: for each prediction the estimates of z0 at every step, (steps, c, h, w),
    when they were asked for.
    """

    x: Tensor
    z0: Tensor
    seeds: tuple[int, ...]
    distances: tuple[float, ...] | None
    latent_masks: Tensor
    x_reference: Tensor
    z0_steps: Sequence[Tensor] = field(default=())


Progress = Callable[[StepInfo], None]


def check_size(model: LatentDiffusion, height: int, width: int) -> None:
    """Refuse sizes that the networks cannot take.

    Raises:
        UserError: names the nearest size that fits.
    """
    unit = model.factor * model.model.diffusion_model.factor
    if height % unit or width % unit or height < unit or width < unit:
        fit = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise UserError(
            f"{width}x{height} does not fit the network, whose sizes are multiples of {unit}: "
            f"the nearest is --W {fit[1]} --H {fit[0]}"
        )


def sampling_schedule(model: LatentDiffusion, request: EditRequest) -> SamplingSchedule:
    """The steps of a request.

    Raises:
        UserError: steps out of range, or a sampler that cannot do what is asked for.
    """
    return make_sampling_schedule(
        model.alphas_cumprod, request.ddim_steps, request.ddim_eta, request.skip_steps, request.sampler
    )


def edit_image(
    model: LatentDiffusion,
    x_source: Tensor,
    mask: Tensor,
    request: EditRequest,
    ranker: CLIPRanker | None = None,
    on_step: Progress | None = None,
    keep_steps: bool = False,
) -> Edit:
    """`edit_images` of one image, `request.n_samples` predictions at a time."""
    (edit,) = edit_images(model, [EditInput(x_source, mask, request)], None, ranker, on_step, keep_steps)
    return edit


@torch.no_grad()
def edit_images(
    model: LatentDiffusion,
    inputs: Sequence[EditInput],
    batch_size: int | None = None,
    ranker: CLIPRanker | None = None,
    on_step: Progress | None = None,
    keep_steps: bool = False,
) -> list[Edit]:
    """Edit images inside masks by prompts (Algorithm 1 of the paper), each several times, and rank the predictions.

    A prediction depends on its input and its seed alone, and not on what shares its batch.

    Args:
        model: in eval mode; its device and precision are used.
        inputs: of one size, whose requests differ in prompt, seed and number of predictions at most.
        batch_size: predictions sampled at a time, of whichever inputs; None is the first request's `n_samples`.
        ranker: None keeps the predictions in the order of their seeds.
        on_step: called after each step of each batch.
        keep_steps: keep the z0 estimates of all steps, for a video.

    Raises:
        UserError: a size that does not fit the network, or steps out of range.
        ValueError: inputs that cannot share a batch.
    """
    request = inputs[0].request
    if len({(one.x_source.shape, one.request.walk) for one in inputs}) != 1:
        raise ValueError("inputs of one batch have one size and one walk")
    check_size(model, *inputs[0].x_source.shape[2:])
    schedule = sampling_schedule(model, request)
    rows = _Rows(model, inputs, schedule)
    places = [(i, seed) for i, one in enumerate(inputs) for seed in one.request.seeds]
    x: list[list[Tensor]] = [[] for _ in inputs]
    z0: list[list[Tensor]] = [[] for _ in inputs]
    steps: list[list[Tensor]] = [[] for _ in inputs]
    batch_size = batch_size or request.n_samples
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        kept: list[Tensor] = []

        def see(info: StepInfo, kept: list[Tensor] = kept) -> None:
            if keep_steps:
                kept.append(info.z0.cpu())
            if on_step is not None:
                on_step(info)

        z = rows.sample([i for i, _ in batch], NoiseSource([seed for _, seed in batch]), see)
        for row, (i, _) in enumerate(batch):
            # One at a time: the decoder needs far more memory a sample than the denoiser, and the same seed gives
            # the same picture whatever the batch.
            x[i].append(model.decode_first_stage(z[row : row + 1]).cpu())
            z0[i].append(z[row : row + 1].cpu())
            if keep_steps:
                steps[i].append(torch.stack([z0_step[row] for z0_step in kept]))
    return [
        _ranked(one, torch.cat(x[i]), torch.cat(z0[i]), steps[i], rows.stacks[i].cpu(), rows.reference(i), ranker)
        for i, one in enumerate(inputs)
    ]


class _Rows:
    """What the samples of a batch need of their inputs, each computed once."""

    def __init__(self, model: LatentDiffusion, inputs: Sequence[EditInput], schedule: SamplingSchedule):
        self.model, self.inputs, self.schedule = model, inputs, schedule
        prompts = dict.fromkeys(["", *(one.request.prompt for one in inputs)])
        self.contexts = {prompt: model.get_learned_conditioning([prompt]) for prompt in prompts}
        self.z_source = [model.encode_first_stage(one.x_source.to(model.device)) for one in inputs]
        self.stacks = [self._stack(one) for one in inputs]

    def _stack(self, one: EditInput) -> Tensor:
        """The latent masks of an input, (K, 1, h, w), on the model's device."""
        request, factor = one.request, self.model.factor
        iterations = request.mask_dilation_iterations
        if iterations is None:
            iterations, reason = auto_dilation(one.mask, factor)
            logger.info("mask_dilation_iterations auto: %s", reason)
        if one.levels is not None:
            masks = soft_latent_masks(one.levels, factor, len(self.schedule), iterations)
        else:
            masks = latent_masks(one.mask, factor, iterations, request.mask_downsample)
        return masks.to(self.model.device)

    def _parts(self, i: int) -> list[int]:
        """Which of the latent masks of input i each step uses."""
        steps, masks = len(self.schedule), len(self.stacks[i])
        return list(range(steps) if masks == steps else parts_of(self.schedule, masks))

    def reference(self, i: int) -> Tensor:
        """D(z_source) of input i, on the CPU."""
        return self.model.decode_first_stage(self.z_source[i]).cpu()

    def sample(self, rows: Sequence[int], noise: NoiseSource, see: Progress) -> Tensor:
        """z_0 (b, c, h, w) of one batch; `rows` names the input of each sample."""
        rows = rows[:1] if len(set(rows)) == 1 else rows  # what all samples share is broadcast
        context = torch.cat([self.contexts[self.inputs[i].request.prompt] for i in rows])
        parts = [self.stacks[i][self._parts(i)] for i in rows]
        request = self.inputs[rows[0]].request
        pixels = None
        if request.percentage_of_pixel_blending > 0:
            x_source, mask = (torch.cat([getattr(self.inputs[i], name) for i in rows]) for name in ("x_source", "mask"))
            device, fraction = self.model.device, request.percentage_of_pixel_blending
            pixels = PixelBlending(self.model, x_source.to(device), mask.to(device), fraction)
        scale = Defaults().fill(request).scale
        denoiser = guided_denoiser(self.model, context, self.contexts[""], scale, request.guidance_interval)
        # (steps, b, 1, h, w): walks of different numbers of masks may share a batch.
        fixed = None if request.background_noise is None else request.background_noise == "one"
        z_source, masks = torch.cat([self.z_source[i] for i in rows]), torch.stack(parts, dim=1)
        return blended_sample(
            denoiser, self.schedule, z_source, masks, noise, shared_noise=fixed, pixels=pixels, callback=see
        )


def _ranked(
    one: EditInput,
    x: Tensor,
    z0: Tensor,
    steps: Sequence[Tensor],
    masks: Tensor,
    reference: Tensor,
    ranker: CLIPRanker | None,
) -> Edit:
    seeds = tuple(one.request.seeds)
    if not torch.isfinite(x).all():
        raise UserError("the model gave pictures that are no numbers: try --precision float32")
    if ranker is None:
        return Edit(x, z0, seeds, None, masks, reference, steps)
    distances = ranker.distances(x, one.mask.cpu(), one.request.prompt)
    order = rank(distances).tolist()
    return Edit(
        x[order],
        z0[order],
        tuple(seeds[i] for i in order),
        tuple(distances[order].tolist()),
        masks,
        reference,
        [steps[i] for i in order] if steps else (),
    )
