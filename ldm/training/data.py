"""What the trainings read: images for the first stage, cached latents and token ids for the denoiser."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.data.object_crops import VALUES, encode
from ldm.data.scenes.materials import MATERIALS
from ldm.data.shards import SceneShards
from ldm.data.tokenizer import write_tokenizer
from ldm.errors import UserError
from ldm.util import has_fast_bfloat16

logger = logging.getLogger(__name__)


class RandomCrops(Dataset):
    """Square crops of `size` pixels at random places of the scenes, mirrored half of the time."""

    def __init__(self, shards: SceneShards, size: int, seed: int = 0):
        self.shards, self.size = shards, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.shards.images(index)
        room = image.shape[0] - self.size
        top, left, mirror = torch.randint(0, 1 << 30, (3,), generator=self.generator).tolist()
        top, left = top % (room + 1), left % (room + 1)
        crop = np.array(image[top : top + self.size, left : left + self.size])
        x = torch.from_numpy(crop).permute(2, 0, 1).float() / 127.5 - 1
        return {"image": x.flip(-1) if mirror % 2 else x}


class SceneImages(pl.LightningDataModule):
    """Crops of rendered scenes for training, whole ones for validation.

    Args:
        train, val: folders of shards (`scripts/make_scenes.py`).
        crop: side of the training crops in pixels.
    """

    def __init__(self, train: str, val: str, crop: int, batch_size: int, workers: int = 0):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        h = self.hparams
        crops = RandomCrops(SceneShards(h.train), h.crop)
        return DataLoader(crops, h.batch_size, shuffle=True, drop_last=True, num_workers=h.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(SceneShards(self.hparams.val), self.hparams.batch_size)


class CachedLatents(Dataset):
    """Latents (n, c, h, w) float16, token ids (n, m) int16 and coverage (n, 1, h, w) float16, all in memory.

    more: other columns of n rows, by name.
    """

    def __init__(self, z: Tensor, tokens: Tensor, coverage: Tensor, **more: Tensor):
        self.columns = {"z": z, "tokens": tokens, "coverage": coverage, **more}

    def __len__(self) -> int:
        return len(self.columns["z"])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = torch.tensor(indices)
        return {name: column[rows] for name, column in self.columns.items()}


class LatentScenes(pl.LightningDataModule):
    """Scenes as the denoiser sees them. The first stage encodes each once; the result is cached on disk.

    Writes the tokenizer of the captions' words to the folder `tokenizer` where there is none yet.

    Args:
        train, val: folders of shards.
        first_stage: a checkpoint of `AutoencoderTrainer`, or the `model.safetensors` of a model that has shipped: its
            denoiser can then be trained further.
        tokenizer: folder of the tokenizer; vocab_size: the text encoder's, at least as large as its vocabulary.
        cache: folder of the encoded shards; scenes that were rendered since are added. Delete it when the first stage
            has changed.
        emphasis: material -> how many times as often its scenes are trained on as others. For what is hard to learn;
            scenes are then drawn with replacement, as many an epoch as there are.

    Attributes:
        first_stage_state: the first stage's weights.
        scale_factor: one over the standard deviation of the training latents.
    """

    def __init__(
        self,
        train: str,
        val: str,
        first_stage: str,
        tokenizer: str,
        vocab_size: int,
        cache: str,
        batch_size: int,
        max_length: int = 32,
        emphasis: Mapping[str, float] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_emphasis(emphasis or {})
        self._write_tokenizer()
        self.data: dict[str, CachedLatents] = {}

    def _write_tokenizer(self) -> None:
        from ldm.data.scenes.captions import vocabulary

        folder = Path(self.hparams.tokenizer)
        if not (folder / "tokenizer.json").exists():
            known = write_tokenizer(vocabulary(), folder, self.hparams.max_length)
            if known > self.hparams.vocab_size:
                raise UserError(f"the captions have {known} tokens: set vocab_size to at least that")

    def prepare_data(self) -> None:
        """Encode what no cache holds yet: in one process alone, while others wait."""
        trained = self._first_stage()
        for name in ("train", "val"):
            self._latents(trained, name)

    def _first_stage(self) -> torch.nn.Module:
        from ldm.training.autoencoder import AutoencoderTrainer

        path = Path(self.hparams.first_stage)
        if not path.exists():
            raise UserError(f"there is no first stage at {path}: train configs/scenes/autoencoder.yaml first")
        if path.suffix == ".safetensors":
            return zoo.load(zoo.resolve(str(path.parent)), torch.device("cpu"), torch.float32).first_stage_model
        return AutoencoderTrainer.load_from_checkpoint(path, map_location="cpu").first_stage_model.eval()

    def setup(self, stage: str) -> None:
        if self.data:
            return
        trained = self._first_stage()
        self.first_stage_state = trained.state_dict()
        z = {name: self._latents(trained, name) for name in ("train", "val")}
        self.scale_factor = round(1 / z["train"].float().std().item(), 5)
        logger.info("latents are scaled by %g", self.scale_factor)
        for name, latents in z.items():
            shards = SceneShards(self.hparams[name])
            coverage = np.stack([shards.coverage(i) for i in range(len(shards))])
            more = {
                "labels": torch.tensor([encode(known)[:3] for known in shards.attributes], dtype=torch.int16),
                "box": torch.tensor([known["box"] or [0] * 4 for known in shards.attributes], dtype=torch.int16),
            }
            if name == "val":
                captions = zip(*map(material_captions, shards.attributes), strict=True)
                more |= dict(zip(("said", "missaid"), map(self._tokens, captions), strict=True))
            self.data[name] = CachedLatents(
                latents * self.scale_factor, self._tokens(shards.captions), torch.from_numpy(coverage)[:, None], **more
            )

    @torch.no_grad()
    def _latents(self, first_stage: torch.nn.Module, name: str) -> Tensor:
        """The unscaled latents of a folder of shards: from the cache as far as it goes, the others encoded."""
        cache = Path(self.hparams.cache) / f"{name}.pt"
        shards = SceneShards(self.hparams[name])
        z = [torch.load(cache, weights_only=True)] if cache.exists() else []
        known = sum(map(len, z))
        if known > len(shards):
            raise UserError(f"{cache} holds {known} scenes, and {self.hparams[name]} {len(shards)}: delete it")
        if known == len(shards):
            return z[0]
        for rows in tqdm(DataLoader(range(known, len(shards)), 64), desc=f"encoding {name}"):
            x = torch.from_numpy(np.stack([shards.images(int(i)) for i in rows])).permute(0, 3, 1, 2)
            x = (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
                z.append(first_stage.encode(x).mode().half().contiguous())
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(".part")
        z = torch.cat(z)
        torch.save(z, part)
        os.replace(part, cache)
        return z

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        from ldm.modules.encoders.modules import BERTTokenizer

        tokenize = BERTTokenizer(self.hparams.tokenizer, self.hparams.vocab_size, self.hparams.max_length)
        return tokenize(list(captions)).short()

    def _loader(self, name: str, **order) -> DataLoader:
        return DataLoader(
            self.data[name], self.hparams.batch_size, drop_last=True, collate_fn=lambda batch: batch, **order
        )

    def train_dataloader(self) -> DataLoader:
        if not self.hparams.emphasis:
            return self._loader("train", shuffle=True)
        weights = scene_weights(SceneShards(self.hparams.train).attributes, self.hparams.emphasis)
        return self._loader("train", sampler=WeightedRandomSampler(weights, len(weights)))

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", shuffle=False)


def material_captions(attributes: Mapping[str, Any]) -> tuple[str, str]:
    """The full caption of a scene of one object, and the same with the material that `MATERIALS` has next.

    Of any other scene, twice the empty prompt: nothing in it is missaid.
    """
    from ldm.data.scenes.captions import full_caption

    if attributes["shape"] is None or "second" in attributes:
        return ("", "")
    names = list(MATERIALS)
    wrong = names[(names.index(attributes["material"]) + 1) % len(names)]
    said, missaid = (
        full_caption((attributes["shape"], material, attributes["color"]), attributes["background"])
        for material in (attributes["material"], wrong)
    )
    return said, missaid


def check_emphasis(emphasis: Mapping[str, float], kinds: Sequence[str] = ("material",)) -> None:
    """Raises UserError where `emphasis` names nothing of these kinds, gives something no weight of at least 0, or
    leaves nothing of a kind to be drawn."""
    known = {name: kind for kind in kinds for name in VALUES[kind]}
    for name, weight in emphasis.items():
        if name not in known:
            raise UserError(f'emphasis: there is no {" or ".join(kinds)} "{name}", only {", ".join(known)}')
        if not 0 <= weight < math.inf:
            raise UserError(f"emphasis: {name} has the weight {weight}: write a number of at least 0")
    for kind in kinds:
        if not any(emphasis.get(name, 1) for name in VALUES[kind]):
            raise UserError(f"emphasis: every {kind} has the weight 0: nothing is left to draw")


def scene_weights(attributes: Sequence[Mapping[str, Any]], emphasis: Mapping[str, float]) -> list[float]:
    """How often to draw each scene: the largest weight of its objects' materials, 1 for those not named."""

    def materials(scene: Mapping[str, Any]) -> list[str | None]:
        return [thing["material"] for thing in (scene, scene.get("second")) if thing]

    return [float(max(emphasis.get(material, 1.0) for material in materials(scene))) for scene in attributes]
