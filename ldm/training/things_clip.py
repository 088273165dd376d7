"""Training of the ranker of everyday things: the small CLIP of `ldm.training.clip`, with nouns for shapes."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ldm.data.object_crops import UNSAID
from ldm.data.things.captions import vocabulary
from ldm.data.things.crops import NOTHING, VALUES, ThingCrops, plain_caption
from ldm.training.clip import CLIPTrainer, CropData


class ThingsCLIPTrainer(CLIPTrainer):
    """As `CLIPTrainer`, on batches of `ThingCrops`."""

    @staticmethod
    def all_words() -> list[str]:
        """Every word that captions of things can hold."""
        return vocabulary()

    @staticmethod
    def classes() -> dict[str, int]:
        """Attribute -> how many classes; the noun of a picture without a thing is one more."""
        return {key: len(values) + (key == "noun") for key, values in VALUES.items()}

    def on_validation_epoch_start(self) -> None:
        """Embed the plain caption of every noun, (nouns, d)."""
        nouns = [plain_caption(noun) for noun in VALUES["noun"]]
        self._nouns = torch.cat([self.encode_text(nouns[i : i + 256]) for i in range(0, len(nouns), 256)])

    def validation_step(self, batch: Mapping[str, Any], _: int, dataloader_idx: int = 0) -> None:
        """How often the right noun is nearest of all, among the nearest five; how often a false caption is nearer.

        On composites (`val/...`) and, where there are any, on painted ones (`painted/...`).
        """
        name = ("val", "painted")[dataloader_idx]
        noun = batch["attributes"][:, 0]
        named = (noun != UNSAID) & (noun != NOTHING)
        if not named.any():
            return
        image = self.encode_image(batch["image"])
        if (self.hparams.ranking or {}).get("mirror"):  # what the ranker will see
            image = F.normalize(image + self.encode_image(batch["image"].flip(-1)), dim=-1)
        texts = [self.encode_text(list(column)) for column in batch["texts"]]
        with torch.autocast(self.device.type, enabled=False):
            nearest = (image[named] @ self._nouns.T).topk(5, dim=1).indices == noun[named, None]
            cosines = torch.stack([(image * text).sum(1) for text in texts], dim=1)[named]
        hits = {
            "noun": nearest[:, 0],
            "noun_top5": nearest.any(1),
            "true_caption": (cosines[:, :1] > cosines[:, 1:]).all(1),
        }
        for key, hit in hits.items():
            mean = hit.float().mean()
            self.log(f"{name}/{key}", mean, prog_bar=True, batch_size=int(named.sum()), add_dataloader_idx=False)


class ThingCropData(CropData):
    """As `CropData`, of composites (`scripts/make_things.py`)."""

    crops = ThingCrops
