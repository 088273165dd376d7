"""The methods that are compared: each a row of `METHODS`, and all an evaluation asks of one is `Method`.

A method looks at a window of a photograph, at its own resolution: all of it, or a part around the mask. It gives what
it painted there, `x`, and the same as delivered in the photograph, where the background is the photograph's again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from ldm.backbones import zoo
from ldm.backbones.contract import Backbone
from ldm.editing.editor import Editor
from ldm.editing.request import EditRequest
from ldm.editing.result import EditResult
from ldm.evaluation.classifiers import Frame
from ldm.evaluation.jobs import MethodChoice
from ldm.files import file_sha256, weights_hash
from ldm.imaging.canvas import Canvas
from ldm.imaging.finish import Measures
from ldm.imaging.images import ImageLike, to_tensor
from ldm.imaging.region import cut
from ldm.util import choose_device, choose_precision


@dataclass(frozen=True)
class Edited:
    """What a method made of one input, best first where it ranks.

    canvas: the photograph, its mask, and the window the method looked at, at the method's resolution (H, W).
    x: (n, 3, H, W) in [-1, 1]. delivered: each in the whole photograph; measures: of those. seeds: of each.
    distances: CLIP's to the prompt, lower is better; None where nothing ranked. evaluations: of the denoising network,
    pictures counted one by one. exact: whether the background as delivered is the photograph's.
    """

    canvas: Canvas
    x: Tensor
    delivered: Sequence[Image.Image]
    measures: Sequence[Measures]
    seeds: Sequence[int]
    distances: Sequence[float] | None
    evaluations: int

    @property
    def frame(self) -> Frame:
        """Where the window lies in the photograph."""
        window = self.canvas.window
        return Frame(window.left, window.top, window.width, window.height, window.image_size)

    def delivered_window(self) -> Tensor:
        """The deliveries as far as the window shows them, (n, 3, H, W) in [-1, 1]: to compare them with `x`."""
        canvas = self.canvas
        return torch.cat([to_tensor(cut(one.convert("RGB"), canvas.window, canvas.size)) for one in self.delivered])


class Method(Protocol):
    """A way to edit a photograph inside a mask by a prompt."""

    @property
    def parameters(self) -> int:
        """Numbers of the networks that paint, without the ranker's."""
        ...

    def edit(self, photo: ImageLike, mask: ImageLike, prompt: str, n: int, seed: int) -> Edited:
        """`n` predictions, of the seeds from `seed` on; raises UserError for what it cannot edit."""
        ...


@dataclass(frozen=True)
class Known:
    """A method by name.

    about: a line. find: raises UserError where its weights are not here, else says what its pictures depend on: other
    settings, other pictures. load: the method, ready. note: what tables say of it, "" for nothing.
    """

    about: str
    find: Callable[[MethodChoice], Mapping[str, Any]]
    load: Callable[[MethodChoice], Method]
    note: Callable[[MethodChoice], str] = lambda _: ""


class Counted:
    """A backbone that counts what its network is asked, picture by picture; else the backbone it is made of."""

    def __init__(self, backbone: Backbone, tally: list[int] | None = None):
        self.backbone = backbone
        self.tally: list[int] = [] if tally is None else tally

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    @property
    def evaluations(self) -> int:
        """So far."""
        return sum(self.tally)

    def given(self, x: Tensor, mask: Tensor) -> "Counted":
        """As of the backbone, counted together with it."""
        return Counted(self.backbone.given(x, mask), self.tally)

    def predict(self, z: Tensor, level: Any, conditioning: Any) -> Any:
        """As of the backbone."""
        self.tally.append(len(z))
        return self.backbone.predict(z, level, conditioning)


class BlendedLatent:
    """The method of this project, as `scripts/text_editing.py` has it.

    Args:
        options: of every edit, those of `EditRequest`.
    """

    def __init__(self, editor: Editor, options: Mapping[str, Any] | None = None):
        self.counted = Counted(editor.model)
        self.editor = Editor(self.counted, editor.ranker, editor.files)
        self.options: dict[str, Any] = {"force": True, **(options or {})}

    @property
    def parameters(self) -> int:
        """See `Method`."""
        return count_parameters(self.counted.backbone)

    def edit(self, photo: ImageLike, mask: ImageLike, prompt: str, n: int, seed: int, **options: Any) -> Edited:
        """See `Method`; `options` of this edit go before those of all."""
        before = self.counted.evaluations
        result = self.result(photo, mask, prompt, n_samples=n, seed=seed, **options)
        return edited_of(result, result.task.canvas, self.counted.evaluations - before)

    def result(
        self, photo: ImageLike, mask: ImageLike, prompt: str, keep_steps: bool = False, **options: Any
    ) -> EditResult:
        """The edit as the method itself has it. keep_steps: with the estimates of z0 at all steps."""
        # The paper's method knows no fitted masks: what those change is measured by `ldm.evaluation.fitting`.
        request = EditRequest(prompt, **{"fit_mask": "off", **self.options, **options})
        (result,) = self.editor.run([self.editor.prepare(photo, mask, request)], keep_steps=keep_steps)
        return result


