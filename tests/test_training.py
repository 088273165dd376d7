"""The three commands that make a model: render, train (and resume), export. All at the smallest widths."""

import csv
import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from ldm.backbones import zoo
from ldm.backbones.defaults import Defaults
from ldm.cli import run
from ldm.data.scenes.scenes import render_scenes
from ldm.data.shards import SceneShards, write_shard
from ldm.editing.edit import edit_image
from ldm.editing.request import EditRequest
from ldm.errors import UserError
from ldm.models.autoencoder import DiagonalGaussian
from ldm.models.diffusion.ddpm import TextConditioning
from ldm.models.diffusion.sampling import noised
from ldm.training.autoencoder import AutoencoderTrainer, psnr
from ldm.training.base import adamw_with_cosine
from ldm.training.data import LatentScenes, RandomCrops, SceneImages
from ldm.training.diffusion import DiffusionTrainer
from ldm.training.losses import reconstruction_loss
from scripts import export_model
from scripts import train as train_model
from tests.denoisers import level_at
from tests.tiny import save_tiny_model, tiny_config, tiny_model

ROOT = Path(__file__).parents[1]
SMALL_AE = ["params.ddconfig.ch=32", "params.ddconfig.ch_mult=[1,1]"]
QUIET = ["trainer.enable_progress_bar=false", "trainer.limit_val_batches=1", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a few rendered scenes."""
    folder = tmp_path_factory.mktemp("training")
    write_shard(folder / "train", 0, render_scenes(24, 0))
    write_shard(folder / "val", 0, render_scenes(8, 1))
    return folder


def train(config: str, work: Path, *overrides: str) -> int:
    argv = [str(ROOT / "configs" / "scenes" / f"{config}.yaml"), "--rundir", str(work / config)]
    data = [f"data.params.train={work / 'train'}", f"data.params.val={work / 'val'}", "data.params.batch_size=4"]
    return run(train_model.main, [*argv, *data, *QUIET, *overrides])


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def test_train_resume_export_and_edit(work, monkeypatch):
    small = [f"module.params.model.{o}" for o in SMALL_AE]
    steps = ["checkpoint_every=2", "trainer.val_check_interval=2", "data.params.crop=32"]
    assert train("autoencoder", work, *small, *steps, "trainer.max_steps=2") == 0
    assert step_of(work / "autoencoder/last.ckpt") == 2
    seeds = []
    monkeypatch.setattr(pl, "seed_everything", lambda seed: seeds.append(seed) or torch.manual_seed(seed))
    assert train("autoencoder", work, *small, *steps, "trainer.max_steps=4") == 0
    assert seeds == [2]  # other batches than those that it began with
    assert step_of(work / "autoencoder/last.ckpt") == 4  # went on, did not start over

    model = "module.params.model.params"
    small = [f"{model}.first_stage_config.{o}" for o in SMALL_AE]
    small += [f"{model}.unet_config.params.model_channels=32", f"{model}.unet_config.params.channel_mult=[1,1,1]"]
    files = [f"data.params.{key}={work / value}" for key, value in DIFFUSION_FILES.items()]
    steps = ["checkpoint_every=2", "trainer.val_check_interval=2", "trainer.max_steps=2"]
    assert train("diffusion", work, *small, *files, *steps) == 0
    clipped, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, norm: clipped.append(norm) or clip(p, norm))
    half = ["trainer.precision=bf16-mixed", "trainer.max_steps=4"]
    assert train("diffusion", work, *small, *files, *steps, *half) == 0
    assert step_of(work / "diffusion/last.ckpt") == 4 and clipped == [1.0, 1.0]
    logs = [csv.DictReader(path.open()) for path in sorted((work / "diffusion/csv").glob("*/metrics.csv"))]
    assert all(any(row["val/material_sensitivity"] for row in log) for log in logs) and len(logs) == 2

    # A reader of these latents, and its word as a reward.
    readers = ["module.params.model.widths=[8,8]", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    assert train("reader", work, *files, *readers) == 0
    rewarded = f"{{reader: {work / 'reader/last.ckpt'}, weight: 0.1, batch: 2, steps: 4, read: 2}}"
    more = [f"module.params.reward={rewarded}", "trainer.max_steps=6", "trainer.log_every_n_steps=1"]
    assert train("diffusion", work, *small, *files, *steps, *more) == 0
    log = csv.DictReader((work / "diffusion/csv/version_2/metrics.csv").open())
    assert any(row["train/misread"] for row in log) and step_of(work / "diffusion/last.ckpt") == 6
    kept = torch.load(work / "diffusion/last.ckpt", weights_only=True)["state_dict"]
    assert all(key.startswith("ldm.") for key in kept)  # the reader is not the model's

    export = export_model.main
    sections = ["--reconstruction_lr", "1e-3", "--context", "0.25", "--scale", "3", "--background_noise", "one"]
    assert run(export, [str(work / "diffusion/last.ckpt"), str(work / "model"), *sections]) == 0
    config = zoo.read_config(work / "model/config.yaml")
    assert config["reconstruction"] == {"learning_rate": 1e-3}
    assert Defaults.of(zoo.resolve(str(work / "model"))) == Defaults(0.25, 3.0, "shared")
    assert config["words"]["shapes"][:2] == ["ball", "cube"] and "red" in config["words"]["colours"]
    exported = zoo.load(zoo.resolve(str(work / "model")), torch.device("cpu"), torch.float32)
    trained = torch.load(work / "diffusion/last.ckpt", weights_only=True)
    for key, value in exported.state_dict().items():
        torch.testing.assert_close(value, trained["state_dict"][f"ldm.{key}"], atol=1e-3, rtol=1e-3)
    assert exported.scale_factor == trained["scale_factor"]
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    edit = edit_image(exported, torch.zeros(1, 3, 64, 64), mask, EditRequest("a red ball", n_samples=1, ddim_steps=2))
    assert torch.isfinite(edit.x).all()

    # What has shipped can be trained further where no checkpoint of its first stage is left.
    folders = [str(work / name) for name in ("train", "val")]
    weights = str(work / "model/model.safetensors")
    data = LatentScenes(*folders, weights, str(work / "tokenizer"), 128, str(work / "again"), 4)
    data.setup("fit")
    for key, value in exported.first_stage_model.state_dict().items():
        torch.testing.assert_close(data.first_stage_state[key], value)
    assert data.scale_factor == exported.scale_factor  # as its denoiser knows it, not measured anew


DIFFUSION_FILES = {"first_stage": "autoencoder/last.ckpt", "tokenizer": "tokenizer", "cache": "latents"}


@pytest.mark.parametrize(
    ("name", "argv", "named"),
    [
        ("train", ["configs/none.yaml"], "configs/none.yaml"),
        ("train", [str(ROOT / "configs/scenes/clip.yaml"), "fast"], '"fast" is no override'),
        ("export_model", ["none.ckpt", "out"], "none.ckpt"),
    ],
)
def test_mistakes_are_one_line(name, argv, named, capsys):
    assert run(import_module(f"scripts.{name}").main, argv) == 2
    assert named in capsys.readouterr().err


def test_psnr_and_the_reconstruction_loss():
    x = torch.zeros(2, 3, 16, 16)
    assert psnr(x + 0.2, x).item() == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-3)
    assert reconstruction_loss(x, x, 0.5, 0.5) == 0
    # A constant shift has no gradient, and is the same at every size of the pyramid.
    assert reconstruction_loss(x + 0.2, x, 0.5, 0.5).item() == pytest.approx(0.2 * 2, abs=1e-6)


def test_learning_rate_warms_up_and_decays():
    chosen = adamw_with_cosine([torch.nn.Parameter(torch.zeros(1))], 1.0, warmup=10, total=100, floor=0.02)
    rates = []
    for _ in range(101):
        rates.append(chosen["optimizer"].param_groups[0]["lr"])
        chosen["optimizer"].step()
        chosen["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.51, abs=0.02) and rates[100] == pytest.approx(0.02)


@pytest.mark.parametrize("parameterization", ["v", "eps"])
def test_a_denoiser_that_knows_the_answer_has_no_loss(parameterization, monkeypatch):
    """The target of the training and `predict` of the sampling are two sides of one definition."""
    tokenizer = tiny_model().cond_stage_model.tokenize.name
    config = tiny_config(tokenizer)["model"]
    config["params"]["parameterization"] = parameterization
    trainer = DiffusionTrainer(config)
    z = torch.randn(3, 4, 8, 8)
    seen = {}

    def perfect(z_t, t, context):
        alpha = trainer.ldm.alphas_cumprod[t].view(-1, 1, 1, 1)
        eps = (z_t - alpha.sqrt() * z) / (1 - alpha).sqrt()
        seen.update(z_t=z_t, t=t, eps=eps)
        return eps if parameterization == "eps" else (eps - (1 - alpha).sqrt() * z_t) / alpha.sqrt()

    monkeypatch.setattr(trainer.ldm, "apply_model", perfect)
    batch = {"z": z, "tokens": trainer.empty_tokens.expand(3, -1), "coverage": torch.ones(3, 1, 8, 8)}
    assert trainer.loss(batch, torch.Generator().manual_seed(0)).max() < 1e-5
    level = level_at(trainer.ldm.alphas_cumprod, int(seen["t"][0]))
    conditioning = TextConditioning(trainer.ldm, torch.zeros(1, 77, 32))
    eps = trainer.ldm.predict(seen["z_t"], level, conditioning).eps[:1]
    torch.testing.assert_close(eps, seen["eps"][:1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(noised(z[:1], level, eps[:1]), seen["z_t"][:1], atol=1e-3, rtol=1e-3)


def test_timesteps_are_drawn_by_their_noise():
    model = tiny_config(tiny_model().cond_stage_model.tokenize.name)["model"]

    def draw(log_snr, count: int = 20_000):
        trainer = DiffusionTrainer(model, log_snr=log_snr)
        t = trainer.timesteps(count, torch.Generator().manual_seed(0))
        return t, (trainer.ldm.sqrt_alphas_cumprod / trainer.ldm.sqrt_one_minus_alphas_cumprod).log()

    t, known = draw((-0.5, 0.8))
    assert known[t].mean().item() == pytest.approx(-0.5, abs=0.03)
    assert known[t].std().item() == pytest.approx(0.8, abs=0.03)
    t, _ = draw((0.0, 100.0), 99)  # beyond what there is are its ends
    assert (t.min(), t.max()) == (0, len(known) - 1)
    t, _ = draw(None)
    assert t.double().mean().item() == pytest.approx((len(known) - 1) / 2, rel=0.02)


def test_validation_tells_how_much_worse_a_wrong_material_is(monkeypatch):
    from ldm.training.data import material_captions

    ball = {"shape": "ball", "material": "plastic", "color": "red", "background": "grass"}
    assert material_captions(ball) == ("a red plastic ball on grass", "a red metal ball on grass")
    assert len(set(material_captions({**ball, "second": ball}))) == len(set(material_captions({"shape": None}))) == 1

    trainer = DiffusionTrainer(tiny_config(tiny_model().cond_stage_model.tokenize.name)["model"])
    logged = {}
    monkeypatch.setattr(trainer, "log", lambda name, value, **_: logged.update({name: float(value)}))
    # A loss of 2 for the first sample whatever is said, of 4 for the second and 5 where its material is missaid.
    monkeypatch.setattr(trainer, "loss", lambda batch, _: batch["z"] * (1 + batch["tokens"][:, 0] / 4))
    batch = {"z": torch.tensor([2.0, 4.0]), "tokens": torch.zeros(2, 1), "said": torch.zeros(2, 1)}
    trainer.validation_step({**batch, "missaid": torch.tensor([[0.0], [1.0]])}, 0)
    assert logged["val/material_sensitivity"] == pytest.approx(0.25) and logged["val/loss"] == 3
    logged.clear()
    trainer.validation_step(batch, 0)
    assert "val/material_sensitivity" not in logged


def test_objects_weigh_more_than_background():
    trainer = DiffusionTrainer(tiny_config(tiny_model().cond_stage_model.tokenize.name)["model"])
    batch = {"z": torch.randn(2, 4, 8, 8), "tokens": trainer.empty_tokens.expand(2, -1)}
    losses = [
        trainer.loss({**batch, "coverage": torch.full((2, 1, 8, 8), c)}, torch.Generator().manual_seed(0)).mean()
        for c in (0.0, 1.0)
    ]
    assert (losses[1] / losses[0]).item() == pytest.approx(1.35 / 0.35, rel=1e-4)


def test_captions_are_tokens_without_unknown_words(work):
    captions = json.loads((work / "train/00000.json").read_text())["captions"]
    data = LatentScenes(
        str(work / "train"), str(work / "val"), "none", str(work / "words"), 128, str(work / "no-cache"), 4
    )
    tokens = data._tokens(captions)
    assert tokens.shape == (24, 32) and not (tokens == 1).any()  # 1 is [UNK]


class FirstStage(torch.nn.Module):
    """Encodes to means of 8x8 pixels times a weight, and counts what it is given."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.encoder = torch.nn.Conv2d(1, 4, 1, bias=False)
        torch.nn.init.constant_(self.encoder.weight, weight)
        self.encoded = 0

    def encode(self, x: torch.Tensor) -> DiagonalGaussian:
        self.encoded += len(x)
        mean = self.encoder(F.avg_pool2d(x.mean(1, keepdim=True), 8))
        return DiagonalGaussian(mean, torch.zeros_like(mean))


def cached_latents(first_stage: FirstStage, scenes: Path, work: Path, cache: Path) -> torch.Tensor:
    data = LatentScenes(str(scenes), str(work / "val"), "none", str(work / "words"), 128, str(cache), 4)
    return data._latents(first_stage, "train")


def test_scenes_rendered_since_are_added_to_the_cached_latents(work, tmp_path):
    """Those that are known are not encoded again, and others of the same number are not taken for them."""
    first_stage, scenes, cache = FirstStage(), tmp_path / "scenes", tmp_path / "cache"
    write_shard(scenes, 0, render_scenes(6, 0))
    one = cached_latents(first_stage, scenes, work, cache)
    write_shard(scenes, 1, render_scenes(4, 1))
    two = cached_latents(first_stage, scenes, work, cache)
    assert len(one) == 6 and len(two) == 10 == first_stage.encoded
    torch.testing.assert_close(two[:6], one)
    torch.testing.assert_close(cached_latents(first_stage, scenes, work, cache), two)
    assert first_stage.encoded == 10

    write_shard(scenes, 0, render_scenes(6, 2))
    other = cached_latents(first_stage, scenes, work, cache)
    assert first_stage.encoded == 16 and not torch.equal(other[:6], one) and torch.equal(other[6:], two[6:])


def test_latents_of_another_first_stage_are_not_used(work, tmp_path):
    one, other = FirstStage(1.0), FirstStage(2.0)
    z = cached_latents(one, work / "val", work, tmp_path)
    torch.testing.assert_close(cached_latents(other, work / "val", work, tmp_path), 2 * z)
    torch.testing.assert_close(cached_latents(FirstStage(1.0), work / "val", work, tmp_path), z)
    assert (one.encoded, other.encoded) == (8, 8)


def epoch_of_crops(scenes: Path, epoch: int, workers: int = 0) -> torch.Tensor:
    """The crops (n, 3, 16, 16) of one epoch of training, in the order they come."""
    data = SceneImages(str(scenes), str(scenes), crop=16, batch_size=2, workers=workers)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([batch["image"] for batch in loader])


def test_random_crops_depend_on_seed_epoch_and_scene_alone(work):
    crops, other_seed = (RandomCrops(SceneShards(work / "val"), 16, seed) for seed in (0, 1))
    for i in range(8):
        assert torch.equal(crops[0, i]["image"], crops[0, i]["image"])
        assert not torch.equal(crops[0, i]["image"], crops[1, i]["image"])
        assert not torch.equal(crops[0, i]["image"], other_seed[0, i]["image"])
    first = epoch_of_crops(work / "val", 0)
    assert torch.equal(first, epoch_of_crops(work / "val", 0, workers=2))
    assert not torch.equal(first, epoch_of_crops(work / "val", 1))


def test_workers_cut_at_places_of_their_own(tmp_path):
    """Of pictures that tell where they were cut: all workers had a generator in the same state."""
    scenes = render_scenes(8, 0)
    scenes.images[:] = np.arange(128, dtype=np.uint8)[:, None, None]
    write_shard(tmp_path, 0, scenes)
    tops = epoch_of_crops(tmp_path, 0, workers=2)[:, 0, 0, 0]
    assert len(set(tops.tolist())) > 5


def test_emphasised_materials_are_trained_on_more_often(work):
    from ldm.training.data import CachedLatents, scene_weights

    attributes = json.loads((work / "train/00000.json").read_text())["attributes"]
    materials = [scene["material"] for scene in attributes]
    rare = next(name for name in materials if name)
    weights = scene_weights(attributes, {rare: 50.0})
    shows_rare = [rare in (scene["material"], scene.get("second", {}).get("material")) for scene in attributes]
    assert weights == [50.0 if shown else 1.0 for shown in shows_rare] and not all(shows_rare)

    data = LatentScenes(
        *(str(work / name) for name in ("train", "val")), "none", str(work / "words"), 128, "none", 4, 32, {rare: 50.0}
    )
    rows = torch.arange(len(attributes))
    data.data["train"] = CachedLatents(rows, rows, rows)
    torch.manual_seed(0)
    drawn = torch.cat([batch["z"].long() for _ in range(20) for batch in data.train_dataloader()])
    share = torch.tensor(weights)[drawn].eq(50).float().mean().item()
    assert share == pytest.approx(sum(w for w in weights if w > 1) / sum(weights), abs=0.05)


@pytest.mark.parametrize(("emphasis", "named"), [({"gold": 2}, "gold"), ({"metal": -1}, "-1")])
def test_emphasis_of_no_material_or_less_than_nothing_is_refused(work, emphasis, named):
    with pytest.raises(UserError, match=named):
        LatentScenes("train", "val", "none", str(work / "words"), 128, "none", 4, emphasis=emphasis)


# --- training further what is there already --------------------------------------------------------------------------

BARE = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
BARE |= {"accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 0}


EDITING = {"context": 0.1, "scale": 4.0}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def first_stage_checkpoint(path: Path, change: float = 1.0) -> Path:
    """A checkpoint of the autoencoder's training with the tiny model's weights; its encoder's times `change`."""
    module = AutoencoderTrainer(tiny_config("none")["model"]["params"]["first_stage_config"])
    module.first_stage_model.load_state_dict(tiny_model().first_stage_model.state_dict())
    with torch.no_grad():
        for parameter in module.first_stage_model.encoder.parameters():
            parameter.mul_(change)
    trainer = pl.Trainer(**BARE)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def train_further(work, tiny_folder, tmp_path):
    """Train the tiny denoiser for some steps; returns the checkpoint."""

    def call(first_stage: Path, begin: Path | None, steps: int = 1, **resume) -> Path:
        scenes, cache = (str(work / name) for name in ("val", "tiny-latents"))
        tokenizer = str(tiny_folder / "tokenizer")
        data = LatentScenes(scenes, scenes, str(first_stage), tokenizer, 128, cache, 4, max_length=77)
        module = DiffusionTrainer(
            tiny_config(tokenizer)["model"], warmup=1, begin=begin and str(begin), editing=EDITING
        )
        trainer = pl.Trainer(max_steps=steps, **BARE)
        trainer.fit(module, datamodule=data, weights_only=True, **resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return tmp_path / f"{steps}.ckpt"

    return call


def test_a_model_is_exported_with_what_its_training_says_of_editing(train_further, tiny_folder, tmp_path):
    checkpoint = str(train_further(tiny_folder, tiny_folder))
    for options, told in (([], EDITING), (["--scale", "2"], EDITING | {"scale": 2.0})):
        assert run(export_model.main, [checkpoint, str(tmp_path / "model"), *options]) == 0
        assert zoo.resolve(str(tmp_path / "model")).section("editing") == told


def scale_of(checkpoint: Path) -> float:
    return torch.load(checkpoint, weights_only=True)["scale_factor"]


def test_what_begins_from_a_model_keeps_its_scale_and_has_an_average(train_further, tiny_folder, tmp_path, capsys):
    """Also where the first stage is named by its own training, which knows no scale: one with a new decoder, say."""
    own = first_stage_checkpoint(tmp_path / "autoencoder.ckpt")
    one, other = train_further(tiny_folder, tiny_folder), train_further(own, tiny_folder, steps=2)
    assert scale_of(one) == scale_of(other) == 0.18215
    export = export_model.main
    assert run(export, [str(one), str(tmp_path / "mean"), "--average", str(other)]) == 0
    mean = zoo.load(zoo.resolve(str(tmp_path / "mean")), torch.device("cpu"), torch.float32)
    key = "model.diffusion_model.out.2.weight"
    both = [torch.load(path, weights_only=True)["state_dict"][f"ldm.{key}"] for path in (one, other)]
    torch.testing.assert_close(mean.state_dict()[key], torch.stack(both).mean(0), atol=1e-3, rtol=1e-3)
    assert mean.scale_factor == 0.18215

    # So does what begins from such a checkpoint, and from a file of weights beside its config.
    for begin in (one, tiny_folder / "model.safetensors"):
        assert scale_of(train_further(own, begin, steps=3)) == 0.18215
    fresh = train_further(own, None, steps=4)
    assert scale_of(fresh) != 0.18215
    capsys.readouterr()
    assert run(export, [str(one), str(tmp_path / "none"), "--average", str(fresh)]) == 2
    assert "they have no average" in capsys.readouterr().err


def test_a_denoiser_is_not_trained_on_another_encoder_s_latents(train_further, tiny_folder, tmp_path):
    other = first_stage_checkpoint(tmp_path / "other.ckpt", change=1.1)
    with pytest.raises(UserError, match=r"another encoder than that of .*data\.params\.first_stage"):
        train_further(other, tiny_folder)


def test_a_resumed_training_has_its_own_weights_and_draws(train_further, tiny_folder, monkeypatch):
    """Not those that it began with, nor the noise and the scale of its beginning."""
    path = train_further(tiny_folder, tiny_folder, steps=2)
    kept = torch.load(path, weights_only=True)
    kept["scale_factor"] = 0.2
    torch.save(kept, path)
    begun, draws = [], []

    def spy(self, *_):
        begun.append({name: value.clone() for name, value in self.state_dict().items()})
        draws.append(torch.rand(1, generator=self.generator).item())

    monkeypatch.setattr(DiffusionTrainer, "on_train_batch_start", spy, raising=False)
    assert scale_of(train_further(tiny_folder, tiny_folder, steps=3, ckpt_path=path)) == 0.2
    for name, value in begun[0].items():
        assert torch.equal(value, kept["state_dict"][name]), name
    train_further(tiny_folder, tiny_folder)
    assert draws[0] != draws[1]
