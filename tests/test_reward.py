"""The reader of latents, and its word as a reward for edits of the denoiser in training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from ldm.data.object_crops import UNSAID, VALUES, encode, said
from ldm.data.scenes.captions import vocabulary
from ldm.data.tokenizer import write_tokenizer
from ldm.errors import UserError
from ldm.training.diffusion import DiffusionTrainer
from ldm.training.reader import READ, LatentReader, ReaderTrainer, degrade, draw_regions, look_closer
from ldm.training.reward import Reward
from tests.tiny import tiny_config, tiny_model

TINY = {"size": 8, "widths": (16, 24)}
MATERIALS = VALUES["material"]


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """Of a reader that has learned nothing."""
    import pytorch_lightning as pl

    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(ReaderTrainer(TINY))
        path = tmp_path_factory.mktemp("reader") / "last.ckpt"
        trainer.save_checkpoint(path)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(vocabulary(), folder, 32)
    return tiny_model(folder).requires_grad_(True)


@pytest.fixture
def batch():
    box = torch.tensor([[16, 8, 48, 56], [0, 0, 0, 0], [8, 8, 40, 40]], dtype=torch.int16)
    return {"z": torch.randn(3, 4, 8, 8, generator=generator(3)).half(), "box": box}


def test_a_region_is_the_box_and_what_it_grew_by():
    box = torch.tensor([[32, 16, 96, 80]])
    (tight,) = draw_regions(generator(), box, 16, (0, 0))
    assert tight[0, 2:10, 4:12].all() and tight.sum() == 64
    (wide,) = draw_regions(generator(), box, 16, (1, 1))
    assert wide[0, 1:11, 3:13].all() and wide.sum() == 100


def test_a_scene_without_an_object_gets_a_region_somewhere_within():
    regions = draw_regions(generator(), torch.zeros(64, 4, dtype=torch.int16), 16, (0, 0))
    sizes = regions.sum(dim=(1, 2, 3))
    assert (sizes >= 16).all() and (sizes <= 14 * 14).all() and len(regions.unique(dim=0)) > 32


def test_the_reader_looks_at_the_square_around_its_region():
    """A square of ones fills the same share of what is looked at, wherever it stands and however large it is."""
    z, region = torch.full((4, 2, 16, 16), -1.0), torch.zeros(4, 1, 16, 16)
    places = [(slice(1, 6), slice(2, 7)), (slice(9, 14), slice(10, 15)), (slice(3, 13), slice(3, 13))]
    for i, (rows, columns) in enumerate(places):
        region[i, :, rows, columns] = z[i, :, rows, columns] = 1
    seen = look_closer(z, region)
    assert seen.shape == (4, 3, 16, 16)
    torch.testing.assert_close(seen[0], seen[1])
    assert (seen[:3, :, 3:13, 3:13] == 1).all()  # of 16 / 1.2 = 13.3 positions, all but the blurred edge
    assert (seen[:3, 2, [0, -1]] < 0.5).all() and (seen[:3, 2, :, [0, -1]] < 0.5).all()
    assert (seen[3, :2, 4:12, 4:12] == -1).all() and (seen[3, 2] == 0).all()


def test_an_oblong_region_keeps_its_proportions_and_beyond_the_border_is_nothing():
    z, region = torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    region[..., 4:12, 0:4] = 1
    looked, where = look_closer(z, region)[0]
    wide, high = where.mean(1).max(), where.mean(0).max()
    torch.testing.assert_close(high, torch.tensor(1 / 1.2), atol=0.03, rtol=0)
    torch.testing.assert_close(wide, torch.tensor(0.5 / 1.2), atol=0.03, rtol=0)
    assert (looked[:, :3] == 0).all() and (looked[:, 6:] > 0.999).all()


def test_the_reader_says_the_same_wherever_an_object_stands():
    reader = LatentReader(**TINY | {"size": 16}).eval()
    z, region = torch.zeros(2, 4, 16, 16), torch.zeros(2, 1, 16, 16)
    z[0, :, 1:6, 2:7] = z[1, :, 9:14, 8:13] = torch.randn(4, 5, 5, generator=generator())
    region[0, :, 1:6, 2:7] = region[1, :, 9:14, 8:13] = 1
    for logits in reader(z, region).values():
        torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_the_reader_is_asked_about_what_is_named_alone():
    reader = LatentReader(**TINY).eval()
    z, region = torch.randn(2, 4, 8, 8), torch.ones(2, 1, 8, 8)
    labels = torch.tensor([[UNSAID] * 3, [UNSAID, 4, UNSAID]])
    nothing, material = reader.loss(z, region, labels)
    guess = reader(z, region)["material"][1]
    assert nothing == 0
    torch.testing.assert_close(material, F.cross_entropy(guess, torch.tensor(4)))


def test_the_reader_learns_and_looks_at_its_region():
    """Two objects in each latent, told apart by a channel's sign: what counts is the one in the region."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = LatentReader(**TINY, dropout=0.0)
        optimizer = torch.optim.AdamW(reader.parameters(), 3e-3)
        draws = generator()

        def scenes(n: int):
            left, right = torch.randint(2, (2, n), generator=draws)
            z = 0.3 * torch.randn(n, 4, 8, 8, generator=draws)
            z[:, 0, :, :4] += (left * 2.0 - 1).view(-1, 1, 1)
            z[:, 0, :, 4:] += (right * 2.0 - 1).view(-1, 1, 1)
            region = torch.zeros(n, 1, 8, 8)
            on_left = torch.arange(n) % 2 == 0
            region[on_left, :, :, :4] = 1
            region[~on_left, :, :, 4:] = 1
            return z, region, torch.where(on_left, left, right)

        for _ in range(150):
            z, region, material = scenes(32)
            labels = torch.full((32, 3), UNSAID)
            labels[:, 1] = material
            loss = reader.loss(degrade(draws, z), region, labels).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        z, region, material = scenes(200)
        right = reader.eval()(z, region)["material"].argmax(1) == material
    assert right.float().mean() > 0.9


