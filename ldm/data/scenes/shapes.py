"""The shapes: each a signed distance function with its poses and a way to wrap patterns around it.

A distance function takes points (n, 3) of object space (y up, the object about radius 1 around the origin) and
returns (n,) distances, negative inside; it may underestimate outside but never overestimate much. The formulas of
the star and the heart are Inigo Quilez's exact 2-D distances (iquilezles.org/articles/distfunctions2d).
Adding a shape is one `_register` call: nothing else has to know of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Range = tuple[float, float]
Distance = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """A named solid.

    distance: points (n, 3) -> signed distance (n,).
    wrap: points (n, 3), normals (n, 3) -> surface coordinates (n, 2) in object units, v mostly upwards.
    closed: the lengths after which u and v come round again, 0 where they do not.
    rest: the height of the ground it stands on, below its origin.
    pitch, yaws: radians; how far the camera looks down, and the intervals one of which the turn is drawn from.
    stripe: which of u, v the stripes count along.
    tumbles: whether it may lie in any orientation (the ball).
    decal: points, normals -> (n,) share of a contrasting mark painted on any material (the pips of a die).
    avoids: materials that would hide what the shape is; the sampler never draws them together.
    """

    name: str
    words: tuple[str, ...]
    distance: Distance
    wrap: Callable[[Tensor, Tensor], Tensor]
    rest: float
    closed: Range = (0.0, 0.0)
    pitch: Range = (0.2, 0.65)
    yaws: tuple[Range, ...] = ((-math.pi, math.pi),)
    stripe: int = 1
    bound: float = 1.15
    tumbles: bool = False
    decal: Callable[[Tensor, Tensor], Tensor] | None = None
    avoids: frozenset[str] = frozenset()


SHAPES: dict[str, Shape] = {}


def _register(shape: Shape) -> None:
    SHAPES[shape.name] = shape


@lru_cache(maxsize=64)
def scatter(name: str, spacing: float) -> Tensor:
    """Points (k, 3) spread evenly over the surface of shape `name`, about `spacing` apart.

    Farthest-point sampling of a fixed cloud projected on the surface, so that every run gets the same points.
    """
    shape = SHAPES[name]
    points = torch.randn(6000, 3, generator=torch.Generator().manual_seed(0))
    points = points / points.norm(dim=1, keepdim=True) * 1.05
    points[::2] *= 0.6  # half start inside, to reach the hole of a donut and the inside of a mug
    for _ in range(40):
        points = points - gradient(shape.distance, points) * shape.distance(points)[:, None]
    points = points[shape.distance(points).abs() < 0.01]
    chosen, nearest = [0], (points - points[0]).norm(dim=1)
    while nearest.max() > spacing and len(chosen) < 400:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).norm(dim=1))
    return points[chosen]


_TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


def gradient(distance: Distance, points: Tensor, step: float = 0.012) -> Tensor:
    """Unit normals (n, 3): central differences of `distance` at the corners of a tetrahedron of size `step`."""
    total = torch.zeros_like(points)
    for corner in _TETRAHEDRON:
        offset = torch.tensor(corner)
        total += offset * distance(points + step * offset)[:, None]
    return total / total.square().sum(-1, keepdim=True).sqrt_().clamp_(min=1e-9)


# 2-D and 3-D building blocks ------------------------------------------------------------------------------------


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt_()


def _corner(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Intersection of the half spaces a < 0 and b < 0, its edge rounded outwards by `radius`."""
    return _length(a.clamp(min=0), b.clamp(min=0)) + torch.maximum(a, b).clamp_(max=0) - radius


