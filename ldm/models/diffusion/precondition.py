"""What a network predicts, scaled by what is known of latents beforehand: their covariance within small squares.

Neighbouring latents are alike: of the variance of a 2x2 patch nearly all is in its mean, and a hundredth of that in its
finest differences. Plain v has all of them at the same scale, so that a network has to pass on the noise of fine
differences exactly, or its errors show as grain. Along each eigenvector of the patches' covariance, with variance s^2
of the latents, a of the signal and b of the noise (a^2 + b^2 = 1), the best linear estimate of v leaves the standard
deviation s / sqrt(a^2 s^2 + b^2) open. So the estimate is computed, and the network's output, times that, added: it
errs by no more. For s = 1 all is plain v. It is the preconditioning of Karras et al. 2022 (section 5), for each
eigenvector by itself.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PatchStatistics(NamedTuple):
    """Of patches as vectors of k = c p^2 values: mean (k,), eigenvectors of the covariance as the columns of basis
    (k, k), and the standard deviation along each (k,)."""

    mean: Tensor
    basis: Tensor
    std: Tensor


def patch_statistics(z: Tensor, patch: int) -> PatchStatistics:
    """Of the patches, `patch` positions a side, of scaled latents z (n, c, h, w); in float32."""
    patches = F.pixel_unshuffle(z.double(), patch).permute(1, 0, 2, 3).flatten(1)
    variances, basis = torch.linalg.eigh(torch.cov(patches))
    return PatchStatistics(patches.mean(dim=1).float(), basis.float(), variances.clamp(min=1e-6).sqrt().float())


def plain_statistics(patch: int, channels: int) -> PatchStatistics:
    """Those by which nothing is changed."""
    size = channels * patch**2
    return PatchStatistics(torch.zeros(size), torch.eye(size), torch.ones(size))


def preconditioned(
    z: Tensor, out: Tensor, signal: Tensor, noise: Tensor, patches: PatchStatistics, patch: int
) -> Tensor:
    """v (b, c, h, w) from noisy latents z and a network's output, of their shape, in the precision of z.

    signal, noise: a and b of each sample, (b,).
    """
    mean, std = (value.view(-1, 1, 1) for value in (patches.mean, patches.std))
    a, b = (value.view(-1, 1, 1, 1) for value in (signal, noise))
    into, back = patches.basis.T[..., None, None], patches.basis[..., None, None]
    seen = F.conv2d(F.pixel_unshuffle(z.float(), patch) - a * mean, into)
    said = F.conv2d(F.pixel_unshuffle(out.float(), patch), into)
    variance = (a * std).square() + b.square()
    v = F.conv2d(a * b * (1 - std.square()) / variance * seen + std * variance.rsqrt() * said, back)
    return F.pixel_shuffle(v - b * mean, patch).to(z.dtype)
