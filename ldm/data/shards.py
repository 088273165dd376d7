"""Rendered scenes on disk: folders of shards, written whole or not at all, read through memory maps.

A shard is `00042.images.npy` (n, 128, 128, 3) uint8, `00042.coverage.npy` (n, 16, 16) float16 and `00042.json` with
the captions and attributes. The JSON is written last: a shard that has one is complete.
"""

import bisect
import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.scenes.scenes import Scenes
from ldm.errors import UserError
from ldm.files import atomic_file


def shard_path(folder: Path, index: int) -> Path:
    """The JSON file that marks shard `index` of `folder` complete."""
    return Path(folder) / f"{index:05d}.json"


def shard_length(folder: Path, index: int) -> int:
    """How many scenes shard `index` of `folder` holds; 0 where it is missing or not complete."""
    if not shard_path(folder, index).exists():
        return 0
    return len(np.load(shard_path(folder, index).with_suffix(".images.npy"), mmap_mode="r"))


def write_shard(folder: Path, index: int, scenes: Scenes) -> Path:
    """Write `scenes` as shard `index` of `folder`, each file under a temporary name first. Returns its JSON file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = shard_path(folder, index)
    for name, array in (("images", scenes.images), ("coverage", scenes.coverage)):
        with atomic_file(target.with_suffix(f".{name}.npy")) as file:
            np.save(file, array)
    with atomic_file(target) as file:
        file.write(json.dumps({"captions": scenes.captions, "attributes": scenes.attributes}).encode())
    return target


class SceneShards(Dataset):
    """A folder of shards as one data set of captioned images.

    limit: use only the first `limit` shards. Raises UserError when the folder holds no shard.
    """

    def __init__(self, folder: Path | str, limit: int | None = None):
        self.folder = Path(folder)
        self.files = sorted(self.folder.glob("[0-9]*.json"))[:limit]
        if not self.files:
            raise UserError(f'"{folder}" holds no shards: render some with scripts/make_scenes.py --out {folder}')
        self.captions: list[str] = []
        self.attributes: list[dict] = []
        self._ends: list[int] = []
        for file in self.files:
            content = json.loads(file.read_text(encoding="utf-8"))
            self.captions += content["captions"]
            self.attributes += content["attributes"]
            self._ends.append(len(self.captions))
        self._map = lru_cache(maxsize=None)(self._open)

    @property
    def starts(self) -> list[int]:
        """The number of the first scene of each of `files`."""
        return [0, *self._ends[:-1]]

    def rows(self, shard: int) -> range:
        """The numbers of the scenes of a shard, by its number among `files`."""
        return range(self.starts[shard], self._ends[shard])

    def digest(self, shard: int) -> str:
        """A hash of what a shard shows and says: what was made of it belongs to this content alone."""
        content = hashlib.blake2b(self.files[shard].read_bytes(), digest_size=16)
        content.update(np.ascontiguousarray(self._map(shard, "images")).data)
        return content.hexdigest()

    def __getstate__(self) -> dict:
        # memory maps are opened anew in each worker process
        return {key: value for key, value in self.__dict__.items() if key != "_map"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map = lru_cache(maxsize=None)(self._open)

    def _open(self, shard: int, name: str) -> np.ndarray:
        return np.load(self.files[shard].with_suffix(f".{name}.npy"), mmap_mode="r")

    def _row(self, index: int, name: str) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        index %= len(self)
        shard = bisect.bisect_right(self._ends, index)
        return self._map(shard, name)[index - (self._ends[shard - 1] if shard else 0)]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        """ "image": float32 (3, 128, 128) in [-1, 1]; "caption": str; "coverage": float32 (1, 16, 16) in [0, 1]."""
        coverage = torch.from_numpy(np.array(self._row(index, "coverage"), dtype=np.float32))
        return {
            "image": self.stack([index])[0],
            "caption": self.captions[index],
            "coverage": coverage[None],
        }

    def images(self, index: int) -> np.ndarray:
        """The image (128, 128, 3) uint8, a view of the file that is read only when used."""
        return self._row(index, "images")

    def stack(self, rows: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
        """The images x (n, 3, 128, 128) on `device`, float32 in [-1, 1], of the scenes with these numbers."""
        pixels = torch.from_numpy(np.stack([self.images(row) for row in rows])).to(device)
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

    def coverage(self, index: int) -> np.ndarray:
        """The coverage (16, 16) float16, a view of the file."""
        return self._row(index, "coverage")
