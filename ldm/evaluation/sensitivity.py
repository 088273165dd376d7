"""Appendix D: how much small changes of prompt, mask and image change what is painted, beside another seed's change."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from ldm.evaluation.measures import estimate
from ldm.evaluation.paintings import silent
from ldm.evaluation.tables import Measure, shown
from ldm.evaluation.trial import Trial, inside, markdown_table, own_mask
from ldm.imaging.images import load_image, make_grid, to_pil, to_tensor

ROWS = 4
"""Inputs on the figure."""

DISTANCE = Measure("distance", "", "", digits=3)
SHARE = Measure("right", "", "", "%", 1, 100)


@dataclass(frozen=True)
class Asked:
    """A photograph, its mask of uint8 (h, w), a prompt, and a seed."""

    photo: Image.Image
    mask: np.ndarray
    prompt: str
    seed: int


def gaussian_blur(image: Image.Image, sigma: float = 2.0, taps: int = 8) -> Image.Image:
    """Blurred by a Gaussian kernel of `taps` a side, as in appendix D; an even one has its middle between pixels."""
    places = torch.arange(taps) - (taps - 1) / 2
    weights = torch.exp(-places.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    x = to_tensor(image)
    before, after = (taps - 1) // 2, taps // 2
    x = F.pad(x, (before, after, before, after), mode="replicate")
    for kernel in (weights.view(1, 1, taps, 1), weights.view(1, 1, 1, taps)):
        x = F.conv2d(x, kernel.expand(3, 1, *kernel.shape[2:]), groups=3)
    return to_pil(x)


def grown(mask: np.ndarray, share: float) -> np.ndarray:
    """A mask whose outline lies farther out, or farther in, by a share of the box's shorter side; never empty."""
    inside_mask = mask > 0
    rows, columns = inside_mask.any(1).sum(), inside_mask.any(0).sum()
    reach = max(1, round(abs(share) * min(rows, columns)))
    change = ndimage.binary_dilation if share > 0 else ndimage.binary_erosion
    made = change(inside_mask, np.ones((3, 3)), iterations=reach)
    return np.where(made if made.any() else inside_mask, 255, 0).astype(np.uint8)


def rotated(image: Image.Image, degrees: float = 5.0) -> Image.Image:
    """Rotated about its middle; what comes in from outside goes on as the border is."""
    room = max(image.size) // 8
    pixels = np.pad(np.asarray(image), ((room, room), (room, room), (0, 0)), mode="edge")
    turned = Image.fromarray(pixels).rotate(degrees, Image.Resampling.BICUBIC)
    return turned.crop((room, room, room + image.width, room + image.height))


def reworded(prompt: str) -> str:
    """The same with other words: without its article, or with one."""
    first, _, rest = prompt.partition(" ")
    return rest if first in ("a", "an") and rest else f"a {prompt}"


VARIANTS: dict[str, Callable[[Asked], Asked]] = {
    "another seed": lambda a: Asked(a.photo, a.mask, a.prompt, a.seed + 500),
    "prompt reworded": lambda a: Asked(a.photo, a.mask, reworded(a.prompt), a.seed),
    "mask larger": lambda a: Asked(a.photo, grown(a.mask, 0.1), a.prompt, a.seed),
    "mask smaller": lambda a: Asked(a.photo, grown(a.mask, -0.1), a.prompt, a.seed),
    "image rotated by 5°": lambda a: Asked(rotated(a.photo), a.mask, a.prompt, a.seed),
    "image blurred, sigma 2": lambda a: Asked(gaussian_blur(a.photo), a.mask, a.prompt, a.seed),
}


def run(trial: Trial) -> str:
    """Edit each input as it is and changed, on the same seed; write sensitivity.md, .json and .png."""
    names = ["as it is", *VARIANTS]
    distances: dict[str, list[float]] = {name: [] for name in names}
    right: dict[str, list[float | None]] = {name: [] for name in names}
    cells: list[Image.Image] = []
    captions: list[str] = []
    for index, one in enumerate(tqdm(trial.inputs, desc="sensitivity", unit="input", disable=None)):
        photo = load_image(one.image).rgb
        mask = own_mask(one, (photo.height, photo.width))
        asked = Asked(photo, (mask[0, 0].numpy() * 255).astype(np.uint8), one.prompt, trial.job.seed + 1000 * index)
        first = None
        for name in names:
            what = asked if name == "as it is" else VARIANTS[name](asked)
            with silent():
                made = trial.method.edit(what.photo, what.mask, what.prompt, 1, what.seed)
            seen = inside(made.delivered[0], mask)
            first = seen if first is None else first
            distances[name].append(float(trial.eyes.perceptual.between(seen, first)[0]))
            right[name].append(trial.right(made.canvas, made.x, one))
            if index < ROWS:
                cells.append(made.delivered[0].convert("RGB"))
                captions.append(one.prompt if name == "as it is" else name)
    other = estimate(distances["another seed"]).value or 1.0
    rows = []
    for name in names:
        far = estimate(distances[name])
        share = "" if name == "as it is" else f"{100 * (far.value or 0) / other:.0f} %"
        rows.append([name, shown(far, DISTANCE), share, shown(estimate(right[name]), SHARE)])
    table = markdown_table(["", "distance inside the mask", "of another seed's", "right"], rows)
    for cell in cells:
        cell.thumbnail((200, 200))
    figure = make_grid(cells, len(names), captions)
    return trial.write("sensitivity", table, {"distance": distances, "right": right}, figure)
