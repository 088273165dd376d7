"""Objects cut out of rendered scenes with true and false captions: what a small CLIP learns from.

A crop is framed as `ldm.editing.ranking` frames a prediction: the square around a region, black outside of it. The
regions are like the masks of users: wider than the object, boxes, ellipses or blobs.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import Dataset

from ldm.data.crops import cut_square, square_around
from ldm.data.epochs import seeded
from ldm.data.scenes.backgrounds import KINDS
from ldm.data.scenes.captions import caption, full_caption
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.draw import chance, choice, uniform
from ldm.data.scenes.materials import MATERIALS
from ldm.data.scenes.shapes import SHAPES
from ldm.data.shards import SceneShards

VALUES = {"shape": list(SHAPES), "material": list(MATERIALS), "color": list(COLORS), "background": list(KINDS)}
WORDS = {
    "shape": {name: shape.words for name, shape in SHAPES.items()},
    "material": {name: m.adjectives + m.nouns + m.patterns for name, m in MATERIALS.items()},
    "color": {name: color.words for name, color in COLORS.items()},
    "background": {name: kind.words for name, kind in KINDS.items()},
}
UNSAID = -1  # an attribute that a caption leaves out, or that a picture has no name for
NOTHING = len(SHAPES)  # the shape of a picture without an object

Attributes = dict[str, str | None]


def encode(attributes: Attributes) -> list[int]:
    """Numbers of (shape, material, color, background), `UNSAID` for None."""
    return [values.index(value) if (value := attributes[key]) else UNSAID for key, values in VALUES.items()]


def encode_picture(attributes: Attributes) -> list[int]:
    """As `encode`, but what has no object has the shape `NOTHING`: captions that name one are wrong about it."""
    numbers = encode(attributes)
    return numbers if attributes["shape"] else [NOTHING, *numbers[1:]]


def said(text: str, attributes: Attributes) -> Attributes:
    """Those of `attributes` that the caption `text`, written for them, names; None for the rest."""
    text, named = f" {text} ", dict.fromkeys(VALUES)
    for key in reversed(VALUES):  # the background first, and cut out: "a wood floor" makes no object wooden
        for word in sorted(WORDS[key].get(attributes[key] or "", ()), key=len, reverse=True):
            if f" {word} " in text:
                named[key] = attributes[key]
                text = text.replace(f" {word} ", " ") if key == "background" else text
                break
    return named


def write_caption(generator: Generator, attributes: Attributes) -> str:
    """A caption of the scenes' grammar for one object, or none, and its background."""
    things = [(attributes["shape"], attributes["material"], attributes["color"])] if attributes["shape"] else []
    return caption(generator, things, attributes["background"])


def contradict(generator: Generator, attributes: Attributes, named: Attributes) -> Attributes:
    """`attributes` with another value for one of those that are `named`; an object where there is none to change."""
    keys = [key for key, value in named.items() if value]
    if not keys:
        return attributes | {key: choice(generator, VALUES[key]) for key in ("shape", "material", "color")}
    key = choice(generator, keys)
    return attributes | {key: choice(generator, [value for value in VALUES[key] if value != attributes[key]])}


def write_captions(generator: Generator, attributes: Attributes, false: int) -> tuple[list[str], list[list[int]]]:
    """A true caption and `false` ones, each wrong in one attribute and else worded alike; what each of them says."""
    state = generator.get_state()
    texts = [write_caption(generator, attributes)]
    named = [said(texts[0], attributes)]
    after = generator.get_state()
    for _ in range(false):
        generator.set_state(after)
        wrong = contradict(generator, attributes, named[0])
        after = generator.get_state()
        generator.set_state(state)  # the same draws give the same turns of phrase
        texts.append(write_caption(generator, wrong))
        named.append(said(texts[-1], wrong))
    generator.set_state(after)
    return texts, [encode(one) for one in named]


