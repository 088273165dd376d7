"""Editing pictures of any size by a model that is loaded once: the Python API, and the core of the command lines.

A picture and a mask become an `EditTask` (which window is worked on, at the model's size), tasks become `EditResult`s
(ranked predictions, and each as a picture of the input's own size whose background is the input's), and a prediction
may be restored in another way. No files are needed.
"""

import logging
import operator
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ldm.backbones import zoo
from ldm.backbones.contract import Backbone
from ldm.backbones.defaults import Defaults
from ldm.backbones.words import check_words
from ldm.editing.edit import Progress, check_size, edit_tasks, generate, sampling_schedule, size_of
from ldm.editing.mask_check import MaskReport, check_mask
from ldm.editing.ranking import CLIPRanker, find_ranker
from ldm.editing.reconstruct import (
    OnStep,
    Reconstruction,
    ReconstructionTask,
    decode_prediction,
    learning_rate,
    reconstruct,
)
from ldm.editing.request import EditRequest, ReconstructionOptions, SamplingRequest
from ldm.editing.result import EditResult, EditTask, Predictions
from ldm.editing.shown import html_of
from ldm.errors import UserError
from ldm.imaging.canvas import Canvas
from ldm.imaging.finish import Measures
from ldm.imaging.images import ImageLike, as_picture
from ldm.imaging.masks import mask_from, mask_levels
from ldm.imaging.region import shaped_size
from ldm.models.diffusion.sampling import StepInfo
from ldm.options import takes
from ldm.util import choose_device, choose_precision

logger = logging.getLogger(__name__)

Request = TypeVar("Request", bound=SamplingRequest)

SOFT_FROM = 1 / 16
"""From this level on a pixel of a soft mask counts as edited: darker ones, and JPEG's noise, stay the input's."""


@dataclass(frozen=True, repr=False)
class Restored:
    """A prediction restored in a way of `RECONSTRUCTIONS`: at the model's size, and in the picture."""

    reconstruction: Reconstruction
    image: Image.Image
    measures: Measures

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"<Restored: {width}x{height}, largest difference {self.measures.max_difference} of 255>"

    def _repr_html_(self) -> str:
        return html_of([self.image], [""])


