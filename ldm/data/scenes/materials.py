"""The materials: each turns a patch of surface into colours, bumps and the numbers that shading needs.

Patterns are coarse on purpose (a period of about 8 to 24 pixels): a model that works on cells of 8x8 pixels can
learn them. Adding a material is one `_register` call: nothing else has to know of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.scenes.colors import RGB
from ldm.data.scenes.shapes import Shape, scatter


@dataclass(frozen=True)
class Surface:
    """n visible points of one object, in its own coordinates.

    point, normal (n, 3); base, contrast (3,) linear colours in [0, 1]; seed: a number in [0, 1) of this object;
    period: the length, in object units, that shows as about 8 to 16 pixels; facing (n,) cosine to the camera.
    """

    shape: Shape
    point: Tensor
    normal: Tensor
    facing: Tensor
    base: Tensor
    contrast: Tensor
    seed: float
    period: float


@dataclass(frozen=True)
class Finish:
    """How a surface answers light: albedo (n, 3) linear; normal (n, 3), bumped or None.

    specular, exponent: strength and sharpness of the light's highlight; reflect: share of the mirrored surroundings;
    transmit: share of the background seen through; sheen: bright rim, as of velvet.
    """

    albedo: Tensor
    normal: Tensor | None = None
    specular: float = 0.1
    exponent: float = 12.0
    reflect: float = 0.0
    transmit: float = 0.0
    sheen: float = 0.0


@dataclass(frozen=True)
class Material:
    """A named look. `adjectives` and `nouns` ("made of ...") and `patterns` ("with ...") are what captions call it.

    natural: the colour it has when no colour is named, else None; fuzz: how many pixels its silhouette frays.
    """

    name: str
    finish: Callable[[Surface], Finish]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    natural: RGB | None = None
    fuzz: float = 0.0


MATERIALS: dict[str, Material] = {}


def _register(*args, **kwargs) -> None:
    material = Material(*args, **kwargs)
    MATERIALS[material.name] = material


# Helpers ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _lattice() -> Tensor:
    """Four channels of random values on a 16^3 lattice that repeats."""
    values = torch.rand(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return F.pad(values, (0, 1) * 3, mode="circular")


def solid_noise(points: Tensor, seed: float) -> Tensor:
    """Four smooth fields (4, n) of about unit feature size and range [-1, 1] at `points` (n, 3)."""
    shift = torch.tensor([seed * 13.7, seed * 7.3 + 5.1, seed * 29.9])
    lattice = _lattice()
    grid = ((points + shift) / 16) % 1.0 * 2 - 1  # 17 corners, the last the same as the first
    field = F.grid_sample(lattice, grid[None, None, None], mode="bilinear", align_corners=True)
    return field[0, :, 0, 0] * 1.4


def _cells(s: Surface, width: float, height: float) -> tuple[Tensor, Tensor]:
    """Surface coordinates counted in cells of about `width` x `height` units; closed turns get a whole, even count."""
    coordinates = []
    for value, length, size in zip(
        s.shape.wrap(s.point, s.normal).unbind(-1), s.shape.closed, (width, height), strict=True
    ):
        count = max(2, 2 * round(length / size / 2)) / length if length else 1 / size
        coordinates.append(value * count)
    return coordinates[0], coordinates[1]


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Colours (n, 3) between `a` (share 0) and `b` (share 1); share (n,)."""
    return torch.lerp(a.expand(len(share), 3), b.expand(len(share), 3), share[:, None])


def _axes(seed: float, count: int) -> Tensor:
    """`count` unit vectors (count, 3) that depend on the object's seed only."""
    generator = torch.Generator().manual_seed(int(seed * 1e6))
    return F.normalize(torch.randn(count, 3, generator=generator), dim=1)


def _bump(normal: Tensor, push: Tensor) -> Tensor:
    return F.normalize(normal + push, dim=-1)


def _luminance(color: Tensor) -> float:
    return float(color @ torch.tensor([0.3, 0.59, 0.11]))


# The twelve materials -----------------------------------------------------------------------------------------------


def _plastic(s: Surface) -> Finish:
    return Finish(s.base.expand(len(s.point), 3), specular=0.75, exponent=70.0, reflect=0.05)


def _metal(s: Surface) -> Finish:
    return Finish((s.base * 0.94 + 0.04).expand(len(s.point), 3), specular=1.2, exponent=90.0, reflect=1.0)