def draw_region(generator: Generator, box: list[int] | None, coverage: Tensor, height: int, width: int) -> Tensor:
    """A mask (1,1,H,W) such as a user might draw for the object.

    Args:
        box: (left, top, right, bottom) of the object in pixels; None for a scene without one.
        coverage: (1,1,h,w), how much of each cell objects cover.
    """
    if box is None:
        left, right = sorted((uniform(generator, 0, 0.5) * width, uniform(generator, 0.5, 1) * width))
        top, bottom = sorted((uniform(generator, 0, 0.5) * height, uniform(generator, 0.5, 1) * height))
    else:
        left, top, right, bottom = box
    if box is not None and chance(generator, 0.25):  # a blob
        wide = F.max_pool2d((coverage > 0.1).float(), 3, stride=1, padding=1)
        region = F.interpolate(wide, (height, width), mode="bilinear") > uniform(generator, 0.1, 0.6)
        if region.any():
            return region.float()
    grow = [uniform(generator, -0.06, 0.3) * max(right - left, bottom - top) for _ in range(4)]
    left, top, right, bottom = left - grow[0], top - grow[1], right + grow[2], bottom + grow[3]
    x = (torch.arange(width) + 0.5 - (left + right) / 2) / max((right - left) / 2, 4)
    y = (torch.arange(height) + 0.5 - (top + bottom) / 2) / max((bottom - top) / 2, 4)
    if chance(generator, 0.5):  # an ellipse, a little larger than the box's
        return (x.square()[None, :] + y.square()[:, None] <= 1.2).float()[None, None]
    return ((x.abs()[None, :] <= 1) & (y.abs()[:, None] <= 1)).float()[None, None]


class ObjectCrops(Dataset):
    """Crops of a folder of shards, other ones in every epoch; scenes of two objects are left out.

    Args:
        folder: the shards.
        size: side of a crop in pixels.
        margin: room around the region, as `ldm.data.crops.square_around` has it.
        false_captions: how many false captions a crop gets.
        seed: of every draw, together with the epoch and the number of the scene.
        limit: only the first so many shards.

    Attributes:
        painted: other pictures (H, W, 3) uint8 of scenes, by their number among `shards`; they take the place of the
            renders. None at first; see `ldm.training.painted`.
    """

    def __init__(
        self, folder: Path | str, size: int, margin: float, false_captions: int, seed: int = 0, limit: int | None = None
    ):
        self.painted: Mapping[int, np.ndarray] = {}
        self.shards = SceneShards(folder, limit)
        self.rows = [i for i, attributes in enumerate(self.shards.attributes) if "second" not in attributes]
        self.size, self.margin, self.false_captions, self.seed = size, margin, false_captions, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor | list[str]]:
        """The crop of an (epoch, index).

        "image" (3,size,size) in [0,1]; "attributes" (4,) numbers of `encode_picture`; "texts", the true caption first;
        "said" (1 + false, 4), numbers of `encode` for what each caption names.
        """
        epoch, index = place
        generator = seeded(self.seed, epoch, index)
        row = self.rows[index]
        attributes = self.shards.attributes[row]
        texts, named = write_captions(generator, attributes, self.false_captions)
        return {
            "image": self._crop(generator, row, attributes["box"]),
            "attributes": torch.tensor(encode_picture(attributes)),
            "texts": texts,
            "said": torch.tensor(named),
        }

    def full_caption(self, row: int) -> str:
        """The caption of a scene, by its number among `shards`, that leaves nothing out."""
        attributes = self.shards.attributes[row]
        thing = (attributes["shape"], attributes["material"], attributes["color"]) if attributes["shape"] else None
        return full_caption(thing, attributes["background"])

    def _crop(self, generator: Generator, row: int, box: list[int] | None) -> Tensor:
        painted = self.painted.get(row)
        pixels = np.array(self.shards.images(row) if painted is None else painted)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255  # (1,3,H,W)
        coverage = torch.from_numpy(self.shards.coverage(row).astype(np.float32))[None, None]
        gain, offset = uniform(generator, 0.92, 1.08), uniform(generator, -0.04, 0.04)
        image = (image * gain + offset).clamp(0, 1)
        region = draw_region(generator, box, coverage, *image.shape[2:])
        if chance(generator, 0.8):
            image = image * region
        side = self.size
        if painted is None and chance(generator, 0.5):  # predictions are softer than renders
            side = round(self.size * uniform(generator, 0.45, 1))
        x = cut_square(image, square_around(region, self.margin), (side, side), "bilinear")
        x = F.interpolate(x, (self.size, self.size), mode="bilinear") if side != self.size else x
        return x[0].flip(-1) if chance(generator, 0.5) else x[0]
