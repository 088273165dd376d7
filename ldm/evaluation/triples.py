"""The questions of the evaluation: held-out photographs, masks and prompts, the same ones for the same seed.

Shapes, materials, colours, photographs and kinds of masks are dealt like cards, so that all come up equally often.
A triple depends on those before it and not on how many follow: more of them continue the same series.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldm.data.scenes.backgrounds import HELD_OUT, KINDS, Photo, read_photo
from ldm.data.scenes.captions import article, noun_phrase
from ldm.data.scenes.colors import COLORS
from ldm.data.scenes.draw import uniform
from ldm.data.scenes.materials import MATERIALS
from ldm.data.scenes.render import SIZE
from ldm.data.scenes.scenes import paint, place
from ldm.data.scenes.shapes import SHAPES

T = TypeVar("T")
MASKS = ("ellipse", "box", "blob")
SCENIC = [kind.name for kind in KINDS.values() if not kind.name.endswith(" background")]


@dataclass(frozen=True)
class Triple:
    """A photograph x (1, 3, h, w) in [-1, 1], a mask (1, 1, h, w) in {0, 1}, and a prompt.

    expected: attribute -> the name that the prompt gives it; photo: the photograph's file.
    """

    x: Tensor
    mask: Tensor
    prompt: str
    expected: dict[str, str]
    photo: str


def object_triples(seed: int, size: int | None = None) -> Iterator[Triple]:
    """Objects into masks of all sizes, anywhere: every prompt names a shape, a material and a colour.

    Args:
        size: side of the pictures, square parts of the photographs; None is whole photographs as they are, with the
            masks at the same places.
    """
    generator = Generator().manual_seed(seed)
    photos, looks, masks = _photos(generator), dealt_looks(generator), deal(generator, MASKS)
    for photo in photos:
        prompt, expected = next(looks)
        mask = draw_mask(generator, size or photo.side, next(masks))
        yield Triple(*photo.with_mask(mask, size), prompt, expected, photo.file)


def scribble_triples(seed: int) -> Iterator[Triple]:
    """Objects from flat blobs of their colour in whole photographs, inside a mask a little wider than the blob."""
    generator = Generator().manual_seed(seed)
    looks = dealt_looks(generator)
    for photo in _photos(generator):
        prompt, expected = next(looks)
        x, blob = photo.with_mask(draw_mask(generator, photo.side, "blob"))
        paint = torch.tensor(COLORS[expected["color"]].rgb).view(1, 3, 1, 1) * 2 - 1
        room = photo.side // 20
        mask = F.max_pool2d(blob, 2 * room + 1, stride=1, padding=room)
        yield Triple(torch.where(blob > 0, paint, x), mask, prompt, expected, photo.file)


def background_triples(seed: int) -> Iterator[Triple]:
    """Backgrounds that have more to them than a colour, around an ellipse in the middle that is kept; square parts of
    the photographs, as they are."""
    generator = Generator().manual_seed(seed)
    kinds = deal(generator, SCENIC)
    for photo in _photos(generator):
        size, kind = photo.side, KINDS[next(kinds)]
        radii = [uniform(generator, 0.22, 0.36) * size for _ in range(2)]
        center = [uniform(generator, 0.4, 0.6) * size for _ in range(2)]
        kept = torch.stack(_plane(size, center, radii)).square().sum(0) <= 1
        mask = 1 - kept.float()[None, None]
        yield Triple(photo.part(), mask, kind.words[0], {"background": kind.name}, photo.file)


def replacement_triples(seed: int) -> Iterator[Triple]:
    """Objects in the place of others: a rendered one stands before a square part of a photograph, the mask is around
    it, and the prompt names another. Masks follow its outline, or are a box or an ellipse about it."""
    generator = Generator().manual_seed(seed)
    looks, masks = dealt_looks(generator), deal(generator, ("outline", "ellipse", "box"))
    for photo in _photos(generator):
        (_, old), (prompt, expected) = next(looks), next(looks)
        before = photo.part(SIZE).add(1).div(2).transpose(0, 1).contiguous()  # (3, 1, H, W), as `paint` takes it
        canvas = before.clone()
        paint(canvas, [place(generator, 0, [(old["shape"], old["material"], old["color"])])])
        outline = ((canvas - before).abs().amax(0) > 0.08)[0]  # the shadow counts
        yield Triple(canvas.transpose(0, 1) * 2 - 1, _mask_about(outline, next(masks)), prompt, expected, photo.file)


def _mask_about(outline: Tensor, kind: str) -> Tensor:
    """A mask (1, 1, h, w) in {0, 1} around what is True of (h, w), with a few pixels of room."""
    if kind == "outline":
        return F.max_pool2d(outline.float()[None, None], 9, stride=1, padding=4)
    rows, columns = (outline.any(axis).nonzero() for axis in (1, 0))
    sides = [(float(span[0]), float(span[-1]) + 1) for span in (columns, rows)]
    center, half = [sum(side) / 2 for side in sides], [(side[1] - side[0]) / 2 + 4 for side in sides]
    x, y = _plane(len(outline), center, half)
    inside = torch.maximum(x.abs(), y.abs()) <= 1 if kind == "box" else x.square() + y.square() <= 1.4
    return inside.float()[None, None]


def held_out_windows(count: int, seed: int, size: int) -> Tensor:
    """Windows (count, 3, S, S) in [-1, 1] of the held-out photographs."""
    return torch.cat([photo.part(size) for photo in islice(_photos(Generator().manual_seed(seed)), count)])


def draw_mask(generator: Generator, size: int, kind: str) -> Tensor:
    """A mask (1, 1, size, size) in {0, 1} of a kind of `MASKS`, wholly inside, of 20 to 58 pixels' radius at 128."""
    radius = (20 + 37 * uniform(generator) ** 0.8) * size / 128
    reach = radius + size / 64
    center = [uniform(generator, reach, size - reach) for _ in range(2)]
    radii = [radius * uniform(generator, 0.8, 1) for _ in range(2)]
    x, y = _plane(size, center, radii)
    if kind == "box":
        inside = torch.maximum(x.abs(), y.abs()) <= 1
    elif kind == "ellipse":
        inside = x.square() + y.square() <= 1
    else:
        angle, edge = torch.atan2(y, x), torch.tensor(0.82)
        for waves in (2, 3, 5):
            edge = edge + uniform(generator, 0, 0.09) * torch.cos(waves * angle + uniform(generator, 0, 2 * math.pi))
        inside = x.square() + y.square() <= edge**2
    return inside.float()[None, None]


