"""A small classifier of rendered objects and backgrounds: it says whether a picture shows what its prompt named."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def window(x: float, y: float, side: float, height: int, width: int) -> tuple[int, int, int]:
    """(top, left, side) of a square about (x, y), in pixels, shrunk and moved until it lies within the picture."""
    side = min(round(side), height, width)
    top, left = (min(max(round(c - side / 2), 0), room - side) for c, room in ((y, height), (x, width)))
    return top, left, side


class Stage(nn.Sequential):
    """(b, c, h, w) -> (b, channels, h/2, w/2): two convolutions with batch norms, the first pooled."""

    def __init__(self, before: int, channels: int):
        super().__init__(
            nn.Conv2d(before, channels, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.GELU(),
        )


class Judge(nn.Module):
    """One linear head for each attribute of a picture, all on the same features: what is where, and what is anywhere.

    Args:
        labels: attribute -> the names of its classes, in the order of the logits. Part of the config, so that a judge
            means the same after the world of the scenes has grown.
        widths: channels after the first convolution and after each stage; each halves the side.
        size: side of the pictures in pixels.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]], widths: Sequence[int] = (32, 48, 96, 160), size: int = 64):
        super().__init__()
        self.labels = {attribute: tuple(names) for attribute, names in labels.items()}
        self.size = size
        first, last = widths[0], widths[-1]
        self.trunk = nn.Sequential(
            nn.Conv2d(3, first, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.GELU(),
            *(Stage(before, channels) for before, channels in pairwise(widths)),
        )
        cells = (size >> len(widths)) ** 2
        self.heads = nn.ModuleDict(
            {name: nn.Linear((1 + cells) * last, len(names)) for name, names in self.labels.items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (b, 3, size, size) in [0, 1] -> for each attribute, logits (b, classes)."""
        h = self.trunk((4 * x - 2).contiguous(memory_format=torch.channels_last))
        features = torch.cat([h.amax((2, 3)), h.flatten(1)], dim=1)
        return {name: head(features) for name, head in self.heads.items()}

    def name(self, x: Tensor) -> list[dict[str, str]]:
        """x as in `forward` -> for each picture the likeliest class of each attribute, by name.

        Likeliest in the mean over the picture and its mirror image, which shows the same.
        """
        views = [self(x), self(x.flip(-1))]
        best = {name: sum(view[name].softmax(1) for view in views).argmax(1).tolist() for name in self.labels}
        return [{name: self.labels[name][best[name][i]] for name in best} for i in range(len(x))]
