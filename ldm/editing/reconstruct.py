"""Restoring the background of a prediction (section 4.2 of the paper).

The autoencoder is lossy, so a prediction differs from the input outside the mask too. Each way to mend that is a
function (task, options, on_step) -> x, and `RECONSTRUCTIONS` is the table of them. Here x is the input, x_hat the
prediction, m the mask (1 where the edit is) and z0 the latent that x_hat is decoded from.
"""

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.backbones.contract import Backbone, TunableDecoder
from ldm.editing.request import ReconstructionOptions
from ldm.errors import UserError
from ldm.imaging.images import to_pil, to_tensor
from ldm.imaging.poisson import seamless_clone


@dataclass(frozen=True)
class ReconstructionTask:
    """What to restore, and from what.

    x_source: (1, 3, H, W) in [-1, 1], the input. x_hat: the same shape, the prediction; `decode_prediction` gives it
    exactly. mask: (1, 1, H, W) in {0, 1}, 1 where the edit is. z0: (1, c, H/f, W/f), scaled: only the optimisations
    need it. model: only they and the residual do.

    Raises:
        ValueError: the shapes do not belong together.
    """

    x_source: Tensor
    x_hat: Tensor
    mask: Tensor
    z0: Tensor | None = None
    model: Backbone | None = None

    def __post_init__(self):
        height, width = self.x_source.shape[2:]
        shapes = [tuple(t.shape) for t in (self.x_source, self.x_hat, self.mask)]
        if shapes != [(1, 3, height, width), (1, 3, height, width), (1, 1, height, width)]:
            raise ValueError(f"input, prediction and mask are {shapes}: expected one picture of one size, and its mask")

    @functools.cached_property
    def x_reference(self) -> Tensor:
        """D(E(x_source)) (1, 3, H, W) on the CPU: what the autoencoder makes of the input."""
        if self.model is None:
            raise ValueError("the residual needs the model")
        return decode_prediction(self.model, encode_prediction(self.model, self.x_source))


@dataclass(frozen=True)
class ReconstructionStep:
    """How things stand before a step: `step` of `steps` are done. The PSNRs are those of `Reconstruction`."""

    step: int
    steps: int
    loss: float
    background_psnr: float | None
    foreground_psnr: float | None


@dataclass(frozen=True)
class Reconstruction:
    """A restored picture, and how good it is.

    Attributes:
        x: (1, 3, H, W) in [-1, 1], float32 on the CPU.
        loss: see `reconstruction_loss`; it is measured for every kind.
        background_psnr: against the input outside the mask, in dB; None where there is no background.
        foreground_psnr: against the prediction inside the mask, in dB; None where there is no foreground.
        seconds: that it took.
        steps: of the optimisation; 0 for the other kinds.
    """

    x: Tensor
    loss: float
    background_psnr: float | None
    foreground_psnr: float | None
    seconds: float
    steps: int


OnStep = Callable[[ReconstructionStep], None]

# Adam's learning rate for each optimisation. The paper gives 1e-4 for both; but Adam goes no farther than about the
# rate a step, and latents of unit variance that move by 0.0075 in 75 steps stay what they are.
LEARNING_RATES = {"optimization": 1e-4, "optimization_latents": 1e-2}


def learning_rate(kind: str, section: Any, source: str | os.PathLike) -> float | None:
    """What the section `reconstruction` of a model's config says for `kind`, or the default; None if it has none.

    Raises:
        UserError: the section holds something else, or no number above 0; `source` is named.
    """
    keys = {"optimization": "learning_rate", "optimization_latents": "latents_learning_rate"}
    if not isinstance(section, Mapping) or section.keys() - set(keys.values()):
        raise UserError(f'{source}: the section "reconstruction" may hold {" and ".join(keys.values())} alone')
    if kind not in keys:
        return None
    rate = section.get(keys[kind], LEARNING_RATES[kind])
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise UserError(f"{source}: reconstruction.{keys[kind]} is {rate}: write a number above 0")
    return float(rate)


