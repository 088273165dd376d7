"""Small pieces of the UNet."""

import math

import torch
from torch import Tensor, nn


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of the timestep: cosines, then sines (Vaswani et al. 2017, in the order of Ho et al. 2020's port).

    Args:
        timesteps: (b,), any number type.

    Returns:
        (b, dim) in float32, the last column zero where `dim` is odd.
    """
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) / half * torch.arange(half, device=timesteps.device, dtype=torch.float32))
    args = timesteps[:, None].float() * freqs
    embedding = torch.cat([torch.cos(args), torch.sin(args)], dim=-1)
    return nn.functional.pad(embedding, (0, dim % 2))


def zero_module(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero, so that a residual branch begins as nothing."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def normalization(channels: int) -> nn.GroupNorm:
    """The UNet's group norm: 32 groups, epsilon 1e-5."""
    return nn.GroupNorm(32, channels)
