"""Training of a small CLIP in open_clip's format: the ranker of a model whose world it knows.

Contrastive (Radford et al. 2021), with four changes. Captions of few words need three: a caption counts against a
picture only when it contradicts it, each picture has false captions of its own that differ in one attribute, and a
linear head for each attribute, dropped at the export, has the picture's embedding say all of them at once. Ranking
needs the fourth: a pairwise loss, by which the cosines of different pictures with one caption can be compared.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm.checkpoint import save_safetensors
from ldm.data.epochs import EpochSampler
from ldm.data.object_crops import NOTHING, UNSAID, VALUES, ObjectCrops
from ldm.data.scenes.captions import article, noun_phrase, vocabulary
from ldm.data.tokenizer import SPECIAL, write_tokenizer
from ldm.errors import UserError
from ldm.training.base import EpochData, TrainingModule
from ldm.training.begin import begin_from
from ldm.training.painted import PaintedScenes

MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]  # of pixels in [0,1], written into the exported config
MAX_SCALE = 100.0  # of the logits, as CLIP clamps it
PAIRWISE_BIAS = -10.0  # at first, as in SigLIP: most pairs are wrong


def contradicts(attributes: Tensor, said: Tensor) -> Tensor:
    """Which captions are wrong about which pictures: (n, m) bool.

    Args:
        attributes: (n, a) what is true of the pictures; `UNSAID` where nothing is known.
        said: (m, a) what the captions say; `UNSAID` where they say nothing.
    """
    known = (attributes[:, None] != UNSAID) & (said[None] != UNSAID)  # (n, m, a)
    return (known & (attributes[:, None] != said[None])).any(dim=-1)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, attributes: Tensor, said: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy, in which only contradicting captions are negatives.

    Args:
        image: (n, d) unit embeddings of pictures; attributes: (n, a), what is true of them.
        text: (m, d) unit embeddings of captions, the first n those of the pictures, the rest false ones;
            said: (m, a), what they say.
        scale: factor of the cosines.
    """
    n = len(image)
    logits = scale * image @ text.T  # (n, m)
    own = torch.eye(n, len(text), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~(contradicts(attributes, said) | own), float("-inf"))
    target = torch.arange(n, device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :n].T, target)) / 2


def pairwise_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, attributes: Tensor, said: Tensor) -> Tensor:
    """SigLIP's sigmoid loss (Zhai et al. 2023): whether a caption is right is asked of each pair by itself.

    A choice among captions does not mind what is added to all cosines of one picture. Here they are log-odds, on one
    scale for all pictures, as a ranking takes them. Captions of others that are not contradicted are left out.

    Args:
        bias: added to the scaled cosines; the others as in `contrastive_loss`.
    """
    n = len(image)
    logits = scale * image @ text.T + bias  # (n, m)
    wrong = contradicts(attributes, said)
    return (F.softplus(logits[wrong]).sum() + F.softplus(-logits.diagonal()).sum()) / n


class AttributeHeads(nn.ModuleDict):
    """One linear classifier of a picture's embedding for each attribute.

    False captions teach one difference at a time; these teach all of a picture's attributes against all others.
    classes: attribute -> how many there are, in the order of the columns.
    """

    def __init__(self, width: int, classes: Mapping[str, int]):
        super().__init__({key: nn.Linear(width, count) for key, count in classes.items()})

    def loss(self, image: Tensor, attributes: Tensor) -> Tensor:
        """Mean cross-entropy of what is known: image (n, d), attributes (n, a) as in `contrastive_loss`."""
        losses = [
            F.cross_entropy(head(image)[known], column[known])
            for head, column in zip(self.values(), attributes.T, strict=True)
            if (known := column != UNSAID).any()
        ]
        return torch.stack(losses).mean() if losses else image.sum() * 0


