"""A classifier that reads latents: what shape, material and colour stands in a region. The reward of `reward.py`.

It learns from the scenes that the denoiser learns from. The judge of the evaluation is another network, on pixels, of
other scenes; neither has seen anything of the other.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ldm.data.object_crops import UNSAID, VALUES
from ldm.models.judge import Stage
from ldm.training.base import TrainingModule
from ldm.training.judge import log_right

READ = ("shape", "material", "color")
CELL = 8  # pixels of a scene for a latent position
MARGIN = 0.1  # room around a region, as a fraction of its longer side


def look_closer(z: Tensor, region: Tensor) -> Tensor:
    """The square around each region, a little more than it, scaled to the size of the latent; zero beyond its border.

    An object then stands in the middle and fills the square, wherever in the scene it is. Differentiable in z.

    Args:
        z: (b, c, h, w), h = w.
        region: (b, 1, h, w) in {0, 1}; one that is empty has the whole latent looked at.

    Returns:
        (b, c + 1, h, w): the latent, and the region as the last channel.
    """
    size = z.shape[-1]
    inside = region[:, 0] > 0.5
    (left, right), (top, bottom) = (
        (along.float().argmax(1), size - along.flip(1).float().argmax(1)) for along in (inside.any(1), inside.any(2))
    )
    half = torch.maximum(right - left, bottom - top) * (0.5 + MARGIN)
    theta = z.new_zeros(len(z), 2, 3)  # of each square, in the coordinates of grid_sample: -1 to 1 over the latent
    theta[:, 0, 0] = theta[:, 1, 1] = 2 * half / size
    theta[:, 0, 2], theta[:, 1, 2] = (left + right) / size - 1, (top + bottom) / size - 1
    both = torch.cat([z, region.to(z)], dim=1)
    return F.grid_sample(both, F.affine_grid(theta, list(both.shape), align_corners=False), align_corners=False)


class LatentReader(nn.Module):
    """One linear head for each attribute, on features of the latent around the region to look at.

    Args:
        channels: of z; size: its side.
        widths: channels at the full size, at half of it, and so on.
        dropout: of the features, in training.
    """

    def __init__(self, channels: int = 4, size: int = 16, widths: Sequence[int] = (64, 96, 160), dropout: float = 0.2):
        super().__init__()
        first, last = widths[0], widths[-1]
        self.trunk = nn.Sequential(
            nn.Conv2d(channels + 1, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.GELU(),
            nn.Conv2d(first, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.GELU(),
            *(Stage(before, after) for before, after in pairwise(widths)),
        )
        cells = (size >> (len(widths) - 1)) ** 2
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({name: nn.Linear((1 + cells) * last, len(VALUES[name])) for name in READ})

    def forward(self, z: Tensor, region: Tensor) -> dict[str, Tensor]:
        """z (b, c, h, w), scaled, and region (b, 1, h, w) in [0, 1] -> for each of `READ`, logits (b, classes)."""
        h = self.trunk(look_closer(z, region).contiguous(memory_format=torch.channels_last))
        features = self.dropout(torch.cat([h.amax((2, 3)), h.flatten(1)], dim=1))
        return {name: head(features) for name, head in self.heads.items()}

    def loss(self, z: Tensor, region: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (b,) of the attributes that are known, labels (b, 3) in the order of `READ`, summed."""
        columns = zip(self(z, region).values(), labels.unbind(1), strict=True)
        losses = [F.cross_entropy(guess, label, ignore_index=UNSAID, reduction="none") for guess, label in columns]
        return torch.stack(losses).sum(0)


def draw_regions(generator: Generator, boxes: Tensor, size: int, grow: tuple[float, float]) -> Tensor:
    """Regions (n, 1, size, size) in {0, 1}: each box, grown on each side by a random number of positions of `grow`.

    boxes: (n, 4) left, top, right, bottom in pixels of the scene; one of no area gets a square anywhere.
    """
    n = len(boxes)
    low, high = (boxes[:, i : i + 2].float() / CELL for i in (0, 2))
    empty = (high <= low).any(dim=1, keepdim=True)
    side = (0.3 + 0.55 * torch.rand(n, 1, generator=generator)) * size
    corner = torch.rand(n, 2, generator=generator) * (size - side)
    low, high = torch.where(empty, corner, low), torch.where(empty, corner + side, high)
    margins = grow[0] + (grow[1] - grow[0]) * torch.rand(n, 2, 2, generator=generator)
    low, high = low - margins[:, 0], high + margins[:, 1]
    ticks = torch.arange(size) + 0.5
    x, y = ((ticks > low[:, i, None]) & (ticks < high[:, i, None]) for i in (0, 1))
    return (x[:, None, :] & y[:, :, None])[:, None].float()


def degrade(generator: Generator, z: Tensor) -> Tensor:
    """Latents (b, c, h, w) as a denoiser's estimates of them may be: some softer, some noisy."""
    soft = torch.rand(len(z), 1, 1, 1, generator=generator).sub(0.4).clamp(min=0).to(z)
    z = torch.lerp(z, F.avg_pool2d(z, 3, stride=1, padding=1, count_include_pad=False), soft)
    spread = torch.rand(len(z), 1, 1, 1, generator=generator).sub(0.3).clamp(min=0).to(z)
    return z + spread * torch.randn(z.shape, generator=generator).to(z)


class ReaderTrainer(TrainingModule):
    """Trains a `LatentReader` (under `reader`) on the latents, boxes and labels of `LatentScenes`.

    Args:
        model: the reader's parameters.
        learning_rate, warmup: of AdamW with a cosine decay to the trainer's `max_steps`.
        seed: of regions and degradations, together with the step that the process starts from.
    """

    def __init__(
        self, model: Mapping[str, Any] | None = None, learning_rate: float = 2e-3, warmup: int = 100, seed: int = 0
    ):
        super().__init__()
        self.save_hyperparameters()
        self.reader = LatentReader(**(model or {})).to(memory_format=torch.channels_last)

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """The reader's loss on degraded latents and random regions."""
        z = degrade(self.generator, batch["z"].float())
        region = draw_regions(self.generator, batch["box"].cpu(), z.shape[-1], (-0.5, 2)).to(z)
        loss = self.reader.loss(z, region, batch["labels"].long()).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> None:
        """The share of right answers of each head, on latents as they are."""
        z = batch["z"].float()
        region = draw_regions(Generator().manual_seed(index), batch["box"].cpu(), z.shape[-1], (0, 1)).to(z)
        log_right(self, self.reader(z, region), batch["labels"].long())

    def configure_optimizers(self):
        """AdamW of all parameters."""
        return self.adamw(self.reader.parameters())
