"""Training of the first stage."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.training.optim import adamw_with_cosine, begin_from
from ldm.util import instantiate_from_config


def gradient_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical differences of two images (b, c, h, w)."""
    d = a - b
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


def reconstruction_loss(x: Tensor, target: Tensor, gradient_weight: float, pyramid_weight: float) -> Tensor:
    """L1 at full size, of gradients, and at half and quarter size: edges stay sharp and large areas keep their tone.

    A perceptual term that needs no download.
    """
    loss = F.l1_loss(x, target) + gradient_weight * gradient_difference(x, target)
    for size in (2, 4):
        loss = loss + pyramid_weight * F.l1_loss(F.avg_pool2d(x, size), F.avg_pool2d(target, size))
    return loss


def psnr(x: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], a mean over the batch."""
    mse = (x.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    return (10 * torch.log10(4 / mse)).mean()


class AutoencoderTrainer(pl.LightningModule):
    """Trains an `AutoencoderKL` (under `first_stage_model`) to reproduce its images.

    Args:
        model: the autoencoder's config.
        learning_rate, warmup: of AdamW with a cosine decay to the trainer's `max_steps`.
        kl_weight: weight of the KL divergence a latent value, in nats.
        gradient_weight, pyramid_weight: see `reconstruction_loss`.
        begin: a file of weights to begin with, that of a shipped model.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        learning_rate: float = 1e-3,
        warmup: int = 100,
        kl_weight: float = 3e-4,
        gradient_weight: float = 0.5,
        pyramid_weight: float = 0.5,
        begin: str | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.first_stage_model = instantiate_from_config(model).to(memory_format=torch.channels_last)

    def on_fit_start(self) -> None:
        if self.hparams.begin and self.global_step == 0:
            begin_from(self.first_stage_model, self.hparams.begin, "first_stage_model.")

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        x = batch["image"].contiguous(memory_format=torch.channels_last)
        recon, posterior = self.first_stage_model(x)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(recon, x, self.hparams.gradient_weight, self.hparams.pyramid_weight)
        self.log("train/psnr", psnr(recon.detach(), x), prog_bar=True)
        self.log("train/kl", kl)
        return loss + self.hparams.kl_weight * kl

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        x = batch["image"]
        posterior = self.first_stage_model.encode(x)
        self.log("val/psnr", psnr(self.first_stage_model.decode(posterior.mode()), x), prog_bar=True)
        self.log("val/z_std", posterior.mode().std())

    def configure_optimizers(self):
        h = self.hparams
        return adamw_with_cosine(self.first_stage_model.parameters(), h.learning_rate, h.warmup, self.trainer.max_steps)
