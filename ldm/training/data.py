"""What the trainings read: images for the first stage, cached latents and token ids for the denoiser."""

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.data.epochs import seeded
from ldm.data.object_crops import VALUES, encode
from ldm.data.scenes.captions import full_caption, vocabulary
from ldm.data.scenes.materials import MATERIALS
from ldm.data.shards import SceneShards
from ldm.data.tokenizer import write_tokenizer
from ldm.errors import UserError
from ldm.files import atomic_file
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.encoders.modules import BERTTokenizer
from ldm.training.autoencoder import AutoencoderTrainer
from ldm.training.base import EpochData
from ldm.training.begin import encoder_digest
from ldm.util import has_fast_bfloat16

logger = logging.getLogger(__name__)


class RandomCrops(Dataset):
    """Square crops of `size` pixels at random places of the scenes, mirrored half of the time.

    The item of (epoch, index) depends on these and on `seed` alone, whichever process reads it.
    """

    def __init__(self, shards: SceneShards, size: int, seed: int = 0):
        self.shards, self.size, self.seed = shards, size, seed

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = place
        image = self.shards.images(index)
        room = image.shape[0] - self.size
        top, left, mirror = torch.randint(0, 1 << 30, (3,), generator=seeded(self.seed, epoch, index)).tolist()
        top, left = top % (room + 1), left % (room + 1)
        crop = np.array(image[top : top + self.size, left : left + self.size])
        x = torch.from_numpy(crop).permute(2, 0, 1).float() / 127.5 - 1
        return {"image": x.flip(-1) if mirror % 2 else x}


class SceneImages(EpochData):
    """Crops of rendered scenes for training, whole ones for validation.

    Args:
        train, val: folders of shards (`scripts/make_scenes.py`).
        crop: side of the training crops in pixels.
        seed: of their places and order, together with the epoch.
    """

    def __init__(self, train: str, val: str, crop: int, batch_size: int, workers: int = 0, seed: int = 0):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        """Batches of {"image": (b, 3, crop, crop) in [-1, 1]}, other crops in every epoch."""
        h = self.hparams
        crops = RandomCrops(SceneShards(h.train), h.crop, h.seed)
        return DataLoader(crops, h.batch_size, sampler=self.sampler(len(crops)), drop_last=True, num_workers=h.workers)

    def val_dataloader(self) -> DataLoader:
        """Batches of whole scenes, as `SceneShards` has them."""
        return DataLoader(SceneShards(self.hparams.val), self.hparams.batch_size)


class CachedLatents(Dataset):
    """Latents (n, c, h, w) float16, token ids (n, m) int16 and coverage (n, 1, h, w) float16, all in memory.

    more: other columns of n rows, by name. scale: what latents are multiplied by as they are read, in float32. device:
    whose memory; a GPU that is handed every batch waits for it.
    """

    def __init__(
        self,
        z: Tensor,
        tokens: Tensor,
        coverage: Tensor,
        scale: float = 1.0,
        device: torch.device | str = "cpu",
        **more: Tensor,
    ):
        columns = {"z": z, "tokens": tokens, "coverage": coverage, **more}
        self.columns = {name: column.to(device) for name, column in columns.items()}
        self.scale = scale

    def __len__(self) -> int:
        return len(self.columns["z"])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = torch.tensor(indices).to(self.columns["z"].device)
        batch = {name: column[rows] for name, column in self.columns.items()}
        return batch | {"z": batch["z"].float() * self.scale}


