"""Sphere tracing and shading: draws objects into a canvas of background images.

Orthographic camera, camera axes x right, y up, z towards the eye. Colours are linear while they are shaded, and the
canvas is display-coded with gamma 2 (a square root), near enough to sRGB and cheap. Everything is vectorised over
the pixels of many objects of one shape. Points are (n, 3) tensors laid out column by column, so that a coordinate is
contiguous: about twice as fast as the usual layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.scenes.colors import RGB
from ldm.data.scenes.materials import MATERIALS, Surface
from ldm.data.scenes.shapes import SHAPES, Shape, gradient

SIZE = 128
STEPS = 40
FAR = 9.0


@dataclass(frozen=True)
class Thing:
    """One object of one scene.

    scene: index of its image in the canvas; rgb display colour of its base; center (x, y) and radius in pixels (a
    shape's unit length); pitch, yaw, roll, in radians; light: unit vector towards the light in camera axes;
    seed in [0, 1) drives its pattern; shadow in [0, 1].
    """

    scene: int
    shape: str
    material: str
    rgb: RGB
    center: tuple[float, float]
    radius: float
    pitch: float
    yaw: float
    roll: float
    light: tuple[float, float, float]
    seed: float
    shadow: float

    @property
    def period(self) -> float:
        """Length of a pattern's period in object units: 8 px on the smallest object, 16 px on the largest."""
        pixels = 7.5 + 8.0 * min(max((self.radius - 20) / 38, 0.0), 1.0) + 1.5 * (self.seed * 7 % 1)
        return min(max(pixels / self.radius, 0.22), 0.42)


@dataclass(frozen=True)
class _Batch:
    """Tensors of m things of one shape. rotation (m, 3, 3) takes object axes to camera axes."""

    things: Sequence[Thing]
    shape: Shape
    rotation: Tensor
    radius: Tensor
    center: Tensor
    light: Tensor  # (m, 3), camera axes

    @classmethod
    def of(cls, things: Sequence[Thing]) -> "_Batch":
        pitch, yaw, roll = torch.tensor([(t.pitch, t.yaw, t.roll) for t in things]).unbind(1)
        return cls(
            things,
            SHAPES[things[0].shape],
            _turn(roll, 0, 1) @ _turn(pitch, 1, 2) @ _turn(-yaw, 0, 2),
            torch.tensor([t.radius for t in things]),
            torch.tensor([t.center for t in things]),
            torch.tensor([t.light for t in things]),
        )


@dataclass(frozen=True)
class _Hits:
    """The n pixels that things cover: thing (n,) its index in the batch, pixel (n,) its flat index in an image.

    point (n, 3) in object axes; alpha (n,) covered share of the pixel.
    """

    thing: Tensor
    pixel: Tensor
    point: Tensor
    alpha: Tensor


def _turn(angle: Tensor, first: int, second: int) -> Tensor:
    """Rotations (m, 3, 3) by `angle` (m,) from axis `first` to axis `second`."""
    matrix = torch.eye(3).repeat(len(angle), 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = angle.cos()
    matrix[:, second, first] = angle.sin()
    matrix[:, first, second] = -angle.sin()
    return matrix


def _columns(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """(n, 3) laid out column by column."""
    return torch.stack([x, y, z]).t()


def _rotate(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix (n, 3, 3) times vector (n, 3), column by column."""
    x, y, z = vector.unbind(-1)
    return torch.stack([matrix[:, i, 0] * x + matrix[:, i, 1] * y + matrix[:, i, 2] * z for i in range(3)]).t()


def _image_plane(batch: _Batch, size: int, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Object-unit coordinates u right and v up, (m, h, w), of the centres of `stride` x `stride` blocks of pixels
    of a picture of `size`."""
    ticks = torch.arange(0, size, stride) + stride / 2
    radius = batch.radius[:, None, None]
    u = (ticks[None, None, :] - batch.center[:, 0, None, None]) / radius
    v = -(ticks[None, :, None] - batch.center[:, 1, None, None]) / radius
    return torch.broadcast_tensors(u, v)


def _trace(batch: _Batch, size: int) -> _Hits:
    """Sphere tracing of every pixel of the bounding discs, in pictures of `size`.

    The surface is traced shrunk by half a pixel; a ray that passes it within a pixel covers its pixel in part: an
    antialiased outline without more rays, and unbiased (a straight edge through a pixel's centre covers one half).
    """
    shape = batch.shape
    u, v = _image_plane(batch, size)
    reach = shape.bound + 2.0 / batch.radius[:, None, None]
    room = reach.square() - u.square() - v.square()
    thing, row, column = (room > 0).nonzero(as_tuple=True)
    half = room[thing, row, column].sqrt()
    back = batch.rotation[thing].transpose(1, 2)
    origin = _rotate(back, _columns(u[thing, row, column], v[thing, row, column], half))
    direction = -back[:, :, 2].t().contiguous().t()
    pixel_size = (1 / batch.radius)[thing]
    shrink, enough = 0.5 * pixel_size, 0.12 * pixel_size
    far = 2 * half
    n = len(thing)
    nearest, depth = torch.full((n,), FAR), torch.zeros(n)
    live = torch.arange(n)
    o, d, t, best, best_t = origin, direction, torch.zeros(n), nearest, depth
    for step in range(STEPS):
        gap = shape.distance(o + d * t[:, None]) + shrink[live]
        closer = gap < best
        best, best_t = torch.where(closer, gap, best), torch.where(closer, t, best_t)
        t = t + gap.clamp(min=0.0)
        if step % 4 == 3 or step == STEPS - 1:
            nearest[live], depth[live] = best, best_t
            keep = ((gap > enough[live]) & (t < far[live])).nonzero()[:, 0]
            if len(keep) == 0:
                break
            live = live[keep]
            o, d = o.t()[:, keep].t(), d.t()[:, keep].t()
            t, best, best_t = t[keep], best[keep], best_t[keep]
    hit = nearest < enough
    outside = torch.where(hit, 0.0, nearest / pixel_size)  # pixels
    fuzz = torch.tensor([MATERIALS[x.material].fuzz for x in batch.things])[thing]
    pixel = row * size + column
    if bool((fuzz > 0).any()):  # a frayed outline: tufts reach out all around
        seed = torch.tensor([x.seed for x in batch.things])[thing] * 6.28
        angle = torch.atan2(v[thing, row, column], u[thing, row, column])
        waves = [torch.sin(k * angle + 1.6 * torch.sin(j * angle + k * seed)) for k, j in ((16, 3), (29, 5))]
        tuft = (0.45 + 0.32 * waves[0] + 0.32 * waves[1]).clamp_(0, 1)
        outside = outside - fuzz * tuft * (outside > 0)
    alpha = (1 - outside).clamp_(0, 1)
    seen = (alpha > 0).nonzero()[:, 0]
    point = (origin + direction * depth[:, None]).t()[:, seen].t()
    return _Hits(thing[seen], pixel[seen], point, alpha[seen])


def _visibility(shape: Shape, point: Tensor, light: Tensor, steps: Sequence[float], softness: float) -> Tensor:
    """Soft shadow (n,) in [0, 1]: how narrowly the way from `point` to `light` (both object axes) misses the shape."""
    lit = torch.ones(len(point))
    for t in steps:
        lit = torch.minimum(lit, shape.distance(point + light * t) * (softness / t))
    lit = lit.clamp_(-0.3, 1).add_(0.3).div_(1.3)
    return lit * lit * (3 - 2 * lit)


def cast_shadows(canvas: Tensor, things: Sequence[Thing]) -> None:
    """Darken `canvas` (3, n, size, size) in place where `things`, all of one shape, keep light off their ground.

    Traced on the ground plane at a quarter of the size, for it is soft anyway.
    """
    batch = _Batch.of(things)
    shape = batch.shape
    stride, size = 4, canvas.shape[-1]
    u, v = _image_plane(batch, size, stride)
    m, side = len(things), size // stride
    back = batch.rotation.transpose(1, 2)
    up = batch.rotation[:, :, 1]  # the object's up in camera axes
    ground = torch.tensor([[shape.rest]])
    uf, vf = u.reshape(-1), v.reshape(-1)
    thing = torch.arange(m).repeat_interleave(side * side)
    if shape.tumbles:  # no axis of its own: the ground lies below it in world axes
        pitch = torch.tensor([t.pitch for t in things])
        up = torch.stack([torch.zeros(m), pitch.cos(), pitch.sin()], 1)
    upn = up[thing]
    # the ground point under the pixel: (u, v, w) with up . (u, v, w) = rest
    w = (ground[0] - upn[:, 0] * uf - upn[:, 1] * vf) / upn[:, 2].clamp(min=0.12)
    camera = _columns(uf, vf, w)
    point = _rotate(back[thing], camera)
    light = _rotate(back, batch.light)[thing]
    lit = _visibility(shape, point, light, (0.08, 0.25, 0.5, 0.85, 1.3, 1.8), 3.0)
    contact = (shape.distance(point) / 0.45).clamp_(0, 1)
    away = (camera.square().sum(-1) - shape.rest**2).clamp_(min=0).sqrt_()
    fade = (1 - (away - 1.2) / 1.6).clamp_(0, 1)
    dark = 1 - (0.25 + 0.75 * lit) * (0.55 + 0.45 * contact)
    strength = torch.tensor([t.shadow for t in things])[thing]
    dark = (dark * fade * strength).view(m, 1, side, side)
    dark = F.interpolate(dark, size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    for k, t in enumerate(things):
        canvas[:, t.scene] *= 1 - dark[k]


def draw(canvas: Tensor, cover: Tensor, things: Sequence[Thing]) -> None:
    """Draw `things`, all of one shape and each in another scene, over `canvas`, in place.

    canvas: (3, n, size, size) display colours in [0, 1]; cover: (n, size, size) in [0, 1], the share of each pixel that
    objects cover, which grows by theirs.
    """
    batch = _Batch.of(things)
    hits = _trace(batch, canvas.shape[-1])
    if len(hits.thing) == 0:
        return
    normal = gradient(batch.shape.distance, hits.point, 0.02)
    by_material: dict[str, list[int]] = {}
    for index, thing in enumerate(things):
        by_material.setdefault(thing.material, []).append(index)
    starts = torch.searchsorted(hits.thing, torch.arange(len(things) + 1)).tolist()  # hits are sorted by thing
    view = canvas.view(3, len(cover), -1)
    flat_cover = cover.view(len(cover), -1)
    for index, thing in enumerate(things):
        span = slice(starts[index], starts[index + 1])
        if span.start == span.stop:
            continue
        color = _shade(canvas, thing, batch, index, hits.point[span], normal[span], hits.pixel[span])
        alpha, pixel = hits.alpha[span], hits.pixel[span]
        behind = view[:, thing.scene, pixel]
        view[:, thing.scene, pixel] = behind + (color - behind) * alpha
        flat_cover[thing.scene, pixel] = 1 - (1 - flat_cover[thing.scene, pixel]) * (1 - alpha)


def _shade(
    canvas: Tensor, thing: Thing, batch: _Batch, index: int, point: Tensor, normal: Tensor, pixel: Tensor
) -> Tensor:
    """Display colours (3, n) of one thing's visible points."""
    shape, turn, light = batch.shape, batch.rotation[index], batch.light[index]
    facing = (normal @ turn[2]).clamp_(0, 1)
    base = torch.tensor(thing.rgb).square()
    contrast = torch.tensor([0.02, 0.02, 0.03] if base.mean() > 0.45 else [0.88, 0.88, 0.85])
    surface = Surface(shape, point, normal, facing, base, contrast, thing.seed, thing.period)
    finish = MATERIALS[thing.material].finish(surface)
    albedo = finish.albedo
    if shape.decal is not None:
        mark = torch.tensor([0.015, 0.015, 0.02] if base.mean() > 0.3 else [0.9, 0.9, 0.88])
        albedo = torch.lerp(albedo, mark.expand_as(albedo), shape.decal(point, normal)[:, None])
    bumped = normal if finish.normal is None else finish.normal
    n = turn @ bumped.t()  # (3, n), camera axes
    n[2].clamp_(min=0.1)  # the outline's pixels are seen at a grazing angle; none faces away
    n = F.normalize(n, dim=0)
    to_light = light @ turn  # object axes
    lit = _visibility(shape, point + 0.03 * normal, to_light, (0.10, 0.28, 0.6), 7.0)
    occlusion = _occlusion(shape, point, normal, thing)
    diffuse = (light @ n).clamp_(min=0) * lit
    half = F.normalize(light + torch.tensor([0.0, 0.0, 1.0]), dim=0)
    highlight = (half @ n).clamp_(min=0).pow_(finish.exponent) * (finish.specular * lit)
    surroundings = canvas[:, thing.scene].mean((1, 2)).square()
    ambient = (0.34 + 0.20 * n[1]) * occlusion
    tint = 0.75 + 0.25 * surroundings / surroundings.mean().clamp(min=0.02)
    out = albedo.t() * (0.92 * diffuse + ambient * tint[:, None])
    edge = (1 - n[2].clamp(min=0.22)) ** 3
    if finish.sheen:
        out += albedo.t() * (finish.sheen * 2.2 * edge * occlusion) + finish.sheen * 0.06 * edge * occlusion
    if finish.transmit:
        out = _through(canvas, thing, surface, n, pixel)
        if shape.decal is not None:
            out = torch.lerp(out, albedo.t() * (0.5 + 0.5 * diffuse), shape.decal(point, normal))
    if finish.reflect:
        mirror = _mirror(thing, n, pixel, canvas.shape[-1])
        world = _surroundings(mirror, light, tint)
        if finish.reflect == 1.0:
            out = albedo.t() * world * (0.45 + 0.55 * occlusion) + 0.06 * out
            out += 0.20 * world.square() + 0.35 * edge * world  # the brightest parts are whitest
        else:
            out += world * (finish.reflect + (0.30 + 0.5 * finish.transmit) * edge) * (0.3 + 0.7 * occlusion)
    out += highlight
    return out.clamp_(0, 1).sqrt_()


def _occlusion(shape: Shape, point: Tensor, normal: Tensor, thing: Thing) -> Tensor:
    """Ambient light (n,) that crevices of the shape and the nearby ground leave over."""
    near = (shape.distance(point + 0.12 * normal) / 0.12).clamp_(0, 1)
    wide = (shape.distance(point + 0.40 * normal) / 0.40).clamp_(0, 1)
    open_ = 0.35 + 0.25 * near + 0.40 * wide
    if shape.tumbles:
        return open_
    height = (point[:, 1] - shape.rest).clamp(0, 0.9) / 0.9
    return open_ * (0.55 + 0.45 * height)


def _mirror(thing: Thing, n: Tensor, pixel: Tensor, size: int) -> Tensor:
    """Mirrored directions (3, n) at camera-axes normals `n` (3, n), in a picture of `size`.

    Here the eye is close, so that a flat face, too, mirrors a stretch of the surroundings and not a single point.
    """
    x = ((pixel % size) - thing.center[0]) / thing.radius
    y = (thing.center[1] - (pixel // size)) / thing.radius
    eye = F.normalize(torch.stack([-x, -y, torch.ones_like(x)]), dim=0)
    return 2 * (eye * n).sum(0) * n - eye


def _surroundings(direction: Tensor, light: Tensor, tint: Tensor) -> Tensor:
    """What a mirror sees (3, n) along `direction` (3, n): sky, a dark horizon, a pale floor, windows and a lamp."""
    side, up = direction[0], direction[1]
    sky = torch.sigmoid((up - 0.06) * 26)
    lamp = torch.exp(((light @ direction) - 1) * 10)
    windows = torch.sigmoid(torch.sin(6.5 * side + 4.0 * up + 0.8) * 6 - 1.8)
    floor = 0.04 + 0.62 * (0.06 - up).clamp(min=0)
    value = (0.62 + 0.50 * up) * sky + floor * (1 - sky) + 1.2 * lamp + 0.25 * windows * sky
    return value.clamp_(min=0.012) * tint[:, None]


def _through(canvas: Tensor, thing: Thing, surface: Surface, n: Tensor, pixel: Tensor) -> Tensor:
    """The background (3, n), linear, bent as by a solid lens, tinted, and darkened where the way through is long."""
    bend = -0.62 * thing.radius * (1 - 0.25 * n[2])
    size = canvas.shape[-1]
    x = (pixel % size).float() + 0.5 + bend * n[0]
    y = (pixel // size).float() + 0.5 - bend * n[1]
    grid = torch.stack([x, y], -1) * (2 / size) - 1
    seen = F.grid_sample(
        canvas[None, :, thing.scene], grid[None, None], mode="bilinear", padding_mode="reflection", align_corners=False
    )
    seen = seen[0, :, 0].square()
    tint = surface.base / surface.base.max().clamp(min=0.35)
    clear = 0.18 + 0.82 * tint
    edge = (1 - n[2].clamp(0, 1)).square()
    body = surface.base[:, None] * (0.10 + 0.16 * (1 - edge))
    return seen * clear.square()[:, None] * (0.92 - 0.55 * edge) + body
