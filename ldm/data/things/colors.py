"""The colour of a cut-out: its name where it has one, and turning its hue to another."""

import math

import numpy as np

from ldm.data.scenes.colors import COLORS

# Chroma coordinates: R, G, B -> luma (BT.601), and two axes of colour that a turn of the hue rotates.
_TO = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)
_FROM = np.linalg.inv(_TO).astype(np.float32)

HUES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "turquoise")
"""What a thing may be turned to."""

_NAMES = tuple(COLORS)
_PALETTE = np.array([COLORS[name].rgb for name in _NAMES], np.float32)
_SHADES = np.array([1.0, 0.75, 0.5], np.float32)  # the same colour with less light on it


def to_yiq(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) display colours -> luma and chroma."""
    return rgb @ _TO.T


def _hue(rgb: np.ndarray) -> float:
    _, i, q = to_yiq(rgb)
    return math.atan2(q, i)


def color_names(rgb: np.ndarray) -> np.ndarray:
    """(n, 3) display colours -> the index of each one's nearest colour in `COLORS`, lit or in shade."""
    shades = (_PALETTE[None] * _SHADES[:, None, None]).copy()
    shades[1:, [_NAMES.index(name) for name in ("white", "gray", "black", "brown", "orange", "pink")]] = 9  # have names
    flat = to_yiq(shades.reshape(-1, 3)) * (1, 2, 2)
    distance = ((to_yiq(rgb)[:, None] * (1, 2, 2) - flat[None]) ** 2).sum(-1)
    return distance.argmin(1) % len(_NAMES)


def name_of(rgb: np.ndarray, share: float = 0.62) -> str | None:
    """The colour that at least `share` of the pixels (n, 3) have; None where no colour has so many."""
    if not len(rgb):
        return None
    counts = np.bincount(color_names(rgb), minlength=len(_NAMES))
    best = int(counts.argmax())
    return _NAMES[best] if counts[best] >= share * len(rgb) else None


def single_hue(rgb: np.ndarray) -> float | None:
    """The hue in radians of pixels (n, 3) that have but one and enough of it; else None."""
    chroma = to_yiq(rgb)[:, 1:]
    strength = np.linalg.norm(chroma, axis=1)
    if len(rgb) < 50 or (strength > 0.1).mean() < 0.5:
        return None
    i, q = chroma.sum(0)
    return math.atan2(q, i) if math.hypot(i, q) > 0.93 * strength.sum() else None


def turn_hue(rgb: np.ndarray, hue: float, color: str) -> np.ndarray:
    """Display colours (..., 3) whose hue is `hue`, turned to that of `color`, and lightened or darkened towards it."""
    target = np.array(COLORS[color].rgb, np.float32)
    angle = _hue(target) - hue
    yiq = to_yiq(rgb)
    c, s = math.cos(angle), math.sin(angle)
    strength = np.linalg.norm(yiq[..., 1:], axis=-1)
    coloured = np.clip(strength / 0.12, 0, 1)  # what is grey keeps its light
    mean = (yiq[..., 0] * coloured).sum() / max(coloured.sum(), 1e-6)
    gain = np.clip(float(to_yiq(target)[0]) / max(mean, 0.05), 0.5, 1.9)
    out = np.stack(
        [
            yiq[..., 0] * (1 + coloured * (gain - 1)),
            c * yiq[..., 1] - s * yiq[..., 2],
            s * yiq[..., 1] + c * yiq[..., 2],
        ],
        -1,
    )
    return np.clip(out @ _FROM.T, 0, 1).astype(np.float32)
