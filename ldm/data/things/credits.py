"""Sources, licences and authors as a table for the model card."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ldm.data.things.cutouts import Cutout
from ldm.data.things.photographs import PHOTOGRAPHS, credit
from ldm.data.things.sources import SOURCES

WHEELS = {
    "skimage": ("scikit-image", "photographs", "as `models/ldm/scenes/README.md` names each", "by file"),
    "sklearn": ("scikit-learn", "photographs", "CC BY 2.0", "see its datasets/images/README.txt"),
}
"""Packages that are installed anyway: name, what, licence, author."""


def credits_table(cutouts: Sequence[Cutout], sources: Path) -> str:
    """Markdown: the packages, the photographs, the 3D models' authors by licence, and the nouns."""
    lines = ["| package | what | licence | author |", "| --- | --- | --- | --- |"]
    lines += [f"| {s.package} | {s.what} | {s.licence} | {s.attribution} |" for s in SOURCES.values()]
    lines += [f"| {name} | {what} | {licence} | {author} |" for name, what, licence, author in WHEELS.values()]
    lines += ["", "| photograph | package | split | licence | author |", "| --- | --- | --- | --- | --- |"]
    for photograph in PHOTOGRAPHS:
        of = SOURCES.get(photograph.source)
        default = (of.licence, of.attribution) if of else WHEELS[photograph.source][2:]
        known = credit(photograph, sources)
        licence, author = (one or other for one, other in zip(known, default, strict=True))
        lines.append(f"| {photograph.file} | {photograph.source} | {photograph.split} | {licence} | {author} |")
    lines += ["", "| licence | pictures | objects | authors |", "| --- | --- | --- | --- |"]
    by_licence: dict[str, list[Cutout]] = defaultdict(list)
    for cutout in cutouts:
        by_licence[cutout.licence].append(cutout)
    for licence, several in sorted(by_licence.items()):
        authors = ", ".join(sorted({cutout.author for cutout in several}))
        lines.append(f"| {licence} | {len(several)} | {len({c.instance for c in several})} | {authors} |")
    pictures: dict[str, set[str]] = defaultdict(set)
    for cutout in cutouts:
        pictures[cutout.noun].add(cutout.instance)
    listed = ", ".join(f"{noun} ({len(objects)})" for noun, objects in pictures.items())
    return "\n".join([*lines, "", f"{len(pictures)} nouns, with how many objects show each: {listed}.", ""])
