"""The first stage against a discriminator, its decoder alone, and the grids that are drawn on the way."""

import copy
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldm.backbones import zoo
from ldm.checkpoint import read_state_dict
from ldm.cli import run
from ldm.data.scenes.scenes import render_scenes
from ldm.data.shards import SceneShards, write_shard
from ldm.errors import UserError
from ldm.training.autoencoder import AutoencoderTrainer
from ldm.training.average import RunningAverage
from ldm.training.grids import SampleGrid
from ldm.training.losses import PatchDiscriminator, TextureLoss, adaptive_weight, gabor_pairs, hinge_loss
from scripts import export_model, train
from tests.tiny import save_tiny_model, tiny_config, tiny_model, tiny_picture

ROOT = Path(__file__).parents[1]
DD = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1]}
DD |= {"num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0, "patch_size": 4}
MODEL = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4, "ddconfig": DD}}
SMALL = {"channels": 8, "layers": 2}


class Pictures(pl.LightningDataModule):
    """Eight smooth pictures, for training and for validation."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader([{"image": tiny_picture(32, 32, seed)[0]} for seed in range(8)], 4)

    val_dataloader = train_dataloader


def fit(module: pl.LightningModule, folder: Path, steps: int, data=None, callbacks=(), **options) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=data or Pictures(), weights_only=True, **options)
    return trainer


def changed(before: dict, after: dict) -> set[str]:
    """The networks of which any weight is another one, by the first two parts of its name."""
    return {".".join(key.split(".")[:2]) for key in before if not torch.equal(before[key], after[key])}


def test_gabor_filters_answer_to_their_own_orientation_and_not_to_brightness():
    filters = gabor_pairs(orientations=4, size=7, wavelength=4.0)
    assert filters.shape == (8, 1, 7, 7)
    torch.testing.assert_close(filters.sum(dim=(1, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    stripes = torch.sin(torch.arange(32) * torch.pi / 2).expand(1, 3, 32, 32)  # change along x, the angle 0
    energy = TextureLoss().energies(stripes)[0].mean(dim=(0, 2, 3))
    assert energy.argmax() == 0 and energy[0] > 3 * energy[2]


def test_texture_loss_prefers_a_texture_elsewhere_to_a_blur():
    """What L1 does not: stripes moved by half a wave are twice as far from the truth as plain gray."""
    waves = torch.arange(64) * torch.pi / 2
    truth, moved = (waves + phase for phase in (0.5, 0.5 + torch.pi))
    truth, moved = (torch.sin(wave).expand(1, 3, 64, 64) for wave in (truth, moved))
    blur = torch.zeros_like(truth)
    loss = TextureLoss()
    assert (moved - truth).abs().mean() > 1.9 * (blur - truth).abs().mean()
    assert loss(moved, truth) < 0.1 * loss(blur, truth)
    assert loss(truth, truth) == 0


def test_patches_of_the_discriminator_see_70_pixels():
    discriminator = PatchDiscriminator(channels=8, layers=3)
    for module in discriminator.modules():  # group norm sees the whole picture: not what is asked here
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = discriminator(x)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    seen = x.grad.abs().sum(dim=(0, 1)).nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [70, 70]


def test_hinge_loss_is_zero_beyond_the_margins_and_one_in_between():
    far = torch.tensor([2.0, 1.0])
    assert hinge_loss(far, -far) == 0 and hinge_loss(torch.zeros(2), torch.zeros(2)) == 1
    assert hinge_loss(-far, far).item() == pytest.approx(2.5)


def test_adaptive_weight_is_the_ratio_of_the_last_layers_gradients():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    out = 3 * last
    assert adaptive_weight(out.sum() * 4, out.sum() / 5, last).item() == pytest.approx(20, rel=1e-3)
    assert adaptive_weight(out.sum(), out.sum() * 0, last).item() == pytest.approx(1e4)  # bounded


def test_the_discriminator_begins_at_its_step_and_the_decoder_alone_is_trained(tmp_path):
    pl.seed_everything(0, verbose=False)
    module = AutoencoderTrainer(MODEL, train_encoder=False, discriminator_start=2, discriminator=SMALL)
    states = [copy.deepcopy(module.state_dict())]

    class Keep(pl.Callback):
        def on_train_batch_end(self, *_):
            states.append(copy.deepcopy(module.state_dict()))

    trainer = fit(module, tmp_path, 3, callbacks=[Keep()])
    assert trainer.global_step == 3  # of batches, although two networks are trained
    decoder = {"first_stage_model.decoder", "first_stage_model.post_quant_conv"}
    assert changed(states[0], states[2]) == decoder
    layers = {f"discriminator.{i}" for i, _ in enumerate(module.discriminator) if i not in (1, 4, 7)}
    assert changed(states[2], states[3]) == decoder | layers


def test_the_discriminator_learns_and_the_autoencoder_is_pulled_by_it():
    """Each loss reaches its own network alone."""
    pl.seed_everything(0, verbose=False)
    module = AutoencoderTrainer(MODEL, discriminator_start=0, discriminator=SMALL)
    module.log = lambda *_, **__: None
    x = torch.cat([tiny_picture(32, 32, seed) for seed in range(2)])
    recon, _ = module.first_stage_model(x, torch.Generator().manual_seed(0))
    total = module._adversarial(module.discriminator, recon, x, (recon - x).abs().mean())
    total.backward()
    real, fake = module.discriminator(torch.cat([x, recon.detach()])).chunk(2)
    expected = torch.autograd.grad(hinge_loss(real, fake), list(module.discriminator.parameters()))
    for parameter, gradient in zip(module.discriminator.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    last = module.first_stage_model.decoder.conv_out.weight
    recon, _ = module.first_stage_model(x, torch.Generator().manual_seed(0))
    pull = torch.autograd.grad((recon - x).abs().mean(), last)[0].norm()
    assert last.grad.norm().item() == pytest.approx(0.5 * pull.item(), rel=0.02)  # discriminator_weight, of the pull


def test_gradients_of_each_network_are_clipped_by_their_own_norm():
    module = AutoencoderTrainer(MODEL, discriminator_start=0, discriminator=SMALL)
    one, other = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    one.grad, other.grad = torch.full((4,), 100.0), torch.full((4,), 0.1)
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other]}], 0.1)
    module.configure_gradient_clipping(optimizer, 1.0, None)
    assert one.grad.norm().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(other.grad, torch.full((4,), 0.1))


def test_a_run_with_a_discriminator_resumes_where_it_stopped(tmp_path):
    def train(steps: int, ckpt_path: Path | None = None) -> AutoencoderTrainer:
        pl.seed_everything(0, verbose=False)
        module = AutoencoderTrainer(MODEL, warmup=1, discriminator_start=1, discriminator=SMALL)
        trainer = fit(module, tmp_path, steps, ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module

    train(2)
    resumed = train(4, tmp_path / "2.ckpt")
    content = torch.load(tmp_path / "4.ckpt", weights_only=True)
    assert content["global_step"] == 4
    moments = content["optimizer_states"][0]["state"]
    parameters = len(list(resumed.parameters()))
    assert len(moments) == parameters and {int(state["step"]) for state in moments.values()} == {4, 3}
    loaded = AutoencoderTrainer.load_from_checkpoint(tmp_path / "4.ckpt", map_location="cpu")
    assert changed(loaded.state_dict(), resumed.state_dict()) == set()

    plain = AutoencoderTrainer(MODEL)
    with pytest.raises(UserError, match=r"trained with a discriminator.*begin"):
        fit(plain, tmp_path, 6, ckpt_path=tmp_path / "4.ckpt")


def test_checkpoints_of_before_the_discriminator_load_strictly(tmp_path):
    """Their hyperparameters name none of the later options, their weights are of `first_stage_model` alone."""
    module = AutoencoderTrainer(MODEL)
    fit(module, tmp_path, 1).save_checkpoint(tmp_path / "new.ckpt")
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    known = ("model", "learning_rate", "warmup", "kl_weight", "gradient_weight", "pyramid_weight")
    content["hyper_parameters"] = {key: content["hyper_parameters"][key] for key in known}
    torch.save(content, tmp_path / "old.ckpt")
    assert all(key.startswith("first_stage_model.") for key in content["state_dict"])
    loaded = AutoencoderTrainer.load_from_checkpoint(tmp_path / "old.ckpt", map_location="cpu")
    assert changed(loaded.state_dict(), module.state_dict()) == set()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_shard(folder, 0, render_scenes(8, 0))
    return folder


def train_decoder(scenes: Path, rundir: Path, begin: Path, *overrides: str) -> int:
    """`scripts/train.py configs/scenes/decoder.yaml` on the tiny model's first stage."""
    autoencoder = tiny_config("none")["model"]["params"]["first_stage_config"]["params"]["ddconfig"]
    small = [f"module.params.model.params.ddconfig.{key}={value}" for key, value in autoencoder.items()]
    small += ["module.params.model.params.ddconfig.patch_size=1", "module.params.discriminator.channels=8"]
    argv = [str(ROOT / "configs/scenes/decoder.yaml"), "--rundir", str(rundir), *small]
    argv += [f"data.params.train={scenes}", f"data.params.val={scenes}", "data.params.batch_size=2"]
    argv += ["data.params.crop=32", f"module.params.begin={begin}", "trainer.max_steps=2", "trainer.accelerator=cpu"]
    argv += ["trainer.enable_progress_bar=false", "trainer.limit_val_batches=1", "trainer.val_check_interval=2"]
    return run(train.main, [*argv, *overrides])


