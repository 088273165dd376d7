"""Denoisers of a model under its prompts; guidance is a wrapper around them."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sampling import Denoiser, to_device

Observer = Callable[[Tensor, Tensor], None]
"""`(t, eps_context - eps_empty)`: sees by how much the prompt changes the noise (b, c, h, w) at timestep t (b,)."""


def model_denoiser(model: LatentDiffusion, context: Tensor) -> Denoiser:
    """The model under a context: (1, m, d), which every sample of a batch shares, or (b, m, d), one for each."""
    prepared = model.prepare_context(context)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return model.predict_eps(z, to_device(t, z.device), prepared)

    return denoise


def guided_denoiser(
    model: LatentDiffusion,
    context: Tensor,
    empty: Tensor,
    scale: float,
    interval: tuple[float, float] | None = None,
    observe: Observer | None = None,
) -> Denoiser:
    """Classifier-free guidance: eps_empty + scale * (eps_context - eps_empty) (Ho & Salimans 2021, eq. 6).

    Both halves go through the network as one batch. At scale 1 the empty prompt is not computed.

    Args:
        context, empty: (1, m, d), of the prompt and of the empty prompt; or (b, m, d), one for each sample.
        interval: (low, high), the noise levels at which to guide, both included, in parts of the model's timesteps:
            0 is the cleanest, 1 the noisiest (Kynkaanniemi et al. 2024). Outside it the prompt's half runs alone, at
            half the cost. None guides everywhere.
        observe: called wherever both halves run, so not outside the interval, and never at scale 1.
    """
    if scale == 1.0:
        return model_denoiser(model, context)
    rows = max(len(context), len(empty))
    both = model.prepare_context(torch.cat([empty.expand(rows, -1, -1), context.expand(rows, -1, -1)]))

    def guided(z: Tensor, t: Tensor) -> Tensor:
        twice = to_device(t, z.device).repeat(2)
        eps_empty, eps_context = model.predict_eps(z.repeat(2, 1, 1, 1), twice, both).chunk(2)
        difference = eps_context - eps_empty
        if observe is not None:
            observe(t, difference)
        return eps_empty + scale * difference

    if interval is None:
        return guided
    plain = model_denoiser(model, context)
    low, high = (part * (len(model.alphas_cumprod) - 1) for part in interval)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return (guided if low <= t[0].item() <= high else plain)(z, t)

    return denoise
