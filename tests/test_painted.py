"""Scenes as a model paints them: the pictures, their files, and the ranker's training on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import save_tiny_model, tiny_model
from torch import Generator

from ldm.checkpoint import read_state_dict, save_safetensors
from ldm.data.object_crops import ObjectCrops
from ldm.data.scenes.scenes import render_scenes
from ldm.data.shards import SceneShards, write_shard
from ldm.errors import UserError
from ldm.models.diffusion.prediction import Prediction
from ldm.models.diffusion.schedule import NoiseLevel
from ldm.training import painted
from ldm.training.clip import CLIPTrainer, CropData, export
from ldm.training.painted import PaintedScenes, paint_batch
from tests.denoisers import trajectory

NETWORK = {
    "embed_dim": 16,
    "vision": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for index in (0, 1):
        write_shard(folder, index, render_scenes(8, seed=index))
    return folder


@pytest.fixture(scope="module")
def painter(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("painter")))


def test_without_a_step_a_scene_is_what_the_first_stage_makes_of_it(monkeypatch):
    model, x = tiny_model(), torch.rand(3, 3, 32, 32, generator=Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(painted, "MOST", 0)
    with torch.no_grad():
        expected = model.decode(model.encode(x)).clamp(-1, 1)
    torch.testing.assert_close(paint_batch(model, x, ["a red ball"] * 3, Generator().manual_seed(0)), expected)


def test_a_denoiser_that_knows_the_noise_gives_the_scene_back(monkeypatch):
    """However many steps a sample takes: z_t = sqrt(a) z_0 + sqrt(1 - a) eps is undone by the same eps."""
    model, x = tiny_model(), torch.rand(12, 3, 32, 32, generator=Generator().manual_seed(0)) * 2 - 1
    starts, levels, noised = [], [], painted.noised

    def spy(z0: torch.Tensor, level: NoiseLevel, eps: torch.Tensor) -> torch.Tensor:
        starts.append((z0, eps))
        levels.append(level.a)
        return noised(z0, level, eps)

    monkeypatch.setattr(painted, "noised", spy)
    monkeypatch.setattr(
        painted, "plain_denoiser", lambda *_: lambda z, level: Prediction(z, level, starts[-1][1], "eps")
    )
    with torch.no_grad():
        # Sampling arrives at alphas_cumprod[0], not at 1.
        alpha = model.alphas_cumprod[0].item()
        z = model.encode(x)
        got = paint_batch(model, x, ["a red ball"] * 12, Generator().manual_seed(0))
        z_end = z.clone()
        for z0, eps in starts:
            which = [(z == row).flatten(1).all(1).nonzero().item() for row in z0]
            z_end[which] = alpha**0.5 * z0 + (1 - alpha) ** 0.5 * eps
        expected = model.decode(z_end).clamp(-1, 1)
    assert 1 < sum(len(z0) for z0, _ in starts) < 12
    most = trajectory(model.alphas_cumprod, painted.STEPS).levels[painted.STEPS - painted.MOST].a
    assert sorted(set(levels), reverse=True) == levels and levels[-1] >= most, "each by its own number of steps"
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def painted_scenes(scenes: SceneShards, rows: list[int], painter: str, folder: Path) -> PaintedScenes:
    pictures = PaintedScenes(scenes, rows, painter, folder)
    pictures.paint(lambda row: scenes.captions[row])
    return pictures


def test_painted_scenes_are_found_by_number_and_kept(shards, painter, tmp_path):
    scenes = SceneShards(shards)
    assert scenes.starts == [0, 8]
    rows = [1, 4, 9, 15]
    pictures = painted_scenes(scenes, rows, painter, tmp_path)
    assert sorted(pictures) == rows and 2 not in pictures and pictures.get(2) is None
    for row in rows:
        assert pictures[row].shape == scenes.images(row).shape and pictures[row].dtype == np.uint8
        assert not np.array_equal(pictures[row], scenes.images(row))
    assert not np.array_equal(pictures[1], pictures[4])

    first = pictures[1].copy()
    (path,) = tmp_path.glob("00001.*")
    path.unlink()  # as a run that died while it painted the second shard leaves it
    again = PaintedScenes(scenes, rows, painter, tmp_path)
    assert sorted(again) == [1, 4]
    again.paint(lambda row: pytest.fail("shard 0 is painted") if row < 8 else "a ball")
    assert sorted(again) == rows and np.array_equal(again[1], first)
    assert np.array_equal(painted_scenes(scenes, rows, painter, tmp_path / "other")[1], first)


@pytest.mark.parametrize("change", ["painter", "scenes", "rows", "seed"])
def test_what_was_painted_with_anything_else_is_not_used(shards, painter, tmp_path, change):
    """Model, scenes and seed decide how a picture looks; which rows, what a place in the file means."""
    scenes, rows, folder, seed, other_painter = SceneShards(shards), [1, 4], tmp_path / "painted", 0, painter
    before = painted_scenes(scenes, rows, painter, folder)[1].copy()
    other, other_rows = scenes, rows
    if change == "painter":
        other_painter = str(shutil.copytree(painter, tmp_path / "model"))
        file = tmp_path / "model/model.safetensors"
        save_safetensors({name: value * 1.5 for name, value in read_state_dict(file).items()}, file)
    elif change == "scenes":
        for index in (0, 1):
            write_shard(tmp_path / "scenes", index, render_scenes(8, seed=2 + index))
        other = SceneShards(tmp_path / "scenes")
    elif change == "rows":
        other_rows = [0, 1]
    else:
        seed = 1
    assert 1 not in PaintedScenes(other, other_rows, other_painter, folder, seed)
    assert np.array_equal(PaintedScenes(scenes, rows, painter, folder)[1], before)


def test_a_painted_picture_takes_the_place_of_the_render(shards):
    crops = ObjectCrops(shards, size=32, margin=0.05, false_captions=1)
    row = crops.rows[2]
    before = crops[0, 2]
    crops.painted = {row: np.full((128, 128, 3), 255, np.uint8)}
    after = crops[0, 2]
    assert after["image"].max() > 0.9 and set((after["image"] > 0.5).flatten().tolist()) <= {True, False}
    assert not torch.equal(before["image"], after["image"])
    assert torch.equal(before["attributes"], after["attributes"]) and before["texts"] == after["texts"]


def test_full_captions_name_all_that_is_known(shards):
    crops = ObjectCrops(shards, size=32, margin=0.05, false_captions=1)
    crops.shards.attributes[0] = {"shape": "ball", "material": "yarn", "color": "pink", "background": "grass"}
    assert crops.full_caption(0) == "a pink yarn ball on grass"
    crops.shards.attributes[0] = {"shape": "ring", "material": None, "color": "black", "background": None}
    assert crops.full_caption(0) == "a black ring"
    crops.shards.attributes[0] = dict.fromkeys(("shape", "material", "color")) | {"background": "grass"}
    assert crops.full_caption(0) == "grass"


def test_the_ranker_learns_from_painted_scenes_and_begins_from_a_shipped_one(shards, painter, tmp_path):
    import pytorch_lightning as pl

    pl.seed_everything(0, verbose=False)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "val_check_interval": 2}
    data = CropData(
        str(shards), str(shards), 32, 0.05, 4, painter=painter, painted=str(tmp_path / "painted"), painted_every=2
    )
    module = CLIPTrainer(**NETWORK, warmup=1)
    trainer = pl.Trainer(max_steps=2, check_val_every_n_epoch=None, **options)
    trainer.fit(module, datamodule=data)
    logged = trainer.callback_metrics
    assert {"val/shape", "val/all", "painted/shape", "painted/all"} <= logged.keys()
    crops = data.train_dataloader().dataset
    assert sorted(crops.painted) == crops.rows[::2]
    assert [len(loader.dataset.painted) for loader in data.val_dataloader()] == [0, len(crops.rows)]

    folder = export(module, tmp_path / "clip")
    onward = CLIPTrainer(**NETWORK, warmup=1, learning_rate=0.0, begin=str(folder / "open_clip_model.safetensors"))
    trainer = pl.Trainer(max_steps=1, limit_val_batches=0, **options)
    trainer.fit(onward, datamodule=CropData(str(shards), str(shards), 32, 0.05, 4))
    for name, value in onward.clip.state_dict().items():
        torch.testing.assert_close(value, module.clip.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_a_painter_needs_a_folder(shards):
    with pytest.raises(UserError, match=r"data\.params\.painted"):
        CropData(str(shards), str(shards), 32, 0.05, 4, painter="scenes")
