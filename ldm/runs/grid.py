"""The picture of a run: where in the photograph it was edited, the results in place, and their window enlarged."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from ldm.imaging.images import as_picture
from ldm.imaging.region import Window, flat_mask

# In pixels: the widest page (and the highest block of tall pictures), the least width of a cell, for its caption, the
# longest side up to which a tiny picture is enlarged, and the area of the largest cell.
_PAGE, _SLOT, _TINY, _AREA = 2400, 150, 256, 600 * 400
_GAP = 8

# A window that is more than this part of the photograph is not shown by itself.
_MOST = 0.75

# Width by height that a block of cells comes near to: of photographs, and of windows below them.
_WHOLE_SHAPE, _WINDOW_SHAPE = 2.0, 6.0

_INK, _FRAME = (90, 90, 90), (255, 221, 51)
_CHECKS = (255, 232)  # grey levels of what shows through transparent pixels


@dataclass(frozen=True)
class _Block:
    """Cells of one size in rows; `size` (w,h) is that of a picture, `slot` the width that it has for itself."""

    columns: int
    slot: int
    size: tuple[int, int]


def edit_grid(
    picture: Image.Image,
    mask: np.ndarray | Tensor,
    window: Window,
    results: Sequence[Image.Image],
    latent_mask: Tensor,
    seeds: Sequence[int],
    distances: Sequence[float] | None = None,
    fitted: Sequence[np.ndarray | Tensor] | None = None,
) -> Image.Image:
    """All that a run has made, on one page of at most 2400 pixels' width.

    First the whole photograph, the mask outlined and the window framed, and the results in place; below them the
    window alone: the input, the latent mask, the results. The second part is left out where the window is most of the
    photograph, which then has the latent mask beside it. Of a window that reaches beyond the photograph only what
    lies in it is shown.

    Args:
        picture, results: of the window's `image_size`, of any mode and colour profile; the best result first.
        mask: (h,w) or (1,1,h,w) of that size; above 0 is edited.
        latent_mask: (1,1,h,w) in [0,1], of the whole window: that of the last steps.
        seeds, distances: of each result; None where nothing has ranked them.
        fitted: of each result its own mask, as `mask`, where masks were fitted: they stand below, with what was left
            out in grey.

    Returns:
        An RGB picture in sRGB.

    Raises:
        ValueError: there are no results, or sizes or numbers of things that do not belong together.
    """
    area = flat_mask(mask)
    sizes = {(image.height, image.width) for image in (picture, *results)} | {area.shape}
    counts = [len(results), len(seeds), *(len(some) for some in (distances, fitted) if some is not None)]
    if sizes != {window.image_size}:
        raise ValueError(f"pictures and mask of (h,w) {sorted(sizes)} for a window of {window.image_size}")
    if not results or len(set(counts)) > 1:
        raise ValueError(f"results, seeds, distances and fitted masks, where there are some, are {counts}")
    if latent_mask.ndim != 4 or latent_mask.shape[:2] != (1, 1):
        raise ValueError(f"a latent mask is (1,1,h,w), not {tuple(latent_mask.shape)}")

    rows, columns = window.in_image
    box = (columns.start, rows.start, columns.stop, rows.stop)
    size = (box[2] - box[0], box[3] - box[1])
    names = _names(seeds, distances)
    cells_name = f"latent mask, {latent_mask.shape[3]}x{latent_mask.shape[2]} cells"
    marks = "the mask outlined" if size == picture.size else "the mask outlined, the window framed"
    below = [] if fitted is None else [_fitted_block(area, list(map(flat_mask, fitted)), box)]
    if size[0] * size[1] > _MOST * picture.width * picture.height:
        block = _whole_block(len(results) + 2, picture.size)
        first, *others = (_shown(image, block.size) for image in (picture, *results))
        images = [_marked(first, area, window), _cells(latent_mask, window, block.size), *others]
        return _page([(block, images, [f"input · {marks}", cells_name, *names]), *below])

    block = _whole_block(len(results) + 1, picture.size)
    first, *others = (_shown(image, block.size) for image in (picture, *results))
    whole = (block, [_marked(first, area, window), *others], [f"input · {marks}", *names])
    block = _block(len(results) + 2, size, _WINDOW_SHAPE, _width(block), math.inf)
    first, *others = (_shown(image.crop(box), block.size) for image in (picture, *results))
    captions = [f"the window, {size[0]}x{size[1]} pixels", cells_name, *names]
    return _page([whole, (block, [first, _cells(latent_mask, window, block.size), *others], captions), *below])


def _fitted_block(
    area: np.ndarray, fitted: Sequence[np.ndarray], box: tuple[int, int, int, int]
) -> tuple[_Block, list[Image.Image], list[str]]:
    """Small, of the window: each result's own mask in white, and in grey what of the mask (h,w) it leaves out."""
    size = (box[2] - box[0], box[3] - box[1])
    scale = _SLOT / max(size)
    small = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    block = _Block(min(len(fitted), _PAGE // (_SLOT + _GAP)), _SLOT, small)
    pictures = [Image.fromarray((area * 110 + mask * 145).astype(np.uint8)).crop(box) for mask in fitted]
    names = [f"{i} · fitted mask, {mask.sum() / area.sum():.0%} of the mask" for i, mask in enumerate(fitted)]
    return block, [picture.resize(small, Image.Resampling.BOX).convert("RGB") for picture in pictures], names


def _names(seeds: Sequence[int], distances: Sequence[float] | None) -> list[str]:
    scores = ["" if distances is None else f" · CLIP distance {distance:.3f}" for distance in distances or seeds]
    return [f"{i} · seed {seed}{score}" for i, (seed, score) in enumerate(zip(seeds, scores, strict=True))]


# --- the sizes -------------------------------------------------------------------------------------------------------


def _whole_block(count: int, size: tuple[int, int]) -> _Block:
    """For whole photographs, of which only tiny ones are enlarged."""
    return _block(count, size, _WHOLE_SHAPE, _PAGE, max(1.0, _TINY / max(size)))


def _block(count: int, size: tuple[int, int], shape: float, page: int, enlarged: float) -> _Block:
    """For `count` pictures of `size` (w,h) in a `page` so wide: about `shape` of width by height, without many holes.

    `enlarged` is how many times a picture may be shown larger than it is.
    """

    def misfit(columns: int) -> float:
        rows = math.ceil(count / columns)
        holes = rows * columns - count
        return abs(math.log(columns * size[0] / (rows * size[1] * shape))) + 1.5 * holes / count

    most = max(1, (page - _GAP) // (_SLOT + _GAP))
    columns = min(range(1, min(count, most) + 1), key=misfit)
    slot = (page - _GAP) // columns - _GAP
    highest = _PAGE / math.ceil(count / columns)
    scale = min(enlarged, slot / size[0], highest / size[1], math.sqrt(_AREA / (size[0] * size[1])))
    shown = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return _Block(columns, min(slot, max(_SLOT, shown[0])), shown)


def _width(block: _Block) -> int:
    return block.columns * (block.slot + _GAP) + _GAP


# --- the pictures ----------------------------------------------------------------------------------------------------


def _shown(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture at the page's `size` (w,h), RGB in sRGB; where it is transparent, light checks."""
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = as_picture(image).rgb
    # Small before its colours are converted: a profile costs as much as all the rest.
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    seen = as_picture(small)
    return seen.rgb if seen.alpha is None else Image.composite(seen.rgb, _checks(size), seen.alpha)


def _checks(size: tuple[int, int], side: int = 8) -> Image.Image:
    rows, columns = np.arange(size[1])[:, None] // side, np.arange(size[0]) // side
    return Image.fromarray(np.where((rows + columns) % 2, *_CHECKS).astype(np.uint8)).convert("RGB")


def _cells(latent_mask: Tensor, window: Window, size: tuple[int, int]) -> Image.Image:
    """The latent mask as far as its window lies in the photograph, at `size` (w,h), its cells with sharp edges."""
    levels = latent_mask[0, 0].detach().float().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    rows, columns = window.in_window
    wide, high = levels.shape[1] / window.width, levels.shape[0] / window.height
    box = (columns.start * wide, rows.start * high, columns.stop * wide, rows.stop * high)
    return Image.fromarray(levels.numpy()).resize(size, Image.Resampling.NEAREST, box=box).convert("RGB")


def _marked(image: Image.Image, mask: np.ndarray, window: Window) -> Image.Image:
    """A photograph with its mask outlined, and its window framed where that is less than all: both with dark rims, so
    that they are seen on any ground."""
    area = Image.fromarray(_reduced(mask, image.size).astype(np.uint8) * 255)
    for width, colour in ((5, "black"), (3, "white")):
        line = ImageChops.subtract(area.filter(ImageFilter.MaxFilter(width)), area)
        image = Image.composite(Image.new("RGB", image.size, colour), image, line)
    rows, columns = window.in_image
    if (rows.stop - rows.start, columns.stop - columns.start) != window.image_size:
        x, y = image.width / window.image_size[1], image.height / window.image_size[0]
        # The frame is drawn just outside of its pixels, as far as the photograph goes.
        left, top = max(round(columns.start * x) - 3, 0), max(round(rows.start * y) - 3, 0)
        right, bottom = min(round(columns.stop * x) + 3, image.width), min(round(rows.stop * y) + 3, image.height)
        draw = ImageDraw.Draw(image)
        for inset, ink in enumerate(((0, 0, 0), _FRAME, _FRAME, (0, 0, 0))):
            box = (left + inset, top + inset, right - 1 - inset, bottom - 1 - inset)
            if box[0] <= box[2] and box[1] <= box[3]:
                draw.rectangle(box, outline=ink)
    return image


def _reduced(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (h,w) of bool at `size` (w,h); a single pixel of it is not lost."""
    for axis, length in ((0, size[1]), (1, size[0])):
        starts = np.arange(length) * mask.shape[axis] // length
        mask = np.logical_or.reduceat(mask, starts, axis)
    return mask


# --- the page --------------------------------------------------------------------------------------------------------


def _page(parts: Sequence[tuple[_Block, Sequence[Image.Image], Sequence[str]]]) -> Image.Image:
    """Blocks below each other, each picture with its caption beneath it."""
    font = ImageFont.load_default(max(12, min(18, min(block.slot for block, _, _ in parts) // 14)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's own, of any size, where it was built with FreeType
    strips = []
    for block, images, captions in parts:
        for start in range(0, len(images), block.columns):
            row = slice(start, start + block.columns)
            strips.append(_strip(block, images[row], captions[row], font))
        strips.append(Image.new("RGB", (1, 2 * _GAP), "white"))  # between the parts
    strips.pop()
    width, height = max(strip.width for strip in strips), sum(strip.height for strip in strips)
    page = Image.new("RGB", (width, _GAP + height), "white")
    top = _GAP
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return page


def _strip(
    block: _Block, images: Sequence[Image.Image], captions: Sequence[str], font: ImageFont.FreeTypeFont
) -> Image.Image:
    """One row of a block, with the captions and some white below."""
    line = sum(font.getmetrics())
    texts = [_lines(caption, font, block.slot) for caption in captions]
    below = block.size[1] + _GAP // 2
    strip = Image.new("RGB", (_width(block), below + max(map(len, texts)) * line + 2 * _GAP), "white")
    draw = ImageDraw.Draw(strip)
    for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
        left = _GAP + i * (block.slot + _GAP)
        strip.paste(image, (left, 0))
        for k, text in enumerate(lines):
            draw.text((left, below + k * line), text, fill=_INK, font=font)
    return strip


def _lines(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A caption in lines of at most `width` pixels, broken between its parts, and between words where one is long."""
    lines: list[str] = []
    for part in caption.split(" · "):
        if lines and font.getlength(f"{lines[-1]} · {part}") <= width:
            lines[-1] += f" · {part}"
            continue
        lines.append("")
        for word in re.split(r" (?!\d)", part):  # a number stays with its name
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines
