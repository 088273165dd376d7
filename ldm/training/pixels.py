"""Training of a diffusion model in pixel space: `PixelDiffusion` on pictures of scenes."""

from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.epochs import seeded
from ldm.data.shards import SceneShards
from ldm.models.diffusion.pixel import PixelDiffusion
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.sampling import NoiseSource, sample
from ldm.models.diffusion.schedule import NoiseLevel
from ldm.training.base import EpochData, TrainingModule
from ldm.training.folded import FOLDED_BY, begin_folded
from ldm.training.grids import ImageGrid
from ldm.util import instantiate_from_config

MOST = 10.0
"""The largest weight of an error of z_0, which is 1 / s^2 above: that of an error of v."""


class SmallScenes(Dataset):
    """Whole scenes at `size` pixels a side, by the mean over squares, mirrored half of the time.

    They lie in memory at that size, in 8 bits (at 64 pixels 12 KB each): the files are read through once.

    A batch of (epoch, index) depends on these and on `seed` alone, whichever process reads it. seed None mirrors none.
    """

    def __init__(self, shards: SceneShards, size: int, seed: int | None = 0):
        self.shards, self.size, self.seed = shards, size, seed
        self.small = torch.empty(len(shards), 3, size, size, dtype=torch.uint8)
        for start in range(0, len(shards), 256):
            rows = range(start, min(start + 256, len(shards)))
            x = F.adaptive_avg_pool2d(shards.stack(rows), size)
            self.small[rows.start : rows.stop] = ((x + 1) * 127.5).round().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitems__(self, places: list[tuple[int, int]]) -> dict[str, Tensor]:
        """x (b, 3, size, size) in [-1, 1] and, at the size of x, how much objects cover (b, 1, size, size)."""
        rows = [index for _, index in places]
        x = self.small[rows].float() / 127.5 - 1
        coverage = torch.stack([torch.from_numpy(self.shards.coverage(row).astype("float32")) for row in rows])[:, None]
        coverage = F.interpolate(coverage, size=(self.size, self.size), mode="bilinear")
        if self.seed is not None:
            draws = [torch.rand(1, generator=seeded(self.seed, epoch, index)).item() for epoch, index in places]
            mirrored = torch.tensor(draws)[:, None, None, None] < 0.5
            x, coverage = (torch.where(mirrored, one.flip(-1), one) for one in (x, coverage))
        return {"x": x, "coverage": coverage}


class ScenePixels(EpochData):
    """Small pictures of rendered scenes.

    Args:
        train, val: folders of shards (`scripts/make_scenes.py`).
        size: side of the pictures in pixels.
        seed: of mirroring and order, together with the epoch.
    """

    def __init__(self, train: str, val: str, size: int, batch_size: int, workers: int = 0, seed: int = 0):
        super().__init__()
        self.save_hyperparameters()

    def pictures(self, count: int) -> Tensor:
        """The first scenes of training (count, 3, H, W) in [-1, 1], at the size that they have on disk."""
        shards = SceneShards(self.hparams.train)
        return shards.stack(range(min(count, len(shards))))

    def train_dataloader(self) -> DataLoader:
        """Batches of `SmallScenes`, mirrored and ordered anew in every epoch."""
        h = self.hparams
        scenes = SmallScenes(SceneShards(h.train), h.size, h.seed)
        return DataLoader(
            scenes,
            h.batch_size,
            sampler=self.sampler(len(scenes)),
            drop_last=True,
            num_workers=h.workers,
            collate_fn=lambda batch: batch,
        )

    def val_dataloader(self) -> DataLoader:
        """Batches of `SmallScenes` in their order."""
        h = self.hparams
        scenes = SmallScenes(SceneShards(h.val), h.size, None)
        places = [(0, index) for index in range(len(scenes))]
        return DataLoader(scenes, h.batch_size, sampler=places, drop_last=True, collate_fn=lambda batch: batch)


