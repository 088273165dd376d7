"""The mask doctor: what is odd about a mask, with its mend, and what the model will see of it. Needs no model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage
from torch import Tensor

from ldm.editing.latent_masks import auto_dilation, step_masks
from ldm.editing.request import EditRequest
from ldm.editing.result import EditTask
from ldm.imaging.images import ImageLike, as_picture, make_grid
from ldm.imaging.masks import GREY, grey_levels, resize_mask, shown, thickness
from ldm.imaging.region import Window, cut
from ldm.models.diffusion.schedule import SamplingSchedule

# Pixels a side of each panel of the picture, and the colours: cells and mask, cells of shrinking alone, the window.
_PANEL = 384
_MOST_STAGES = 7  # of latent masks that are drawn
_EDITED, _WIDER, _FRAME = (233, 30, 140), (255, 170, 40), (255, 221, 51)


@dataclass(frozen=True)
class Finding:
    """Something odd: `kind` is one word for programs, `text` says what it is and how it is mended."""

    kind: str
    text: str


@dataclass(frozen=True)
class MaskReport:
    """What the doctor has found.

    Attributes:
        coverage, window_coverage: the share of the image and of the window that is edited, 0 to 1.
        thickness: of the mask's thinnest part, in pixels at the model's size; see `masks.thickness`.
        dilation: the dilations of progressive shrinking, as asked for or as chosen.
        cells: how many latent cells are edited in each part of the sampling, widest first.
        facts: lines of a name and what it is.
        findings: what is odd, none for a mask in order.
        picture: the input with mask and window, the window as the model sees it, and the latent masks.
    """

    coverage: float
    window_coverage: float
    thickness: int
    dilation: int
    cells: tuple[int, ...]
    facts: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    picture: Image.Image

    def lines(self) -> list[str]:
        """The report as lines of text: first what is, then what is odd."""
        facts = [f"{name + ':':<11}{text}" for name, text in self.facts]
        odd = [f"{'odd:' if i == 0 else '':<11}{finding.text}" for i, finding in enumerate(self.findings)]
        return [*facts, *(odd or [f"{'odd:':<11}nothing"])]


def check_mask(
    task: EditTask, mask: ImageLike, asked: EditRequest, factor: int, schedule: SamplingSchedule
) -> MaskReport:
    """Look at the mask of a task as the edit uses it.

    Args:
        task: made from `mask`, as its file or user gave it, by the request `asked`.
        factor: pixels of the model's size that a latent cell is wide.
        schedule: the steps of the edit.

    Raises:
        UserError: the file cannot be read.
    """
    canvas, request = task.canvas, task.request
    size, window, x_mask, image_size = canvas.size, canvas.window, canvas.x_mask, canvas.window.image_size
    file = as_picture(mask)
    grey, transparency = grey_levels(file)
    auto, reason = auto_dilation(x_mask, factor)
    dilation, downsample = request.mask_dilation_iterations or 0, request.mask_downsample
    stages = _stages(step_masks(canvas.x_levels, factor, schedule, dilation, downsample))

    codes, inside = np.asarray(grey), canvas.mask[0, 0].bool().numpy()
    cell = (factor * window.height / size[0], factor * window.width / size[1])  # of the latents, in pixels of the image
    areas, _ = parts(inside)
    holes = hole_areas(inside)
    width = thickness(x_mask)
    findings = [
        *([Finding("alpha", f"the mask {transparency}")] if transparency else []),
        *_polarity(inside, request.invert_mask),
        *_size(codes.shape, image_size),
        *([] if request.soft_mask else _levels(codes)),
        *_small_parts(areas, holes, cell[0] * cell[1]),
        *_thickness(width, factor, max(cell), asked.mask_dilation_iterations, auto, reason),
        *_latents(x_mask, stages, factor, downsample),
    ]
    grey_pixels = int(((codes > 0) & (codes < 255)).sum())
    cells = tuple(int(stage.sum()) for stage in stages)
    edited = "black" if request.invert_mask else "white"
    if request.soft_mask:
        edited += ", and grey the later the darker,"
    facts = (
        ("mask", f'"{file.path}", {shown(codes.shape)}, {edited} is edited'),
        ("image", f"{shown(image_size)}, {_percent(inside.mean())} of it is edited"),
        ("window", f"{_place(window)}, brought to {shown(size)}, {_percent(x_mask.mean())} of it is edited"),
        ("levels", f"{grey_pixels} pixels ({_percent(grey_pixels / codes.size)}) neither black nor white"),
        ("parts", f"{_count(len(areas), 'part')}, {_count(len(holes), 'hole')}"),
        ("thickness", f"{width} pixels at {shown(size)}, {width / factor:.1f} latent cells"),
        (
            "shrinking",
            f"auto chooses {reason}"
            if asked.mask_dilation_iterations is None
            else f"{dilation} as asked; auto would choose {auto}",
        ),
        ("latents", f"{shown(stages.shape[2:])} cells, edited are {' -> '.join(map(str, cells))}, by {downsample}"),
    )
    seen = cut(canvas.picture.rgb, window, size)
    picture = _picture(canvas.picture.rgb, canvas.mask, seen, x_mask, stages, window)
    coverage, window_coverage = float(inside.mean()), float(x_mask.mean())
    return MaskReport(coverage, window_coverage, width, dilation, cells, facts, tuple(findings), picture)


def _stages(masks: Tensor) -> Tensor:
    """The different ones of the masks of the steps (steps, 1, h, w), in order; of many, some."""
    changes = [i for i in range(len(masks)) if i == 0 or not torch.equal(masks[i], masks[i - 1])]
    if len(changes) > _MOST_STAGES:
        changes = [changes[round(i * (len(changes) - 1) / (_MOST_STAGES - 1))] for i in range(_MOST_STAGES)]
    return masks[changes]


def parts(inside: np.ndarray, diagonal: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The connected parts of (h,w) of booleans: the area of each in pixels, and whether it touches the border.

    diagonal: pixels that touch by a corner belong together.
    """
    label, count = ndimage.label(inside, np.ones((3, 3)) if diagonal else None)
    border = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
    areas, touching = np.bincount(label.ravel(), minlength=count + 1), np.bincount(border, minlength=count + 1) > 0
    return areas[1:], touching[1:]


