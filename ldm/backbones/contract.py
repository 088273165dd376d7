"""What the method may ask of a model, and all it may ask: one contract for every family of models."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.models.diffusion.levels import NoiseLevels
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.schedule import NoiseLevel


class Conditioning(Protocol):
    """Prompts as a model reads them, one row each."""

    def __len__(self) -> int: ...

    def select(self, rows: Sequence[int]) -> "Conditioning":
        """These rows, in this order; any may be given several times."""


class PromptReader(Protocol):
    """What a model reads of a prompt, for notices; see `ldm.backbones.words`."""

    max_length: int
    is_closed: bool

    def words(self, prompt: str) -> list[str]:
        """The prompt's words, as they are looked up."""

    def unknown_words(self, prompt: str) -> list[str]:
        """Those that are not read."""

    def knows_all(self, prompt: str) -> bool:
        """Whether every word is read."""

    def cut_off(self, prompt: str) -> str:
        """What exceeds the tokens that are read."""


class TunableDecoder(Protocol):
    """A copy of a backbone's decoder, in float32 and of its own, for `ldm.editing.reconstruct`."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""

    @property
    def levels(self) -> int:
        """How many levels of resolution `tail` can have."""

    def __call__(self, z: Tensor) -> Tensor:
        """z (1, c, h, w), scaled -> x (1, 3, H, W), not clamped."""

    def begin(self, z: Tensor, levels: int) -> Tensor:
        """What the finest `levels` begin from."""

    def finish(self, h: Tensor, levels: int) -> Tensor:
        """x from what `begin` gave."""

    def tail(self, levels: int | None) -> nn.Module:
        """The modules of the finest `levels`; None is all of the decoder."""


class Backbone(Protocol):
    """A text-to-image diffusion model, in eval mode.

    Images and latents go in and come out in the caller's precision, float32 as a rule, whatever that of the weights.
    """

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels that it was trained at."""

    @property
    def factor(self) -> int:
        """Pixels a side that one latent position stands for."""

    @property
    def unit(self) -> int:
        """Pixels that heights and widths must be multiples of."""

    @property
    def channels(self) -> int:
        """Of z."""

    @property
    def guidance(self) -> str:
        """How it is guided: "free" by two halves, "embedded", a number that it is told, or "none", if distilled."""

    @property
    def levels(self) -> NoiseLevels:
        """The noise levels that it was trained at."""

    @property
    def tokenize(self) -> Any:
        """What it reads of prompts, a `PromptReader`; None where nothing can be said."""

    @property
    def device(self) -> torch.device:
        """Where it runs; text encoders may be kept elsewhere."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""

    def encode(self, x: Tensor) -> Tensor:
        """x (b, 3, H, W) in [-1, 1] -> z (b, c, h, w): the mean of the posterior, scaled."""

    def encode_exactly(self, x: Tensor) -> Tensor:
        """As `encode`, in float32 whatever the precision of the weights."""

    def decode(self, z: Tensor) -> Tensor:
        """z (b, c, h, w) -> x (b, 3, H, W), about [-1, 1], not clamped."""

    def condition(self, prompts: Sequence[str], size: tuple[int, int], scale: float | None = None) -> Conditioning:
        """Prompts as conditioning, a row each; "" is the empty prompt, a negative prompt is one as any other.

        Args:
            size: (H, W) in pixels of what will be painted.
            scale: of embedded guidance.
        """

    def given(self, x_source: Tensor, mask: Tensor) -> "Backbone":
        """The same, told what an inpainting network wants to know: the picture (1 or b, 3, H, W) in [-1, 1], and its
        mask (1 or b, 1, H, W). Itself where the network wants nothing."""

    def compile_denoiser(self, mode: str = "regions", backend: str = "inductor") -> None:
        """Compile the denoiser in place; see `LatentDiffusion.compile_denoiser`."""

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: Any) -> Prediction:
        """What the network says of z (b, c, h, w). Each of the r rows of the conditioning, which `condition` gave,
        serves b / r samples."""

    def tunable_decoder(self) -> TunableDecoder | None:
        """A copy of the decoder to be changed; None where there is no decoder to change."""