def test_some_latents_are_not_degraded():
    z = torch.randn(64, 4, 8, 8, generator=generator())
    same = (degrade(generator(1), z) == z).flatten(1).all(1)
    assert 2 < same.sum() < 32


def test_prompts_say_their_labels(checkpoint):
    texts, labels = Reward(checkpoint, 1.0).prompts(generator(), 200)
    assert len(set(texts)) > 150 and labels.shape == (200, 3)
    for text, label in zip(texts, labels.tolist(), strict=True):
        look = {key: VALUES[key][i] if i != UNSAID else None for key, i in zip(READ, label, strict=True)}
        assert encode(said(text, look | {"background": None}))[:3] == label


def test_what_is_emphasised_is_prompted_more_often(checkpoint):
    emphasis = {"brick": 4, "plastic": 0.0, "gray": 3.0}
    _, labels = Reward(checkpoint, 1.0, emphasis=emphasis).prompts(generator(), 1500)
    brick, plastic, metal = ((labels[:, 1] == MATERIALS.index(m)).sum() for m in ("brick", "plastic", "metal"))
    gray, blue = ((labels[:, 2] == VALUES["color"].index(c)).sum() for c in ("gray", "blue"))
    assert plastic == 0 and 3 < brick / metal < 5.5 and 2.2 < gray / blue < 4


@pytest.mark.parametrize(
    ("emphasis", "named"),
    [({"gold": 2}, "gold"), ({"blue": -1}, "-1"), (dict.fromkeys(MATERIALS, 0), "every material")],
)
def test_an_emphasis_that_leaves_no_prompt_is_refused(checkpoint, emphasis, named):
    with pytest.raises(UserError, match=named):
        Reward(checkpoint, 1.0, emphasis=emphasis)


def test_the_reward_reads_edits_of_the_scene(checkpoint, model, batch, monkeypatch):
    """Outside the region the reader is shown the scene as it is; inside, what the model made."""
    reward, seen = Reward(checkpoint, 1.0, batch=2, steps=6, read=2), []
    monkeypatch.setattr(
        reward.reader, "loss", lambda z, region, labels: seen.append((z, region)) or z.square().mean((1, 2, 3))
    )
    reward.loss(model, batch, generator())
    assert len(seen) == 2
    source = batch["z"][:2].float()
    for z, region in seen:
        outside = (region == 0).expand_as(z)
        assert len(z) == 2 and torch.equal(z[outside], source[outside])
        assert not torch.isclose(z, source)[~outside].any()