def hole_areas(inside: np.ndarray) -> np.ndarray:
    """The area in pixels of each hole: what is not `inside` (h,w) and cut off from the border by it."""
    areas, touching = parts(~inside, diagonal=False)
    return areas[~touching]


# --- findings --------------------------------------------------------------------------------------------------------


def _polarity(inside: np.ndarray, invert: bool) -> Iterator[Finding]:
    mend = "leave out `invert_mask`" if invert else "use `invert_mask`"
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    if inside.all():
        yield Finding(
            "whole", "everything is edited: paint black what is to stay" if not invert else f"all is edited: {mend}"
        )
    elif inside.mean() > 0.5 and border.mean() > 0.9:
        yield Finding(
            "inverted",
            f"{_percent(inside.mean())} of the image is edited, up to its borders: if you mean the rest, {mend}",
        )


def _size(mask_size: tuple[int, int], image_size: tuple[int, int]) -> Iterator[Finding]:
    if mask_size == image_size:
        return
    high, wide = (a / b for a, b in zip(mask_size, image_size, strict=True))
    stretched = "" if abs(high / wide - 1) < 0.01 else " and stretched, as its shape is another"
    yield Finding(
        "size",
        f"the mask is {shown(mask_size)}, the image {shown(image_size)}: it is resized{stretched}; "
        "draw it over the image itself",
    )