class PixelTrainer(TrainingModule):
    """Trains a `PixelDiffusion` (under `pixels`) to predict eps, v or z_0 at a random timestep.

    Args:
        model: the config of the `PixelDiffusion`, without learned variances.
        learning_rate, warmup: of AdamW with a cosine decay to the trainer's `max_steps`.
        background_weight: the loss's weight where no object is; with an object it is 1 more.
        begin: a checkpoint of this training to begin with, also of another parameterization: its last layer is then
            left out.
        folded: instead, a latent model, by its name or folder, whose latents lie where the patches of pixels lie: its
            denoiser is the beginning, see `ldm.training.folded`.
        seed: of timesteps and noise, together with the process and the step that it starts from.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        learning_rate: float = 1e-3,
        warmup: int = 200,
        background_weight: float = 0.5,
        begin: str | None = None,
        folded: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.pixels: PixelDiffusion = instantiate_from_config(model)
        if self.pixels.learn_sigma or self.pixels.num_classes is not None:
            raise ValueError("PixelTrainer trains neither learned variances nor classes")

    def on_fit_start(self) -> None:
        """Begin where a latent model stands, unless this is a resumed run."""
        super().on_fit_start()
        if self.hparams.get("folded") and not self.resumed:
            x = cast(Any, self.trainer).datamodule.pictures(FOLDED_BY)
            small = F.interpolate(x, self.pixels.native_size, mode="area")
            begin_folded(self.pixels.diffusion_model, self.hparams.folded, x, small)

    def begin_with_model(self, path: str) -> None:
        """Take the latest weights, not the averaged ones: of a short training the average is behind."""
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = checkpoint.get("current_model_state", checkpoint["state_dict"])
        weights = {key.removeprefix("module.").removeprefix("pixels."): value for key, value in state.items()}
        other = checkpoint["hyper_parameters"]["model"]["params"].get("parameterization", "eps")
        left_out = "out.2." if other != self.pixels.parameterization else "-"
        own = {key: value for key, value in self.pixels.state_dict().items() if key.startswith(left_out)}
        kept = {key: value for key, value in weights.items() if not key.startswith(left_out)}
        self.pixels.load_state_dict(kept | own, strict=True)

    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """The weighted squared error (b,) of one random timestep a sample."""
        x = batch["x"]
        alphas = self.pixels.alphas_cumprod
        t = torch.randint(len(alphas), (len(x),), generator=generator)
        noise = torch.randn(x.shape, generator=generator).to(x)
        alpha = alphas[t].view(-1, 1, 1, 1).to(x)
        a, s = alpha.sqrt(), (1 - alpha).sqrt()
        target = {"eps": noise, "v": a * noise - s * x, "z0": x}[self.pixels.parameterization]
        weight = self.hparams.background_weight + batch["coverage"]
        if self.pixels.parameterization == "z0":
            weight = weight * (1 / s.square()).clamp(max=MOST)
        return (weight * (self.pixels.apply_model(a * x + s * noise, t.to(x.device)) - target).square()).mean(
            dim=(1, 2, 3)
        )

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """The denoising loss of a batch."""
        loss = self.loss(batch, self.generator).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """The same, always of the same timesteps and noise."""
        loss = self.loss(batch, torch.Generator().manual_seed(index)).mean()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True)

    def on_before_optimizer_step(self, optimizer) -> None:
        """Clip the gradient; Lightning's own clipping refuses a fused optimiser in mixed precision."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def configure_optimizers(self):
        """AdamW of the network."""
        return self.adamw(self.pixels.parameters())


class PixelGrid(ImageGrid):
    """What `pixels` paints by DDIM, always from the same noise: picture i has the seed `seed` + i."""

    def __init__(self, count: int = 16, every: int = 1000, steps: int = 25, seed: int = 0):
        super().__init__(every, columns=min(count, 8))
        self.count, self.steps, self.seed = count, steps, seed

    def images(self, trainer: pl.Trainer, module: pl.LightningModule) -> Tensor:
        """One picture a seed."""
        model = cast(PixelDiffusion, module.pixels)
        noise = NoiseSource(range(self.seed, self.seed + self.count))
        x = noise.draw((model.channels, model.image_size, model.image_size), torch.empty(0, device=model.device))

        def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
            return model.predict(x, level, model.condition([""]))

        return sample(denoise, model.levels.schedule(self.steps), x, noise)
