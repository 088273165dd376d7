"""Views of 3D models with alpha, rendered by VTK without a window: many sides, heights and lights."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.data.scenes.draw import chance, uniform
from ldm.errors import MissingExtra

WINDOW = 720
"""Side of the rendered picture in pixels; a cut-out is at most half of it, so that its edges are smooth."""

DISTANCE = 2.6
"""Of the camera from the model's centre, in radii of its bounding sphere."""


@dataclass(frozen=True)
class View:
    """azimuth, elevation: of the camera in degrees; 0, 0 looks at the front. light: side that the light comes from,
    -1 (left) to 1 (right)."""

    azimuth: float
    elevation: float
    light: float


def draw_views(generator: torch.Generator, count: int, all_around: bool) -> list[View]:
    """Evenly around a thing, or around its front; a fifth of them from well above."""
    half = 180.0 if all_around else 65.0
    views = []
    for i in range(count):
        azimuth = (2 * (i + uniform(generator)) / count - 1) * half
        high = chance(generator, 0.2)
        elevation = uniform(generator, 38, 70) if high else uniform(generator, 4, 34)
        views.append(View(azimuth, elevation, uniform(generator, -1, 1)))
    return views


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """The unit vector (3,) from a model, whose y axis is up and whose front looks along z, in degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return np.array([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])


def view_angle(bounds: np.ndarray, azimuth: float, elevation: float) -> float:
    """The angle in degrees at which a square picture just holds the box `bounds` (x0, x1, y0, y1, z0, z1)."""
    box = bounds.reshape(3, 2)
    centre, radius = box.mean(axis=1), np.linalg.norm(box[:, 1] - box[:, 0]) / 2
    forward = -direction(azimuth, elevation)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    corners = np.stack(np.meshgrid(*box, indexing="ij"), -1).reshape(-1, 3) - centre
    depth = corners @ forward + DISTANCE * radius
    reach = max(np.abs(corners @ right / depth).max(), np.abs(corners @ up / depth).max())
    return 2 * math.degrees(math.atan(reach * 1.01))


class Renderer:
    """Renders the views of one model after another.

    Raises MissingExtra without pyvista and trimesh. A machine without a screen needs a Mesa that draws in memory
    (Debian: `libegl1 libgl1-mesa-dri` or `libosmesa6`).
    """

    def __init__(self) -> None:
        os.environ.pop("DISPLAY", None)
        try:
            import pyvista
            import trimesh
        except ModuleNotFoundError as error:
            raise MissingExtra("pyvista", "train", "rendering views of 3D models") from error
        pyvista.vtk_verbosity("off")
        self.pv: Any = pyvista
        self.trimesh: Any = trimesh

    def render(
        self, file: Path, views: list[View], generator: torch.Generator, rotation: tuple[float, ...] | None = None
    ) -> Iterator[Image.Image]:
        """The views of an OBJ file as RGBA pictures, cut to the thing and at most `WINDOW` / 2 a side.

        rotation: (9,) that turns it upright. A view that shows nothing is an empty picture (0 x 0).
        """
        scene = self.trimesh.load(str(file), force="scene", process=False)
        if rotation:
            matrix = np.eye(4)
            matrix[:3, :3] = np.array(rotation).reshape(3, 3)
            scene.apply_transform(matrix)
        plotter = self.pv.Plotter(off_screen=True, window_size=(WINDOW, WINDOW), lighting="none")
        try:
            has_normals = b"\nvn " in file.read_bytes()
            for part in scene.dump():
                self._add(plotter, part, has_normals)
            plotter.enable_depth_peeling(4)
            bounds = np.array(plotter.bounds)
            for view in views:
                self._aim(plotter, bounds, view)
                self._light(plotter, view, generator)
                yield cut_out(plotter.screenshot(None, transparent_background=True, return_img=True))
        finally:
            plotter.close()

    def _add(self, plotter: Any, part: Any, has_normals: bool) -> None:
        """One part of a model, of one material: its texture, else its colour."""
        mesh = self.pv.PolyData.from_regular_faces(np.asarray(part.vertices, np.float32), np.asarray(part.faces))
        material, uv = getattr(part.visual, "material", None), getattr(part.visual, "uv", None)
        image = getattr(material, "image", None)
        if uv is not None:
            mesh.active_texture_coordinates = np.asarray(uv, np.float32)
        if has_normals:
            mesh.point_data["Normals"] = np.asarray(part.vertex_normals, np.float32)
            mesh.point_data.active_normals_name = "Normals"
        else:  # round where it is nearly flat, and sharp at its edges
            options = {"cell_normals": False, "consistent_normals": False, "feature_angle": 55}
            mesh = mesh.compute_normals(split_vertices=True, **options)
        look = {"ambient": 0.3, "specular": 0.15, "specular_power": 30, "smooth_shading": True}
        if image is None or uv is None:
            diffuse = getattr(material, "diffuse", (200, 200, 200, 255))
            plotter.add_mesh(mesh, color=[int(v) for v in diffuse[:3]], opacity=max(diffuse[3] / 255, 0.15), **look)
            return
        pixels = np.array(image.convert("RGBA"))
        holes = bool((pixels[..., 3] < 128).any())
        pixels[..., 3] = np.where(pixels[..., 3] < 128, 0, 255)  # leaves: a part of it or not
        texture = self.pv.Texture(pixels if holes else pixels[..., :3])
        # In the place of the colour, as the catalogues' own program has it.
        actor = plotter.add_mesh(mesh, color="white", texture=texture, **look)
        if holes:
            actor.ForceOpaqueOn()

    def _aim(self, plotter: Any, bounds: np.ndarray, view: View) -> None:
        box = bounds.reshape(3, 2)
        centre, radius = box.mean(axis=1), np.linalg.norm(box[:, 1] - box[:, 0]) / 2
        camera = plotter.camera
        camera.focal_point, camera.up = centre, (0, 1, 0)
        camera.position = centre + direction(view.azimuth, view.elevation) * radius * DISTANCE
        camera.view_angle = view_angle(bounds, view.azimuth, view.elevation)
        camera.clipping_range = (radius * (DISTANCE - 1.05), radius * (DISTANCE + 1.05))

    def _light(self, plotter: Any, view: View, generator: torch.Generator) -> None:
        plotter.remove_all_lights()
        warm = uniform(generator, -0.06, 0.06)
        side, height = view.light, uniform(generator, 0.5, 1.4)
        for position, strength in (
            ((2.2 * side, height, 1.2), uniform(generator, 0.65, 0.95)),
            ((-1.5 * side, 0.3, 1.0), uniform(generator, 0.15, 0.35)),
            ((0.0, 2.0, -0.3), uniform(generator, 0.1, 0.35)),
        ):
            light = self.pv.Light(position=position, light_type="camera light", intensity=strength)
            light.diffuse_color = (1.0, 1.0 - abs(warm) / 2, 1.0 - max(warm, 0)) if warm > 0 else (1.0 + warm, 1.0, 1.0)
            plotter.add_light(light)


def cut_out(pixels: np.ndarray) -> Image.Image:
    """(h, w, 4) uint8 -> the part that is not transparent, at half its size, with smooth edges."""
    image = Image.fromarray(pixels, "RGBA")
    box = image.getchannel("A").getbbox()
    if box is None:
        return Image.new("RGBA", (0, 0))
    part = image.crop(box)
    size = (max(1, round(part.width / 2)), max(1, round(part.height / 2)))
    return part.convert("RGBa").resize(size, Image.Resampling.BOX).convert("RGBA")