def _glass(s: Surface) -> Finish:
    return Finish(s.base.expand(len(s.point), 3), specular=1.6, exponent=130.0, reflect=0.06, transmit=1.0)


def _wooden(s: Surface) -> Finish:
    """Growth rings, brown lines around a tilted axis off the centre, and fibres along it."""
    warp = solid_noise(s.point * torch.tensor([1.6, 0.7, 1.6]), s.seed)
    x = s.point[:, 0] + 0.45 + 0.16 * warp[0]
    z = s.point[:, 2] - 0.30 + 0.25 * s.point[:, 1] + 0.16 * warp[1]
    ring = (x * x + z * z).sqrt_() / s.period
    line = torch.exp(-((ring - ring.floor() - 0.5) / 0.17).square())
    fibre = solid_noise(s.point * torch.tensor([11.0, 1.2, 11.0]), s.seed)[2]
    early = (s.base * 0.92 + 0.03) * (1 + 0.22 * fibre)[:, None]
    late = s.base * 0.08 + torch.tensor([0.09, 0.045, 0.02]) * (3 if _luminance(s.base) < 0.05 else 1)
    return Finish(_mix(early, late, line * 0.92), specular=0.04, exponent=10.0)


def _marble(s: Surface) -> Finish:
    """Pale stone with dark veins; black marble has white ones."""
    warp = solid_noise(s.point * 2.2, s.seed)
    at = (s.point + 0.30 * warp[:3].t()) * (0.46 / s.period)
    wide, _, thin, cloud = solid_noise(at, s.seed + 0.37)
    vein = (1 - (wide.abs() / 0.19).clamp_(max=1)).sqrt_() + 0.6 * (1 - (thin.abs() / 0.11).clamp_(max=1))
    dark = _luminance(s.base) < 0.05
    body = s.base + 0.03 if dark else s.base * 0.62 + 0.36 * s.base.sum() / 3 + 0.08
    veins = torch.tensor([0.85, 0.85, 0.82]) if dark else s.base * 0.12 + 0.02
    albedo = _mix(body * (1 + 0.30 * cloud[:, None]), veins, vein.clamp_(max=0.9))
    return Finish(albedo, specular=0.5, exponent=60.0, reflect=0.06)


def _brick(s: Surface) -> Finish:
    """Rows of bricks, each of its own shade, half a brick apart, with pale recessed mortar."""
    u, v = _cells(s, 3.0 * s.period, 1.5 * s.period)
    v = v + 0.5
    row = v.floor()
    u = u + 0.5 * (row % 2)
    column, fu, fv = u.floor(), u - u.floor(), v - row
    edge_u, edge_v = torch.minimum(fu, 1 - fu) * 2.0, torch.minimum(fv, 1 - fv)
    mortar = torch.sigmoid((0.14 - torch.minimum(edge_u, edge_v)) * 30)
    shade = torch.sin(column * 12.9 + row * 78.2 + s.seed * 40) * 43758.5
    shade = 0.72 + 0.5 * (shade - shade.floor())
    grain = 1 + 0.15 * solid_noise(s.point * 18, s.seed)[0]
    pale = torch.tensor([0.62, 0.58, 0.53]) if _luminance(s.base) < 0.45 else torch.tensor([0.26, 0.25, 0.24])
    return Finish(_mix(s.base * (shade * grain)[:, None], pale, mortar), specular=0.03)


def _yarn(s: Surface) -> Finish:
    """A wound ball of yarn: bands of thick parallel strands, each band on its own great circle, the last one on top."""
    axes = _axes(s.seed, 7)
    across = s.point @ axes.t()  # (n, 7)
    top = torch.zeros(len(s.point), dtype=torch.long)
    edge = torch.ones(len(s.point))
    for k in range(1, len(axes)):
        inside = (0.40 - (across[:, k] - 0.12 * math.sin(k * 2.4)).abs()) / 0.40
        top = torch.where(inside > 0, k, top)
        edge = torch.where(inside > -0.1, inside.abs(), edge)
    coordinate = across.gather(1, top[:, None])[:, 0]
    phase = coordinate * (2 * math.pi / (1.05 * s.period))
    axis = axes[top]
    round_ = 0.5 + 0.5 * torch.cos(phase)
    twist = solid_noise(s.point * 9 + axis * (coordinate * 14)[:, None], s.seed)[1]
    shade = (0.10 + 1.0 * round_.sqrt()) * (0.45 + 0.55 * (edge * 5).clamp_(max=1)) * (1 + 0.14 * twist)
    normal = _bump(s.normal, axis * (0.75 * torch.sin(phase))[:, None])
    return Finish(s.base * shade[:, None], normal, specular=0.0, sheen=0.12)