def _levels(codes: np.ndarray) -> Iterator[Finding]:
    """Greys that are meant, and noise that is not.

    An edge is antialiased over a few pixels: where all is grey two pixels around, grey is meant. A soft brush
    goes evenly from black to white: a level near black or white that is a peak or a pit among its neighbours is
    noise, as JPEG leaves it.
    """
    grey = ((codes > GREY[0]) & (codes < GREY[1])).astype(np.uint8)
    meant = np.asarray(Image.fromarray(grey).filter(ImageFilter.MinFilter(5))).sum()
    if meant > 0.01 * (codes >= 128).sum():
        yield Finding(
            "grey",
            f"{meant} pixels are grey: levels from 128 up are edited, the others not; `soft_mask` blends by level",
        )
    near = ((codes > 0) & (codes <= GREY[0])) | ((codes >= GREY[1]) & (codes < 255))
    middle = codes[1:-1, 1:-1].astype(int)
    around = np.stack([codes[:-2, 1:-1], codes[2:, 1:-1], codes[1:-1, :-2], codes[1:-1, 2:]])
    odd = near[1:-1, 1:-1] & ((middle > around.max(0)) | (middle < around.min(0)))
    if odd.sum() > max(20, 2e-4 * codes.size):
        yield Finding(
            "noise",
            f"{near.sum()} pixels are nearly black or nearly white, as JPEG leaves them: they do not matter to a hard "
            "mask, but they would to a soft one; save masks as PNG",
        )


def _small_parts(areas: np.ndarray, holes: np.ndarray, cell: float) -> Iterator[Finding]:
    """Parts and holes smaller than a latent cell, `cell` pixels of the image, beside larger parts."""
    specks, pinholes = areas[areas < cell], holes[holes < cell]
    if len(specks) and areas.max() >= cell:
        few = _count(len(specks), "speck")
        yield Finding(
            "specks",
            f"{few} smaller than a latent cell ({cell:.0f} pixels), each edited as one: erase what is not meant",
        )
    if len(pinholes):
        few = _count(len(pinholes), "hole")
        yield Finding(
            "holes", f"{few} smaller than a latent cell ({cell:.0f} pixels), edited as well: fill what is not meant"
        )


def _thickness(width: int, factor: int, cell: float, dilation: int | None, auto: int, reason: str) -> Iterator[Finding]:
    if width < factor:
        yield Finding(
            "thin",
            f"thinner than a latent cell, which is {cell:.0f} pixels of the image: draw it wider, or edit a smaller "
            "window (`region=auto`, less `context`)",
        )
    if dilation is not None and dilation < auto:
        yield Finding(
            "shrinking",
            f"`mask_dilation_iterations={dilation}` may leave no trace of the prompt: auto chooses {reason}",
        )


def _latents(x_mask: Tensor, stack: Tensor, factor: int, downsample: str) -> Iterator[Finding]:
    kept = F.interpolate(stack[-1:], scale_factor=factor)
    lost = (x_mask * (1 - F.max_pool2d(kept, 2 * factor + 1, 1, factor))).sum() / x_mask.sum()
    if lost > 0:
        yield Finding("lost", f"`mask_downsample={downsample}` loses {_percent(lost)} of the mask: use adaptive")
    if stack[0].all() and not stack[-1].all():
        yield Finding(
            "wide",
            "shrinking begins with the whole window, so nothing of it guides the first steps: "
            "fewer `mask_dilation_iterations`, or more `context`",
        )


# --- the picture -----------------------------------------------------------------------------------------------------


def _picture(
    rgb: Image.Image, full: Tensor, seen: Image.Image, x_mask: Tensor, stack: Tensor, window: Window
) -> Image.Image:
    panels = [_input(rgb, full, window), _outlined(_tinted(_fit(seen), x_mask, _EDITED, 0.4), x_mask)]
    captions = [f"input, {shown(window.image_size)}", f"what the model sees, {shown(x_mask.shape[2:])}"]
    for k, stage in enumerate(stack[:, None]):
        panels.append(_cells(seen, x_mask, stage, stack[-1:]))
        which = "all steps" if len(stack) == 1 else f"steps, part {k + 1} of {len(stack)}"
        captions.append(f"{which}: {_count(int(stage.sum()), 'cell')}")
    panels = [ImageOps.pad(panel, (_PANEL, _PANEL), color="white") for panel in panels]
    return make_grid(panels, 3, captions)


