"""Editing pictures of any size by a model that is loaded once: the Python API, and the core of the command lines.

A picture and a mask become an `EditTask` (which window is worked on, at the model's size), tasks become `Edited`
(ranked predictions, and each as a picture of the input's own size whose background is the input's), and a prediction
may be restored in another way. No files are needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.backbones import zoo
from ldm.backbones.defaults import Defaults
from ldm.editing.edit import Edit, EditInput, EditRequest, Progress, check_size, edit_images, sampling_schedule
from ldm.editing.ranking import CLIPRanker, find_ranker
from ldm.editing.reconstruct import (
    OnStep,
    Reconstruction,
    ReconstructionOptions,
    ReconstructionTask,
    decode_prediction,
    learning_rate,
    reconstruct,
)
from ldm.imaging.canvas import Canvas, Place, mask_source, open_canvas
from ldm.imaging.finish import Measures
from ldm.imaging.images import ImageLike, as_picture
from ldm.imaging.masks import mask_levels
from ldm.imaging.region import cut_levels
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import choose_device, choose_precision

SOFT_FROM = 1 / 16
"""From this level on a pixel of a soft mask counts as edited: darker ones, and JPEG's noise, stay the input's."""


@dataclass(frozen=True)
class EditTask:
    """A picture that is ready to be edited: all that can be wrong with it has been found."""

    canvas: Canvas
    input: EditInput


@dataclass(frozen=True)
class Edited:
    """The predictions of a task, best first.

    edit: at the model's size. results: at the input's size, in its colour space and with its alpha; the background is
    the input's own. measures: of each result, how well it sits in its picture.
    """

    task: EditTask
    edit: Edit
    results: tuple[Image.Image, ...]
    measures: tuple[Measures, ...]

    @property
    def scores(self) -> tuple[float, ...] | None:
        """CLIP distances, lower is better; None where nothing ranked the predictions."""
        return self.edit.distances


@dataclass(frozen=True)
class Restored:
    """A prediction restored in a way of `RECONSTRUCTIONS`: at the model's size, and in the picture."""

    reconstruction: Reconstruction
    image: Image.Image
    measures: Measures


class Editor:
    """A model with its ranker.

    Args:
        model: in eval mode.
        ranker: None keeps predictions in the order of their seeds.
        files: where the model came from, where that is known.

    Attributes:
        defaults: for what an `EditRequest` and a `Place` leave to the model.
    """

    def __init__(self, model: LatentDiffusion, ranker: CLIPRanker | None = None, files: zoo.ModelFiles | None = None):
        self.model, self.ranker, self.files = model, ranker, files
        self.defaults = Defaults() if files is None else Defaults.of(files)

    @classmethod
    def load(
        cls,
        model: str = "auto",
        config: str | Path | None = None,
        ckpt: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        low_memory: bool = False,
    ) -> "Editor":
        """Load a model and what ranks its predictions; see `zoo.resolve`, `choose_device` and `choose_precision`.

        Args:
            low_memory: keep the text encoder, 40 % of the large model, off the device: prompts are encoded on the CPU.

        Raises:
            UserError: there is no such model, device or precision.
        """
        files = zoo.resolve(model, config, ckpt)
        where = choose_device(device)
        loaded = zoo.load(files, where, choose_precision(precision, where))
        if low_memory:
            loaded.offload_text_encoder()
        return cls(loaded, find_ranker(files.clip, where), files)

    def prepare(
        self,
        image: ImageLike,
        mask: ImageLike,
        request: EditRequest,
        place: Place | None = None,
        invert_mask: bool = False,
        soft_mask: bool = False,
    ) -> EditTask:
        """Bring a picture and its mask to the model's size.

        Args:
            image, mask: paths, PIL images or arrays of uint8; the mask is brought to the image's size.
            invert_mask: black, instead of white, is where to edit.
            soft_mask: grey levels join the walk by their brightness, instead of being parted at half.

        Raises:
            UserError: an image or a mask that cannot be used, or numbers that the model cannot take.
        """
        place, request, model = self.defaults.fill(place or Place()), self.defaults.fill(request), self.model
        size = tuple(side or model.image_size * model.factor for side in place.size)
        check_size(model, *size)
        sampling_schedule(model, request)
        picture = as_picture(image)
        if not soft_mask:
            canvas = open_canvas(picture, mask, place, size, model.factor, invert_mask)
            return EditTask(canvas, EditInput(canvas.x_source, canvas.x_mask, request))
        levels = mask_levels(mask_source(mask), (picture.rgb.height, picture.rgb.width), invert_mask)
        canvas = open_canvas(picture, (levels >= SOFT_FROM).float(), place, size, model.factor)
        x_levels = cut_levels(levels, canvas.window, size)
        return EditTask(canvas, EditInput(canvas.x_source, canvas.x_mask, request, x_levels))

    def run(
        self,
        tasks: Sequence[EditTask],
        batch_size: int | None = None,
        on_step: Progress | None = None,
        keep_steps: bool = False,
    ) -> list[Edited]:
        """Edit, rank and finish; see `edit_images` for what may share a batch, and for the arguments.

        The finish is `residual`: what the autoencoder lost of the input comes back outside the mask.
        """
        edits = edit_images(self.model, [task.input for task in tasks], batch_size, self.ranker, on_step, keep_steps)
        return [finish_edit(task, edit) for task, edit in zip(tasks, edits, strict=True)]

    def edit(
        self,
        image: ImageLike,
        mask: ImageLike,
        prompt: str,
        *,
        place: Place | None = None,
        invert_mask: bool = False,
        soft_mask: bool = False,
        on_step: Progress | None = None,
        **options: Any,
    ) -> Edited:
        """Edit one picture: `options` are those of `EditRequest` (`n_samples`, `seed`, `ddim_steps`, ...)."""
        request = EditRequest(prompt, **options)
        (edited,) = self.run([self.prepare(image, mask, request, place, invert_mask, soft_mask)], on_step=on_step)
        return edited

    def reconstruct(
        self,
        edited: Edited,
        index: int = 0,
        kind: str = "optimization",
        options: ReconstructionOptions | None = None,
        on_step: OnStep | None = None,
    ) -> Restored:
        """Restore the background of prediction `index` in a way of `RECONSTRUCTIONS`, then as exactly as a result's.

        Raises:
            UserError: see `reconstruct`.
        """
        options = options or ReconstructionOptions()
        if options.learning_rate is None and self.files is not None:
            path = self.files.config
            options = replace(options, learning_rate=learning_rate(kind, zoo.read_config(path), path))
        canvas, z0 = edited.task.canvas, edited.edit.z0[index : index + 1]
        x_hat = decode_prediction(self.model, z0)
        task = ReconstructionTask(canvas.x_source, x_hat, canvas.x_mask, z0, self.model)
        result = reconstruct(kind, task, options, on_step)
        return Restored(result, *finish_reconstruction(canvas, kind, task, result))


def finish_edit(task: EditTask, edit: Edit) -> Edited:
    """The predictions of a task, each in the whole picture; see `Canvas.finish`. Needs no model."""
    finished = [task.canvas.finish(x, edit.x_reference) for x in edit.x.split(1)]
    return Edited(task, edit, *zip(*finished, strict=True))


def finish_reconstruction(
    canvas: Canvas, kind: str, task: ReconstructionTask, result: Reconstruction
) -> tuple[Image.Image, Measures]:
    """The whole picture with a reconstruction, and its measures; see `Canvas.finish`."""
    if kind == "residual":  # in the picture the residual is that of its own resolution
        return canvas.finish(task.x_hat, task.x_reference)
    return canvas.finish(result.x)
