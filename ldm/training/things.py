"""What the denoiser of everyday things is trained on."""

import torch
from torch import Tensor

from ldm.data.shards import SceneShards
from ldm.data.things.captions import vocabulary
from ldm.training.data import LatentScenes


class LatentThings(LatentScenes):
    """As `LatentScenes`, of composites that `scripts/make_things.py` made: with their words, and without the columns
    that only the twelve shapes have."""

    def vocabulary(self) -> list[str]:
        """All words of the captions of things and of scenes."""
        return vocabulary()

    def more_columns(self, name: str, shards: SceneShards) -> dict[str, Tensor]:
        """ "box" (n, 4): left, top, right, bottom of the first thing in pixels, zeros where there is none."""
        boxes = [known["box"] or [0] * 4 for known in shards.attributes]
        return {"box": torch.tensor(boxes, dtype=torch.int16)}