def _striped(s: Surface) -> Finish:
    cells = _cells(s, 2.1 * s.period, 2.1 * s.period)[s.shape.stripe]
    band = torch.sigmoid(torch.sin(cells * (2 * math.pi) + s.seed * 6.28) * 9)
    return Finish(_mix(s.contrast, s.base, band), specular=0.45, exponent=60.0, reflect=0.04)


def _polka_dot(s: Surface) -> Finish:
    """Round dots at points spread evenly over the shape."""
    spacing = min((0.42, 0.52, 0.64), key=lambda size: abs(size - 1.75 * s.period))
    away = torch.cdist(s.point, scatter(s.shape.name, spacing)).amin(1)
    dot = torch.sigmoid((0.33 * spacing - away) * 45)
    return Finish(_mix(s.base, s.contrast, dot), specular=0.45, exponent=60.0, reflect=0.04)


def _checkered(s: Surface) -> Finish:
    u, v = _cells(s, 1.35 * s.period, 1.35 * s.period)
    check = torch.sigmoid(torch.sin(u * math.pi) * torch.sin(v * math.pi) * 14)
    return Finish(_mix(s.contrast, s.base, check), specular=0.40, exponent=50.0, reflect=0.03)


def _furry(s: Surface) -> Finish:
    """Tufts combed downwards, dark at the roots, with a bright rim; the silhouette frays too (`Material.fuzz`)."""
    comb = torch.tensor([1.0, 0.38, 1.0]) / (0.62 * s.period)
    bend = solid_noise(s.point * 2.0, s.seed)
    tuft = solid_noise((s.point + 0.12 * bend[:3].t()) * comb, s.seed)
    fine = solid_noise((s.point + 0.10 * bend[:3].t()) * comb * 2.3, s.seed + 0.5)
    depth = (0.72 + 0.62 * tuft[0] + 0.30 * fine[0]).clamp_(0.08, 1.3)
    normal = _bump(s.normal, 0.75 * tuft[1:].t() + 0.45 * fine[1:].t())
    return Finish((s.base * 0.95 + 0.02) * depth[:, None], normal, specular=0.0, sheen=0.6)


def _camouflage(s: Surface) -> Finish:
    """Flat blotches in three tones of one colour."""
    warp = solid_noise(s.point * 3.0, s.seed + 0.2)
    at = (s.point + 0.10 * warp[:3].t()) * (0.80 / s.period)
    first, second = solid_noise(at, s.seed)[:2]
    tone = _luminance(s.base)
    pale, dark = s.base * 0.45 + 0.40 * tone**0.5 + 0.05, s.base * 0.16
    albedo = _mix(s.base, pale, torch.sigmoid((first - 0.16) * 30))
    return Finish(_mix(albedo, dark, torch.sigmoid((second - 0.20) * 30)), specular=0.03)


_register("plastic", _plastic, ("plastic",), ("plastic",))
_register("metal", _metal, ("metal", "metallic"), ("metal",), natural=(0.72, 0.73, 0.75))
_register("wooden", _wooden, ("wooden", "wood"), ("wood",), natural=(0.66, 0.42, 0.22))
_register("glass", _glass, ("glass", "transparent"), ("glass",), natural=(0.93, 0.96, 0.96))
_register("marble", _marble, ("marble",), ("marble",), natural=(0.93, 0.92, 0.90))
_register("brick", _brick, ("brick",), ("bricks", "brick"), natural=(0.66, 0.26, 0.18))
_register("yarn", _yarn, ("yarn", "woolen"), ("yarn", "wool"))
_register("striped", _striped, ("striped",), (), ("stripes",))
_register("polka dot", _polka_dot, ("polka dot", "dotted", "spotted"), (), ("polka dots", "dots", "spots"))
_register("checkered", _checkered, ("checkered", "chequered"), (), ("checks",))
_register("furry", _furry, ("furry", "fluffy"), ("fur",), fuzz=5.0)
_register("camouflage", _camouflage, ("camouflage", "camo"), (), ("camouflage",), natural=(0.34, 0.38, 0.20))