def test_around_the_region_each_step_begins_at_the_scene_noised_once(checkpoint, model, batch, monkeypatch):
    reward, predict = Reward(checkpoint, 1.0, batch=2, steps=6, read=2), type(model).predict
    sampled, regions = [], []
    monkeypatch.setattr(
        type(model), "predict", lambda self, z, level, c: sampled.append((z[:2], level.t)) or predict(self, z, level, c)
    )
    monkeypatch.setattr(
        reward.reader, "loss", lambda z, region, _: regions.append(region) or z.square().mean((1, 2, 3))
    )
    reward.loss(model, batch, generator())
    source, outside = batch["z"][:2].float(), (regions[0] == 0).expand(-1, 4, -1, -1)
    noises = []
    for z, t in sampled:
        alpha = model.alphas_cumprod[t]
        noises.append(((z - alpha.sqrt() * source) / (1 - alpha).sqrt())[outside])
    assert len(noises) > 4 and noises[0].std() > 0.8
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], atol=1e-3, rtol=1e-3)


def test_the_same_generator_gives_the_same_reward(checkpoint, model, batch):
    reward = Reward(checkpoint, 1.0, batch=3, steps=4, read=2)
    first, again, other = (reward.loss(model, batch, generator(seed)).item() for seed in (0, 0, 1))
    assert first == again != other


def test_only_what_follows_the_prompt_is_rewarded(checkpoint, model, batch, monkeypatch):
    """A gradient is kept in the steps that are read, with the prompt; the text encoder gets it too."""
    kept, predict = [], type(model).predict

    def spy(self, z, level, conditioning):
        kept.extend([len(conditioning)] * torch.is_grad_enabled())
        return predict(self, z, level, conditioning)

    monkeypatch.setattr(type(model), "predict", spy)
    model.zero_grad()
    Reward(checkpoint, 1.0, batch=2, steps=6, read=2).loss(model, batch, generator()).backward()
    assert kept == [2, 2]
    weights = (model.model.diffusion_model.out[2].weight, model.cond_stage_model.transformer.token_emb.weight)
    assert all(weight.grad.abs().sum() > 0 for weight in weights)


def test_a_denoiser_learns_what_the_reader_wants(checkpoint, tmp_path, batch):
    write_tokenizer(vocabulary(), tmp_path, 32)
    model = tiny_model(tmp_path).requires_grad_(True)
    reward = Reward(checkpoint, 1.0, batch=3, steps=4, read=2)
    optimizer = torch.optim.AdamW([*model.model.parameters(), *model.cond_stage_model.parameters()], 2e-3)
    losses = []
    for _ in range(12):
        loss = reward.loss(model, batch, generator())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2


def test_the_reward_is_weighed_and_asked_at_every_so_many_steps(checkpoint, model, batch, monkeypatch):
    config = tiny_config(model.cond_stage_model.tokenize.name)["model"]
    trainer = DiffusionTrainer(config, reward={"reader": checkpoint, "weight": 0.5, "every": 2})
    monkeypatch.setattr(trainer, "log", lambda *_, **__: None)
    monkeypatch.setattr(trainer, "loss", lambda *_: torch.tensor([1.0, 3.0]))
    monkeypatch.setattr(trainer.reward, "loss", lambda *_: torch.tensor(7.0))
    trainer.generator, losses = generator(), []
    for step in range(4):
        monkeypatch.setattr(DiffusionTrainer, "global_step", step)
        losses.append(trainer.training_step({**batch, "tokens": trainer.empty_tokens.expand(3, -1)}, step).item())
    assert losses == [5.5, 2.0, 5.5, 2.0]


def test_a_reward_without_a_reader_or_without_steps_to_read_is_refused(checkpoint, model, batch):
    with pytest.raises(UserError, match=r"nowhere\.ckpt"):
        Reward("nowhere.ckpt", 1.0)
    with pytest.raises(UserError, match="3 of 4 steps, and 2 of them"):
        Reward(checkpoint, 1.0, steps=4, read=3, between=(0.2, 0.6)).loss(model, batch, generator())
