"""Backgrounds at 256x256: crops of photographs under free licences, and the painted grounds of the scenes."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from ldm.data.scenes.backgrounds import KINDS, PACKAGES, Backgrounds
from ldm.data.scenes.draw import chance, choice, integer, uniform, weighted
from ldm.errors import MissingExtra, UserError

SIZE = 256
LONGEST = 1280
"""Side in pixels to which larger photographs are reduced."""


@dataclass(frozen=True)
class Photograph:
    """A photograph of a source. split: "train", "val" or "test"; nothing of "test" is ever trained or selected on.

    words: what a caption calls the ground, with its preposition, where nearly any crop shows it. tint: multiplies the
    three channels of a grey one.
    """

    file: str
    source: str
    split: str = "train"
    weight: float = 1.0
    words: tuple[str, ...] = ()
    tint: tuple[float, float, float] | None = None


def _several(files: str, source: str, split: str = "train", weight: float = 1.0, words: tuple[str, ...] = ()):
    return [Photograph(file, source, split, weight, words) for file in files.split()]


_FLOWERS = ("in front of flowers", "in a garden", "among flowers")
_CAMPUS = " ".join(f"P10705{n:02d}.png" for n in (0, 1, 3, 4, 5, 6, 7, 9, 10, 12, 14, 15))

PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("astronaut.png", "skimage"),
    Photograph("grass.png", "skimage", words=("on grass", "on a lawn"), tint=(0.62, 1.12, 0.40)),
    Photograph("gravel.png", "skimage", words=("on gravel", "on stones"), tint=(1.03, 1.0, 0.93)),
    Photograph("brick.png", "skimage", words=("in front of a brick wall",), tint=(1.35, 0.72, 0.58)),
    Photograph("hubble_deep_field.jpg", "skimage", weight=0.5, words=("in front of a night sky",)),
    Photograph("coins.png", "skimage", weight=0.3),
    *_several("chelsea.png coffee.png rocket.jpg camera.png", "skimage", "test"),
    Photograph("china.jpg", "sklearn", weight=1.5),
    Photograph("flower.jpg", "sklearn", weight=1.0),
    *_several(f"P1070491.png P1070493.png P1070495.png P1070497.png P1070498.png P1070499.png {_CAMPUS}", "mvtb"),
    *_several(" ".join(f"flowers{n}.png" for n in range(1, 10)), "mvtb", words=_FLOWERS),
    *_several("tomato_124.png tomato_14.png tomato_35.png tomato_54.png", "mvtb", weight=0.5, words=("among leaves",)),
    *_several("building2-3.png notre-dame.png", "mvtb", weight=1.5, words=("in front of a building",)),
    *_several("rocks2-l.png rocks2-r.png", "mvtb", weight=1.0, words=("on rocks", "in front of rocks")),
    *_several("road.png", "mvtb", weight=1.5, words=("on a road",)),
    *_several("lab-scene.png roof.png", "mvtb", weight=1.0),
    *_several("walls-l.png walls-r.png church.png", "mvtb", "val"),
    *_several("parks.png eiffel-1.png eiffel-2.png", "mvtb", "test"),
    Photograph("aitzgorri_by_Aitzol_Berasategi.jpg", "lomiri16", weight=2.0, words=("in the mountains",)),
    Photograph("life_by_Aitzol_Berasategi.jpg", "lomiri16", weight=2.0, words=("in a forest",)),
    Photograph("seeding_by_Clements_Engelhardt.jpg", "lomiri16", weight=2.0, words=("in a meadow", "on a meadow")),
    Photograph("sunset_by_Aitzol_Berasategi.jpg", "lomiri16", weight=1.5, words=("in front of a sunset",)),
    Photograph("Bridge_by_Sander_Klootwijk.jpg", "lomiri16", weight=0.8, words=("in the sky", "in front of the sky")),
    Photograph("free_by_Peter_Nerlich.jpg", "lomiri16", weight=0.8),
    Photograph("Picture_0B_by_freespace.jpg", "lomiri16", weight=1.0),
    Photograph("Picture_1A_by_freespace.jpg", "lomiri16", weight=1.0),
    Photograph("umang_by_Abhishek_Mudgal.jpg", "lomiri16", weight=0.5),
    Photograph("greentock_by_Peter_Nerlich.jpg", "lomiri16", weight=0.8),
    *_several("picosdeeuropa_by_Aitzol_Berasategi.jpg Dragonfly_by_Bolly.jpg", "lomiri16", "val"),
    *_several("friends_by_Aitzol_Berasategi.jpg Wine_by_Jakkub_Mede.jpg", "lomiri16", "test"),
    Photograph("Kleiber_by_Lukas_Baubkus.jpg", "lomiri20", weight=1.5),
    Photograph("Infinite-Sea_by_Aury88.jpg", "lomiri20", weight=0.5, words=("in front of a night sky",)),
)
"""Left out of these packages: the portrait known as Lena, the painting, drawings, targets for calibration, and
photographs that are another collection's."""


