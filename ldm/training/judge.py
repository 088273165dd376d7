"""Training of the judge that measures `scenes`; never used in training that model or in ranking.

It learns from renders of its own and has to judge what an autoencoder painted, inside a mask that the object need not
fill. So its crops are anything from tight to twice the object's size and off its centre, and most are softened,
tinted or noisy.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.checkpoint import save_safetensors
from ldm.data.crops import Square, cut_square
from ldm.data.epochs import EpochSampler, seeded
from ldm.data.object_crops import UNSAID, VALUES, encode
from ldm.data.scenes.draw import chance, integer, uniform
from ldm.data.shards import SceneShards
from ldm.models.judge import window
from ldm.training.base import EpochData, TrainingModule
from ldm.training.begin import begin_from
from ldm.util import instantiate_from_config

NOTHING = {"shape": None, "material": None, "color": None, "background": None}


def draw_square(generator: Generator, box: list[int], height: int, width: int) -> Square:
    """A square of 0.95 to 1.9 times the size of the object in `box` (left, top, right, bottom), little of which it
    cuts off; within the picture.
    """
    left, top, right, bottom = box
    size = max(right - left, bottom - top, 16)
    side = size * 0.95 * 2 ** uniform(generator)
    room = 0.06 * size + max(0, side - size) / 2
    x, y = ((low + high) / 2 + uniform(generator, -room, room) for low, high in ((left, right), (top, bottom)))
    return window(x, y, side, height, width)


def degrade(generator: Generator, x: Tensor, pixels: int) -> Tensor:
    """`x` (1, 3, S, S) in [0, 1] as a painted picture may look: softer, of a slightly other tint, with noise.

    pixels: the side that `x` had in the picture, whose detail goes down to half.
    """
    size = x.shape[-1]
    side = round(pixels * uniform(generator, 0.5, 1))
    if side < size and chance(generator, 0.6):
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        x = F.interpolate(x, (size, size), mode="bicubic")
    gain = 1 + 0.06 * torch.randn(1, 3, 1, 1, generator=generator) * uniform(generator)
    x = x * gain + uniform(generator, -0.05, 0.05)
    if chance(generator, 0.4):
        x = x + torch.randn(x.shape, generator=generator) * uniform(generator, 0, 0.04)
    return x.clamp(0, 1)


class JudgePictures(Dataset):
    """Crops of single objects, and whole pictures whose background has a name; other ones in every epoch.

    Args:
        folder: shards of `scripts/make_scenes.py`.
        size: side of a picture in pixels.
        augment: soften and tint, and cover a part of whole pictures with another one, as where a background is
            replaced around something else.
        whole: the share of whole pictures among scenes that can be shown either way.
        seed: of every draw, together with the epoch and the number of the scene.
    """

    def __init__(self, folder: Path | str, size: int, augment: bool = True, whole: float = 0.25, seed: int = 0):
        self.shards = SceneShards(folder)
        self.size, self.augment, self.whole, self.seed = size, augment, whole, seed
        self.rows = [i for i, known in enumerate(self.shards.attributes) if known["background"] or _single(known)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        """The picture of an (epoch, index): "image" (3, size, size) in [0, 1]; "labels" (4,) numbers of `encode`.

        A crop has no label for its background, a whole picture none for its object.
        """
        epoch, index = place
        generator = seeded(self.seed, epoch, index)
        row = self.rows[index]
        known = self.shards.attributes[row]
        x = self._read(row)
        if not _single(known) or (known["background"] and chance(generator, self.whole)):
            known = NOTHING | {"background": known["background"]}
            if self.augment and chance(generator, 0.5):
                x = self._cover(generator, x)
            square = 0, 0, x.shape[-1]
        else:
            known = known | {"background": None}
            square = draw_square(generator, known["box"], *x.shape[2:])
        x = cut_square(x, square, (self.size, self.size), "bilinear")
        if self.augment:
            x = degrade(generator, x, square[2])
        return {"image": (x.flip(-1) if chance(generator, 0.5) else x)[0], "labels": torch.tensor(encode(known))}

    def _read(self, row: int) -> Tensor:
        return torch.from_numpy(np.array(self.shards.images(row))).permute(2, 0, 1)[None].float() / 255

    def _cover(self, generator: Generator, x: Tensor) -> Tensor:
        """Show another scene inside an ellipse near the middle."""
        ticks = torch.linspace(-1, 1, x.shape[-1])
        u, v = ((ticks - uniform(generator, -0.3, 0.3)) / uniform(generator, 0.3, 0.7) for _ in range(2))
        inside = u.square()[None, :] + v.square()[:, None] < 1
        return torch.where(inside, self._read(integer(generator, len(self.shards))), x)


def _single(attributes: Mapping[str, Any]) -> bool:
    return attributes["shape"] is not None and "second" not in attributes


def log_right(module: pl.LightningModule, logits: Mapping[str, Tensor], labels: Tensor) -> None:
    """Log, as "val/NAME", how often each head is right about what is known.

    logits: name -> (b, classes); labels (b, heads), `UNSAID` where nothing is known.
    """
    for (name, guess), label in zip(logits.items(), labels.unbind(1), strict=True):
        known = label != UNSAID
        if known.any():
            right = (guess.argmax(1) == label)[known].float().mean()
            module.log(f"val/{name}", right, prog_bar=True, batch_size=int(known.sum()))


class JudgeTrainer(TrainingModule):
    """Trains an `ldm.models.judge.Judge` (under `judge`).

    Args:
        model: its config; the labels are those of today's scenes unless it names its own.
        learning_rate, warmup: of AdamW with a cosine decay to the trainer's `max_steps`.
        begin: a file of weights to begin with, that of an exported folder.
    """

    def __init__(
        self, model: Mapping[str, Any], learning_rate: float = 2e-3, warmup: int = 100, begin: str | None = None
    ):
        super().__init__()
        model = {**model, "params": {"labels": VALUES, **model.get("params", {})}}
        self.save_hyperparameters()
        self.judge = instantiate_from_config(model).to(memory_format=torch.channels_last)

    def begin_with_model(self, path: str) -> None:
        """See `begin_from`."""
        begin_from(self.judge, path)

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """The sum of the heads' cross-entropies of what is known of a batch."""
        logits = self.judge(batch["image"])
        losses = {}
        for (name, guess), label in zip(logits.items(), batch["labels"].unbind(1), strict=True):
            known = (label != UNSAID).sum().clamp(min=1)
            losses[name] = F.cross_entropy(guess.float(), label, ignore_index=UNSAID, reduction="sum") / known
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})
        loss = torch.stack(list(losses.values())).sum()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        """The share of right answers of each head."""
        log_right(self, self.judge(batch["image"]), batch["labels"])

    def configure_optimizers(self):
        """AdamW of all parameters."""
        return self.adamw(self.judge.parameters())