class Editor:
    """A model with its ranker.

    Args:
        model: in eval mode.
        ranker: None keeps predictions in the order of their seeds.
        files: where the model came from, where that is known.

    Attributes:
        defaults: for what a request leaves to the model.
    """

    def __init__(self, model: Backbone, ranker: CLIPRanker | None = None, files: zoo.ModelFiles | None = None):
        self.model, self.ranker, self.files = model, ranker, files
        self.defaults = Defaults() if files is None else Defaults.of(files)
        self._weights_sha256: Future[str] | None = None

    @classmethod
    def load(
        cls,
        model: str = "auto",
        config: str | Path | None = None,
        ckpt: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        low_memory: bool = False,
        *,
        revision: str | None = None,
        lora: Sequence[str] = (),
        compile: str = "off",
    ) -> "Editor":
        """Load a model and what ranks its predictions; see `zoo.resolve`, `choose_device` and `choose_precision`.

        Args:
            low_memory: see `zoo.load`.
            compile: off, or a mode of `LatentDiffusion.compile_denoiser`.

        Raises:
            UserError: there is no such model, device or precision.
        """
        files = zoo.resolve(model, config, ckpt, revision, lora)
        where = choose_device(device)
        loaded = zoo.load(files, where, choose_precision(precision, where), low_memory)
        if compile != "off":
            loaded.compile_denoiser(compile)
        return cls(loaded, find_ranker(files.clip, where), files)

    @classmethod
    def outline(cls, files: zoo.ModelFiles) -> "Editor":
        """An editor without weights: it prepares and checks tasks as the real one does, and makes none.

        Raises:
            UserError: the config cannot be read, or names no such model.
        """
        model = zoo.outline(files)
        check_kind(model, files)
        return cls(model, None, files)

    def begin_identity(self) -> None:
        """Hash the weights in a thread, seconds for a large model, while the device works; for `identity`."""
        if self.files is None or self._weights_sha256 is not None:
            return
        files, digest = self.files, Future[str]()

        def work() -> None:
            try:
                digest.set_result(files.digest())
            except BaseException as error:
                digest.set_exception(error)

        self._weights_sha256 = digest
        threading.Thread(target=work, daemon=True).start()  # a daemon: Ctrl-C does not wait for it

    def identity(self) -> dict[str, Any]:
        """What a run's record says of the model: its name, its files where it has none, its weights, where it ran."""
        files = self.files
        if files is None:
            raise ValueError("this editor's model has no files to record")
        self.begin_identity()
        assert self._weights_sha256 is not None
        own = files.name not in zoo.MODELS and files.given.model != files.name  # one with a name is found by it
        return {
            "model": files.name,
            "config": str(files.config) if own else None,
            "weights": str(files.weights) if own else None,
            "weights_sha256": self._weights_sha256.result(),
            "ranker": None if self.ranker is None else _ranker_name(files.clip),
            "device": str(self.model.device),
            "precision": str(self.model.dtype).removeprefix("torch."),
        }

    def prepare(self, image: ImageLike, mask: ImageLike, request: EditRequest) -> EditTask:
        """Bring a picture and its mask to the model's size, and find all that can be wrong with them.

        Args:
            image, mask: paths, PIL images or arrays; the mask is brought to the image's size.

        Raises:
            UserError: an image or a mask that cannot be used, or numbers that the model cannot take.
        """
        request = self._filled(request)
        check_words(self.model, self.files, request.prompt, request.force, request.negative_prompt)
        return self._task(image, mask, request)

    def check(self, image: ImageLike, mask: ImageLike, request: EditRequest | None = None) -> MaskReport:
        """What is odd about a mask, with its mend, and what the model will see of it; see `check_mask`.

        Raises:
            UserError: as `prepare`; only the prompt does not matter.
        """
        asked = self._filled(request or EditRequest(""))
        task = self._task(image, mask, asked)
        return check_mask(task, mask, asked, self.model.factor, sampling_schedule(self.model, task.request))

    def _filled(self, request: Request) -> Request:
        """A request with all that it leaves to the model but the size that it leaves to the mask; what the model
        cannot do is refused."""
        height, width = size_of(request, self.model)
        check_size(self.model, height, width)
        filled = self.defaults.fill(request)
        if not _shaped_by_mask(request):
            filled = replace(filled, H=height, W=width)
        sampling_schedule(self.model, filled)
        if filled.negative_prompt and (self.model.guidance != "free" or filled.scale == 1):
            logger.warning("negative_prompt is not read: nothing is guided by two prompts here")
        return filled

    def _task(self, image: ImageLike, mask: ImageLike, request: EditRequest) -> EditTask:
        """The task of a request that `_filled` gave."""
        picture = as_picture(image)
        own = (picture.rgb.height, picture.rgb.width)
        levels: Tensor | None = None
        if request.soft_mask:
            levels = mask_levels(mask, own, request.invert_mask)
            hard = (levels >= SOFT_FROM).float()
        else:
            hard = mask_from(mask, own, request.invert_mask)
        assert request.context is not None  # `_filled` has filled it in
        size = size_of(request, self.model)
        if _shaped_by_mask(request):
            size = shaped_size(hard, size, self.model.unit, request.context)
        canvas = Canvas.around(
            picture,
            hard,
            size,
            self.model.factor,
            request.region,
            request.context,
            request.feather,
            levels=levels,
            strip=request.strip,
        )
        return EditTask.of(canvas, request, self.model.factor)

    def run(
        self,
        tasks: Sequence[EditTask],
        batch_size: int | None = None,
        on_step: Progress | None = None,
        keep_steps: bool = False,
    ) -> list[EditResult]:
        """Edit and rank; see `edit_tasks` for what may share a batch, and for the arguments."""
        return edit_tasks(self.model, tasks, batch_size, self.ranker, on_step, keep_steps)

    @takes(EditRequest)
    def edit(
        self,
        image: ImageLike,
        mask: ImageLike,
        prompt: str,
        *,
        on_step: Progress | None = None,
        progress: bool = False,
        **options: Any,
    ) -> EditResult:
        """Edit one picture.

        Args:
            image, mask: paths, PIL images, or arrays of 8-bit codes or of floats in [0, 1].
            on_step: called after each step.
            progress: show a bar.

        Raises:
            UserError: see `prepare`; an option that there is not, or out of its range.
        """
        request = EditRequest(prompt, **options)
        task = self.prepare(image, mask, request)
        with denoising_bar(task.request.steps, progress, on_step) as see:
            (result,) = self.run([task], on_step=see)
        return result

    @takes(SamplingRequest)
    def generate(
        self,
        prompt: str,
        *,
        on_step: Progress | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Predictions:
        """Paint pictures from a prompt alone, and rank them.

        Raises:
            UserError: sizes or steps that the model cannot take; an option that there is not, or out of its range.
        """
        request = self.prepare_generation(SamplingRequest(prompt, **options))
        with denoising_bar(request.steps, progress, on_step) as see:
            return self.paint(request, see)

    def paint(self, request: SamplingRequest, on_step: Progress | None = None) -> Predictions:
        """Paint and rank what `prepare_generation` gave."""
        return generate(self.model, request, self.ranker, on_step)

    def prepare_generation(self, request: SamplingRequest) -> SamplingRequest:
        """A request with every value filled in; all that can be wrong with it is found.

        Raises:
            UserError: see `generate`.
        """
        request = self._filled(request)
        check_words(self.model, self.files, request.prompt, request.force, request.negative_prompt)
        return request

    @takes(ReconstructionOptions)
    def reconstruct(
        self, result: EditResult, index: int = 0, *, on_step: OnStep | None = None, **options: Any
    ) -> Restored:
        """Restore the background of prediction `index`, then as exactly as a result's.

        Raises:
            IndexError: there is no such prediction; -1 is the last.
            TypeError: an index that is no integer, or pictures that are no result of an edit.
            UserError: see `ldm.editing.reconstruct.reconstruct`; an option that there is not, or out of its range.
        """
        if not isinstance(result, EditResult):
            raise TypeError(f"only a result of an edit has a background to restore, not {type(result).__name__}")
        if not -len(result) <= (index := operator.index(index)) < len(result):
            raise IndexError(f"there is no prediction {index}: there are {len(result)}, from 0 to {len(result) - 1}")
        index %= len(result)
        how = ReconstructionOptions(**options)
        if how.learning_rate is None and self.files is not None:
            section = self.files.section("reconstruction")
            how = replace(how, learning_rate=learning_rate(how.kind, section, self.files.config))
        canvas, z0 = result.canvases[index], result.z0[index : index + 1]
        x_hat = decode_prediction(self.model, z0)
        task = ReconstructionTask(canvas.x_source, x_hat, canvas.x_mask, z0, self.model)
        restored = reconstruct(task, how, on_step)
        return Restored(restored, *finish_reconstruction(canvas, how.kind, task, restored))


def check_kind(model: Any, files: zoo.ModelFiles) -> None:
    """Refuse what is no diffusion model that edits, such as a network of a baseline.

    Raises:
        UserError: it is none.
    """
    if not hasattr(model, "predict"):
        raise UserError(
            f'"{files.name}" is a {type(model).__name__}, not a model that this command can use: '
            "scripts/glide_inpaint.py and scripts/paint_by_word.py are for those of GLIDE and VQGAN"
        )


def _shaped_by_mask(request: SamplingRequest) -> bool:
    """Whether the working size is left to the mask."""
    free = request.H is None and request.W is None
    return free and isinstance(request, EditRequest) and request.aspect == "mask" and request.region == "auto"


def _ranker_name(clip: Path | str | None) -> str:
    """open_clip's name, or of a folder its last two parts: where it lies on this machine is nobody's business."""
    return "/".join(clip.parts[-2:]) if isinstance(clip, Path) else str(clip)


@contextmanager
def denoising_bar(steps: int, shown: bool | None = None, on_step: Progress | None = None) -> Iterator[Progress]:
    """A progress bar over the steps of a run, as what is to be called after each step; `on_step` is called by it.

    Args:
        shown: None shows it where stderr is a terminal.
    """
    with tqdm(total=steps, desc="denoising", unit="step", disable=None if shown is None else not shown) as bar:

        def see(info: StepInfo) -> None:
            bar.update()
            if on_step is not None:
                on_step(info)

        yield see


def finish_reconstruction(
    canvas: Canvas, kind: str, task: ReconstructionTask, result: Reconstruction
) -> tuple[Image.Image, Measures]:
    """The whole picture with a reconstruction, and its measures; see `Canvas.finish`."""
    if kind == "residual":  # in the picture the residual is that of its own resolution
        return canvas.finish(task.x_hat, task.x_reference)
    return canvas.finish(result.x)
