"""Denoisers of a backbone under its prompts; guidance is a wrapper around them."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ldm.backbones.contract import Backbone, Conditioning
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.sampling import Denoiser
from ldm.models.diffusion.schedule import NoiseLevel

Observer = Callable[[NoiseLevel, Tensor], None]
"""`(level, difference)`: sees by how much the prompt changes the estimate of z_0 (b, c, h, w) at a noise level."""


def plain_denoiser(backbone: Backbone, conditioning: Conditioning) -> Denoiser:
    """The backbone under prompts: one that every sample of a batch shares, or one for each."""

    def denoise(z: Tensor, level: NoiseLevel) -> Prediction:
        return backbone.predict(z, level, conditioning)

    return denoise


def guided_denoiser(
    backbone: Backbone,
    conditioning: Conditioning,
    prompted: Sequence[int],
    unprompted: Sequence[int],
    scale: float,
    interval: tuple[float, float] | None = None,
    observe: Observer | None = None,
) -> Denoiser:
    """Classifier-free guidance: out_empty + scale * (out_prompt - out_empty) (Ho & Salimans 2021, eq. 6).

    Both halves go through the network as one batch. At scale 1 the empty prompt is not computed.

    Args:
        prompted, unprompted: the rows of the conditioning that say what to paint, and what to move away from: the empty
            prompt, or a negative one. One each for all samples, or as many as samples; one row stands for all.
        interval: (low, high), the noise levels at which to guide, both included, in parts of the model's timesteps:
            0 is the cleanest, 1 the noisiest (Kynkaanniemi et al. 2024). Outside it the prompt's half runs alone, at
            half the cost. None guides everywhere.
        observe: called wherever both halves run, so not outside the interval, and never at scale 1.
    """
    plain = plain_denoiser(backbone, conditioning.select(prompted))
    if scale == 1.0:
        return plain
    rows = max(len(prompted), len(unprompted))
    each = [list(own) * (rows if len(own) == 1 else 1) for own in (unprompted, prompted)]
    both = conditioning.select([*each[0], *each[1]])

    def guided(z: Tensor, level: NoiseLevel) -> Prediction:
        made_empty, made = backbone.predict(z.repeat(2, 1, 1, 1), level, both).halves()
        if observe is not None:
            observe(level, made.z0 - made_empty.z0)
        return made_empty.guided(made, scale)

    if interval is None:
        return guided
    low, high = interval

    def denoise(z: Tensor, level: NoiseLevel) -> Prediction:
        return (guided if low <= backbone.levels.position(level) <= high else plain)(z, level)

    return denoise
