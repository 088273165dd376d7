"""Rendered scenes as a model paints them: what its ranker has to tell apart.

A ranker that has only seen renders judges predictions by a sharpness that these never have. So some of the scenes are
encoded, noised to a random level, denoised with their caption (SDEdit, Meng et al. 2022) and decoded. What they show
stays, and is known; how it looks is the model's.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.backbones.guidance import plain_denoiser
from ldm.data.epochs import seeded
from ldm.data.shards import SceneShards
from ldm.files import atomic_file, file_sha256
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.sampling import NoiseSource, noised, sample
from ldm.util import choose_device, choose_precision

STEPS = 10  # from pure noise to the picture
MOST = 5  # of them: beyond, the picture is the caption's more than the render's
BATCH = 60


class PaintedScenes(Mapping[int, np.ndarray]):
    """Scenes as a model paints them, (H, W, 3) uint8 by their number, read when used; a file for each shard.

    A file belongs to all that its pictures depend on: the model's weights and config, what the shard holds, which of
    its scenes are painted, and the seed. What was painted with others stays where it is and is not used.

    Args:
        shards: the scenes. rows: the numbers of those to be painted.
        painter: name or folder of a model, as `--model` has it.
        folder: of the files.
        seed: of levels and noise, together with the number of the shard.

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, shards: SceneShards, rows: list[int], painter: str, folder: Path | str, seed: int = 0):
        self.shards, self.painter, self.seed = shards, zoo.resolve(painter), seed
        model = [file_sha256(path) for path in (self.painter.config, self.painter.weights)]
        self._files: list[tuple[Path, list[int]]] = []
        for shard, file in enumerate(shards.files):
            own = [row for row in rows if row in shards.rows(shard)]
            about = [
                *model,
                shards.digest(shard),
                [row - shards.starts[shard] for row in own],
                seed,
                shard,
                STEPS,
                MOST,
            ]
            key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
            self._files.append((Path(folder) / f"{file.stem}.{key}.npy", own))
        self._find()

    def _find(self) -> None:
        found = [(path, rows) for path, rows in self._files if path.exists()]
        self._places = {row: (path, i) for path, rows in found for i, row in enumerate(rows)}

    def __getitem__(self, row: int) -> np.ndarray:
        path, index = self._places[row]
        return _mapped(path)[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def paint(self, caption: Callable[[int], str]) -> None:
        """Paint the shards that have no file yet. caption: of a scene by its number."""
        left = [shard for shard, (path, _) in enumerate(self._files) if not path.exists()]
        if not left:
            return
        device = choose_device("auto")
        model = zoo.load_ours(self.painter, device, choose_precision("auto", device))
        for shard in tqdm(left, desc=f"painting {self.shards.folder.name}", unit="shard"):
            path, rows = self._files[shard]
            generator = seeded(self.seed, shard)
            images = np.empty((len(rows), *self.shards.images(self.shards.starts[shard]).shape), np.uint8)
            for i in range(0, len(rows), BATCH):
                some = rows[i : i + BATCH]
                painted = paint_batch(model, self.shards.stack(some), [caption(row) for row in some], generator)
                images[i : i + len(some)] = ((painted + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                np.save(file, images)
        self._find()


@cache
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def paint_batch(model: LatentDiffusion, x: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
    """x (b, 3, h, w) in [-1, 1] as the model paints it with these captions, like x, float32 on the host.

    A sample takes the last 0 to `MOST` of `STEPS` steps; 0 only encodes and decodes.
    """
    z = model.encode(x.to(model.device))
    conditioning = model.condition(captions)
    counts = torch.randint(MOST + 1, (len(x),), generator=generator)
    seeds = torch.randint(2**62, (len(x),), generator=generator)
    for count in range(1, MOST + 1):
        which = (counts == count).nonzero().flatten()
        if len(which) == 0:
            continue
        schedule = model.levels.schedule(STEPS, skip_steps=STEPS - count)
        noise = NoiseSource(seeds[which].tolist())
        start = noised(z[which], schedule.levels[0], noise.draw(z.shape[1:], z))
        denoiser = plain_denoiser(model, conditioning.select(which.tolist()))
        z[which] = sample(denoiser, schedule, start, noise)
    return model.decode(z).float().clamp(-1, 1).cpu()
