"""Cut-outs on disk: a folder of PNG files with alpha, and `index.json`, which says what each of them is."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.epochs import seeded
from ldm.data.things.catalogues import Emoji, Model
from ldm.data.things.colors import name_of, single_hue
from ldm.data.things.nouns import NOUNS
from ldm.data.things.views import Renderer, draw_views
from ldm.errors import UserError
from ldm.files import atomic_file

logger = logging.getLogger(__name__)

FRONT_ONLY = ("furniture", "machine", "place")
"""Kinds of nouns whose backs nobody looks at."""


@dataclass(frozen=True)
class Cutout:
    """One picture of a thing.

    file: its name in the folder. instance: the object that it shows; all views of one have the same. azimuth,
    elevation: of its view in degrees, None for a picture that came as such. light: the side that it is lit from, -1 to
    1. color: its colour's name, where it has one; hue: in radians, where it has but one. split: "train", "val" or
    "both".
    """

    file: str
    noun: str
    source: str
    instance: str
    licence: str
    author: str
    split: str
    azimuth: float | None = None
    elevation: float | None = None
    light: float = -0.3
    color: str | None = None
    hue: float | None = None


def describe(cutout: Cutout, image: Image.Image) -> Cutout:
    """`cutout` with the colour of its picture."""
    pixels = np.asarray(image, np.float32).reshape(-1, 4) / 255
    solid = pixels[pixels[:, 3] > 0.9, :3]
    return replace(cutout, color=name_of(solid[::7]), hue=single_hue(solid[::7]))


def shows_something(image: Image.Image) -> bool:
    """Whether a picture is large enough to be known, and no mere dark silhouette."""
    if min(image.size) < 24:
        return False
    pixels = np.asarray(image, np.float32).reshape(-1, 4) / 255
    solid = pixels[pixels[:, 3] > 0.5, :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    return len(solid) > 200 and (solid.mean() > 0.09 or solid.std() > 0.06)


def held_out_models(models: list[Model]) -> set[str]:
    """The last model of every noun that has at least four: what validation sees of it, and training does not."""
    by_noun: dict[str, list[Model]] = {}
    for model in models:
        by_noun.setdefault(model.noun, []).append(model)
    return {several[-1].instance for several in by_noun.values() if len(several) >= 4}


def emoji_cutouts(emoji: list[Emoji], size: int = 256) -> Iterator[tuple[Cutout, Image.Image]]:
    """Each rendered object as it is, cut to what is not transparent."""
    for one in emoji:
        with Image.open(one.file) as opened:
            image = opened.convert("RGBA")
        image = image.crop(image.getchannel("A").getbbox())
        image.thumbnail((size, size))
        name = f"{one.instance}.png"
        yield describe(Cutout(name, one.noun, "fluent", one.instance, one.licence, one.author, "both"), image), image


def model_cutouts(
    model: Model, renderer: Renderer, count: int, seed: int, split: str
) -> Iterator[tuple[Cutout, Image.Image]]:
    """`count` views of a model, less those that show nothing; the middle one is validation's."""
    generator = seeded(seed, *model.instance.encode())
    views = draw_views(generator, count, NOUNS[model.noun].kind not in FRONT_ONLY)
    pictures = renderer.render(model.file, views, generator, model.rotation)
    for i, (view, image) in enumerate(zip(views, pictures, strict=True)):
        if not shows_something(image):
            continue
        cutout = Cutout(
            f"{model.instance}-{i:02d}.png",
            model.noun,
            "furniture",
            model.instance,
            model.licence,
            model.author,
            "val" if i == count // 2 else split,
            round(view.azimuth, 1),
            round(view.elevation, 1),
            round(view.light, 2),
        )
        yield describe(cutout, image), image


def _write(folder: Path, note: Path, made: Iterable[tuple[Cutout, Image.Image]]) -> None:
    """The pictures, and then the note that says that all of them are there."""
    cutouts = []
    for cutout, image in made:
        with atomic_file(folder / cutout.file) as file:
            image.save(file, "PNG", compress_level=3)
        cutouts.append(asdict(cutout))
    with atomic_file(note) as file:
        file.write(json.dumps(cutouts).encode())


_RENDERERS: list[Renderer] = []  # one in each process


def _write_views(folder: Path, note: Path, model: Model, views: int, seed: int, split: str) -> None:
    if not _RENDERERS:
        _RENDERERS.append(Renderer())
    _write(folder, note, model_cutouts(model, _RENDERERS[0], views, seed, split))


def write_cutouts(
    folder: Path, emoji: list[Emoji], models: list[Model], views: int, seed: int, progress: Callable[[int], object]
) -> list[Cutout]:
    """Write what `folder` lacks: pictures, a note for each object that says that all of its are there, and the index.

    Models are rendered in a process of their own: one that cannot be read, or that brings the renderer down, is passed
    over, with a warning. progress: called with how many objects are done since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = held_out_models(models)
    notes = [folder / "fluent.json"]
    if not notes[0].exists():
        _write(folder, notes[0], emoji_cutouts(emoji))
    progress(1)
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    try:
        for model in models:
            notes.append(folder / f"{model.instance}.json")
            if not notes[-1].exists():
                split = "val" if model.instance in held_out else "train"
                try:
                    pool.submit(_write_views, folder, notes[-1], model, views, seed, split).result()
                except BrokenProcessPool:
                    logger.warning("%s is passed over: it brings the renderer down", model.file)
                    _write(folder, notes[-1], [])
                    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                except (RuntimeError, ValueError, OSError) as error:
                    logger.warning("%s is passed over: %s", model.file, error)
                    _write(folder, notes[-1], [])
            progress(1)
    finally:
        pool.shutdown()
    listed = [entry for note in notes for entry in json.loads(note.read_text(encoding="utf-8"))]
    with atomic_file(folder / "index.json") as file:
        file.write(json.dumps(listed, indent=0).encode())
    return [Cutout(**entry) for entry in listed]


def read_cutouts(folder: Path) -> list[Cutout]:
    """All cut-outs of a folder. Raises UserError where there are none."""
    index = folder / "index.json"
    if not index.exists():
        raise UserError(f'"{folder}" holds no cut-outs: make them with scripts/make_things.py')
    return [Cutout(**entry) for entry in json.loads(index.read_text(encoding="utf-8"))]
