"""Restoring the background of a prediction (section 4.2 of the paper).

The autoencoder is lossy, so a prediction differs from the input outside the mask too. Each way to mend that is a
function (task, options, on_step) -> x, and `RECONSTRUCTIONS` is the table of them. Here x is the input, x_hat the
prediction, m the mask (1 where the edit is) and z0 the latent that x_hat is decoded from.
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.editing.images import to_pil, to_tensor
from ldm.errors import MissingExtra, UserError
from ldm.models.diffusion.ddpm import LatentDiffusion

logger = logging.getLogger(__name__)

# OpenCV erodes the mask so often, by a 3x3 square, before it clones.
_POISSON_EROSION = 3


@dataclass(frozen=True)
class ReconstructionTask:
    """What to restore, and from what.

    x_source: (1, 3, H, W) in [-1, 1], the input. x_hat: the same shape, the prediction; `decode_prediction` gives it
    exactly. mask: (1, 1, H, W) in {0, 1}, 1 where the edit is. z0: (1, c, H/f, W/f), scaled, and its model: only the
    optimisations need these two.

    Raises:
        ValueError: the shapes do not belong together.
    """

    x_source: Tensor
    x_hat: Tensor
    mask: Tensor
    z0: Tensor | None = None
    model: LatentDiffusion | None = None

    def __post_init__(self):
        height, width = self.x_source.shape[2:]
        shapes = [tuple(t.shape) for t in (self.x_source, self.x_hat, self.mask)]
        if shapes != [(1, 3, height, width), (1, 3, height, width), (1, 1, height, width)]:
            raise ValueError(f"input, prediction and mask are {shapes}: expected one picture of one size, and its mask")


@dataclass(frozen=True)
class ReconstructionOptions:
    """How to optimise.

    Attributes:
        steps: of Adam.
        learning_rate: None is the default of the mode, see `LEARNING_RATES`.
        background_weight: the paper's lambda.
    """

    steps: int = 75
    learning_rate: float | None = None
    background_weight: float = 100.0


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

# Adam's learning rate for each way to optimise, see `optimize_weights` and `optimize_latents`.
LEARNING_RATES = {"optimization": 1e-4, "optimization_latents": 1e-4}


def reconstruct(
    kind: str,
    task: ReconstructionTask,
    options: ReconstructionOptions | None = None,
    on_step: OnStep | None = None,
) -> Reconstruction:
    """Restore the background of a prediction in the way that `RECONSTRUCTIONS` has under `kind`.

    Args:
        on_step: called before each step of an optimisation.

    Raises:
        UserError: the optimisation leaves the numbers, or a package is missing.
        ValueError: no such kind, or an optimisation without z0 or model.
    """
    if kind not in RECONSTRUCTIONS:
        raise ValueError(f"{kind!r} is no kind of reconstruction: {', '.join(RECONSTRUCTIONS)}")
    options = options or ReconstructionOptions()
    start = time.perf_counter()
    x = RECONSTRUCTIONS[kind](task, options, on_step)
    seconds = time.perf_counter() - start
    x = x.detach().float().cpu().clamp(-1, 1)
    x_source, x_hat, mask = (t.detach().float().cpu() for t in (task.x_source, task.x_hat, task.mask))
    return Reconstruction(
        x,
        reconstruction_loss(x, x_hat, x_source, mask, options.background_weight).item(),
        psnr(x, x_source, 1 - mask),
        psnr(x, x_hat, mask),
        seconds,
        options.steps if kind in LEARNING_RATES else 0,
    )


def paste(task: ReconstructionTask, options: ReconstructionOptions, on_step: OnStep | None = None) -> Tensor:
    """x_hat * m + x * (1 - m): the background is exact, the border shows."""
    return torch.where(task.mask.to(task.x_source) == 1, task.x_hat.to(task.x_source), task.x_source)


def poisson(task: ReconstructionTask, options: ReconstructionOptions, on_step: OnStep | None = None) -> Tensor:
    """Poisson image editing (Pérez et al. 2003) by OpenCV's seamlessClone, in 8 bits.

    OpenCV takes the gradients of the prediction inside the mask, eroded by 3 pixels, and solves for the whole
    rectangle around it: colours of the background may change within that rectangle, and parts of the mask thinner
    than 7 pixels show nothing of the edit. Where the mask meets the edge of the picture, the picture goes on mirrored,
    so that the edit is free there instead of being drawn to the input's colours.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "poisson", "--reconstruction_type poisson") from error

    mask = (task.mask[0, 0].cpu().numpy() == 1).astype(np.uint8) * 255
    if mask.all():  # nothing to clone into
        return task.x_hat
    if not mask.any():
        return task.x_source
    height, width = mask.shape
    mirrored = [(height * mask[0].any(), height * mask[-1].any()), (width * mask[:, 0].any(), width * mask[:, -1].any())]
    top, left = mirrored[0][0] + 1, mirrored[1][0] + 1
    # One pixel more all around: OpenCV misplaces a patch that meets the border of its array.
    source, target = (_padded(np.asarray(to_pil(x)), mirrored, "edge") for x in (task.x_hat, task.x_source))
    mask = _padded(mask, mirrored, "constant")
    if not cv2.erode(mask, np.ones((3, 3)), iterations=_POISSON_EROSION).any():
        logger.warning("the mask is nowhere 7 pixels thick: OpenCV's seamless cloning shows nothing of the edit")
    x, y, w, h = cv2.boundingRect(mask)
    out = cv2.seamlessClone(source, target, mask, (x + w // 2, y + h // 2), cv2.NORMAL_CLONE)
    return to_tensor(Image.fromarray(out[top : top + height, left : left + width]))
