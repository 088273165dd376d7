"""What the unpacked packages hold: rendered objects by noun, 3D models by noun, and their licences."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ldm.data.things.nouns import NOUNS, Noun

LICENCES = {
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC BY 3.0",
    "KatorLegaz": "CC BY 3.0 US",
    "Reallusion": "CC BY 3.0 US",
    "Scopia": "CC BY 3.0",
}
"""Catalogue of furniture -> licence of its models. Another catalogue is not read."""


@dataclass(frozen=True)
class Emoji:
    """A rendered object: the picture `file`, with alpha."""

    noun: str
    file: Path
    annotation: str
    licence: str = "MIT"
    author: str = "Microsoft Corporation"

    @property
    def instance(self) -> str:
        """What no other object is called."""
        return f"fluent-{self.file.stem}"


@dataclass(frozen=True)
class Model:
    """A 3D model: the OBJ `file`. rotation: (9,) of the catalogue, row by row, that turns it upright; or None."""

    noun: str
    file: Path
    label: str
    licence: str
    author: str
    rotation: tuple[float, ...] | None = None

    @property
    def instance(self) -> str:
        """What no other object is called; all its views have it in common."""
        return f"{self.file.parent.parent.name}-{self.file.parent.name}-{self.file.stem}".lower()


def _bare(hexcode: str) -> str:
    """Without the variation selector, which one package writes and the other leaves out."""
    return hexcode.lower().replace("-fe0f", "")


def read_emoji(fluent: Path, openmoji: Path, nouns: Iterable[Noun] = NOUNS.values()) -> list[Emoji]:
    """The rendered objects that the nouns name, in their order; a name that the packages lack is passed over."""
    files = {_bare(file.stem): file for file in sorted(fluent.rglob("*.webp"))}
    listed = json.loads(next(openmoji.rglob("openmoji.json")).read_text(encoding="utf-8"))
    codes = {entry["annotation"]: _bare(entry["hexcode"]) for entry in listed if not entry["skintone"]}
    return [
        Emoji(noun.name, files[code], annotation)
        for noun in nouns
        for annotation in noun.emoji
        if (code := codes.get(annotation, "")) in files
    ]


def read_catalogue(file: Path) -> Iterator[dict[str, str]]:
    """The entries of a furniture catalogue, each as its properties."""
    entries: dict[int, dict[str, str]] = {}
    for line in file.read_text(encoding="latin-1").splitlines():
        if found := re.match(r"(\w+)#(\d+)=(.*)", line):
            entries.setdefault(int(found[2]), {})[found[1]] = found[3].strip()
    yield from (entries[number] for number in sorted(entries))


def read_models(furniture: Path, nouns: Iterable[Noun] = NOUNS.values()) -> list[Model]:
    """The 3D models that the nouns name, by catalogue and in its order."""
    by_name = {name: noun.name for noun in nouns for name in noun.models}
    models = []
    for catalogue, licence in LICENCES.items():
        for entry in read_catalogue(furniture / catalogue / "PluginFurnitureCatalog.properties"):
            label = entry["name"].lower()
            if label not in by_name:
                continue
            turn = entry.get("modelRotation")
            models.append(
                Model(
                    by_name[label],
                    furniture / catalogue / entry["model"].lstrip("/"),
                    label,
                    licence,
                    entry.get("creator", catalogue),
                    tuple(map(float, turn.split())) if turn else None,
                )
            )
    return models
