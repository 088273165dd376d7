"""Rendered scenes as a model paints them: what its ranker has to tell apart.

A ranker that has only seen renders judges predictions by a sharpness that these never have. So some of the scenes are
encoded, noised to a random level, denoised with their caption (SDEdit, Meng et al. 2022) and decoded. What they show
stays, and is known; how it looks is the model's.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.data.shards import SceneShards, replace_file
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.guidance import model_denoiser
from ldm.models.diffusion.sampling import NoiseSource, noised, sample
from ldm.models.diffusion.schedule import make_sampling_schedule
from ldm.util import choose_device, choose_precision

STEPS = 10  # of a whole walk
MOST = 5  # of them: beyond, the picture is the caption's more than the render's
BATCH = 60


class PaintedScenes(Mapping[int, np.ndarray]):
    """The pictures (H, W, 3) uint8 of the scenes that were painted, by the number of the scene, read when used.

    Args:
        folder: of `paint`, for these shards.
    """

    def __init__(self, folder: Path | str, shards: SceneShards):
        self._places: dict[int, tuple[Path, int]] = {}
        for shard, start in zip(shards.files, shards.starts, strict=True):
            rows = Path(folder) / f"{shard.stem}.rows.npy"
            if rows.exists():
                images = Path(folder) / f"{shard.stem}.images.npy"
                self._places |= {start + int(row): (images, i) for i, row in enumerate(np.load(rows))}

    def __getitem__(self, row: int) -> np.ndarray:
        path, index = self._places[row]
        return _mapped(path)[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@cache
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def paint(
    shards: SceneShards, rows: list[int], caption: Callable[[int], str], painter: str, folder: Path | str, seed: int = 0
) -> None:
    """Paint the scenes `rows`, a file of pictures for each shard. What an earlier call has finished is kept.

    Args:
        caption: of a scene by its number.
        painter: name or folder of a model, as `--model` has it.
        seed: of levels and noise, together with the number of the shard.

    Raises:
        UserError: there is no such model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    left = [i for i, file in enumerate(shards.files) if not (folder / f"{file.stem}.rows.npy").exists()]
    if not left:
        return
    device = choose_device("auto")
    model = zoo.load(zoo.resolve(painter), device, choose_precision("auto", device))
    for shard in tqdm(left, desc=f"painting {shards.folder.name}", unit="shard"):
        start = shards.starts[shard]
        end = shards.starts[shard + 1] if shard + 1 < len(shards.files) else len(shards)
        own = [row for row in rows if start <= row < end]
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, shard)).generate_state(1)[0]))
        images = np.empty((len(own), *shards.images(start).shape), np.uint8)
        for i in range(0, len(own), BATCH):
            some = own[i : i + BATCH]
            x = torch.from_numpy(np.stack([shards.images(row) for row in some])).permute(0, 3, 1, 2).float() / 127.5 - 1
            painted = paint_batch(model, x, [caption(row) for row in some], generator)
            images[i : i + len(some)] = ((painted + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        # The rows come last: where they are, all is.
        for name, array in (("images", images), ("rows", np.array(own, np.int64) - start)):
            path = folder / f"{shards.files[shard].stem}.{name}.npy"
            replace_file(path, lambda file, array=array: np.save(file, array))


@torch.no_grad()
def paint_batch(model: LatentDiffusion, x: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
    """x (b, 3, h, w) in [-1, 1] as the model paints it with these captions, like x, float32 on the host.

    A sample takes the last 0 to `MOST` of `STEPS` steps; 0 only encodes and decodes.
    """
    z = model.encode_first_stage(x.to(model.device))
    context = model.get_learned_conditioning(captions)
    counts = torch.randint(MOST + 1, (len(x),), generator=generator)
    seeds = torch.randint(2**62, (len(x),), generator=generator)
    for count in range(1, MOST + 1):
        which = (counts == count).nonzero().flatten()
        if len(which) == 0:
            continue
        schedule = make_sampling_schedule(model.alphas_cumprod, STEPS, skip_steps=STEPS - count)
        noise = NoiseSource(seeds[which].tolist())
        start = noised(z[which], schedule.levels[0], noise.draw(z.shape[1:], z))
        z[which] = sample(model_denoiser(model, context[which]), schedule, start, noise)
    return model.decode_first_stage(z).float().clamp(-1, 1).cpu()
