"""Training of the first stage."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.training.base import TrainingModule
from ldm.training.begin import begin_from
from ldm.training.features import FeatureLoss
from ldm.training.losses import PatchDiscriminator, TextureLoss, adaptive_weight, hinge_loss, reconstruction_loss
from ldm.util import instantiate_from_config


def psnr(x: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], a mean over the batch."""
    mse = (x.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    return (10 * torch.log10(4 / mse)).mean()


class AutoencoderTrainer(TrainingModule):
    """Trains an `AutoencoderKL` (under `first_stage_model`) to reproduce its images.

    From the step `discriminator_start` on, a `PatchDiscriminator` (under `discriminator`) is trained along, and the
    autoencoder to fool it (Esser et al. 2021). Both take one step from the same batch, by one optimiser with a
    group of parameters each: so Lightning's loop counts steps, clips, scales and resumes as in any other training.

    Args:
        model: the autoencoder's config.
        learning_rate, warmup: of AdamW with a cosine decay to the trainer's `max_steps`.
        kl_weight: weight of the KL divergence a latent value, in nats.
        gradient_weight, pyramid_weight: see `reconstruction_loss`.
        texture_weight: of `TextureLoss`. perceptual_weight: of `FeatureLoss`, which needs a package that the extra
            `train` has.
        begin: a file of weights to begin with, that of a shipped model or a checkpoint of this training.
        train_encoder: false trains the decoder alone: latents stay what they are, and denoisers of them valid.
        discriminator_start: None is without. After 0, several processes need the strategy
            `ddp_find_unused_parameters_true`, since the discriminator waits for its step.
        discriminator_weight: strength of the adversarial gradient, relative to the other losses' (`adaptive_weight`).
        discriminator: arguments of `PatchDiscriminator`.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        learning_rate: float = 1e-3,
        warmup: int = 100,
        kl_weight: float = 3e-4,
        gradient_weight: float = 0.5,
        pyramid_weight: float = 0.5,
        texture_weight: float = 0.0,
        perceptual_weight: float = 0.0,
        begin: str | None = None,
        train_encoder: bool = True,
        discriminator_start: int | None = None,
        discriminator_weight: float = 0.5,
        discriminator: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.first_stage_model = instantiate_from_config(model).to(memory_format=torch.channels_last)
        if not train_encoder:
            self.first_stage_model.encoder.requires_grad_(False)
            self.first_stage_model.quant_conv.requires_grad_(False)
        self.texture = TextureLoss()
        # In a list: it is no submodule, for it is neither trained nor saved.
        self.perceptual = [FeatureLoss()] if perceptual_weight else []
        self.discriminator: PatchDiscriminator | None = None
        if discriminator_start is not None:
            self.discriminator = PatchDiscriminator(**(discriminator or {})).to(memory_format=torch.channels_last)

    def begin_with_model(self, path: str) -> None:
        """See `begin_from`."""
        begin_from(self.first_stage_model, path, "first_stage_model.")

    def on_fit_start(self) -> None:
        """Also put the classifier of the perceptual loss where the pictures are."""
        super().on_fit_start()
        for features in self.perceptual:
            features.to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError where the checkpoint has a discriminator and this training none, or the other way round."""
        has = any(key.startswith("discriminator.") for key in checkpoint["state_dict"])
        if has != (self.discriminator is not None):
            raise UserError(
                f"the checkpoint was trained {'with' if has else 'without'} a discriminator: keep "
                "discriminator_start as it was, or begin a run of its own from its weights (module.params.begin=FILE)"
            )

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """The loss of both networks on a batch of {"image": (b, 3, h, w) in [-1, 1]}."""
        h = self.hparams
        x = batch["image"].contiguous(memory_format=torch.channels_last)
        recon, posterior = self.first_stage_model(x)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(recon, x, h.gradient_weight, h.pyramid_weight)
        if h.texture_weight:
            loss = loss + h.texture_weight * self.texture(recon, x)
        for features in self.perceptual:
            difference = features(recon, x, self.generator)
            self.log("train/perceptual", difference.detach())
            loss = loss + h.perceptual_weight * difference
        self.log("train/psnr", psnr(recon.detach(), x), prog_bar=True)
        self.log("train/kl", kl)
        if self.discriminator is not None and self.global_step >= h.discriminator_start:
            loss = loss + self._adversarial(self.discriminator, recon, x, loss)
        return loss + h.kl_weight * kl

    def _adversarial(self, discriminator: nn.Module, recon: Tensor, x: Tensor, loss: Tensor) -> Tensor:
        """The autoencoder's adversarial loss, weighted against `loss`, and the discriminator's own."""
        # The one reaches the autoencoder alone, through a discriminator that is held still ...
        still = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        adversarial = -torch.func.functional_call(discriminator, still, recon).mean()
        last_layer = self.first_stage_model.decoder.conv_out.weight
        weight = self.hparams.discriminator_weight * adaptive_weight(loss, adversarial, last_layer)
        # ... and the other the discriminator alone.
        real, fake = discriminator(torch.cat([x, recon.detach()])).chunk(2)
        discrimination = hinge_loss(real, fake)
        self.log("train/adversarial", adversarial.detach())
        self.log("train/discrimination", discrimination.detach(), prog_bar=True)  # 1: it cannot tell them apart
        self.log("train/adaptive_weight", weight)
        return weight * adversarial + discrimination

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        """PSNR, loss of texture and spread of the latents' means, of a batch of whole scenes."""
        x = batch["image"]
        posterior = self.first_stage_model.encode(x)
        recon = self.first_stage_model.decode(posterior.mode())
        self.log("val/psnr", psnr(recon, x), prog_bar=True, sync_dist=True)
        self.log("val/texture", self.texture(recon, x), sync_dist=True)
        self.log("val/z_std", posterior.mode().std(), sync_dist=True)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Each network by its own norm: or the one's large gradients would shorten the other's."""
        if gradient_clip_algorithm == "value" or not gradient_clip_val:
            return super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def configure_optimizers(self):
        """One optimiser, a group of parameters for each network."""
        groups = [{"params": [p for p in self.first_stage_model.parameters() if p.requires_grad]}]
        if self.discriminator is not None:
            groups.append({"params": [*self.discriminator.parameters()], "betas": (0.5, 0.9)})
        return self.adamw(groups)
