"""Random weights that leave no branch of a network at zero; and, for the tests, the names of `diffusers`."""

import torch
from torch import nn

from ldm.benchmark.convert import autoencoder_to_diffusers, text_encoder_to_diffusers, unet_to_diffusers

__all__ = ["autoencoder_to_diffusers", "randomise", "text_encoder_to_diffusers", "unet_to_diffusers"]


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter with noise that keeps activations near one, those that start at zero or one included."""
    generator = torch.Generator().manual_seed(seed)
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                spread = 1.0 if isinstance(owner, nn.Embedding) else parameter[0].numel() ** -0.5
                parameter.copy_(spread * noise)
            else:
                is_scale = name == "weight"  # a norm's
                parameter.copy_(is_scale + 0.3 * noise)
    return module.eval()