def _input(rgb: Image.Image, full: Tensor, window: Window) -> Image.Image:
    """The whole image with its mask, dimmed outside the window and with a frame around that."""
    panel = _fit(rgb)
    wide, high = panel.width / rgb.width, panel.height / rgb.height
    right, bottom = window.left + window.width, window.top + window.height
    box = [round(side) for side in (window.left * wide, window.top * high, right * wide, bottom * high)]
    light = Image.new("L", panel.size, 110)
    ImageDraw.Draw(light).rectangle(box, fill=255)
    panel = Image.composite(panel, Image.new("RGB", panel.size), light)
    panel = _outlined(_tinted(panel, full, _EDITED, 0.4), full)
    draw = ImageDraw.Draw(panel)
    # Inside the panel, where a small window in a large photograph may be less than a pixel.
    start = [min(max(low, 1), side - 1) for low, side in zip(box[:2], panel.size, strict=True)]
    stop = [max(min(high, side) - 2, low) for high, side, low in zip(box[2:], panel.size, start, strict=True)]
    box = [*start, *stop]
    draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline="black", width=5)
    draw.rectangle(box, outline=_FRAME, width=3)
    return panel


def _cells(seen: Image.Image, x_mask: Tensor, stage: Tensor, tight: Tensor) -> Image.Image:
    """A latent mask over the window in grey: its tight cells, those that shrinking adds, the grid, the outline."""
    panel = ImageOps.autocontrast(_fit(seen).convert("L"))
    panel = panel.point(lambda level: 90 + level * 0.6).convert("RGB")
    panel = _tinted(_tinted(panel, stage, _WIDER, 0.6), tight, _EDITED, 0.6)
    draw = ImageDraw.Draw(panel, "RGBA")
    for i in range(1, stage.shape[3]):
        draw.line([(x := round(i * panel.width / stage.shape[3]), 0), (x, panel.height)], fill=(255, 255, 255, 60))
    for i in range(1, stage.shape[2]):
        draw.line([(0, y := round(i * panel.height / stage.shape[2])), (panel.width, y)], fill=(255, 255, 255, 60))
    return _outlined(panel, x_mask)


def _fit(image: Image.Image) -> Image.Image:
    scale = _PANEL / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _tinted(panel: Image.Image, mask: Tensor, colour: tuple[int, int, int], strength: float) -> Image.Image:
    """A picture with a colour laid over where a mask (1,1,h,w) of any size is."""
    area = _as_panel(mask, panel).point(lambda level: level * strength)
    return Image.composite(Image.new("RGB", panel.size, colour), panel, area)


def _outlined(panel: Image.Image, mask: Tensor) -> Image.Image:
    """A picture with a white line, two pixels wide with a dark rim, around where a mask is."""
    area = _as_panel(mask, panel)
    for width, colour in ((5, "black"), (3, "white")):
        line = Image.composite(Image.new("L", panel.size), area.filter(ImageFilter.MaxFilter(width)), area)
        panel = Image.composite(Image.new("RGB", panel.size, colour), panel, line)
    return panel


def _as_panel(mask: Tensor, panel: Image.Image) -> Image.Image:
    """A mask at a panel's size, mode L; cells stay square."""
    if mask.shape[2] < panel.height / 2:
        mask = F.interpolate(mask, panel.size[::-1], mode="nearest-exact")
    return Image.fromarray((resize_mask(mask, panel.size[::-1])[0, 0] * 255).to(torch.uint8).numpy())


# --- words -----------------------------------------------------------------------------------------------------------


def _percent(share: SupportsFloat) -> str:
    return f"{100 * float(share):.3g} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _place(window: Window) -> str:
    if (window.height, window.width) == window.image_size and not window.left and not window.top:
        return "the whole image"
    return f"{window.width}x{window.height} from ({window.left}, {window.top})"
