"""What the judge says of predictions. It has seen neither the photographs nor anything that the model has."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ldm.backbones import zoo
from ldm.checkpoint import load_model
from ldm.data.crops import cut_square, square_around
from ldm.errors import UserError
from ldm.models.judge import Judge, window

MARGIN = 0.1
"""Room around a mask, as a fraction of its longer side: the judge has learned from crops like these."""


def judge_folder(name: str = "scenes") -> Path:
    """Where the judge of that name lies, below the models folder or that of the repository; or the folder `name`.

    Raises:
        UserError: there is none.
    """
    places = [root / "judge" / name for root in (zoo.models_dir(), zoo.REPOSITORY / "models")] + [Path(name)]
    for folder in places:
        if (folder / "model.safetensors").is_file() and (folder / "config.yaml").is_file():
            return folder
    raise UserError(f'there is no judge "{name}" in {places[1].parent}: train one as configs/scenes/judge.yaml says')


def load_judge(name: str = "scenes", device: torch.device | str = "cpu") -> Judge:
    """The judge of that name in float32, in eval mode and without gradients.

    Raises:
        UserError: there is none, or its weights do not fit its config.
    """
    folder = judge_folder(name)
    config = zoo.read_config(folder / "config.yaml")
    judge = load_model(config, folder / "model.safetensors", device=torch.device(device), dtype=torch.float32)
    return cast(Judge, judge)


@torch.no_grad()
def verdicts(judge: Judge, x: Tensor, mask: Tensor | None) -> list[dict[str, str]]:
    """What each picture shows: attribute -> name.

    Args:
        x: (b, 3, H, W) in about [-1, 1].
        mask: (1, 1, H, W): looks at the square around it, for the object there; None: at the middle square of the
            whole picture, for its background.
    """
    height, width = x.shape[2:]
    if mask is None:
        square = window(width / 2, height / 2, max(height, width), height, width)
    else:
        top, left, side = square_around(mask, MARGIN)
        square = window(left + side / 2, top + side / 2, side, height, width)
    x = x.float().cpu().add(1).div(2).clamp(0, 1)
    crops = cut_square(x, square, (judge.size, judge.size), "bilinear")
    return judge.name(crops.to(next(judge.parameters()).device))


def judge_renders(
    judge: Judge, x: Tensor, attributes: Sequence[Mapping[str, Any]], scale: float = 1.0
) -> dict[str, list[bool]]:
    """Attribute -> whether the judge is right, for each rendered scene that has it and shows at most one object.

    Args:
        x: (n, 3, H, W) in [-1, 1]; attributes: what they show, see `ldm.data.scenes.scenes.Scenes`.
        scale: pixels of `x` for one of the render's, in which the boxes count.
    """
    hits: dict[str, list[bool]] = {attribute: [] for attribute in judge.labels}
    for picture, known in zip(x.split(1), attributes, strict=True):
        if "second" in known:
            continue
        (whole,) = verdicts(judge, picture, None)
        crop = {}
        if known["box"]:
            left, top, right, bottom = (round(value * scale) for value in known["box"])
            mask = torch.zeros(1, 1, *x.shape[2:])
            mask[..., top:bottom, left:right] = 1
            (crop,) = verdicts(judge, picture, mask)
        for attribute, right in hits.items():
            seen = whole if attribute == "background" else crop
            if known[attribute]:
                right.append(seen[attribute] == known[attribute])
    return hits
