"""The small CLIP's data, loss, training and export, on a handful of rendered scenes."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Generator

from ldm.data.crops import cut_square, square_around, whole_picture
from ldm.data.epochs import EpochSampler
from ldm.data.object_crops import (
    NOTHING,
    UNSAID,
    VALUES,
    WORDS,
    ObjectCrops,
    contradict,
    draw_region,
    encode,
    encode_picture,
    said,
    write_captions,
)
from ldm.data.scenes.scenes import render_scenes
from ldm.data.shards import SceneShards, write_shard
from ldm.training.clip import (
    AttributeHeads,
    CLIPTrainer,
    CropData,
    contradicts,
    contrastive_loss,
    export,
    pairwise_loss,
)

BALL = {"shape": "ball", "material": "yarn", "color": "pink", "background": "grass"}
EMPTY = {"shape": None, "material": None, "color": None, "background": "sand"}
NETWORK = {
    "embed_dim": 16,
    "vision": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
    "ranking": {"crop": True, "margin": 0.05},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder, 0, render_scenes(48, seed=3))
    return folder


@pytest.fixture
def module() -> CLIPTrainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPTrainer(**deepcopy(NETWORK))


def test_squares():
    mask = torch.zeros(1, 1, 40, 60)
    mask[..., 10:20, 30:50] = 1
    assert square_around(mask) == (5, 30, 20)
    assert square_around(mask, margin=0.25) == (0, 25, 30)
    assert square_around(torch.zeros(1, 1, 40, 60)) == whole_picture(40, 60) == (-10, 0, 60)
    x = torch.rand(2, 3, 40, 60, generator=Generator().manual_seed(0))
    assert torch.equal(cut_square(x, (5, 30, 20), (20, 20)), x[..., 5:25, 30:50])
    beyond = cut_square(x, (-4, 50, 20), (20, 20))
    assert torch.equal(beyond[..., 4:, :10], x[..., :16, 50:])
    assert beyond[..., :4, :].abs().sum() == beyond[..., 10:].abs().sum() == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a pink yarn ball on green grass", ["ball", "yarn", "pink", "grass"]),
        ("orb made of wool", ["ball", "yarn", None, None]),
        ("a photo of a pink sphere on a lawn", ["ball", None, "pink", "grass"]),
    ],
)
def test_what_a_caption_says(text, expected):
    assert list(said(text, BALL).values()) == expected


def test_the_words_of_the_background_are_not_taken_for_the_objects():
    thing = {"shape": "die", "material": "wooden", "color": "white", "background": "wooden floor"}
    assert list(said("a die on a wood floor", thing).values()) == ["die", None, None, "wooden floor"]
    thing = {"shape": "die", "material": "brick", "color": "white", "background": "snow"}
    assert list(said("a die on white snow", thing).values()) == ["die", None, None, "snow"]


def test_numbers_of_attributes():
    assert encode(BALL) == [VALUES[key].index(BALL[key]) for key in VALUES]
    assert encode(EMPTY) == [UNSAID, UNSAID, UNSAID, VALUES["background"].index("sand")]
    assert encode_picture(EMPTY)[0] == NOTHING


@pytest.mark.parametrize("attributes", [BALL, EMPTY, EMPTY | {"background": None}])
def test_false_captions_differ_in_one_attribute_and_else_agree(attributes):
    generator = Generator().manual_seed(5)
    wrong = 0
    for _ in range(50):
        texts, named = write_captions(generator, attributes, 2)
        assert len(texts) == len(named) == 3
        picture = torch.tensor([encode_picture(attributes)])
        verdict = contradicts(picture, torch.tensor(named))[0].tolist()
        assert verdict[0] is False
        wrong += sum(verdict[1:])
        for false in named[1:]:
            both = [(a, b) for a, b in zip(named[0], false, strict=True) if a != UNSAID and b != UNSAID]
            assert sum(a != b for a, b in both) <= 1
    assert wrong > 80  # of 100; a change of attribute that its caption leaves out is no contradiction


def test_false_captions_are_worded_like_the_true_one():
    generator = Generator().manual_seed(5)
    color_changes, alike = 0, 0
    for _ in range(300):
        (true, false), named = write_captions(generator, BALL, 1)
        if named[0][0] == named[1][0] and named[0][1] == named[1][1] and named[0][3] == named[1][3]:
            pairs = list(zip(true.split(), false.split(), strict=False))
            color_changes += 1
            alike += len(true.split()) == len(false.split()) and sum(a != b for a, b in pairs) <= 2  # and the article
    assert color_changes > 30 and alike > 0.75 * color_changes


def test_captions_and_what_they_say_stay_together(shards, module, monkeypatch):
    seen = {}
    monkeypatch.setattr("ldm.training.clip.contrastive_loss", lambda *args: seen.update(said=args[4]) or args[1].sum())
    monkeypatch.setattr(module, "tokenize", lambda texts: seen.update(texts=texts) or torch.ones(len(texts), 12).long())
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    data = CropData(str(shards), str(shards), size=32, margin=0.05, batch_size=8)
    module.training_step(next(iter(data.train_dataloader())), 0)
    assert len(seen["texts"]) == len(seen["said"]) == 24
    for text, numbers in zip(seen["texts"], seen["said"].tolist(), strict=True):
        for key, number in zip(VALUES, numbers, strict=True):
            assert number == UNSAID or any(f" {w} " in f" {text} " for w in WORDS[key][VALUES[key][number]]), text


def test_contradict_changes_only_what_was_named():
    named = dict.fromkeys(VALUES) | {"color": "pink"}
    changed = contradict(Generator().manual_seed(0), BALL, named)
    assert changed["color"] != "pink" and changed | {"color": "pink"} == BALL


def test_every_word_of_an_attribute_is_found_in_captions(shards):
    scenes = SceneShards(shards)
    for attributes, text in zip(scenes.attributes, scenes.captions, strict=True):
        if attributes["shape"] and "second" not in attributes:
            assert said(text, attributes)["shape"] == attributes["shape"], text
    assert all(WORDS[key][value] for key in VALUES for value in VALUES[key])


def test_regions_cover_most_of_the_object(shards):
    generator = Generator().manual_seed(0)
    coverage = torch.zeros(1, 1, 16, 16)
    coverage[..., 5:11, 4:10] = 1  # pixels 40..88 and 32..80
    shares, kinds = [], set()
    for _ in range(60):
        region = draw_region(generator, [32, 40, 80, 88], coverage, 128, 128)
        assert region.shape == (1, 1, 128, 128) and set(region.unique().tolist()) <= {0.0, 1.0}
        shares.append(region[..., 40:88, 32:80].mean().item())
        kinds.add(region.sum().item())
    assert min(shares) > 0.5 and sum(shares) / len(shares) > 0.9 and len(kinds) > 40
    assert draw_region(generator, None, torch.zeros(1, 1, 16, 16), 128, 128).sum() > 0


def test_crops_depend_on_epoch_and_index_alone(shards):
    crops = ObjectCrops(shards, size=32, margin=0.05, false_captions=2, seed=1)
    assert len(crops) == sum("second" not in attributes for attributes in crops.shards.attributes)
    first, again, later = crops[0, 3], crops[0, 3], crops[1, 3]
    assert first["image"].shape == (3, 32, 32)
    assert first["image"].min() >= 0 and first["image"].max() <= 1
    assert torch.equal(first["image"], again["image"]) and first["texts"] == again["texts"]
    assert not torch.equal(first["image"], later["image"])
    assert torch.equal(first["attributes"], later["attributes"])
    assert first["said"].shape == (3, 4)


def test_items_are_shuffled_anew_in_every_epoch():
    sampler = EpochSampler(20, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(index for _, index in second) == list(range(20))
    assert {epoch for epoch, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]
    assert first != list(EpochSampler(20, seed=0, step=500)), "a resumed run meets what it met at its beginning"
    assert [index for _, index in EpochSampler(5, seed=None)] == [0, 1, 2, 3, 4]


def test_only_contradicting_captions_are_negatives():
    attributes = torch.tensor([[0, 1], [0, 2], [3, UNSAID]])
    said = torch.tensor([[0, UNSAID], [0, 2], [3, 5]])
    expected = [[False, True, True], [False, False, True], [True, True, False]]
    assert contradicts(attributes, said).tolist() == expected

    image = torch.eye(3)[:, :2]
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.3, 1.0], [0.5, 0.5], [0.9, 0.9]]), dim=1)
    said = torch.cat([said, torch.tensor([[4, UNSAID]])])  # a false caption, wrong for all three
    logits = (10.0 * image @ text.T).double()
    own = logits.diagonal()
    to_text = [[0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]  # of each picture: the captions that count
    to_image = [[0, 2], [0, 1, 2], [0, 1, 2]]  # of each caption: the pictures that count
    losses = [logits[i, js].logsumexp(0) - own[i] for i, js in enumerate(to_text)]
    losses += [logits[js, i].logsumexp(0) - own[i] for i, js in enumerate(to_image)]
    loss = contrastive_loss(image, text, torch.tensor(10.0), attributes, said)
    torch.testing.assert_close(loss.double(), torch.stack(losses).sum() / 6, rtol=1e-5, atol=1e-6)


def test_the_pairwise_loss_asks_of_each_pair_by_itself():
    """Log-odds on one scale for all pictures: own captions are right, contradicting ones wrong, others left out."""
    attributes, said = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[0, UNSAID], [0, 2], [4, UNSAID]])
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    text = torch.tensor([[0.8, 0.6], [0.0, 1.0], [0.6, -0.8]])
    scale, bias = torch.tensor(5.0), torch.tensor(-2.0)
    odds = (5.0 * image @ text.T - 2.0).double()
    right, wrong = [(0, 0), (1, 1)], [(0, 1), (0, 2), (1, 2)]  # caption 0 names nothing that picture 1 is not
    terms = [-odds[pair].sigmoid().log() for pair in right] + [-(-odds[pair]).sigmoid().log() for pair in wrong]
    loss = pairwise_loss(image, text, scale, bias, attributes, said)
    torch.testing.assert_close(loss.double(), sum(terms) / 2, rtol=1e-5, atol=1e-6)

    # A picture's own direction, common to all captions, is nothing to the choice among captions; to this it is.
    nearer = torch.cat([image, torch.tensor([[0.0], [0.5]])], dim=1)
    captions = torch.cat([text, torch.ones(3, 1)], dim=1)
    assert torch.equal((nearer @ captions.T).argsort(dim=1), (image @ text.T).argsort(dim=1))
    assert pairwise_loss(nearer, captions, scale, bias, attributes, said) > loss


def test_heads_classify_what_is_known_and_a_missing_object_is_a_shape_of_its_own():
    heads = AttributeHeads(4, CLIPTrainer.classes())
    image = torch.nn.functional.normalize(torch.randn(3, 4, generator=Generator().manual_seed(0)), dim=1)
    attributes = torch.tensor([[0, 1, UNSAID, 2], [NOTHING, UNSAID, UNSAID, 0], [3, 5, UNSAID, UNSAID]])
    shape, material, background = (heads[key](image).log_softmax(1) for key in ("shape", "material", "background"))
    expected = [
        -(shape[0, 0] + shape[1, NOTHING] + shape[2, 3]) / 3,
        -(material[0, 1] + material[2, 5]) / 2,
        -(background[0, 2] + background[1, 0]) / 2,
    ]  # no colour is known of any
    torch.testing.assert_close(heads.loss(image, attributes), torch.stack(expected).mean())
    assert heads.loss(image, torch.full((3, 4), UNSAID)) == 0


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_training_learns_and_is_exported_for_the_ranker(weight, shards, tmp_path):
    """With its loss alone, and with those of attributes and of pairs."""
    import pytorch_lightning as pl

    from ldm.editing.ranking import CLIPRanker, Framing

    losses = []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            losses.append(trainer.callback_metrics["train/loss"].item())

    pl.seed_everything(0, verbose=False)
    weights = {"attribute_weight": weight, "pairwise_weight": weight}
    module = CLIPTrainer(**NETWORK, learning_rate=3e-3, warmup=2, **weights)
    data = CropData(str(shards), str(shards), size=32, margin=0.05, batch_size=16)
    before = {key: value.clone() for key, value in module.state_dict().items() if not key.startswith("clip.")}
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "callbacks": [Record()]}
    trainer = pl.Trainer(max_steps=20, val_check_interval=20, check_val_every_n_epoch=None, **options)
    trainer.fit(module, datamodule=data)
    assert {"val/shape", "val/material", "val/color", "val/all"} <= trainer.callback_metrics.keys()
    assert len(losses) == 20 and sum(losses[-4:]) < sum(losses[:4]) - 0.8, losses

    assert bool(before) == bool(weight)
    assert not any(torch.equal(value, module.state_dict()[key]) for key, value in before.items())

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    restored = CLIPTrainer.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu").eval()
    folder = export(restored, tmp_path / "clip")
    assert sorted(file.name for file in folder.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    ranker = CLIPRanker.from_folder(folder)
    assert ranker.model.state_dict().keys() == module.clip.state_dict().keys()
    assert ranker.framing == Framing(crop=True, margin=0.05)

    # The ranker sees and reads as the training did.
    x = torch.rand(3, 3, 64, 64, generator=Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 2:62, 2:62] = 1
    square = square_around(mask, 0.05)
    with torch.no_grad():
        image = restored.encode_image(cut_square((x + 1) / 2 * mask, square, (32, 32), "bilinear"))
        text = restored.clip.encode_text(restored.tokenize(["a pink yarn ball"]), normalize=True)
    torch.testing.assert_close(ranker.distances(x, mask, "a pink yarn ball"), 1 - image @ text[0], atol=2e-3, rtol=0)


def test_the_vocabulary_of_a_checkpoint_outlives_the_grammar(tmp_path, monkeypatch):
    import pytorch_lightning as pl

    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    with monkeypatch.context() as patch:
        patch.setattr("ldm.training.clip.vocabulary", lambda: ["a", "ball", "red"])
        trainer.strategy.connect(CLIPTrainer(**NETWORK))
        trainer.save_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    restored = CLIPTrainer.load_from_checkpoint(tmp_path / "old.ckpt", map_location="cpu")
    assert restored.tokenize(["a red cube"]).tolist()[0][:6] == [2, 5, 7, 1, 3, 0]
    config = json.loads((export(restored, tmp_path / "clip") / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["vocab_size"] == 8


def test_validation_counts_what_is_right(module):
    """Pictures whose embedding is that of their own plain caption are recognised in every respect."""
    module.eval()
    logged = {}
    module.log = lambda name, value, **kwargs: logged.update({name: value.item()})
    with torch.no_grad():
        module.on_validation_epoch_start()
        truth = torch.tensor([[0, 1, 2, UNSAID], [5, 3, 1, 4], [NOTHING, UNSAID, UNSAID, 2], [2, 1, UNSAID, 0]])
        shape, material, color, _ = truth[:2].T
        own = module._objects[shape, material, color]
        module.encode_image = lambda image: torch.cat([own, torch.zeros(2, own.shape[1])])
        module.validation_step({"attributes": truth, "image": torch.zeros(4, 3, 32, 32)}, 0)
        assert logged == {f"val/{name}": 1.0 for name in ("shape", "material", "color", "all")}
        module.encode_image = lambda image: torch.cat([own.flip(0), torch.zeros(2, own.shape[1])])
        module.validation_step({"attributes": truth, "image": torch.zeros(4, 3, 32, 32)}, 0)
        assert logged["val/all"] == 0.0

        # With mirror images the ranker sees both: here the mirrored ones say something else, and louder.
        image = torch.zeros(4, 3, 32, 32)
        image[..., 0] = 1
        loud = 9 * own.flip(0)
        module.encode_image = lambda x: torch.cat([own if x[0, 0, 0, 0] else loud, torch.zeros(2, own.shape[1])])
        for mirror, right in ((False, 1.0), (True, 0.0)):
            module.hparams.ranking["mirror"] = mirror
            module.validation_step({"attributes": truth, "image": image}, 0)
            assert logged["val/all"] == right