def export(module: JudgeTrainer, folder: Path | str) -> Path:
    """Write config and weights, these in half precision, as `ldm.evaluation.judging.load_judge` reads them."""
    from omegaconf import OmegaConf

    folder = Path(folder)
    half = {
        key: value.half() if value.is_floating_point() else value for key, value in module.judge.state_dict().items()
    }
    save_safetensors(half, folder / "model.safetensors")
    part = folder / "config.yaml.part"
    OmegaConf.save(OmegaConf.create({"model": dict(module.hparams.model)}), part)
    os.replace(part, folder / "config.yaml")
    return folder


class JudgeData(EpochData):
    """`JudgePictures` of two folders of shards; those of `val` are never altered.

    Args:
        train, val: the folders.
        size: side of a picture, that of the judge.
        workers: processes that prepare pictures; 0 does it in the training process.
    """

    def __init__(self, train: str, val: str, size: int, batch_size: int, workers: int = 0, seed: int = 0):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        """Batches of altered pictures, other ones in every epoch."""
        h = self.hparams
        pictures = JudgePictures(h.train, h.size, seed=h.seed)
        return DataLoader(
            pictures, h.batch_size, sampler=self.sampler(len(pictures)), drop_last=True, num_workers=h.workers
        )

    def val_dataloader(self) -> DataLoader:
        """Batches of pictures as they are, the same ones always."""
        h = self.hparams
        pictures = JudgePictures(h.val, h.size, augment=False, seed=h.seed)
        return DataLoader(pictures, h.batch_size, sampler=EpochSampler(len(pictures), None), num_workers=h.workers)
