"""The contact sheet: what went in and what came out, to be looked at."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from ldm.evaluation.inputs import Input
from ldm.evaluation.paintings import Painting, Paintings
from ldm.evaluation.summaries import Answer
from ldm.imaging.images import make_grid, to_pil

ON_SHEET = 4
"""Of each method's predictions, the best ones."""

ROWS = 100
"""Inputs, the first ones: a picture of thousands opens nowhere."""

CELL = 160
"""Side of a picture in pixels, at most."""


def contact_sheet(
    places: Mapping[str, Paintings],
    inputs: Sequence[Input],
    answers: Mapping[str, Mapping[int, Answer]],
    n_samples: int,
) -> Image.Image:
    """A row for each of the first inputs: what the first method sees of it, the mask marked, then each one's best."""
    shown = min(ON_SHEET, n_samples)
    cells: list[Image.Image] = []
    captions: list[str] = []
    blank = Image.new("RGB", (CELL, CELL), "white")
    for index, one in enumerate(inputs[:ROWS]):
        marked = blank
        row: list[Image.Image] = []
        said: list[str] = []
        for name, place in places.items():
            if index not in answers[name]:
                row += [blank] * shown
                said += [f"{name}: failed", *[""] * (shown - 1)]
                continue
            painting = place.read(name, index, delivered=True)
            assert painting.delivered is not None
            marked = _marked(painting) if marked is blank else marked
            right = answers[name][index]["right"] or [None] * len(painting.x)
            room = [blank] * (shown - len(painting.x[:shown]))  # of a method that gives fewer
            words = {True: "right", False: "wrong", None: ""}
            row += [_cell(to_pil(picture)) for picture in painting.delivered[:shown].split(1)] + room
            said += [f"{name}: {words[right[0]]}", *(words[one] for one in right[1:shown]), *[""] * len(room)]
        cells += [marked, *row]
        captions += [one.prompt, *said]
    return make_grid(cells, 1 + shown * len(places), captions)


def _marked(painting: Painting) -> Image.Image:
    return _cell(to_pil(torch.where(painting.mask > 0.5, painting.source, painting.source * 0.5 - 0.35)))


def _cell(image: Image.Image) -> Image.Image:
    image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return image