def reconstruct(
    task: ReconstructionTask, options: ReconstructionOptions, on_step: OnStep | None = None
) -> Reconstruction:
    """Restore the background of a prediction in the way that `RECONSTRUCTIONS` has under `options.kind`.

    Args:
        on_step: called before each step of an optimisation.

    Raises:
        UserError: the optimisation diverges, or a package is missing.
        ValueError: an optimisation without z0 or model.
    """
    start = time.perf_counter()
    x = RECONSTRUCTIONS[options.kind](task, options, on_step)
    seconds = time.perf_counter() - start
    x = x.detach().float().cpu().clamp(-1, 1)
    x_source, x_hat, mask = (t.detach().float().cpu() for t in (task.x_source, task.x_hat, task.mask))
    return Reconstruction(
        x,
        reconstruction_loss(x, x_hat, x_source, mask, options.background_weight).item(),
        psnr(x, x_source, 1 - mask),
        psnr(x, x_hat, mask),
        seconds,
        options.optimization_steps if options.kind in LEARNING_RATES else 0,
    )


def paste(task: ReconstructionTask, options: ReconstructionOptions, on_step: OnStep | None = None) -> Tensor:
    """x_hat * m + x * (1 - m): the background is exact, the border shows."""
    return torch.where(task.mask.to(task.x_source) == 1, task.x_hat.to(task.x_source), task.x_source)


def poisson(task: ReconstructionTask, options: ReconstructionOptions, on_step: OnStep | None = None) -> Tensor:
    """Poisson image editing (Pérez et al. 2003) by OpenCV, in 8 bits; see `ldm.imaging.poisson.seamless_clone`.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    source, target = (np.asarray(to_pil(x)) for x in (task.x_hat, task.x_source))
    return to_tensor(Image.fromarray(seamless_clone(source, target, task.mask[0, 0].cpu().numpy() == 1)))


def residual(task: ReconstructionTask, options: ReconstructionOptions, on_step: OnStep | None = None) -> Tensor:
    """x_hat + (1 - m) (x - D(E(x))): what the autoencoder lost of the input comes back. Ours, not the paper's.

    Outside the mask the latents of a prediction are the input's own, so x_hat lacks there what D(E(x)) lacks. What
    remains is what the edit changes about its surroundings, so no jump of colour arises at the border.

    Raises:
        ValueError: no model.
    """
    lost = task.x_source.cpu() - task.x_reference
    return task.x_hat.cpu() + (1 - task.mask.cpu()) * lost


@torch.inference_mode(False)
@torch.enable_grad()
def optimize_weights(task: ReconstructionTask, options: ReconstructionOptions, on_step: OnStep | None = None) -> Tensor:
    """D_theta*(z0) with theta* = argmin ||D_theta(z0) m - x_hat m||^2 + lambda ||D_theta(z0) (1-m) - x (1-m)||^2.

    By Adam, from the model's own theta, on a copy: the model is never changed. In the precision of `options`, whatever
    the model's own, its `requires_grad` and the caller's grad mode. theta is all weights, or those of `tuned_levels`.

    Raises:
        UserError: the loss diverges, or the decoder has fewer levels.
        ValueError: no z0 or model, or they do not fit.
    """
    decoder, z0 = _decoder_and_latent(task)
    levels = options.tuned_levels
    if levels is not None and levels > decoder.levels:
        raise UserError(f"`tuned_levels` is {levels}: this model's decoder has {decoder.levels}")
    tuned = list(decoder.tail(levels).requires_grad_(True).parameters())
    if levels is None:
        return _minimize("optimization", tuned, lambda: decoder(z0), task, options, on_step)
    with torch.no_grad(), torch.autocast(z0.device.type, enabled=False):
        h = decoder.begin(z0, levels)
    return _minimize("optimization", tuned, lambda: decoder.finish(h, levels), task, options, on_step)


@torch.inference_mode(False)
@torch.enable_grad()
def optimize_latents(task: ReconstructionTask, options: ReconstructionOptions, on_step: OnStep | None = None) -> Tensor:
    """D(z*) with z* = argmin ||D(z) m - x_hat m||^2 + lambda ||D(z) (1-m) - x (1-m)||^2, from z0. Else as the above."""
    decoder, z = _decoder_and_latent(task)
    z.requires_grad_(True)
    return _minimize("optimization_latents", [z], lambda: decoder(z), task, options, on_step)


# kind -> function; the kind also names the folder of its results, `reconstructed_<kind>`.
RECONSTRUCTIONS: dict[str, Callable[[ReconstructionTask, ReconstructionOptions, OnStep | None], Tensor]] = {
    "optimization": optimize_weights,
    "optimization_latents": optimize_latents,
    "pixel": paste,
    "poisson": poisson,
    "residual": residual,
}


def reconstruction_loss(x: Tensor, x_hat: Tensor, x_source: Tensor, mask: Tensor, background_weight: float) -> Tensor:
    """The objective of section 4.2, at a picture x (1, 3, H, W): a scalar.

    Each squared norm is divided by the number of all values, 3HW, whatever the mask's share of them. That leaves the
    minimum where it is, and lambda keeps its meaning: one background pixel counts as `background_weight` others.
    """
    foreground = F.mse_loss(x * mask, x_hat * mask)
    background = F.mse_loss(x * (1 - mask), x_source * (1 - mask))
    return foreground + background_weight * background


def psnr(x: Tensor, reference: Tensor, region: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB, of pictures (1, 3, H, W) in [-1, 1] (a range of 2) where `region` is 1.

    `region` is (1, 1, H, W) in {0, 1}. Values outside [-1, 1] count as the picture will show them, clipped.
    Infinite for equal pictures, None for an empty region.
    """
    pixels = region.sum().item()
    if pixels == 0:
        return None
    error = ((x.clamp(-1, 1) - reference.clamp(-1, 1)) * region).square().sum().item() / (3 * pixels)
    return 10 * math.log10(4 / error) if error > 0 else math.inf