class Pasted:
    """Text-to-image by the same model, cut out by the mask and pasted: what blending has to be better than.

    As GLIDE-masked in the paper, it does not look at the photograph.
    """

    def __init__(self, editor: Editor, options: Mapping[str, Any] | None = None):
        self.counted = Counted(editor.model)
        self.editor = Editor(self.counted, editor.ranker, editor.files)
        self.options: dict[str, Any] = {"force": True, **(options or {})}

    @property
    def parameters(self) -> int:
        """See `Method`."""
        return count_parameters(self.counted.backbone)

    def edit(self, photo: ImageLike, mask: ImageLike, prompt: str, n: int, seed: int) -> Edited:
        """See `Method`."""
        before = self.counted.evaluations
        place = {name: self.options[name] for name in ("region", "context", "ddim_steps", "force")}
        canvas = self.editor.prepare(
            photo, mask, EditRequest(prompt, n_samples=n, seed=seed, feather=0, **place)
        ).canvas
        asked = {name: place[name] for name in ("ddim_steps", "force")}
        made = self.editor.generate(prompt, n_samples=n, seed=seed, **asked)
        order = list(range(n))
        distances = None
        if self.editor.ranker is not None:
            scores = self.editor.ranker.distances(made.x, canvas.x_mask, prompt)
            order = torch.argsort(scores, stable=True).tolist()
            distances = [float(scores[i]) for i in order]
        x = made.x[order]
        images, measures = zip(*(canvas.finish(one) for one in x.split(1)), strict=True)
        seeds = [made.seeds[i] for i in order]
        return Edited(canvas, x, images, measures, seeds, distances, self.counted.evaluations - before)


def edited_of(result: EditResult, canvas: Canvas, evaluations: int) -> Edited:
    """An edit's result; canvas: with the mask that was asked for, where a method paints beyond it."""
    images, measures = zip(*result.finished, strict=True)
    return Edited(canvas, result.x, images, measures, result.seeds, result.distances, evaluations)


def count_parameters(backbone: Any) -> int:
    """Of all networks of a backbone; 0 where it does not tell."""
    parameters = getattr(backbone, "parameters", None)
    return sum(parameter.numel() for parameter in parameters()) if callable(parameters) else 0


def clip_sha256(files: zoo.ModelFiles) -> dict[str, str]:
    """Of a model's own ranker, for a method's settings; nothing where it is another's."""
    if not isinstance(files.clip, Path):
        return {}
    return {"clip_sha256": file_sha256(files.clip / "open_clip_model.safetensors")}


def _latent_settings(choice: MethodChoice) -> dict[str, Any]:
    files, device = zoo.resolve(choice.model), choose_device(choice.device)
    weights = {"model": files.name, "model_sha256": weights_hash(files.weights), **clip_sha256(files)}
    how = {name: value for name, value in asdict(choice).items() if name not in ("model", "device", "precision")}
    return weights | how | {"precision": str(choose_precision(choice.precision, device)).removeprefix("torch.")}


def _latent(kind: Callable[[Editor, Mapping[str, Any]], Method]) -> Callable[[MethodChoice], Method]:
    def load(choice: MethodChoice) -> Method:
        editor = Editor.load(choice.model, device=choice.device, precision=choice.precision)
        return kind(editor, {"ddim_steps": choice.ddim_steps, "region": choice.region, "context": choice.context})

    return load


OURS: dict[str, Known] = {
    "blended_latent": Known("Blended Latent Diffusion, this project's", _latent_settings, _latent(BlendedLatent)),
    "pasted": Known("text-to-image by the same model, pasted without looking", _latent_settings, _latent(Pasted)),
}
"""Methods that share the model of this project."""
