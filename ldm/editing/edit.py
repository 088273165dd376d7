"""The main job: an image, a mask and a prompt -> ranked predictions."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.editing.masks import latent_masks
from ldm.editing.ranking import CLIPRanker, rank
from ldm.errors import UserError
from ldm.models.diffusion.blended_ddim import BlendedDDIMSampler, PixelBlending
from ldm.models.diffusion.ddim import NoiseSource, StepInfo, guided_denoiser
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.schedule import make_sampling_schedule

logger = logging.getLogger(__name__)


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
        scale: of classifier-free guidance; 1 is without.
        percentage_of_pixel_blending: 0 to 1, the last part of the walk that blends decoded pixels.
        mask_dilation_iterations: how many wider masks come before the tight one (progressive mask shrinking).

    Raises:
        UserError: a number is out of its range.
    """

    prompt: str
    seed: int = 42
    n_samples: int = 4
    n_iter: int = 1
    ddim_steps: int = 50
    ddim_eta: float = 0.0
    scale: float = 5.0
    skip_steps: int = 0
    percentage_of_pixel_blending: float = 0.0
    mask_dilation_iterations: int = 3

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
            if not low <= value < float("inf") or (high is not None and value > high):
                span = f"from {low} to {high}" if high is not None else f"of at least {low}"
                raise UserError(f"{name} is {value}: give a number {span}")

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.n_samples * self.n_iter)


@dataclass(frozen=True)
class Edit:
    """Predictions in rank order, the best first.

    x: (n, 3, H, W) in [-1, 1]; z0: (n, c, h, w), scaled latents; seeds: of each; distances: CLIP's, lower is better,
    or None where nothing ranked them; latent_masks: (K, 1, h, w), widest first; z0_steps: for each prediction the
    estimates of z0 at every step, (steps, c, h, w), when they were asked for.
    """

    x: Tensor
    z0: Tensor
    seeds: tuple[int, ...]
    distances: tuple[float, ...] | None
    latent_masks: Tensor
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


@torch.no_grad()
def edit_image(
    model: LatentDiffusion,
    x_source: Tensor,
    mask: Tensor,
    request: EditRequest,
    ranker: CLIPRanker | None = None,
    on_step: Progress | None = None,
    keep_steps: bool = False,
) -> Edit:
    """Edit an image inside a mask by a prompt (Algorithm 1 of the paper), several times, and rank the predictions.

    Args:
        model: in eval mode; its device and precision are used.
        x_source: (1, 3, H, W) in [-1, 1].
        mask: (1, 1, H, W) in {0, 1}, 1 where to edit.
        ranker: None keeps the predictions in the order of their seeds.
        on_step: called after each step of each batch.
        keep_steps: keep the z0 estimates of all steps, for a video.

    Raises:
        UserError: a size that does not fit the network, or steps out of range.
    """
    check_size(model, *x_source.shape[2:])
    schedule = make_sampling_schedule(model.alphas_cumprod, request.ddim_steps, request.ddim_eta, request.skip_steps)
    x_source, mask = x_source.to(model.device), mask.to(model.device)
    masks = latent_masks(mask, model.factor, request.mask_dilation_iterations)
    context = model.get_learned_conditioning([request.prompt])
    empty = model.get_learned_conditioning([""])
    z_source = model.encode_first_stage(x_source)
    pixels = None
    if request.percentage_of_pixel_blending > 0:
        pixels = PixelBlending(model, x_source, mask, request.percentage_of_pixel_blending)
    sampler = BlendedDDIMSampler(guided_denoiser(model, context, empty, request.scale), schedule, masks, pixels)

    x, z0, steps = [], [], []
    for start in range(0, len(request.seeds), request.n_samples):
        seeds = request.seeds[start : start + request.n_samples]
        kept: list[Tensor] = []

        def see(info: StepInfo, kept: list[Tensor] = kept) -> None:
            if keep_steps:
                kept.append(info.z0.cpu())
            if on_step is not None:
                on_step(info)

        z = sampler.sample(z_source, NoiseSource(seeds), see)
        # One at a time: the decoder needs far more memory a sample than the denoiser, and the same seed gives the
        # same picture whatever the batch.
        x += [model.decode_first_stage(one).cpu() for one in z.split(1)]
        z0.append(z.cpu())
        if keep_steps:
            steps += torch.stack(kept, dim=1).unbind()  # (steps, b, c, h, w) -> b of (steps, c, h, w)
    return _ranked(torch.cat(x), torch.cat(z0), steps, masks.cpu(), mask.cpu(), request, ranker)


def _ranked(
    x: Tensor,
    z0: Tensor,
    steps: Sequence[Tensor],
    masks: Tensor,
    mask: Tensor,
    request: EditRequest,
    ranker: CLIPRanker | None,
) -> Edit:
    if not torch.isfinite(x).all():
        raise UserError("the model gave pictures that are no numbers: try --precision float32")
    if ranker is None:
        return Edit(x, z0, tuple(request.seeds), None, masks, steps)
    distances = ranker.distances(x, mask, request.prompt)
    order = rank(distances).tolist()
    return Edit(
        x[order],
        z0[order],
        tuple(request.seeds[i] for i in order),
        tuple(distances[order].tolist()),
        masks,
        [steps[i] for i in order] if steps else (),
    )
