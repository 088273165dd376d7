"""Pictures as a training goes: callbacks that draw a grid of the same images, or of the same prompts, now and then."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid

from ldm.backbones.guidance import guided_denoiser
from ldm.files import atomic_file
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sampling import NoiseSource, sample


class ImageGrid(pl.Callback):
    """Draws a grid every `every` steps, at the validation that comes then or next.

    In a validation the module is in eval mode, without gradients, and has the averaged weights where a
    `WeightAveraging` callback swaps them in. The grid is `grids/<step>.png` in the run's folder, and the image `grid`
    in TensorBoard where that is logged. One process draws, and nothing is drawn from the global generator, so that
    the training is what it would be without.
    """

    def __init__(self, every: int = 1000, columns: int = 8):
        self.every, self.columns = every, columns
        self.due = every

    def images(self, trainer: pl.Trainer, module: pl.LightningModule) -> Tensor:
        """What to draw: x (n, 3, h, w) in [-1, 1], row after row."""
        raise NotImplementedError

    def on_validation_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        """Draw the grid, once it is due."""
        step = trainer.global_step
        if step < self.due or trainer.sanity_checking or not trainer.is_global_zero:
            return
        self.due = (step // self.every + 1) * self.every
        grid = make_grid(self.images(trainer, module).float().cpu(), self.columns, value_range=(-1, 1), normalize=True)
        pixels = (grid * 255).round().to(torch.uint8)  # (3, H, W)
        path = Path(trainer.default_root_dir) / "grids" / f"{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("grid", pixels, step)


class ReconstructionGrid(ImageGrid):
    """The first `count` images of the validation set, and below each what `first_stage_model` makes of it."""

    def __init__(self, count: int = 16, every: int = 1000):
        super().__init__(every, columns=min(count, 8))
        self.count = count

    def images(self, trainer: pl.Trainer, module: pl.LightningModule) -> Tensor:
        """A row of scenes, a row of their reconstructions, and so on."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        data, first_stage = datamodule.val_dataloader().dataset, cast(AutoencoderKL, module.first_stage_model)
        x = torch.stack([data[i]["image"] for i in range(min(self.count, len(data)))]).to(module.device)
        recon = first_stage.decode(first_stage.encode(x).mode())
        rows = zip(x.split(self.columns), recon.split(self.columns), strict=True)
        return torch.cat([row for pair in rows for row in pair])


class SampleGrid(ImageGrid):
    """What `ldm` paints for prompts by DDIM, always from the same noise: prompt i has the seed `seed` + i.

    Args:
        prompts: one picture each. steps, scale: of DDIM and of its guidance.
    """

    def __init__(self, prompts: Sequence[str], every: int = 1000, steps: int = 20, scale: float = 4.0, seed: int = 0):
        super().__init__(every, columns=min(len(prompts), 4))
        self.prompts, self.steps, self.scale, self.seed = list(prompts), steps, scale, seed

    def images(self, trainer: pl.Trainer, module: pl.LightningModule) -> Tensor:
        """One picture a prompt."""
        model = cast(LatentDiffusion, module.ldm)
        conditioning = model.condition([*self.prompts, ""])
        n = len(self.prompts)
        denoiser = guided_denoiser(model, conditioning, range(n), [n], self.scale)
        noise = NoiseSource(range(self.seed, self.seed + len(self.prompts)))
        z = noise.draw((model.channels, model.image_size, model.image_size), conditioning.contexts)
        schedule = model.levels.schedule(self.steps)
        return model.decode(sample(denoiser, schedule, z, noise))