class LatentScenes(pl.LightningDataModule):
    """Scenes as the denoiser sees them. The first stage encodes each once; the result is cached on disk.

    Writes the tokenizer of the captions' words to the folder `tokenizer` where there is none yet.

    Args:
        train, val: folders of shards.
        first_stage: a checkpoint of `AutoencoderTrainer`; or a model that has shipped, its folder or its
            `model.safetensors`, whose denoiser can then be trained further.
        tokenizer: folder of the tokenizer; vocab_size: the text encoder's, at least as large as its vocabulary.
        cache: folder of the encoded shards. A file there belongs to one encoder and to what one shard holds: scenes
            rendered since are added, and what another encoder made is not used.
        emphasis: material -> how many times as often its scenes are trained on as others. For what is hard to learn;
            scenes are then drawn with replacement, as many an epoch as there are.

    Attributes:
        first_stage_state: the first stage's weights.
        scale_factor: what the latents are multiplied by: as in the model of `first_stage`, or in the one that a
            training begins with (`scale_by`); else one over the standard deviation of the training latents.
    """

    hparams: Any
    first_stage_state: dict[str, Tensor]
    scale_factor: float

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
        folder = Path(self.hparams.tokenizer)
        if not (folder / "tokenizer.json").exists():
            known = write_tokenizer(self.vocabulary(), folder, self.hparams.max_length)
            if known > self.hparams.vocab_size:
                raise UserError(f"the captions have {known} tokens: set vocab_size to at least that")

    def vocabulary(self) -> list[str]:
        """All words of the captions."""
        return vocabulary()

    def more_columns(self, name: str, shards: SceneShards) -> dict[str, Tensor]:
        """What a batch holds beside latents, tokens and coverage: a row of each for every scene of `shards`."""
        more = {
            "labels": torch.tensor([encode(known)[:3] for known in shards.attributes], dtype=torch.int16),
            "box": torch.tensor([known["box"] or [0] * 4 for known in shards.attributes], dtype=torch.int16),
        }
        if name == "val":
            captions = zip(*map(material_captions, shards.attributes), strict=True)
            more |= dict(zip(("said", "missaid"), map(self._tokens, captions), strict=True))
        return more

    def prepare_data(self) -> None:
        """Encode what no cache holds yet: in one process alone, while others wait."""
        trained, _ = self._first_stage()
        for name in ("train", "val"):
            self._latents(trained, name)

    def _first_stage(self) -> tuple[AutoencoderKL, float | None]:
        """The first stage, and what its latents are multiplied by where a denoiser knows them already."""
        path = Path(self.hparams.first_stage)
        if not path.exists():
            raise UserError(f"there is no first stage at {path}: train configs/scenes/autoencoder.yaml first")
        if path.is_dir() or path.suffix == ".safetensors":
            folder = path if path.is_dir() else path.parent
            model = zoo.load_ours(zoo.resolve(str(folder)), torch.device("cpu"), torch.float32)
            return model.first_stage_model, model.scale_factor
        return AutoencoderTrainer.load_from_checkpoint(path, map_location="cpu").first_stage_model.eval(), None

    def setup(self, stage: str) -> None:
        """Read the latents and all that belongs to them."""
        if self.data:
            return
        trained, scale_factor = self._first_stage()
        self.first_stage_state = trained.state_dict()
        z = {name: self._latents(trained, name) for name in ("train", "val")}
        for name, latents in z.items():
            shards = SceneShards(self.hparams[name])
            coverage = np.stack([shards.coverage(i) for i in range(len(shards))])
            tokens = self._tokens(shards.captions)
            more: dict[str, Any] = self.more_columns(name, shards)
            device = self.trainer.strategy.root_device if self.trainer else "cpu"
            self.data[name] = CachedLatents(latents, tokens, torch.from_numpy(coverage)[:, None], device=device, **more)
        self.scale_by(scale_factor or round(1 / z["train"].float().std().item(), 5))

    def scale_by(self, factor: float) -> None:
        """Multiply the latents by `factor` from now on: what a denoiser is trained with, it is trained further with."""
        self.scale_factor = factor
        for latents in self.data.values():
            latents.scale = factor
        logger.info("latents are scaled by %g", factor)

    def _latents(self, first_stage: AutoencoderKL, name: str) -> Tensor:
        """The unscaled latents (n, c, h, w), float16, of a folder of shards: from the cache where they are known."""
        shards = SceneShards(self.hparams[name])
        folder = Path(self.hparams.cache) / encoder_digest(first_stage.state_dict())
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:  # hashing and reading leave the interpreter to others
            files = [folder / f"{digest}.pt" for digest in pool.map(shards.digest, range(len(shards.files)))]
        unknown = [shard for shard, file in enumerate(files) if not file.exists()]
        for shard in tqdm(unknown, desc=f"encoding {name}", unit="shard", disable=None if unknown else True):
            if not files[shard].exists():  # two shards may hold the same
                with atomic_file(files[shard]) as file:
                    torch.save(_encode(first_stage, shards, shards.rows(shard)), file)
        return torch.cat([torch.load(file, weights_only=True) for file in files])

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        tokenize = BERTTokenizer(self.hparams.tokenizer, self.hparams.vocab_size, self.hparams.max_length)
        return tokenize(list(captions)).short()

    def _loader(self, name: str, **order) -> DataLoader:
        return DataLoader(
            self.data[name], self.hparams.batch_size, drop_last=True, collate_fn=lambda batch: batch, **order
        )

    def pictures(self, count: int) -> tuple[Tensor, Tensor]:
        """The first pictures of training (count, 3, H, W) in [-1, 1], and what the denoiser sees of them."""
        shards = SceneShards(self.hparams.train)
        rows = range(min(count, len(shards)))
        return shards.stack(rows), self.data["train"].__getitems__(list(rows))["z"].cpu()

    def train_dataloader(self) -> DataLoader:
        """Batches of all columns, shuffled; drawn by weight where there is an emphasis."""
        if not self.hparams.emphasis:
            return self._loader("train", shuffle=True)
        weights = scene_weights(SceneShards(self.hparams.train).attributes, self.hparams.emphasis)
        return self._loader("train", sampler=WeightedRandomSampler(weights, len(weights)))

    def val_dataloader(self) -> DataLoader:
        """Batches of all columns in their order."""
        return self._loader("val", shuffle=False)


@torch.no_grad()
def _encode(first_stage: AutoencoderKL, shards: SceneShards, rows: range, batch: int = 64) -> Tensor:
    z = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first_stage.to(device)
    for i in range(0, len(rows), batch):
        x = shards.stack(rows[i : i + batch], device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" or has_fast_bfloat16()):
            z.append(first_stage.encode(x).mode().half().contiguous().cpu())
    first_stage.cpu()
    return torch.cat(z)


def material_captions(attributes: Mapping[str, Any]) -> tuple[str, str]:
    """The full caption of a scene of one object, and the same with the material that `MATERIALS` has next.

    Of any other scene, twice the empty prompt: nothing in it is missaid.
    """
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

    def materials(scene: Mapping[str, Any]) -> list[str]:
        return [thing["material"] for thing in (scene, scene.get("second")) if thing]

    return [float(max(emphasis.get(material, 1.0) for material in materials(scene))) for scene in attributes]