def _plane(size: int, center: Sequence[float], radii: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Coordinates x and y (size, size) that are 0 at `center` and 1 at `radii` from it, in pixels."""
    ticks = torch.arange(size) + 0.5
    x, y = torch.meshgrid(
        *((ticks - middle) / radius for middle, radius in zip(center, radii, strict=True)), indexing="xy"
    )
    return x, y


def deal(generator: Generator, items: Sequence[T]) -> Iterator[T]:
    """Shuffled items, and again, without end."""
    while True:
        for index in torch.randperm(len(items), generator=generator).tolist():
            yield items[index]


def dealt_looks(generator: Generator) -> Iterator[tuple[str, dict[str, str]]]:
    """Prompts of a shape, a material and a colour, all dealt equally often, and what each names."""
    shapes, materials, colors = (deal(generator, list(table)) for table in (SHAPES, MATERIALS, COLORS))
    for shape in shapes:
        material = next(name for name in materials if name not in SHAPES[shape].avoids)
        color = next(colors)
        prompt = article(noun_phrase(generator, shape, material, color, complete=True))
        yield prompt, {"shape": shape, "material": material, "color": color}


@dataclass(frozen=True)
class _Photo:
    """A photograph x (1, 3, h, w) in [-1, 1], and a square part of it."""

    file: str
    x: Tensor
    top: int
    left: int
    side: int

    def part(self, size: int | None = None) -> Tensor:
        """The square part (1, 3, S, S), as it is or scaled to `size`."""
        part = self.x[..., self.top : self.top + self.side, self.left : self.left + self.side]
        return part if size is None else F.interpolate(part, (size, size), mode="bilinear", antialias=True)

    def with_mask(self, mask: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
        """The photograph and a mask (1, 1, S, S) of its part, both as large as the photograph; or, with `size`, the
        part alone."""
        if size is not None:
            return self.part(size), mask
        height, width = self.x.shape[2:]
        below, right = height - self.top - self.side, width - self.left - self.side
        return self.x, F.pad(mask, (self.left, right, self.top, below))


def _photos(generator: Generator) -> Iterator[_Photo]:
    """Parts of half the photograph's shorter side to all of it."""
    pictures = {file: read_photo(Photo(file, weight=1.0))[None] * 2 - 1 for file in HELD_OUT}
    for file in deal(generator, HELD_OUT):
        height, width = pictures[file].shape[2:]
        side = round(min(height, width) * uniform(generator, 0.5, 1))
        top, left = (int(uniform(generator, 0, room - side + 1)) for room in (height, width))
        yield _Photo(file, pictures[file], top, left, side)
