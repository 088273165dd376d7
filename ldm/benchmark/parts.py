"""The parts of the work that are measured: each is a call without arguments that a subject makes ready."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.benchmark.subjects import PLAIN, Subject, Way
from ldm.models.diffusion.ddpm import LatentDiffusion

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Sizes:
    """How much work the parts are: predictions of both kinds of edits, pictures that CLIP looks at, and steps of
    sampling and of tuning."""

    batch: int = 24
    single: int = 1
    images: int = 24
    steps: int = 50
    tuning: int = 75


@dataclass(frozen=True)
class Scene:
    """What is edited, on the CPU: x (1, 3, H, W) in [-1, 1], mask (1, 1, H, W), latents z (n, c, h, w)."""

    x: Tensor
    mask: Tensor
    z: Tensor

    @classmethod
    def of(cls, model: LatentDiffusion, rows: int = 64, seed: int = 0) -> "Scene":
        """A smooth picture of the model's size with a square mask in its middle, always the same."""
        generator = torch.Generator().manual_seed(seed)
        side = model.image_size * model.factor
        coarse = torch.rand(1, 3, 5, 5, generator=generator) * 1.4 - 0.7
        x = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
        mask = torch.zeros(1, 1, side, side)
        mask[..., side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
        z = torch.randn(rows, model.channels, model.image_size, model.image_size, generator=generator)
        return cls(x, mask, z)


@dataclass(frozen=True)
class Part:
    """One thing to measure.

    Attributes:
        prepare: makes the call that is timed; what it does itself is not.
        uses_unet: so it differs where the UNet alone is run in another way.
        theirs: diffusers has it too; same: and gives the same result.
        long: too long for the full-size model on a CPU.
        once: it is the same in every way.
    """

    name: str
    about: str
    prepare: Callable[[Subject, Scene], Call]
    uses_unet: bool = False
    theirs: bool = True
    same: bool = True
    long: bool = False
    once: bool = False

    def concerns(self, way: Way) -> bool:
        """Whether the way can change anything about it, or has it at all."""
        if way == PLAIN:
            return True
        if self.once or (way.library != "ldm" and not self.theirs):
            return False
        other = way.library != PLAIN.library or way.precision != PLAIN.precision
        return self.uses_unet or (other and not way.compiled and not way.channels_last)


def _unet(rows: int, long: bool) -> Part:
    def prepare(subject: Subject, scene: Scene) -> Call:
        return subject.step(scene.z[: rows // 2].repeat(2, 1, 1, 1))

    return Part(f"unet-{rows}", f"one step of the UNet, batch {rows}", prepare, uses_unet=True, long=long)


def parts(sizes: Sizes) -> dict[str, Part]:
    """All parts by name, in the order of the table."""

    def edits(samples: int) -> Callable[[Subject, Scene], Call]:
        return lambda subject, scene: lambda: subject.edit(scene.x, scene.mask, samples, sizes.steps)

    def tuning(subject: Subject, scene: Scene) -> Call:
        z0 = subject.encode(scene.x).float().cpu() + 0.1 * scene.z[:1]  # a picture near the input
        return lambda: subject.tune(scene.x, scene.mask, z0, sizes.tuning)

    def clip(subject: Subject, scene: Scene) -> Call:
        x = scene.x.repeat(sizes.images, 1, 1, 1)
        return lambda: subject.rank(x, scene.mask)

    sampling = {"uses_unet": True, "same": False, "long": True}
    every = [
        Part("text", "text encoder, 2 prompts", lambda subject, scene: subject.text),
        _unet(2, long=False),
        _unet(8, long=True),
        _unet(48, long=True),
        Part("decoder", "decoder, 1 picture", lambda subject, scene: lambda: subject.decode(scene.z[:1])),
        Part("encoder", "encoder, 1 picture", lambda subject, scene: lambda: subject.encode(scene.x)),
        Part("clip", f"CLIP ranking, {sizes.images} pictures, float32", clip, once=True),
        Part("batch", f"ranked batch of {sizes.batch}, {sizes.steps} steps", edits(sizes.batch), **sampling),
        Part("edit", f"ranked edit of {sizes.single}, {sizes.steps} steps", edits(sizes.single), **sampling),
        Part("tuning", f"fine-tuning of {sizes.tuning} steps", tuning, theirs=False, long=True),
    ]
    return {part.name: part for part in every}
