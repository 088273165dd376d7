"""`PixelDiffusion`: a denoiser of pictures themselves and its noise schedule (Ho et al. 2020; Dhariwal & Nichol 2021).

The keys of its weights are those of its network alone, as the public checkpoints have them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.diffusion.levels import make_beta_schedule, shift_log_snr
from ldm.models.diffusion.respacing import AncestralPrediction, RespacedLevels
from ldm.models.diffusion.sampling import NoiseSource
from ldm.models.diffusion.schedule import NoiseLevel
from ldm.util import instantiate_from_config

PARAMETERIZATIONS = ("eps", "v", "z0")


class Pictures:
    """A backbone (`ldm.backbones.contract`) whose latents are the pictures; by itself it predicts nothing."""

    guidance = "none"
    factor = 1
    channels = 3
    tokenize = None
    levels: Any = None

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return 256, 256

    @property
    def unit(self) -> int:
        """Pixels that heights and widths must be multiples of."""
        return 1

    @property
    def dtype(self) -> torch.dtype:
        """The precision of what it computes."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    def encode(self, x: Tensor) -> Tensor:
        """The picture itself."""
        return x

    def encode_exactly(self, x: Tensor) -> Tensor:
        """The picture itself."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """The picture itself."""
        return z

    def condition(self, prompts: Sequence[str], size: tuple[int, int] | None = None, scale: float | None = None) -> Any:
        """Nothing is read."""
        return Classes(len(prompts))

    def given(self, x_source: Tensor, mask: Tensor) -> Any:
        """Itself."""
        return self

    def compile_denoiser(self, mode: str = "regions", backend: str = "inductor") -> None:
        """Compile the denoiser in place: there is none."""

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: Any) -> Any:
        """What the network says of z: there is none."""
        raise NotImplementedError(f"{type(self).__name__} does not denoise")

    def tunable_decoder(self) -> None:
        """There is none."""


class PixelDiffusion(Pictures, nn.Module):
    """An unconditional or class-conditional diffusion model of pictures x (b, 3, H, W) in [-1, 1].

    It is a backbone (`ldm.backbones.contract`) that reads no prompts: CLIP guides it, see
    `ldm.models.diffusion.loss_guidance`.

    Pictures go in and come out in the caller's precision, whatever that of the weights.

    Args:
        unet_config: what to build, as `{target, params}`.
        timesteps, beta_schedule, linear_start, linear_end: the forward process, see `make_beta_schedule`.
        log_snr_shift: see `shift_log_snr`.
        image_size, channels: nominal size and channels of x.
        parameterization: what the network predicts: `eps`; `v` (Salimans & Ho 2022); or the picture itself, `z0`, which
            a network of large patches can where it could not predict noise (Li & He 2025).
        learn_sigma: whether as many channels again say where the variance of each value lies between the posterior's
            and beta's (Nichol & Dhariwal 2021, equation 15).
        num_classes: of a class-conditional network; None is without.

    Attributes:
        alphas_cumprod: (T,) in float64, on the CPU.

    Raises:
        ValueError: a value that this class does not support.
    """

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        timesteps: int = 1000,
        beta_schedule: str = "sqrt_linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        log_snr_shift: float = 0.0,
        image_size: int = 256,
        channels: int = 3,
        parameterization: str = "eps",
        learn_sigma: bool = False,
        num_classes: int | None = None,
    ):
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(f"parameterization {parameterization!r} is unknown: one of {PARAMETERIZATIONS}")
        self.parameterization, self.learn_sigma, self.num_classes = parameterization, learn_sigma, num_classes
        self.image_size, self.channels = image_size, channels
        self.diffusion_model = instantiate_from_config(unet_config)
        self.register_state_dict_post_hook(_bare_keys)
        self.register_load_state_dict_pre_hook(_prefixed_keys)
        # Neither weights nor buffers, whose precision the weights' would round: numbers on the host, in float64.
        with torch.device("cpu"):
            betas = shift_log_snr(make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end), log_snr_shift)
            self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.diffusion_model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return next(self.diffusion_model.parameters()).device

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image_size, self.image_size

    @property
    def unit(self) -> int:
        """Pixels that heights and widths must be multiples of."""
        return self.diffusion_model.factor

    @property
    def levels(self) -> RespacedLevels:
        """The noise levels that it was trained at."""
        return RespacedLevels(self.alphas_cumprod)

    def condition(
        self, prompts: Sequence[str], size: tuple[int, int] | None = None, scale: float | None = None
    ) -> "Classes":
        """Rows without a prompt; a class-conditional network is told another class at each timestep.

        Raises:
            UserError: a prompt, which this network cannot read.
        """
        if any(prompts):
            raise UserError("this model of pixels reads no prompt, CLIP guides it: use scripts/blended_diffusion.py")
        return Classes(len(prompts))

    def predict(self, z: Tensor, level: NoiseLevel, conditioning: "Classes") -> AncestralPrediction:
        """What the network says of z (b, 3, H, W)."""
        t = torch.full((len(z),), float(level.t), device=z.device)
        y = None if self.num_classes is None else conditioning.draw(self.num_classes, len(z), level).to(z.device)
        out = self.apply_model(z, t, y)
        if not self.learn_sigma:
            return AncestralPrediction(z, level, out, self.parameterization)
        out, learned = out.chunk(2, dim=1)
        return AncestralPrediction(z, level, out, self.parameterization, fraction=(learned + 1) / 2)

    def apply_model(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's own output at x_t, t (b,), of classes y (b,): (b, 3 or 6, H, W)."""
        # A picture from a file has its channels last, in which group norms of bfloat16 take twenty times as long.
        return self.diffusion_model(x.to(self.dtype).contiguous(), t, y=y).to(x.dtype)


@dataclass(frozen=True)
class Classes:
    """What a network of classes is told: a random one at each step, as the released program has it.

    noise: draws it, for each sample by its own generator; None draws one for all, always the same at a timestep.
    """

    rows: int
    noise: NoiseSource | None = None

    def __len__(self) -> int:
        return self.rows

    def select(self, rows: Sequence[int]) -> "Classes":
        """As many rows."""
        return Classes(len(rows), self.noise)

    def draw(self, classes: int, samples: int, level: NoiseLevel) -> Tensor:
        """The classes (b,) of a step."""
        if self.noise is None:
            drawn = torch.randint(classes, (1,), generator=torch.Generator().manual_seed(round(level.t)))
            return drawn.expand(samples)
        return torch.cat([torch.randint(classes, (1,), generator=one) for one in self.noise.generators])


PREFIX = "diffusion_model."


def _bare_keys(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(prefix + PREFIX)]:
        state[prefix + key.removeprefix(prefix + PREFIX)] = state.pop(key)


def _prefixed_keys(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + PREFIX + key.removeprefix(prefix)] = state.pop(key)
