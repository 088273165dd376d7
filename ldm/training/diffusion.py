"""Training of the denoiser and its text encoder on cached latents."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.errors import UserError
from ldm.training.base import TrainingModule, drawing_on
from ldm.training.begin import begin_with, read_trained, same_encoder
from ldm.training.folded import FOLDED_BY, begin_folded, take_words
from ldm.training.reward import Reward
from ldm.util import instantiate_from_config

logger = logging.getLogger(__name__)


class DiffusionTrainer(TrainingModule):
    """Trains a `LatentDiffusion` (under `ldm`) to predict v or eps at a random timestep.

    The batch comes from `LatentScenes`: latents already scaled, token ids, and how much of each latent position an
    object covers.

    Args:
        model: the config of the `LatentDiffusion`.
        learning_rate, warmup: of AdamW with a cosine decay to the trainer's `max_steps`.
        empty_prompt: how often the prompt is left out, for classifier-free guidance (Ho & Salimans 2021).
        log_snr: mean and standard deviation of lambda = log(a_t / s_t) that timesteps are drawn by (Karras et al. 2022,
            table 1; Esser et al. 2024, section 3.1). None draws timesteps evenly.
        background_weight: the loss's weight where no object is; with an object it is 1 more. Objects are what the
            prompt speaks of, and they are the smaller part of the picture.
        begin: the model to begin with: its folder, its weights beside their config, or a checkpoint of this training.
            The latents keep the scale that it has for them. The first stage is the data's, with the same encoder.
        folded: instead, a model of another first stage, by its name or folder, whose latents lie where patches of these
            lie: its denoiser and its text encoder are the beginning, see `ldm.training.folded`.
        editing: what editing takes for the model, such as {"context": 0.1}; exported with it.
        reward: the parameters of a `Reward` for what the prompt says, to be trained beside; None is without.
        seed: of timesteps, noise and left-out prompts, together with the process and the step that it starts from.
    """

    empty_tokens: Tensor

    def __init__(
        self,
        model: Mapping[str, Any],
        learning_rate: float = 5e-4,
        warmup: int = 200,
        empty_prompt: float = 0.1,
        log_snr: Sequence[float] | None = None,
        background_weight: float = 0.35,
        begin: str | None = None,
        folded: str | None = None,
        editing: Mapping[str, Any] | None = None,
        reward: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.ldm = instantiate_from_config(model)
        self.ldm.first_stage_model.requires_grad_(False)
        self.reward = Reward(**reward) if reward else None  # no submodule: it is not trained, averaged or saved
        self.register_buffer("empty_tokens", self.ldm.cond_stage_model.tokenize([""]), persistent=False)

    def begin_with_model(self, path: str) -> None:
        """See `read_trained` and `begin_with`."""
        model = read_trained(path)
        begin_with(self.ldm, model.weights, path)
        self.ldm.scale_factor = model.scale_factor

    def on_fit_start(self) -> None:
        """Agree with the data on the first stage and on the scale of its latents.

        Raises:
            UserError: the model to begin with, or the checkpoint, has another encoder than the data's latents.
        """
        super().on_fit_start()
        if self.device.type == "cuda":  # on a CPU the group norm is slow in this layout
            self.ldm.to(memory_format=torch.channels_last)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.resumed or self.hparams.begin:
            if not same_encoder(self.ldm.first_stage_model.state_dict(), data.first_stage_state):
                known = self.trainer.ckpt_path or self.hparams.begin
                raise UserError(
                    f"the latents are of another encoder than that of {known}, whose denoiser knows no others: set "
                    "data.params.first_stage to the first stage that it was trained with"
                )
            data.scale_by(self.ldm.scale_factor)
        self.ldm.first_stage_model.load_state_dict(data.first_stage_state)
        self.ldm.scale_factor = data.scale_factor
        if self.hparams.get("folded") and not self.resumed:
            self._fold(self.hparams.folded)

    def _fold(self, path: str) -> None:
        x, z = cast(Any, self.trainer).datamodule.pictures(FOLDED_BY)
        latent = begin_folded(self.ldm.model.diffusion_model, path, x, z)
        words = take_words(self.ldm.cond_stage_model, latent.cond_stage_model)
        logger.warning("%d words are those of %s", words, path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the scale of the latents, which is no weight."""
        checkpoint["scale_factor"] = self.ldm.scale_factor

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the scale of the latents as it was kept."""
        self.ldm.scale_factor = checkpoint["scale_factor"]

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) of the model's timesteps, drawn where the generator draws; see `log_snr`."""
        device = generator.device
        signal, spread = self.ldm.sqrt_alphas_cumprod.to(device), self.ldm.sqrt_one_minus_alphas_cumprod.to(device)
        if self.hparams.log_snr is None:
            return torch.randint(len(signal), (count,), generator=generator, device=device)
        mean, std = self.hparams.log_snr
        wanted = mean + std * torch.randn(count, generator=generator, device=device)
        return torch.searchsorted(-(signal / spread).log(), -wanted).clamp(max=len(signal) - 1)

    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """The weighted squared error (b,) of one random timestep a sample."""
        z, tokens = batch["z"].float(), batch["tokens"].long()
        generator = drawing_on(z.device, generator)
        t = self.timesteps(len(z), generator)
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        out = self.ldm.apply_model(self.ldm.q_sample(z, t, noise), t, self.ldm.cond_stage_model.transformer(tokens))
        target = noise
        if self.ldm.parameterization == "v":
            signal = self.ldm.sqrt_alphas_cumprod[t].view(-1, 1, 1, 1)
            spread = self.ldm.sqrt_one_minus_alphas_cumprod[t].view(-1, 1, 1, 1)
            target = signal * noise - spread * z
        # One position more on each side, so that the object's edge is learned with it.
        coverage = torch.nn.functional.max_pool2d(batch["coverage"].float(), 3, stride=1, padding=1)
        weight = self.hparams.background_weight + coverage
        return (weight * (out - target).square()).mean(dim=(1, 2, 3))

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """The denoising loss of a batch, some of its prompts left out; every so often with the reward's beside it."""
        generator = drawing_on(self.device, self.generator)
        drop = torch.rand(len(batch["z"]), 1, generator=generator, device=self.device) < self.hparams.empty_prompt
        tokens = torch.where(drop, self.empty_tokens.to(batch["tokens"]), batch["tokens"])
        # In bfloat16 the backward pass of the CPU's fused attention costs a quarter of the whole step.
        with sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext():
            loss = self.loss({**batch, "tokens": tokens}, self.generator).mean()
            self.log("train/loss", loss, prog_bar=True)
            if self.reward and self.global_step % self.reward.every == 0:
                misread = self.reward.loss(self.ldm, batch, self.generator)
                self.log("train/misread", misread, prog_bar=True)
                loss = loss + self.reward.weight * misread
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Also with the captions rotated by one sample: the gap between both tells how closely the text is followed.

        Where the batch has captions that say another material ("missaid") beside those that say all ("said"), also by
        what part of itself they raise the loss: how well the model knows how each material looks.
        """
        for name, tokens in (("val/loss", batch["tokens"]), ("val/loss_shuffled", batch["tokens"].roll(1, 0))):
            generator = torch.Generator().manual_seed(index)
            self.log(name, self.loss({**batch, "tokens": tokens}, generator).mean(), prog_bar=True, sync_dist=True)
        if "missaid" not in batch:
            return
        rows = (batch["said"] != batch["missaid"]).any(dim=1)
        if rows.any():
            picked = {name: column[rows] for name, column in batch.items()}
            said, missaid = (
                self.loss({**picked, "tokens": picked[name]}, torch.Generator().manual_seed(index)).mean()
                for name in ("said", "missaid")
            )
            self.log("val/material_sensitivity", missaid / said - 1, prog_bar=True, sync_dist=True)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Lightning refuses to clip for a fused optimiser in mixed precision; bfloat16's gradients are not scaled."""
        if self.trainer.precision != "bf16-mixed" or gradient_clip_algorithm == "value" or not gradient_clip_val:
            return super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self):
        """AdamW of the denoiser and the text encoder."""
        trained = [*self.ldm.model.parameters(), *self.ldm.cond_stage_model.parameters()]
        return self.adamw(trained)