def credit(photograph: Photograph, sources: Path) -> tuple[str, str]:
    """(licence, author) of a photograph, as its package states them by file; ("", "") where it does not."""
    for notes in sorted((sources / photograph.source).rglob("copyright")):
        text = notes.read_text(encoding="utf-8")
        found = re.search(
            rf"^Files:[^\n]*{re.escape(photograph.file)}\nCopyright: ([^\n]*)\nLicense: ([^\n]*)", text, re.MULTILINE
        )
        if found:
            return found[2].strip(), found[1].strip()
    return "", ""


def find(photograph: Photograph, sources: Path) -> Path:
    """The file of a photograph. Raises MissingExtra or UserError where its package is not here."""
    packed = sources / photograph.source / "packed" / photograph.file  # see `ldm.data.things.pack`
    if packed.exists():
        return packed
    if photograph.source in PACKAGES:
        name, folder = PACKAGES[photograph.source]
        spec = importlib.util.find_spec(photograph.source)
        if spec is None or spec.origin is None:
            raise MissingExtra(name, "train", "composing things in front of photographs")
        return Path(spec.origin).parent / folder / photograph.file
    file = next((sources / photograph.source).rglob(photograph.file), None)
    if file is None:
        raise UserError(f"there is no {photograph.file} in {sources}: run scripts/make_things.py, which fetches it")
    return file


def read(file: Path) -> np.ndarray:
    """(h, w, 3) uint8, at most `LONGEST` a side."""
    with Image.open(file) as opened:
        opened.draft("RGB", (LONGEST, LONGEST))  # JPEG files of many megapixels decode quicker at an eighth
        image = opened.convert("RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.array(image)


@dataclass(frozen=True)
class Background:
    """pixels (3, 256, 256) in [0, 1], as displayed. words: a phrase such as "on grass", or None. kind: a key of
    `KINDS`, where it is one of the scenes'."""

    pixels: Tensor
    words: str | None
    kind: str | None = None


class Photographs:
    """Draws backgrounds from photographs of one split, and painted ones.

    sources: folder of the unpacked packages. painted: share of painted ones.
    """

    def __init__(self, photographs: Sequence[Photograph], sources: Path, painted: float = 0.08):
        self.photographs = list(photographs)
        self.pixels = [read(find(photograph, sources)) for photograph in self.photographs]
        self.painted = painted
        self.pool = Backgrounds(photos=())

    @classmethod
    def of(cls, split: str, sources: Path, painted: float = 0.08) -> "Photographs":
        """Those of a split."""
        return cls([one for one in PHOTOGRAPHS if one.split == split], sources, painted)

    def draw(self, generator: Generator) -> Background:
        """A random background."""
        if chance(generator, self.painted):
            return self._paint(generator)
        index = weighted(generator, range(len(self.photographs)), [one.weight for one in self.photographs])
        photograph, pixels = self.photographs[index], self.pixels[index]
        x = adjust(random_crop(pixels, generator, photograph.tint), generator)
        words = choice(generator, photograph.words) if photograph.words else None
        return Background(x, words)

    def _paint(self, generator: Generator) -> Background:
        x, kind = self.pool.painted(generator)
        x = F.interpolate(x[None], (SIZE, SIZE), mode="bicubic")[0]
        grain = torch.randn(1, SIZE, SIZE, generator=generator) * uniform(generator, 0.0, 0.03)
        words = KINDS[kind]
        text = f"{choice(generator, words.prepositions)} {choice(generator, words.words)}"
        return Background((x + grain).clamp(0, 1), text, kind)


def random_crop(pixels: np.ndarray, generator: Generator, tint: tuple[float, float, float] | None = None) -> Tensor:
    """A square of a photograph (h, w, 3) uint8, mirrored half of the time -> (3, 256, 256) in [0, 1]."""
    height, width = pixels.shape[:2]
    high = min(height, width)
    low = min(high, max(210, high * 2 // 5))
    side = int(low + (high - low + 1) * uniform(generator) ** 1.2)
    side = min(side, high)
    top, left = integer(generator, height - side + 1), integer(generator, width - side + 1)
    crop = Image.fromarray(pixels[top : top + side, left : left + side])
    crop = crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    x = torch.from_numpy(np.asarray(crop, np.float32) / 255).permute(2, 0, 1)
    if tint:
        x = (x * torch.tensor(tint)[:, None, None]).clamp(0, 1)
    return x.flip(2) if chance(generator, 0.5) else x


def adjust(x: Tensor, generator: Generator) -> Tensor:
    """Another exposure, contrast and cast, within what cameras differ by."""
    cast = 1 + 0.04 * torch.randn(3, 1, 1, generator=generator)
    gamma = uniform(generator, 0.8, 1.3)
    contrast = uniform(generator, 0.85, 1.1)
    return (((x.clamp(1e-3, 1) ** gamma * cast) - 0.5) * contrast + 0.5).clamp(0, 1)
