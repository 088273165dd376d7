"""The twelve colours: a name, its words and the middle of what it may look like."""

from dataclasses import dataclass

import torch

from ldm.data.scenes.draw import uniform

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Color:
    """A named colour; `rgb` in [0, 1] as displayed (gamma encoded), `words` what captions call it, commonest first."""

    name: str
    rgb: RGB
    words: tuple[str, ...]


COLORS: dict[str, Color] = {
    color.name: color
    for color in (
        Color("red", (0.85, 0.07, 0.08), ("red",)),
        Color("orange", (0.98, 0.48, 0.04), ("orange",)),
        Color("yellow", (0.98, 0.86, 0.10), ("yellow",)),
        Color("green", (0.10, 0.62, 0.16), ("green",)),
        Color("blue", (0.10, 0.22, 0.86), ("blue",)),
        Color("purple", (0.48, 0.12, 0.70), ("purple", "violet")),
        Color("pink", (0.99, 0.52, 0.72), ("pink",)),
        Color("brown", (0.42, 0.24, 0.11), ("brown",)),
        Color("black", (0.07, 0.07, 0.08), ("black",)),
        Color("white", (0.95, 0.95, 0.94), ("white",)),
        Color("gray", (0.50, 0.50, 0.51), ("gray", "grey")),
        Color("turquoise", (0.10, 0.78, 0.76), ("turquoise", "cyan")),
    )
}


def jitter(rgb: RGB, generator: torch.Generator, amount: float = 0.04) -> RGB:
    """`rgb` a little lighter or darker (by up to 12 %) and each channel moved by up to `amount`, within [0.02, 1]."""
    gain = uniform(generator, 0.88, 1.12)
    r, g, b = (min(max(channel * gain + uniform(generator, -amount, amount), 0.02), 1.0) for channel in rgb)
    return r, g, b
