"""The ranker of everyday things, its words, trainings of a given time, and data to carry to another machine."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from ldm.cli import run
from ldm.data.epochs import seeded
from ldm.data.scenes.scenes import Scenes, render_scenes
from ldm.data.shards import write_shard
from ldm.data.things import pack as packing
from ldm.data.things.captions import vocabulary
from ldm.data.things.crops import NOTHING, OF_SHAPE, VALUES, ThingCrops, encode, plain_caption, write_captions
from ldm.data.things.cutouts import Cutout, read_cutouts
from ldm.data.things.nouns import FAMILIAR, NOUNS
from ldm.data.things.photographs import PHOTOGRAPHS, find
from ldm.data.tokenizer import write_tokenizer
from ldm.editing.ranking import CLIPRanker
from ldm.errors import UserError
from ldm.modules.encoders.modules import BERTTokenizer
from ldm.training.base import TrainingModule
from ldm.training.budget import TimeBudget
from ldm.training.clip import contradicts
from ldm.training.compiled import compile_parts
from ldm.training.export import export_checkpoint, known_words
from ldm.training.things_clip import ThingCropData, ThingsCLIPTrainer
from scripts import text_editing, train, train_things_fast, txt2img

NETWORK = {
    "embed_dim": 16,
    "vision": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
    "ranking": {"crop": True, "margin": 0.05, "mirror": True},
}
BARE = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
FOX = {"noun": "fox", "color": "orange", "box": [10, 10, 90, 90], "count": 1}
BALL = {"noun": "mug", "color": "red", "material": "yarn", "box": [10, 10, 90, 90], "count": 1}
NONE = {"noun": None, "color": None, "box": None, "count": 0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    scenes = render_scenes(8, seed=3)
    known = [FOX, BALL, NONE, {**FOX, "count": 2}] * 2
    write_shard(folder, 0, Scenes(scenes.images, ["a fox"] * 8, scenes.coverage, known))
    return folder


def test_a_mug_is_a_cup_and_what_shows_nothing_contradicts_all_nouns():
    assert OF_SHAPE["mug"] == "cup" and OF_SHAPE["cube"] == "cube" and encode(BALL)[0] == list(NOUNS).index("cup")
    assert encode(NONE, nothing=True) == [NOTHING, -1, -1]
    assert plain_caption("fox") == "a fox" and plain_caption("jeans") == "jeans" and plain_caption("cube") == "a cube"


@pytest.mark.parametrize("known", [FOX, BALL, NONE])
def test_each_false_caption_is_wrong_and_the_true_one_is_not(known):
    words = set(vocabulary())
    for seed in range(20):
        texts, told = write_captions(seeded(seed), known, 3)
        wrong = contradicts(torch.tensor([encode(known, nothing=True)]), torch.tensor(told))[0].tolist()
        assert not wrong[0], texts
        # Of plastic things the material is not always said, so a false one may say nothing there.
        assert wrong[1:] == [True] * 3 or known is BALL, texts
        assert not set(" ".join(texts).split()) - words


def test_crops_leave_out_what_shows_two_things(shards):
    crops = ThingCrops(shards, 32, 0.05, 2)
    assert len(crops) == 6
    one = crops[(0, 0)]
    assert one["image"].shape == (3, 32, 32) and one["said"].shape == (3, len(VALUES))
    assert crops.full_caption(0) == "a fox"


def test_the_ranker_trains_is_exported_and_ranks(shards, tmp_path):
    torch.manual_seed(0)
    module = ThingsCLIPTrainer(**NETWORK, attribute_weight=1.0, pairwise_weight=1.0, warmup=1)
    data = ThingCropData(str(shards), str(shards), 32, 0.05, 4, false_captions=2)
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", log_every_n_steps=1, **BARE)
    trainer.fit(module, datamodule=data)
    assert {"val/noun", "val/noun_top5", "val/true_caption", "train/attributes"} <= trainer.callback_metrics.keys()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    ranker = CLIPRanker.from_folder(export_checkpoint(tmp_path / "last.ckpt", tmp_path))
    assert ranker.distances(torch.zeros(2, 3, 32, 32), None, "a fox").shape == (2,)
    assert ranker.tokenizer.unknown_words("a teapot and a zorble") == ["zorble"]


def test_the_words_of_familiar_things_are_listed_by_kind(tmp_path):
    size = write_tokenizer(vocabulary(), tmp_path, 32)
    known = known_words(BERTTokenizer(str(tmp_path), size))
    assert sum(map(len, known.values())) - 44 == len(FAMILIAR) and known["animals"][:3] == ["fox", "cat", "dog"]
    assert "wolf" not in known["animals"], "which training shows less often"
    assert {"colours", "materials", "shapes"} <= known.keys() and known["furniture"][0] == "chair"


@pytest.mark.parametrize("script", [text_editing, txt2img])
def test_words_are_listed_and_nothing_else_is_done(script, capsys):
    assert run(script.main, ["--words", "--model", "scenes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("shapes: ball, cube") and lines[-1].startswith("other words: ") and len(lines) == 5
    assert " and," in lines[-1] and "[PAD]" not in lines[-1]


class Line(TrainingModule):
    """The smallest training."""

    def __init__(self, learning_rate: float = 0.1, warmup: int = 1):
        super().__init__()
        self.save_hyperparameters()
        self.line = torch.nn.Linear(1, 1)
        self.rates: list[float] = []

    def training_step(self, batch, _):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return self.adamw(self.parameters())


def fit(module: Line, budget: TimeBudget, folder: Path, **more) -> pl.Trainer:
    trainer = pl.Trainer(max_steps=10**6, accelerator="cpu", callbacks=[budget], **BARE)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=1), weights_only=True, **more)
    trainer.save_checkpoint(folder / "last.ckpt")
    return trainer


def test_a_training_ends_with_its_time_and_its_learning_rate_with_it(tmp_path):
    module = Line()
    trainer = fit(module, TimeBudget(2 / 60), tmp_path)
    assert 20 < trainer.global_step < 10**6
    assert module.rates[1] > 0.09 and module.rates[-1] < 0.03
    again = Line()
    assert (
        fit(again, TimeBudget(2 / 60), tmp_path, ckpt_path=tmp_path / "last.ckpt").global_step
        <= trainer.global_step + 1
    )
    with pytest.raises(UserError, match="above 0"):
        TimeBudget(0)


def test_what_is_compiled_keeps_its_keys():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.clip = torch.nn.ModuleDict({"visual": torch.nn.Linear(1, 1)})

    module = Module()
    before = list(module.state_dict())
    assert compile_parts(module) == ["clip.visual"] and list(module.state_dict()) == before


def test_data_are_packed_without_test_photographs_and_unpacked(tmp_path, monkeypatch):
    few = tuple(one for one in PHOTOGRAPHS if one.file in ("grass.png", "chelsea.png"))
    monkeypatch.setattr(packing, "PHOTOGRAPHS", few)
    cutouts = [Cutout(f"{name}.png", "fox", "fluent", name, "MIT", "Somebody", "train") for name in "ab"]
    (tmp_path / "cutouts").mkdir()
    Image.new("RGBA", (300, 200), (200, 100, 0, 128)).save(tmp_path / "cutouts" / "a.png")
    (tmp_path / "cutouts" / "index.json").write_text(json.dumps(list(map(asdict, cutouts))))
    size = packing.pack(tmp_path, tmp_path / "pack.zip")
    assert size == (tmp_path / "pack.zip").stat().st_size
    there = tmp_path / "there"
    packing.unpack(tmp_path / "pack.zip", there)
    (read,) = read_cutouts(there / "cutouts")  # without the other fox, which no composite shows
    with Image.open(there / "cutouts" / read.file) as image:
        assert image.size == (224, 149) and abs(image.convert("RGBA").getpixel((9, 9))[3] - 128) < 6
    by_file = {one.file: find(one, there / "sources") for one in few}
    assert there in by_file["grass.png"].parents and there not in by_file["chelsea.png"].parents
    with pytest.raises(UserError, match="lower --quality"):
        packing.pack(tmp_path, tmp_path / "pack.zip", most=1e-3)
    with pytest.raises(UserError, match="cannot be unpacked"):
        packing.unpack(tmp_path / "cutouts" / "a.png", tmp_path / "nowhere")


def fast(*argv: str) -> dict[str, list[str]]:
    return train_things_fast.commands(train_things_fast.build_parser().parse_intermixed_args(argv))


def test_a_given_time_is_shared_among_trainings_that_need_no_other_stage():
    lines = fast("--minutes", "10", "--work", "there", "diffusion:trainer.max_steps=7")
    minutes = {}
    for stage, argv in lines.items():
        args = train.build_parser().parse_intermixed_args(argv)
        assert args.config.is_file() and args.rundir == Path("there") / stage
        assert "data.params.train=there/data/train" in args.overrides
        minutes[stage] = args.minutes
        assert not any(f"there/{other}/" in one for other in lines for one in args.overrides)
    assert minutes == {"diffusion": 6, "decoder": 2.5, "clip": 1.5}
    assert [stage for stage, argv in lines.items() if "trainer.max_steps=7" in argv] == ["diffusion"]
    with pytest.raises(UserError, match='"autoencoder:a=1" is no override: write STAGE:key=value with a stage of diff'):
        fast("autoencoder:a=1")