def test_a_new_decoder_in_an_exported_model(scenes, tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    weights = model / "model.safetensors"
    before = read_state_dict(weights)
    grids = ["callbacks[0].params.every=2", "callbacks[0].params.count=4"]
    assert train_decoder(scenes, tmp_path / "run", weights, *grids) == 0

    # Four scenes above, what the first stage makes of them below.
    grid = np.asarray(Image.open(tmp_path / "run/grids/000002.png")).astype(float)
    assert grid.shape == (2 * 130 + 2, 4 * 130 + 2, 3)
    scene = SceneShards(scenes).images(1)
    np.testing.assert_allclose(grid[2:130, 132:260], scene, atol=1)
    assert np.abs(grid[132:260, 132:260] - scene).mean() > 5  # random weights

    last = str(tmp_path / "run/last.ckpt")
    assert run(export_model.main, [last, str(model)]) == 0
    after = read_state_dict(weights)
    assert changed(before, after) == {"first_stage_model.decoder", "first_stage_model.post_quant_conv"}
    zoo.load(zoo.resolve(str(model)), torch.device("cpu"), torch.float32)

    # An encoder that has moved makes latents that the denoiser does not know.
    assert train_decoder(scenes, tmp_path / "both", weights, "module.params.train_encoder=true") == 0
    capsys.readouterr()
    assert run(export_model.main, [str(tmp_path / "both/last.ckpt"), str(model)]) == 2
    assert "train_encoder: false" in capsys.readouterr().err
    assert run(export_model.main, [last, str(tmp_path / "none")]) == 2
    assert "there is no model" in capsys.readouterr().err
    assert changed(after, read_state_dict(weights)) == set()


class Diffusion(pl.LightningModule):
    """A module that trains nothing but a number, beside a model to sample from."""

    def __init__(self):
        super().__init__()
        self.ldm = tiny_model()
        self.shift = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        return (self.shift - 1).square().sum() + 0 * torch.randn(1).sum()

    def validation_step(self, batch, _):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD([self.shift], 0.1)


class KeepGrid(SampleGrid):
    """Keeps what is drawn, and the weights it is drawn with."""

    def __init__(self, **options):
        super().__init__(["a red ball", "a blue cube"], steps=2, **options)
        self.kept = []

    def images(self, trainer, module):
        x = super().images(trainer, module)
        self.kept.append((trainer.global_step, module.shift.item(), x.clone()))
        return x


def test_samples_are_drawn_every_so_many_steps_from_the_same_noise_with_the_averaged_weights(tmp_path):
    grid = KeepGrid(every=4)
    callbacks = [RunningAverage(decay=0.26), grid]
    pl.seed_everything(0, verbose=False)
    fit(Diffusion(), tmp_path, 8, callbacks=callbacks)  # a validation every two steps: an epoch
    drawn_with = torch.random.get_rng_state()
    assert [step for step, *_ in grid.kept] == [4, 8]
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == ["000004.png", "000008.png"]
    assert Image.open(tmp_path / "grids/000004.png").size == (2 * 66 + 2, 66 + 2)
    (_, shift, one), (_, _, other) = grid.kept
    torch.testing.assert_close(one, other)  # nothing of the model was trained
    assert not torch.allclose(one[0], one[1])
    # The number goes 0.1, 0.2, 0.3, 0.4 (a gradient clipped to 1 at a rate of 0.1); its average lags behind,
    # by more and more, until the decay is the one that was asked for.
    mean = 0.1
    for n, (decay, value) in enumerate(((2 / 11, 0.2), (3 / 12, 0.3), (0.26, 0.4)), 1):
        assert decay == pytest.approx(min(0.26, (1 + n) / (10 + n)))
        mean = decay * mean + (1 - decay) * value
    assert shift == pytest.approx(mean, rel=1e-4)

    pl.seed_everything(0, verbose=False)
    fit(Diffusion(), tmp_path / "without", 8, callbacks=callbacks[:1])
    assert torch.equal(drawn_with, torch.random.get_rng_state())  # the training draws what it would draw without


def test_grids_reach_tensorboard(tmp_path):
    from pytorch_lightning.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=logger,
        default_root_dir=tmp_path,
        callbacks=[KeepGrid(every=2)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Diffusion(), datamodule=Pictures())
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [image.step for image in events.Images("grid")] == [2]
