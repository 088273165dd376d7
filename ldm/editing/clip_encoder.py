"""The CLIP model that ranks as the one that guides: its image encoder with gradients, and the losses of an edit."""

import logging
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldm.data.crops import square_around
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.ranking import CLIPRanker
from ldm.errors import MissingExtra, UserError
from ldm.models.diffusion.loss_guidance import (
    CLIPLoss,
    Loss,
    background_l2,
    background_lpips,
    framed,
    range_loss,
    weighted,
)

logger = logging.getLogger(__name__)

LAMBDA = 1000.0
"""Of CLIP's guidance, where neither the user nor the model's config says another."""


class RankerEncoder:
    """The image encoder of a ranker, an `ImageEncoder` of `ldm.models.diffusion.loss_guidance`.

    precision: that of its network; bfloat16 is a copy of it, since ranking itself stays in float32.
    """

    def __init__(self, ranker: CLIPRanker, precision: torch.dtype = torch.float32):
        visual = ranker.model.visual
        self.mean, self.std = (
            torch.tensor(value, device=ranker.device).view(1, 3, 1, 1)
            for value in (visual.image_mean, visual.image_std)
        )
        if precision != torch.float32:
            visual = deepcopy(visual).to(precision).to(memory_format=torch.channels_last)
        self.visual, self.precision = visual, precision

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what it takes."""
        size = self.visual.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        return height, width

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, 3, H, W) in [-1, 1] -> unit embeddings (n, d) in float32, with gradients."""
        pixels = ((x + 1) / 2 - self.mean) / self.std
        if self.precision != torch.float32:
            pixels = pixels.to(self.precision).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.visual(pixels).float(), dim=-1)


def guiding_precision(precision: torch.dtype) -> torch.dtype:
    """That of the encoder beside a model of a precision: bfloat16 as well, which has float32's range. In float16 the
    gradients of a loss would overflow, or vanish."""
    return precision if precision == torch.bfloat16 else torch.float32


def clip_loss(
    ranker: CLIPRanker,
    prompt: str,
    mask: Tensor,
    copies: int,
    generators: list[Generator],
    encoder: RankerEncoder | None = None,
) -> CLIPLoss:
    """The distance to a prompt of what a mask (1, 1, H, W) holds, framed as the ranker frames it.

    A ranker that looks at crops was trained on things before black, and sees them so; others see grey around the mask,
    as in the public program.

    encoder: of the ranker; None is that in float32.
    """
    encoder = encoder or RankerEncoder(ranker)
    square = square_around(mask, ranker.framing.margin) if ranker.framing.crop else None
    return CLIPLoss(
        encoder,
        ranker.text_embedding(prompt),
        mask.to(ranker.device),
        framed(square, encoder.size),
        copies,
        generators,
        outside=-1.0 if ranker.framing.crop else 0.0,
    )


def check_clip_words(ranker: CLIPRanker, prompt: str) -> None:
    """Refuse a prompt of which a CLIP model of few words knows none, and tell which words of any other it leaves out.

    Raises:
        UserError: it would be guided by nothing.
    """
    find = getattr(ranker.tokenizer, "unknown_words", None)
    unknown = find(prompt) if find is not None else []
    if not unknown:
        return
    listed = ", ".join(f'"{word}"' for word in unknown[:5])
    if not set(prompt.lower().split()) - set(unknown) - {"a", "an", "the", "on", "in", "of", "and", "with"}:
        raise UserError(
            f"the CLIP model that guides knows no word of this prompt ({listed}): it knows those of `scenes`"
        )
    logger.warning("the CLIP model that guides does not know %s", listed)


@dataclass(frozen=True)
class Losses:
    """The losses of an edit, of which `total` makes those of a batch.

    lpips: see `find_lpips`; None where it has no weight. precision: of the image encoder, see `guiding_precision`.
    """

    ranker: CLIPRanker
    prompt: str
    x_source: Tensor
    mask: Tensor
    options: GuidanceOptions
    strength: float
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    precision: torch.dtype = torch.float32

    @cached_property
    def encoder(self) -> RankerEncoder:
        """What looks, the same for all batches."""
        return RankerEncoder(self.ranker, self.precision)

    def total(self, generators: list[Generator]) -> Loss | None:
        """The weighted sum, whose copies are drawn by a generator for each sample; None of an empty prompt, which in
        the public program guides by nothing at all."""
        told = self.options
        if not self.prompt:
            return None
        clip = clip_loss(self.ranker, self.prompt, self.mask, told.aug_num, generators, self.encoder)
        terms: list[tuple[float, Loss]] = [(self.strength, clip), (told.range_lambda, range_loss)]
        if told.background_preservation_loss:
            x_source, mask = self.x_source.to(self.ranker.device), self.mask.to(self.ranker.device)
            terms.append((told.l2_sim_lambda, background_l2(x_source, mask)))
            if self.lpips is not None:
                terms.append((told.lpips_sim_lambda, background_lpips(x_source, mask, self.lpips)))
        return weighted(terms)


def find_lpips(options: GuidanceOptions, device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS with VGG, where the options give it a weight.

    Raises:
        MissingExtra: the package is not installed.
        UserError: the weights of VGG are neither here nor to be had.
    """
    if not (options.background_preservation_loss and options.lpips_sim_lambda):
        return None
    try:
        from lpips import LPIPS
    except ModuleNotFoundError as error:
        raise MissingExtra("lpips", "guidance", "`lpips_sim_lambda` above 0") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how the library asks for its weights
            return LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights of VGG, which LPIPS looks with, cannot be had ({' '.join(str(error).split())[:80]}): "
            "`lpips_sim_lambda=0` does without"
        ) from error
