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
    def device(self) -> torch.device: ...

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

    Attributes:
        native_size: (H, W) in pixels that the model was trained at.
        factor: pixels a side that one latent position stands for.
        unit: pixels that heights and widths must be multiples of.
        channels: of z.
        guidance: "free", classifier-free by two halves; "embedded", a number that the network is told (distilled); or
            "none", of a model that was distilled for one scale.
        levels: the noise levels that it was trained at.
        tokenize: what it reads of prompts; None where nothing can be said.
    """

    @property
    def native_size(self) -> tuple[int, int]: ...

    @property
    def factor(self) -> int: ...

    @property
    def unit(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def guidance(self) -> str: ...

    @property
    def levels(self) -> NoiseLevels: ...

    @property
    def tokenize(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

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

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: Any) -> Prediction:
        """What the network says of z (b, c, h, w). Each of the r rows of the conditioning, which `condition` gave,
        serves b / r samples."""

    def tunable_decoder(self) -> TunableDecoder | None:
        """A copy of the decoder to be changed; None where there is no decoder to change."""