def _smooth_max(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """max(a, b) with its crease rounded over `radius`."""
    return torch.maximum(a, b) + (radius - (a - b).abs()).clamp_(min=0).square() / (4 * radius)


def _box(p: Tensor, half: float, radius: float) -> Tensor:
    x, y, z = ((c.abs() - half) for c in p.unbind(-1))
    outside = (x.clamp(min=0).square() + y.clamp(min=0).square() + z.clamp(min=0).square()).sqrt_()
    return outside + torch.maximum(torch.maximum(x, y), z).clamp_(max=0) - radius


# Wraps: surface coordinates for patterns ------------------------------------------------------------------------


def _around(girth: float, axis: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """u = the turn around the upright axis, `girth` long; v = the height."""

    def wrap(p: Tensor, n: Tensor) -> Tensor:
        x, y, z = p.unbind(-1)
        return torch.stack([torch.atan2(z, x + axis) * (girth / (2 * math.pi)), y], -1)

    return wrap


def _capped(girth: float) -> Callable[[Tensor, Tensor], Tensor]:
    """As `_around`, but flat caps are covered by (x, z) as a tablecloth would."""
    side = _around(girth)

    def wrap(p: Tensor, n: Tensor) -> Tensor:
        flat = (n[:, 1].abs() > 0.8)[:, None]
        return torch.where(flat, p[:, (0, 2)], side(p, n))

    return wrap


def _globe(p: Tensor, n: Tensor) -> Tensor:
    """u = longitude, v = latitude, in units of length."""
    x, y, z = p.unbind(-1)
    return torch.stack([torch.atan2(z, x) * 0.8, torch.asin((y / 0.95).clamp(-1, 1)) * 0.95], -1)


def _faces(p: Tensor, n: Tensor) -> Tensor:
    """The two coordinates that lie in the face: of a box, by the largest component of its normal."""
    x, y, z = p.unbind(-1)
    axis = n.abs().argmax(-1)
    return torch.stack([torch.where(axis == 0, z, x), torch.where(axis == 1, z, y)], -1)


def _sides(p: Tensor, n: Tensor) -> Tensor:
    """Of a pyramid: u across the side, v = the height."""
    x, y, z = p.unbind(-1)
    return torch.stack([torch.where(n[:, 0].abs() > n[:, 2].abs(), z, x), y], -1)


def _slab(p: Tensor, n: Tensor) -> Tensor:
    """(x, y), as if printed on the front; the rim uses the depth instead of x."""
    x, y, z = p.unbind(-1)
    return torch.stack([torch.where(n[:, 2].abs() > 0.35, x, x + z), y], -1)


def _turns(p: Tensor, n: Tensor) -> Tensor:
    """Of a donut: u around the hole, v around the tube."""
    x, y, z = p.unbind(-1)
    return torch.stack([torch.atan2(z, x) * 0.75, torch.atan2(y, _length(x, z) - 0.64) * 0.34], -1)


def _band(p: Tensor, n: Tensor) -> Tensor:
    """Of a standing ring: u around its axis z, v across the band."""
    x, y, z = p.unbind(-1)
    side = n[:, 2].abs() > 0.7
    return torch.stack([torch.atan2(y, x) * 0.85, torch.where(side, _length(x, y), z)], -1)


def _along(p: Tensor, n: Tensor) -> Tensor:
    """Of a lying capsule: u around its axis x, v along it."""
    x, y, z = p.unbind(-1)
    return torch.stack([torch.atan2(z, y) * 0.4, x], -1)


# The twelve shapes ------------------------------------------------------------------------------------------------


def _ball(p: Tensor) -> Tensor:
    return p.square().sum(-1).sqrt_() - 0.95


def _cube(p: Tensor) -> Tensor:
    return _box(p, 0.63, 0.05)


def _cone(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    slope = math.hypot(0.85, 1.8)
    side = (_length(x, z) * 1.8 + (y - 0.95) * 0.85) / slope
    return _smooth_max(side, -0.85 - y, 0.06)


def _cylinder(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    return _corner(_length(x, z) - 0.58, y.abs() - 0.80, 0.05)


def _donut(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    return _length(_length(x, z) - 0.64, y) - 0.34


def _pyramid(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    slope = math.hypot(0.9, 1.6)
    left, right = ((c.abs() * 1.6 + (y - 0.85) * 0.9) / slope for c in (x, z))
    return _smooth_max(_smooth_max(left, right, 0.1), -0.75 - y, 0.06)


def _star(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    c, s, inner = math.cos(math.pi / 5), math.sin(math.pi / 5), 0.45
    x = x.abs()
    for sign in (1.0, -1.0):  # fold the five arms onto one
        fold = 2 * (sign * c * x - s * y).clamp(min=0)
        x, y = x - sign * c * fold, y + s * fold
    x, y = x.abs(), y - 0.98
    bx, by = inner * s, inner * c - 1.0
    h = ((x * bx + y * by) / (bx * bx + by * by)).clamp_(0, 0.98)
    d = _length(x - bx * h, y - by * h) * torch.sign(y * bx - x * by)
    return _corner(d + 0.10, z.abs() - 0.12, 0.10) * 0.95


def _heart(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    scale = 1.62
    x, y = x.abs() / scale, y / scale + 0.55
    lobe = _length(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    along = 0.5 * (x + y).clamp(min=0)
    point = torch.minimum(x * x + (y - 1) ** 2, (x - along) ** 2 + (y - along) ** 2).sqrt_() * torch.sign(x - y)
    d = torch.where(x + y > 1, lobe, point) * scale
    return _corner(d + 0.28, z.abs() - 0.12, 0.28) * 0.95


def _mug(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    x = x + 0.2
    r = _length(x, z)
    inside = _corner(r - 0.50, -0.55 - y, 0.02)
    body = _smooth_max(_corner(r - 0.58, y.abs() - 0.70, 0.04), -inside, 0.04)
    loop = _length(_length((x - 0.62) * 1.05, y * 0.9) - 0.38, z) - 0.10
    return torch.minimum(body, torch.maximum(loop, 0.55 - r)) * 0.95


def _ring(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    return _corner((_length(x, y) - 0.80).abs() - 0.07, z.abs() - 0.22, 0.06)


def _capsule(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    return (((x.abs() - 0.60).clamp_(min=0)) ** 2 + y * y + z * z).sqrt_() - 0.42


def _die(p: Tensor) -> Tensor:
    ball = p.square().sum(-1).sqrt_() - 0.97
    return _smooth_max(_box(p, 0.62, 0.08), ball, 0.05)


# Opposite faces of a die sum to seven: faces in the order +x -x +y -y +z -z.
_PIPS = torch.tensor(
    [
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        [[1, 0, 1], [1, 0, 1], [1, 0, 1]],
        [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
        [[1, 0, 0], [0, 0, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 1], [0, 0, 0], [1, 0, 1]],
    ],
    dtype=torch.float32,
)


def _pips(p: Tensor, n: Tensor) -> Tensor:
    axis = p.abs().argmax(-1)
    sign = p.gather(1, axis[:, None])[:, 0] < 0
    ab = torch.stack([p.gather(1, ((axis + k) % 3)[:, None])[:, 0] for k in (1, 2)], -1)
    cell = (ab / 0.37).round().clamp(-1, 1)
    away = (ab - cell * 0.37).square().sum(-1).sqrt()
    column = cell.long() + 1
    return _PIPS[axis * 2 + sign.long(), column[:, 0], column[:, 1]] * torch.sigmoid((0.145 - away) * 60)


_TAU = 2 * math.pi
_FRONT = ((-0.6, 0.6),)
_TURNED = ((-0.9, 0.9),)
_SQUARE = ((0.2, _TAU / 4 - 0.2),)
_PATTERNED = frozenset({"polka dot"})

_register(Shape("ball", ("ball", "sphere", "orb"), _ball, _globe, -0.95, (0.8 * _TAU, 0), tumbles=True, bound=1.0))
_register(Shape("cube", ("cube", "box", "block"), _cube, _faces, -0.68, (0, 0), (0.25, 0.7), _SQUARE, bound=1.2))
_register(Shape("cone", ("cone",), _cone, _around(2.8), -0.85, (2.8, 0), (0.12, 0.5), bound=1.3))
_register(Shape("cylinder", ("cylinder",), _cylinder, _capped(3.96), -0.85, (3.96, 0), (0.25, 0.65), bound=1.08))
_register(
    Shape("donut", ("donut", "doughnut", "torus"), _donut, _turns, -0.34, (4.71, 2.14), (0.5, 1.25), stripe=0, bound=1)
)
_register(Shape("pyramid", ("pyramid",), _pyramid, _sides, -0.75, (0, 0), (0.12, 0.45), _SQUARE, bound=1.45))
_register(Shape("star", ("star",), _star, _slab, -0.79, (0, 0), (0.12, 0.4), _FRONT, bound=1.05))
_register(Shape("heart", ("heart",), _heart, _slab, -0.88, (0, 0), (0.12, 0.4), _FRONT, bound=1.12))
_register(
    Shape(
        "mug",
        ("mug", "cup"),
        _mug,
        _around(3.9, 0.2),
        -0.74,
        (3.9, 0),
        (0.3, 0.7),
        ((-0.8, 0.8), (math.pi - 0.8, math.pi + 0.8)),
        bound=1.25,
    )
)
_register(Shape("ring", ("ring",), _ring, _band, -0.93, (0.85 * _TAU, 0), (0.12, 0.45), _TURNED, stripe=0, bound=1.0))
_register(
    Shape(
        "capsule",
        ("capsule", "pill"),
        _capsule,
        _along,
        -0.42,
        (0.4 * _TAU, 0),
        (0.25, 0.9),
        ((-0.9, 0.9),),
        bound=1.05,
    )
)
_register(
    Shape(
        "die",
        ("die", "dice"),
        _die,
        _faces,
        -0.70,
        (0, 0),
        (0.35, 0.75),
        tuple((k * _TAU / 4 + 0.25, k * _TAU / 4 + 1.3) for k in range(4)),
        bound=1.05,
        decal=_pips,
        avoids=_PATTERNED,
    )
)
