"""What a classifier can reach at best: real things, or rendered ones, cut out as the predictions are.

Where it does not know a photograph of the thing at that size, a wrong answer says nothing of a method.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator

from ldm.data.scenes.scenes import paint, place
from ldm.errors import MissingExtra
from ldm.evaluation.classifiers import Classifier, Frame, ImageNetClassifier, JudgeClassifier
from ldm.evaluation.inputs import Input, package_photograph
from ldm.evaluation.judging import verdicts
from ldm.evaluation.report import is_right
from ldm.evaluation.triples import held_out_windows
from ldm.imaging.images import load_image, to_tensor
from ldm.imaging.masks import mask_from
from ldm.imaging.region import mask_box


@dataclass(frozen=True)
class Thing:
    """A thing in a photograph of scikit-image: its box (left, top, right, bottom), and the classes that it is."""

    file: str
    box: tuple[int, int, int, int]
    classes: tuple[int, ...]


THINGS = (
    Thing("chelsea.png", (0, 0, 451, 300), (281, 282, 285)),  # tabby, tiger cat, Egyptian cat
    Thing("coffee.png", (75, 10, 490, 400), (504, 967, 968)),  # coffee mug, espresso, cup
    Thing("rocket.jpg", (255, 60, 420, 427), (657, 744, 812)),  # missile, projectile, space shuttle
    Thing("camera.png", (250, 130, 450, 512), (872,)),  # tripod
    Thing("motorcycle_left.png", (60, 60, 700, 470), (665, 670)),  # moped, motor scooter
)
"""Looked up in the photographs by eye."""

LOOKS = ("shape", "material", "color")
"""What a render is made by: an input that does not name all of them has none."""


def ceiling(classifier: Classifier, inputs: Sequence[Input], seed: int = 0) -> list[bool] | None:
    """Of each input, whether the classifier knows a real thing in the place of a prediction; None: there is no way.

    An ImageNet classifier is shown `THINGS` in turn, each cut out and scaled to the box of the input's mask, black
    outside the mask; the judge of scenes a render of what the prompt names.
    """
    if isinstance(classifier, JudgeClassifier):
        return _rendered(classifier, [one for one in inputs if one.expected.keys() >= set(LOOKS)], seed)
    if isinstance(classifier, ImageNetClassifier):
        try:
            return [_cut_out(classifier, one, THINGS[i % len(THINGS)]) for i, one in enumerate(inputs)]
        except MissingExtra:
            return None
    return None


def _cut_out(classifier: ImageNetClassifier, one: Input, thing: Thing) -> bool:
    photo = load_image(one.image).rgb
    mask = mask_from(one.mask, (photo.height, photo.width))
    rows, columns = mask_box(np.asarray(mask[0, 0]) > 0)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    real = to_tensor(load_image(package_photograph(thing.file)).rgb.crop(thing.box))
    scale = max(height / real.shape[2], width / real.shape[3])  # covers the box: what exceeds it is cut off
    size = [max(side, round(old * scale)) for side, old in zip((height, width), real.shape[2:], strict=True)]
    real = F.interpolate(real, size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    x = torch.zeros(1, 3, photo.height, photo.width)
    x[..., rows, columns] = real[..., top : top + height, left : left + width]
    frame = Frame(0, 0, photo.width, photo.height, (photo.height, photo.width))
    shown = Input(one.name, one.image, one.mask, one.prompt, classes=thing.classes)
    return classifier.right(x, mask, frame, shown)[0]


def _rendered(classifier: JudgeClassifier, inputs: Sequence[Input], seed: int) -> list[bool]:
    if not inputs:
        return []
    generator = Generator().manual_seed(seed)
    grounds = held_out_windows(len(inputs), seed, 128)
    answers = []
    for one, ground in zip(inputs, grounds, strict=True):
        before = ground[:, None].add(1).div(2)  # (3, 1, H, W), as `paint` takes it
        canvas = before.clone()
        shape, material, color = (one.expected[attribute] for attribute in LOOKS)
        paint(canvas, [place(generator, 0, [(shape, material, color)])])
        changed = ((canvas - before).abs().amax(0) > 0.08).float()[None]
        (verdict,) = verdicts(classifier.judge, canvas.transpose(0, 1) * 2 - 1, changed)
        answers.append(is_right(one.expected, verdict))
    return answers
