"""What the method works on and what it gives: tasks, predictions, results."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from ldm.editing.latent_masks import auto_dilation
from ldm.editing.mask_fit import MaskFit
from ldm.editing.request import EditRequest
from ldm.editing.shown import html_of
from ldm.imaging.canvas import Canvas
from ldm.imaging.finish import Measures
from ldm.imaging.images import to_pil

logger = logging.getLogger(__name__)

_SOFT_STEPS = 4
"""Fewer make of a soft mask little more than a hard one."""


@dataclass(frozen=True)
class EditTask:
    """A picture that is ready to be edited: all that can be wrong with it has been found.

    request: with every value filled in that it left to the model or the mask.
    """

    canvas: Canvas
    request: EditRequest

    @classmethod
    def of(cls, canvas: Canvas, request: EditRequest, factor: int) -> "EditTask":
        """The task of a canvas; what the request leaves to the mask is filled in here, and only here.

        Args:
            request: with the model's defaults, see `Defaults.fill`.
            factor: pixels that a latent cell is wide.
        """
        iterations = request.mask_dilation_iterations
        if iterations is None:
            iterations, reason = auto_dilation(canvas.x_mask, factor)
            logger.info("mask_dilation_iterations auto: %s", reason)
        _tell_of_few_steps(request, iterations)
        height, width = canvas.size
        filled = replace(request, mask_dilation_iterations=iterations, feather=canvas.feather, H=height, W=width)
        return cls(canvas, filled)


def _tell_of_few_steps(request: EditRequest, iterations: int) -> None:
    """Say what so few steps have no room for."""
    if request.ddim_steps is None:
        return
    steps = request.ddim_steps - request.skip_steps
    if steps <= iterations:
        which = "1 step has" if steps == 1 else f"{steps} steps have"
        logger.warning("%s room for %d of the %d masks of `mask_dilation_iterations`", which, steps, iterations + 1)
    if request.soft_mask and steps < _SOFT_STEPS:
        logger.warning("`soft_mask` has as many levels as steps, %d levels here: greys are rounded to them", steps)


@dataclass(frozen=True, repr=False, eq=False)
class Predictions:
    """What was sampled, in rank order, the best first.

    x: (n, 3, H, W) in [-1, 1]; z0: (n, c, h, w), scaled latents; seeds: of each; distances: CLIP's, lower is better,
    or None where nothing ranked them; z0_steps: for each prediction the estimates of z0 at every step,
    (steps, c, h, w), when they were asked for.
    """

    prompt: str
    x: Tensor
    z0: Tensor
    seeds: tuple[int, ...]
    distances: tuple[float, ...] | None = None
    z0_steps: Sequence[Tensor] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def scores(self) -> tuple[float, ...] | None:
        """CLIP distances, lower is better; None where nothing ranked the predictions."""
        return self.distances

    @cached_property
    def images(self) -> tuple[Image.Image, ...]:
        """The predictions as the model paints them, at its size."""
        return tuple(to_pil(x) for x in self.x)

    @property
    def results(self) -> tuple[Image.Image, ...]:
        """The pictures to show or to keep, best first."""
        return self.images

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the results, as Pillow has it."""
        return self.x.shape[3], self.x.shape[2]

    def captions(self) -> list[str]:
        """Of each picture, its place, seed and CLIP distance."""
        scores = [""] * len(self) if self.distances is None else [f" · {one:.3f}" for one in self.distances]
        return [f"{i} · seed {seed}{score}" for i, (seed, score) in enumerate(zip(self.seeds, scores, strict=True))]

    def __repr__(self) -> str:
        best = f", best distance {min(self.distances):.3f}" if self.distances else ""
        width, height = self.size
        return f"<{type(self).__name__}: {len(self)} of {self.prompt!r:.60}, {width}x{height}{best}>"

    def _repr_html_(self) -> str:
        return html_of(self.results, self.captions())


@dataclass(frozen=True, repr=False, eq=False)
class EditResult(Predictions):
    """What came out of a task, best first.

    latent_masks: (steps, 1, h, w), of each step, before any is fitted. fits: the mask of each prediction at the end.
    x_reference: (1, 3, H, W), what the autoencoder makes of the input.
    """

    task: EditTask = field(kw_only=True)
    latent_masks: Tensor = field(kw_only=True)
    fits: Sequence[MaskFit] = field(kw_only=True)
    x_reference: Tensor = field(kw_only=True)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the results, those of the input."""
        return self.task.canvas.picture.rgb.size

    @property
    def fitted(self) -> Tensor:
        """(n, 1, h, w) in {0, 1}: of each prediction, the latent positions that its last step edited."""
        return torch.stack([fit.cells for fit in self.fits])

    @cached_property
    def canvases(self) -> tuple[Canvas, ...]:
        """The task's canvas with the mask of each prediction: what it is ranked by, finished and measured."""
        canvas = self.task.canvas
        return tuple(canvas.narrowed(fit.x_mask[None]) if fit.fitted else canvas for fit in self.fits)

    @cached_property
    def finished(self) -> tuple[tuple[Image.Image, Measures], ...]:
        """Each prediction in the whole picture, and its measures; see `Canvas.finish`. Needs no model.

        The finish is `residual`: what the autoencoder lost of the input comes back outside the mask.
        """
        each = zip(self.canvases, self.x.split(1), strict=True)
        return tuple(canvas.finish(x, self.x_reference) for canvas, x in each)

    @property
    def results(self) -> tuple[Image.Image, ...]:
        """The predictions in the input, at its size, in its colour space and with its alpha."""
        return tuple(image for image, _ in self.finished)

    @property
    def measures(self) -> tuple[Measures, ...]:
        """Of each result, how well it sits in its picture."""
        return tuple(measures for _, measures in self.finished)
