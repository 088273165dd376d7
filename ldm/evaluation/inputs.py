"""The inputs of the benchmark (appendix C.1 of the paper): photographs, random rectangles, random labels, as one file.

Each line of `benchmark.jsonl` is a row of `scripts/batch_editing.py` (image, mask, prompt, name), with what a
classifier is to find beside it.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator

from ldm.data.scenes.backgrounds import HELD_OUT, PACKAGES
from ldm.data.scenes.draw import integer
from ldm.errors import MissingExtra, UserError
from ldm.files import atomic_file, file_sha256, write_error
from ldm.imaging.images import load_image, save_png

logger = logging.getLogger(__name__)

FILE = "benchmark.jsonl"

LICENCES = {
    "chelsea.png": "CC0, by Stefan van der Walt",
    "coffee.png": "CC0, by Rachel Michetti",
    "rocket.jpg": "public domain, by SpaceX",
    "camera.png": "CC0, by Lav Varshney",
}
"""Of the photographs of the default benchmark, as scikit-image states them; no model of ours was trained on them."""


@dataclass(frozen=True)
class Label:
    """What to ask for, and how it is known.

    prompt: the text. name: the label's, in tables. classes: of ImageNet, any of which is right. expected: for the judge
    of scenes, attribute -> value.
    """

    prompt: str
    name: str
    classes: tuple[int, ...] = ()
    expected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """One line: files, the prompt, and how what it names is known, see `Label`."""

    name: str
    image: Path
    mask: Path
    prompt: str
    label: str = ""
    classes: tuple[int, ...] = ()
    expected: Mapping[str, str] = field(default_factory=dict)


def make_benchmark(folder: Path | None, outdir: Path, count: int, seed: int, labels: Sequence[Label]) -> Path:
    """Write `count` inputs into `outdir`; returns the file.

    More of them continue the same series: the first are the same for the same seed, photographs and labels.

    Args:
        folder: of photographs, which are named where they lie; None takes those of `LICENCES`, which are copied.
        labels: photographs and labels are dealt like cards. A photograph that cannot be read is told and left out.

    Raises:
        UserError: a folder without photographs that can be read, or an `outdir` that holds another benchmark or cannot
            be written.
    """
    if not labels:
        raise UserError("there is no label to ask for: the model's vocabulary names no class of the classifier")
    sources = package_photographs() if folder is None else _photographs(folder)
    generator = Generator().manual_seed(seed)
    photos, asked = _readable(_deal(generator, sources), len(sources)), _deal(generator, labels)
    lines: list[str] = []
    boxes: list[tuple[tuple[int, int], tuple[slice, slice]]] = []  # a mask of each would fill the memory
    for index in range(count):
        (photo, (width, height)), label = next(photos), next(asked)
        boxes.append(((height, width), rectangle_box(generator, height, width)))
        image = Path("images") / photo.name if folder is None else Path(os.path.relpath(photo, outdir))
        row: dict[str, Any] = {"name": f"{index:04d}", "image": image.as_posix(), "mask": f"masks/{index:04d}.png"}
        row |= {"prompt": label.prompt, "label": label.name}
        row |= {"classes": list(label.classes)} if label.classes else {}
        row |= {"expected": dict(label.expected)} if label.expected else {}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    content = "".join(lines).encode()
    path = outdir / FILE
    if path.exists() and path.read_bytes() != content:
        raise UserError(f'"{path}" is another benchmark: give another `outdir`')
    try:
        for part in ("masks", *(["images"] if folder is None else [])):
            (outdir / part).mkdir(parents=True, exist_ok=True)
        for photo in sources if folder is None else []:
            shutil.copyfile(photo, outdir / "images" / photo.name)
    except OSError as error:
        raise write_error(outdir, error) from error
    for index, (shape, box) in enumerate(boxes):
        save_png(Image.fromarray(_filled(shape, box)), outdir / "masks" / f"{index:04d}.png")
    with atomic_file(path) as file:  # last: where it is, all is
        file.write(content)
    return path


def rectangle(generator: Generator, height: int, width: int) -> np.ndarray:
    """A mask (h, w) of uint8, white in a random rectangle inside, each side of dim/5 to dim/2 (appendix C.1)."""
    return _filled((height, width), rectangle_box(generator, height, width))


def rectangle_box(generator: Generator, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of `rectangle`."""
    spans = []
    for dim in (height, width):
        low, high = -(-dim // 5), max(dim // 2, 1)
        side = min(low, high) + integer(generator, max(high - low, 0) + 1)
        start = integer(generator, dim - side + 1)
        spans.append(slice(start, start + side))
    return spans[0], spans[1]


def _filled(shape: tuple[int, int], box: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[box] = 255
    return mask


def package_photographs() -> list[Path]:
    """Those of `LICENCES`, where scikit-image has them. Raises MissingExtra without it."""
    return [package_photograph(file) for file in HELD_OUT]


def package_photograph(file: str, package: str = "skimage") -> Path:
    """Where a package of `PACKAGES` has a photograph. Raises MissingExtra without the package."""
    name, folder = PACKAGES[package]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtra(name, "evaluation", "the default photographs")
    return Path(spec.origin).parent / folder / file


def _photographs(folder: Path) -> list[Path]:
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in known and path.name[0] != "."]
        found = sorted(path for path in found if not path.is_dir())
    except OSError as error:
        raise UserError(f'"{folder}" cannot be read ({error.strerror}): give a folder of photographs') from error
    if not found:
        raise UserError(f'"{folder}" holds no picture: give a folder of photographs')
    return found


def _readable(photos: Iterator[Path], count: int) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Photographs with their sizes (w, h), without those that cannot be read; count: how many different ones."""
    sizes: dict[Path, tuple[int, int] | None] = {}
    for photo in photos:
        if photo not in sizes:
            try:
                sizes[photo] = load_image(photo).rgb.size
            except UserError as error:
                logger.warning("left out: %s", error)
                sizes[photo] = None
        size = sizes[photo]
        if size is not None:
            yield photo, size
        elif len(sizes) == count and not any(sizes.values()):
            raise UserError(f'no picture in "{photo.parent}" can be read: give a folder of photographs')


def _deal(generator: Generator, items: Sequence[Any]) -> Iterator[Any]:
    """Shuffled items, and again, without end."""
    while True:
        for index in torch.randperm(len(items), generator=generator).tolist():
            yield items[index]


def read_benchmark(path: Path) -> list[Input]:
    """The inputs of a file, their paths seen from it.

    Raises:
        UserError: there is no such file, or a line that is no input.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f'the benchmark "{path}" is no text in UTF-8: save it as that') from error
    except OSError as error:
        raise UserError(
            f'the benchmark "{path}" cannot be read ({error.strerror}): scripts/make_benchmark.py writes one'
        ) from error
    inputs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            inputs.append(
                Input(
                    str(row.get("name", f"{number - 1:04d}")),
                    path.parent / row["image"],
                    path.parent / row["mask"],
                    str(row["prompt"]),
                    str(row.get("label", "")),
                    tuple(int(value) for value in row.get("classes", ())),
                    {str(key): str(value) for key, value in row.get("expected", {}).items()},
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'line {number} of "{path}" is no input ({type(error).__name__}: {error}): it needs image, mask, prompt'
            ) from error
    if not inputs:
        raise UserError(f'"{path}" holds no input')
    return inputs


def painted_from(one: Input, known: dict[Path, str] | None = None) -> str | None:
    """A hash of what the pictures of an input depend on: photograph, mask and prompt. None where a file is not there.

    known: hashes of files that have been read before; those that are read now are added.
    """
    known = {} if known is None else known
    try:
        for file in (one.image, one.mask):
            known[file] = known.get(file) or file_sha256(file)
    except (OSError, ValueError):  # a name with a zero in it is a ValueError
        return None
    return hashlib.sha256(json.dumps([known[one.image], known[one.mask], one.prompt]).encode()).hexdigest()[:16]


def looked_for(one: Input) -> str:
    """A hash of what a classifier is to find in the pictures of an input."""
    return hashlib.sha256(json.dumps([one.classes, sorted(one.expected.items())]).encode()).hexdigest()[:16]
