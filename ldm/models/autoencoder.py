"""`AutoencoderKL` and `VQModel`: first stages, which take images to latents and back (Rombach et al. 2022, section 3.1;
Esser, Rombach and Ommer 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.vqvae.quantize import VectorQuantizer


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z|x): a normal distribution per latent value. `mean` and `logvar` are (b, c, h, w)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "DiagonalGaussian":
        """The posterior of the encoder's output (b, 2c, h, w): means, then log-variances, clamped to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise. The noise is drawn on the generator's device, so that a seed means one latent."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def mode(self) -> Tensor:
        """The most probable latent, which is the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) in nats, summed over c, h, w -> (b,)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))


class AutoencoderKL(nn.Module):
    """x (b, 3, H, W) in [-1, 1] <-> z (b, embed_dim, H/f, W/f), unscaled.

    Args:
        ddconfig: the arguments of `Encoder` and `Decoder`.
        embed_dim: channels of z.
    """

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int):
        super().__init__()
        if not ddconfig.get("double_z", True):
            raise ValueError("AutoencoderKL needs a mean and a log-variance: ddconfig.double_z must be true")
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        z_channels = ddconfig["z_channels"]
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.embed_dim = embed_dim
        self.factor = self.encoder.patch_size * 2 ** (len(self.encoder.down) - 1)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """x (b, 3, H, W) in [-1, 1] -> the posterior of its latents."""
        return DiagonalGaussian.from_moments(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """z (b, embed_dim, h, w) -> x (b, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, DiagonalGaussian]:
        """The reconstruction of x through a sample of its posterior, and that posterior."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(generator)), posterior


class VQModel(nn.Module):
    """x (b, 3, H, W) in [-1, 1] <-> z (b, embed_dim, H/f, W/f), of vectors of a codebook.

    Args:
        ddconfig: the arguments of `Encoder` and `Decoder`, with `double_z: false`.
        n_embed: vectors in the codebook. embed_dim: their length, the channels of z.
    """

    def __init__(self, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int):
        super().__init__()
        if ddconfig.get("double_z", True):
            raise ValueError("VQModel's encoder gives one vector a position: ddconfig.double_z must be false")
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        z_channels = ddconfig["z_channels"]
        self.quantize = VectorQuantizer(n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.embed_dim = embed_dim
        self.factor = self.encoder.patch_size * 2 ** (len(self.encoder.down) - 1)

    def encode_unquantized(self, x: Tensor) -> Tensor:
        """x (b, 3, H, W) in [-1, 1] -> z before the quantiser."""
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (b, 3, H, W) in [-1, 1] -> the quantised z, and its codes (b, h, w)."""
        return self.quantize(self.encode_unquantized(x))

    def decode(self, z: Tensor) -> Tensor:
        """z (b, embed_dim, h, w) -> x (b, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(z))

    def decode_quantized(self, z: Tensor) -> Tensor:
        """The same of the quantised z, through which gradients pass."""
        return self.decode(self.quantize(z)[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction of x, and its codes."""
        z, codes = self.encode(x)
        return self.decode(z), codes