class CLIPTrainer(TrainingModule):
    """Trains open_clip's `CLIP` (under `clip`) on crops of objects.

    Args:
        embed_dim: width of the common space.
        vision, text: open_clip's `vision_cfg` and `text_cfg`; the vocabulary and the tokenizer are added here.
        words: the vocabulary; None takes every word that captions of scenes can hold.
        ranking: how `CLIPRanker` is to frame predictions (`ldm.editing.ranking.Framing`); kept in the export.
        learning_rate, warmup: of AdamW with a cosine decay to the trainer's `max_steps`.
        begin: a file of weights to begin with, that of an exported folder.
        attribute_weight: of the loss of `AttributeHeads`; 0 is without.
        pairwise_weight: of `pairwise_loss`; 0 is without.
    """

    def __init__(
        self,
        embed_dim: int,
        vision: Mapping[str, Any],
        text: Mapping[str, Any],
        words: Sequence[str] | None = None,
        ranking: Mapping[str, Any] | None = None,
        learning_rate: float = 2e-3,
        warmup: int = 100,
        begin: str | None = None,
        attribute_weight: float = 0.0,
        pairwise_weight: float = 0.0,
    ):
        super().__init__()
        words = list(words or self.all_words())  # fixed from here on, though the grammar may grow
        self.save_hyperparameters()
        from open_clip.model import CLIP

        self.clip = CLIP(**self.model_config()).to(memory_format=torch.channels_last)
        self.heads = AttributeHeads(embed_dim, self.classes()) if attribute_weight else None
        self.pairwise_bias = nn.Parameter(torch.tensor(PAIRWISE_BIAS)) if pairwise_weight else None
        self._tokenizer: Callable[[list[str]], Tensor] | None = None

    @staticmethod
    def all_words() -> list[str]:
        """Every word that captions can hold."""
        return vocabulary()

    @staticmethod
    def classes() -> dict[str, int]:
        """Attribute -> how many classes; the shape of a picture without an object is one more."""
        return {key: len(values) + (key == "shape") for key, values in VALUES.items()}

    def begin_with_model(self, path: str) -> None:
        """See `begin_from`."""
        begin_from(self.clip, path)

    def model_config(self) -> dict[str, Any]:
        """The `model_cfg` of open_clip."""
        h = self.hparams
        text = {
            **h.text,
            "vocab_size": len(SPECIAL) + len(set(h.words)),
            "pool_type": "eos",
            "eos_id": SPECIAL.index("[SEP]"),
            "hf_tokenizer_name": "wordpiece",  # any name: in a local folder open_clip takes the folder's own files
        }
        return {"embed_dim": h.embed_dim, "vision_cfg": dict(h.vision), "text_cfg": text}

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (len(texts), context_length), by the class that reads the exported folder."""
        if self._tokenizer is None:
            from open_clip.tokenizer import HFTokenizer

            length = self.hparams.text["context_length"]
            with TemporaryDirectory() as folder:
                write_tokenizer(self.hparams.words, Path(folder), length)
                self._tokenizer = HFTokenizer(folder, context_length=length)
        return self._tokenizer(texts).to(self.device)

    def encode_image(self, image: Tensor) -> Tensor:
        """Unit embeddings (n, d), float32, of pictures (n,3,S,S) in [0,1]."""
        mean, std = (image.new_tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
        x = ((image - mean) / std).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.clip.encode_image(x).float(), dim=-1)

    def encode_text(self, texts: list[str]) -> Tensor:
        """Unit embeddings (n, d), float32, of captions."""
        return F.normalize(self.clip.encode_text(self.tokenize(texts)).float(), dim=-1)

    def training_step(self, batch: Mapping[str, Any], _: int) -> Tensor:
        """The loss of a batch of `ObjectCrops`."""
        texts = [text for column in batch["texts"] for text in column]  # the true captions, then the false ones
        image, text = self.encode_image(batch["image"]), self.encode_text(texts)
        with torch.autocast(self.device.type, enabled=False):  # half precision has no digits left for close cosines
            return self._loss(image, text, batch)

    def _loss(self, image: Tensor, text: Tensor, batch: Mapping[str, Any]) -> Tensor:
        said = batch["said"].transpose(0, 1).flatten(0, 1)  # (n, 1 + false, 4) -> (m, 4), in the order of `text`
        scale = self.clip.logit_scale.exp().clamp(max=MAX_SCALE)
        loss = contrastive_loss(image, text, scale, batch["attributes"], said)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/scale", scale.detach())
        if self.pairwise_bias is not None:
            pairwise = pairwise_loss(image, text, scale, self.pairwise_bias, batch["attributes"], said)
            self.log("train/pairwise", pairwise)
            loss = loss + self.hparams.pairwise_weight * pairwise
        if self.heads is not None:
            attributes = self.heads.loss(scale.detach() * image, batch["attributes"])  # as sharp as the captions' are
            self.log("train/attributes", attributes)
            loss = loss + self.hparams.attribute_weight * attributes
        return loss

    def on_validation_epoch_start(self) -> None:
        """Embed the plain caption of every object there can be: (shapes, materials, colours, d)."""
        shapes, materials, colors = (VALUES[key] for key in ("shape", "material", "color"))
        names = [(shape, material, color) for shape in shapes for material in materials for color in colors]
        phrases = [article(noun_phrase(torch.Generator(), *name, complete=True)) for name in names]
        chunks = [self.encode_text(phrases[i : i + 256]) for i in range(0, len(phrases), 256)]
        self._objects = torch.cat(chunks).view(len(shapes), len(materials), len(colors), -1)

    def validation_step(self, batch: Mapping[str, Any], _: int, dataloader_idx: int = 0) -> None:
        """How often the right shape, material or colour is nearest when the other two are given, and all three.

        On renders (`val/...`) and, where there are any, on painted scenes (`painted/...`).
        """
        truth = batch["attributes"][:, :3]
        named = (truth != UNSAID).all(dim=1) & (truth[:, 0] != NOTHING)
        truth = truth[named]
        if len(truth) == 0:
            return
        image = self.encode_image(batch["image"])
        if (self.hparams.ranking or {}).get("mirror"):  # what the ranker will see
            image = F.normalize(image + self.encode_image(batch["image"].flip(-1)), dim=-1)
        with torch.autocast(self.device.type, enabled=False):
            scores = torch.einsum("nd,smcd->nsmc", image[named], self._objects)
        n, (s, m, c) = torch.arange(len(truth), device=truth.device), truth.T
        hits = {
            "shape": scores[n, :, m, c].argmax(1) == s,
            "material": scores[n, s, :, c].argmax(1) == m,
            "color": scores[n, s, m, :].argmax(1) == c,
            "all": scores.flatten(1).argmax(1) == (s * scores.shape[2] + m) * scores.shape[3] + c,
        }
        for name, hit in hits.items():
            name = f"{('val', 'painted')[dataloader_idx]}/{name}"
            self.log(name, hit.float().mean(), prog_bar=True, batch_size=len(truth), add_dataloader_idx=False)

    def configure_optimizers(self):
        """AdamW of all parameters."""
        return self.adamw(self.parameters())


class CropData(EpochData):
    """Crops of rendered objects with captions; see `ldm.data.object_crops.ObjectCrops`.

    Args:
        train, val: folders of shards (`scripts/make_scenes.py`).
        size: side of a crop, the vision tower's `image_size`; margin: around the region, as in `ranking`.
        false_captions: how many wrong ones for each picture.
        workers: processes that prepare crops; 0 does it in the training process.
        limit: only so many shards of `train`.
        painter: name or folder of the model whose predictions are to be ranked. Before the training it paints every
            `painted_every`th scene of `train`, and all of `val`; see `ldm.training.painted`. None leaves renders alone.
        painted: folder for what it paints. What another model painted there is not used.
    """

    crops: type[ObjectCrops] = ObjectCrops

    def __init__(
        self,
        train: str,
        val: str,
        size: int,
        margin: float,
        batch_size: int,
        false_captions: int = 2,
        workers: int = 0,
        seed: int = 0,
        limit: int | None = None,
        painter: str | None = None,
        painted: str | None = None,
        painted_every: int = 3,
    ):
        super().__init__()
        self.save_hyperparameters()
        if painter and not painted:
            raise UserError("painter needs a folder for what it paints: set data.params.painted")

    def prepare_data(self) -> None:
        """Paint what is not painted yet: in one process alone, while others wait."""
        h = self.hparams
        if not h.painter:
            return
        for name in ("train", "val"):
            crops = self._crops(name)
            self._painted(name, crops).paint(crops.full_caption)

    def _painted(self, name: str, crops: ObjectCrops) -> PaintedScenes:
        h = self.hparams
        rows = crops.rows[:: h.painted_every if name == "train" else 1]
        return PaintedScenes(crops.shards, rows, h.painter, Path(h.painted) / name, h.seed)

    def _crops(self, name: str, painted: bool = False) -> ObjectCrops:
        h = self.hparams
        limit = h.limit if name == "train" else None
        crops = self.crops(h[name], h.size, h.margin, h.false_captions, h.seed, limit)
        if painted and h.painter:
            crops.painted = self._painted(name, crops)
        return crops

    def train_dataloader(self) -> DataLoader:
        """Batches of crops, other ones in every epoch."""
        crops = self._crops("train", painted=True)
        return self._loader(crops, self.sampler(len(crops)), drop_last=True)

    def val_dataloader(self) -> list[DataLoader]:
        """Crops of renders and, where there is a painter, of what it painted."""
        sets = [self._crops("val")] + ([self._crops("val", painted=True)] if self.hparams.painter else [])
        return [self._loader(crops, EpochSampler(len(crops), None), drop_last=False) for crops in sets]

    def _loader(self, crops: ObjectCrops, sampler: EpochSampler, drop_last: bool) -> DataLoader:
        h = self.hparams
        return DataLoader(crops, h.batch_size, sampler=sampler, drop_last=drop_last, num_workers=h.workers)


def export(module: CLIPTrainer, folder: Path | str) -> Path:
    """Write what `CLIPRanker` and open_clip's `local-dir:` read: config, weights in half precision, tokenizer.

    The weights come first and the config last, each at once or not at all.
    """
    folder = Path(folder)
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in module.clip.to(memory_format=torch.contiguous_format).state_dict().items()
    }
    save_safetensors(half, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": module.model_config(),
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"},
        "ranking": dict(module.hparams.ranking or {}),
    }
    with TemporaryDirectory(dir=folder) as temporary:
        write_tokenizer(module.hparams.words, Path(temporary), module.hparams.text["context_length"])
        (Path(temporary) / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name in ("tokenizer.json", "tokenizer_config.json", "open_clip_config.json"):
            os.replace(Path(temporary) / name, folder / name)
    return folder
