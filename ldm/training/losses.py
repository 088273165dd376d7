"""What a reconstruction is measured by: pixels, texture, and a discriminator."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradient_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical differences of two images (b, c, h, w)."""
    d = a - b
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


def reconstruction_loss(x: Tensor, target: Tensor, gradient_weight: float, pyramid_weight: float) -> Tensor:
    """L1 at full size, of gradients, and at half and quarter size: edges stay sharp and large areas keep their tone."""
    loss = F.l1_loss(x, target) + gradient_weight * gradient_difference(x, target)
    for size in (2, 4):
        loss = loss + pyramid_weight * F.l1_loss(F.avg_pool2d(x, size), F.avg_pool2d(target, size))
    return loss


class TextureLoss(nn.Module):
    """Difference of local energies at several orientations and scales: a perceptual term that needs no download.

    The energy model of complex cells (Adelson & Bergen 1985): e = sqrt((g_even * x)^2 + (g_odd * x)^2) of a pair of
    Gabor filters. It says how much structure of an orientation there is, not where its ridges lie exactly. Of a
    texture that the latents cannot hold, L1 is least for its mean, a blur; this is least for a texture as strong.
    Of luma alone, since fine texture is hardly seen in chroma.

    Args:
        orientations: evenly spaced from 0 to pi; scales: each at half the size of the one before.
        size: side of the filters in pixels, odd; wavelength: of their waves in pixels.
    """

    filters: Tensor

    def __init__(self, orientations: int = 4, scales: int = 3, size: int = 7, wavelength: float = 4.0):
        super().__init__()
        self.scales = scales
        self.register_buffer("filters", gabor_pairs(orientations, size, wavelength), persistent=False)

    def energies(self, x: Tensor) -> list[Tensor]:
        """x (b, 3, h, w) -> for each scale (b, orientations, h', w')."""
        luma = torch.einsum("bchw,c->bhw", x, x.new_tensor([0.299, 0.587, 0.114]))[:, None]  # ITU-R BT.601
        energies, margin = [], self.filters.shape[-1] // 2
        for scale in range(self.scales):
            luma = F.avg_pool2d(luma, 2) if scale else luma
            planes = F.pad(luma, (margin,) * 4, mode="reflect")
            even, odd = F.conv2d(planes, self.filters.to(x)).chunk(2, dim=1)
            energies.append((even.square() + odd.square() + 1e-6).sqrt())  # smooth at zero
        return energies

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        pairs = zip(self.energies(x), self.energies(target), strict=True)
        return torch.stack([F.l1_loss(ours, theirs) for ours, theirs in pairs]).mean()


def gabor_pairs(orientations: int, size: int, wavelength: float) -> Tensor:
    """Gabor filters (2 * orientations, 1, size, size): the even ones first, then the odd ones. Each has the sum 0 and
    the norm 1."""
    ticks = torch.arange(size) - size // 2
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * (size / 4) ** 2))
    angles = torch.arange(orientations).view(-1, 1, 1) * math.pi / orientations
    phase = 2 * math.pi / wavelength * (x * angles.cos() + y * angles.sin())
    filters = window * torch.cat([phase.cos(), phase.sin()])
    filters = filters - window * filters.sum(dim=(1, 2), keepdim=True) / window.sum()
    return (filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1))[:, None]


class PatchDiscriminator(nn.Sequential):
    """x (b, 3, h, w) -> logits (b, 1, h', w'), each of one patch: above zero is real (PatchGAN, Isola et al. 2017).

    Group norm in the place of batch norm, so that a picture's logits depend on that picture alone.

    Args:
        channels: width of the first layer; it doubles with each, up to 8 times.
        layers: of stride 2. Three see patches of 70 pixels, two of 34.
    """

    def __init__(self, channels: int = 32, layers: int = 3):
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, width) in enumerate(pairwise(widths), 1):
            conv = nn.Conv2d(before, width, 4, 2 if i < layers else 1, 1, bias=False)
            blocks += [conv, nn.GroupNorm(width // 8, width), nn.LeakyReLU(0.2)]
        super().__init__(*blocks, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of its logits: it wants real ones above 1 and others below -1 (Lim & Ye 2017)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(loss: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """How much `adversarial` must count to move the last layer as much as `loss` does (Esser et al. 2021, eq. 7).

    lambda = |d loss / d last_layer| / (|d adversarial / d last_layer| + 1e-4), at most 1e4. The graphs are kept.
    """
    gradients = (torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm() for term in (loss, adversarial))
    strength, adversarial_strength = gradients
    return (strength / (adversarial_strength + 1e-4)).clamp(max=1e4).detach()
