"""The vector quantiser: each position's vector becomes the nearest of a codebook (van den Oord et al. 2017)."""

import torch
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    """z (b, c, h, w) <-> codes (b, h, w), with a codebook (n_embed, c)."""

    def __init__(self, n_embed: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_embed, 1 / n_embed)

    def codes(self, z: Tensor) -> Tensor:
        """The number (b, h, w) of the nearest vector at each position.

        The nearest, by |z - e|^2 = |z|^2 - 2 z e + |e|^2, of which the first does not depend on e.
        """
        book = self.embedding.weight
        distances = book.square().sum(dim=1)[None, :, None, None] - 2 * torch.einsum("bchw,nc->bnhw", z, book)
        return distances.argmin(dim=1)

    def embed(self, codes: Tensor) -> Tensor:
        """codes (b, h, w) -> z (b, c, h, w)."""
        return self.embedding(codes).movedim(-1, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The quantised z, through which gradients pass as through the identity ("straight through"), and its codes."""
        codes = self.codes(z.detach())
        quantised = self.embed(codes)
        return z + (quantised - z).detach(), codes

    @property
    def span(self) -> tuple[Tensor, Tensor]:
        """The least and the largest of each component (c,) over the codebook."""
        book = self.embedding.weight
        return book.amin(dim=0), book.amax(dim=0)