@torch.no_grad()
def decode_prediction(model: Backbone, z0: Tensor) -> Tensor:
    """x_hat = D(z0), (1, 3, H, W), exact: in float32 and not clamped, on the CPU."""
    decoder = model.tunable_decoder()
    return model.decode(z0.to(model.device)).cpu() if decoder is None else decoder(_float(z0, decoder.device)).cpu()


@torch.no_grad()
def encode_prediction(model: Backbone, x_hat: Tensor) -> Tensor:
    """z0 = E(x_hat), (1, c, h, w) in float32 on the CPU, for a prediction whose latent was not kept."""
    return model.encode_exactly(x_hat.detach().to(model.device, torch.float32)).cpu()


def _decoder_and_latent(task: ReconstructionTask) -> tuple[TunableDecoder, Tensor]:
    """Copies of the model's decoder and of z0, on the model's device."""
    if task.model is None or task.z0 is None:
        raise ValueError("an optimisation needs z0 and the model")
    size, factor = task.x_source.shape[2:], task.model.factor
    if len(task.z0) != 1 or task.z0.shape[2] * factor != size[0] or task.z0.shape[3] * factor != size[1]:
        raise ValueError(f"z0 of {tuple(task.z0.shape)} does not belong to a picture of {tuple(size)}")
    decoder = task.model.tunable_decoder()
    if decoder is None:
        raise UserError("this model paints pixels and has no decoder to tune: take `reconstruction_type=residual`")
    return decoder, _float(task.z0, decoder.device)


def _float(x: Tensor, device: torch.device) -> Tensor:
    """A copy that gradients can flow through even if x was made in inference mode."""
    return x.detach().to(device, torch.float32, copy=True)


def _minimize(
    kind: str,
    parameters: Sequence[Tensor],
    decode: Callable[[], Tensor],
    task: ReconstructionTask,
    options: ReconstructionOptions,
    on_step: OnStep | None,
) -> Tensor:
    """Adam on `reconstruction_loss` of `decode()`, and what `decode()` gives after the last step, in float32."""
    device = parameters[0].device
    x_source, x_hat, mask = (_float(t, device) for t in (task.x_source, task.x_hat, task.mask))
    rate = options.learning_rate or LEARNING_RATES[kind]
    optimizer = torch.optim.Adam(parameters, lr=rate, fused=device.type in ("cpu", "cuda"))
    half = options.precision == "bfloat16"
    with torch.autocast(device.type, enabled=False):
        for step in range(options.optimization_steps + 1):
            going = step < options.optimization_steps
            with torch.set_grad_enabled(going):
                # Its cache would keep the first step's weights until the outermost autocast ends.
                with torch.autocast(device.type, torch.bfloat16, enabled=half and going, cache_enabled=False):
                    x = decode()
                x = x.float()
                loss = reconstruction_loss(x, x_hat, x_source, mask, options.background_weight)
            if not torch.isfinite(loss):
                raise UserError(_diverged(step, rate))
            if not going:
                break
            if on_step is not None:
                seen = x.detach()
                background, foreground = psnr(seen, x_source, 1 - mask), psnr(seen, x_hat, mask)
                on_step(ReconstructionStep(step, options.optimization_steps, loss.item(), background, foreground))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return x


def _diverged(step: int, rate: float) -> str:
    if step == 0:
        return "the decoded latent is NaN, not a picture: make the run again with `precision=float32`"
    return (
        f"the optimisation diverged after {step} steps at a learning rate of {rate:g}: give a smaller `learning_rate`"
    )
