"""The judge's pictures, training, export and loading, at the smallest widths."""

from pathlib import Path

import pytest
import torch
from torch import Generator

from ldm.checkpoint import save_safetensors
from ldm.data.object_crops import UNSAID, VALUES
from ldm.data.scenes.scenes import render_scenes
from ldm.data.shards import SceneShards, write_shard
from ldm.errors import UserError
from ldm.evaluation.judging import judge_folder, judge_renders, load_judge, verdicts
from ldm.models.judge import Judge, window
from ldm.training.export import export_checkpoint
from ldm.training.judge import JudgeData, JudgePictures, JudgeTrainer, draw_square, export

TINY = {"target": "ldm.models.judge.Judge", "params": {"widths": [8, 8], "size": 16}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judge-shards")
    write_shard(folder, 0, render_scenes(48, seed=5))
    return folder


@pytest.fixture
def module() -> JudgeTrainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return JudgeTrainer(TINY)


@pytest.mark.parametrize(
    ("about", "expected"),
    [((30, 20, 10), (15, 25, 10)), ((1, 39, 10), (30, 0, 10)), ((30, 20, 99), (0, 10, 40))],
)
def test_a_window_stays_within_the_picture(about, expected):
    assert window(*about, height=40, width=60) == expected


def test_crops_are_about_the_size_of_their_object():
    generator = Generator().manual_seed(0)
    for box in ([40, 30, 80, 60], [0, 0, 30, 30], [5, 10, 120, 128]):
        size = max(box[2] - box[0], box[3] - box[1])
        for _ in range(50):
            top, left, side = draw_square(generator, box, 128, 128)
            assert min(top, left) >= 0 and max(top, left) + side <= 128
            assert 0.94 * size <= side <= 1.91 * size
            for low, high, start in ((box[0], box[2], left), (box[1], box[3], top)):
                assert min(high, start + side) - max(low, start) >= 0.85 * (high - low)


@pytest.mark.parametrize("augment", [False, True])
def test_labels_are_the_renders_attributes(shards, augment):
    pictures, attributes = JudgePictures(shards, 32, augment), SceneShards(shards).attributes
    kinds = set()
    for index, row in enumerate(pictures.rows):
        item = pictures[0, index]
        assert item["image"].shape == (3, 32, 32) and 0 <= item["image"].min() <= item["image"].max() <= 1
        known = dict(zip(VALUES, item["labels"].tolist(), strict=True))
        whole = known["background"] != UNSAID
        kinds.add(whole)
        for key, number in known.items():
            value = attributes[row][key] if whole == (key == "background") else None
            assert number == (VALUES[key].index(value) if value else UNSAID)
    assert kinds == {True, False}


def test_pictures_repeat_and_differ_between_epochs(shards):
    pictures = JudgePictures(shards, 32)
    once, again, later = (torch.stack([pictures[e, i]["image"] for i in range(8)]) for e in (0, 0, 1))
    assert torch.equal(once, again)
    assert (once != later).flatten(1).any(dim=1).all()


def test_scenes_of_two_objects_are_shown_as_a_whole_or_not_at_all(tmp_path):
    scenes = render_scenes(6, seed=5)
    for number, attributes in enumerate(scenes.attributes):
        attributes |= {"shape": "ball", "second": {"shape": "cube"}, "background": "grass" if number % 2 else None}
    write_shard(tmp_path, 0, scenes)
    pictures = JudgePictures(tmp_path, 16)
    assert pictures.rows == [1, 3, 5]
    assert all(pictures[0, i]["labels"].tolist()[:3] == [UNSAID] * 3 for i in range(3))


def test_what_has_no_label_teaches_nothing(module, monkeypatch):
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    image, labels = torch.rand(4, 3, 16, 16), torch.tensor([[1, 2, UNSAID, UNSAID]] * 4)
    module.training_step({"image": image, "labels": labels}, 0).backward()
    grads = {name: head.weight.grad.abs().sum().item() for name, head in module.judge.heads.items()}
    assert grads["shape"] > 0 and grads["material"] > 0
    assert grads["color"] == grads["background"] == 0
    everything_unknown = {"image": image, "labels": torch.full((4, 4), UNSAID)}
    assert module.training_step(everything_unknown, 0).item() == 0


def test_it_learns_a_few_pictures(shards):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Judge(VALUES, widths=(16, 32), size=32)
    pictures = JudgePictures(shards, 32, augment=False)
    batch = [pictures[0, i] for i in range(16)]
    x, labels = (torch.stack([item[key] for item in batch]) for key in ("image", "labels"))
    optimizer = torch.optim.Adam(judge.parameters(), 1e-2)
    for _ in range(40):
        logits = judge(x)
        loss = sum(
            torch.nn.functional.cross_entropy(guess, label, ignore_index=UNSAID, reduction="sum")
            for guess, label in zip(logits.values(), labels.unbind(1), strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    named = judge.name(x)
    for number, key in enumerate(VALUES):
        for name, label in zip(named, labels[:, number].tolist(), strict=True):
            assert label == UNSAID or name[key] == VALUES[key][label]


def test_a_picture_and_its_mirror_image_are_judged_alike():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Judge(VALUES, widths=(8, 16), size=16).eval()
    x = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert judge.name(x) == judge.name(x.flip(-1))
    assert any(
        (a.argmax(1) != b.argmax(1)).any() for a, b in zip(judge(x).values(), judge(x.flip(-1)).values(), strict=True)
    )


def test_train_export_load(shards, tmp_path, monkeypatch):
    import pytorch_lightning as pl

    data = JudgeData(str(shards), str(shards), size=16, batch_size=8)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    with torch.random.fork_rng():
        trainer = pl.Trainer(max_steps=2, limit_val_batches=2, default_root_dir=tmp_path, **quiet)
        trainer.fit(JudgeTrainer(TINY), datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    folder = export_checkpoint(tmp_path / "last.ckpt", tmp_path / "models" / "judge" / "scenes")
    monkeypatch.setenv("LDM_MODELS", str(tmp_path / "models"))
    assert judge_folder() == folder
    judge, trained = load_judge(), trainer.lightning_module.judge.eval()
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())
    assert judge.labels == {key: tuple(names) for key, names in VALUES.items()}
    x = torch.rand(2, 3, 16, 16)
    for name, logits in judge(x).items():
        assert torch.allclose(logits, trained(x)[name], atol=0.02)  # half precision on disk

    with torch.random.fork_rng():
        further = JudgeTrainer(TINY, learning_rate=0.0, begin=str(folder / "model.safetensors"))
        pl.Trainer(max_steps=1, limit_val_batches=0, default_root_dir=tmp_path, **quiet).fit(further, datamodule=data)
    for key, value in further.judge.named_parameters():
        torch.testing.assert_close(value.detach(), judge.get_parameter(key))

    more = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for key, value in more["state_dict"].items():
        more["state_dict"][key] = value + 3
    torch.save(more, tmp_path / "more.ckpt")
    two = [tmp_path / "more.ckpt"] * 2
    folder = export_checkpoint(tmp_path / "last.ckpt", tmp_path / "mean", average=two)
    mean = load_judge(str(folder)).state_dict()
    for key, value in trained.state_dict().items():
        expected = value + 2 if value.is_floating_point() else value  # (0 + 3 + 3) / 3; counts stay
        torch.testing.assert_close(mean[key], expected, atol=2e-3, rtol=1e-3)

    more["state_dict"]["judge.heads.color.bias"] = torch.zeros(3)
    torch.save(more, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt is of another model than .*last\.ckpt"):
        export_checkpoint(tmp_path / "last.ckpt", tmp_path / "none", average=[tmp_path / "other.ckpt"])
    assert not (tmp_path / "none").exists()


def test_a_judge_that_does_not_fit_is_refused(module, tmp_path):
    folder = export(module, tmp_path / "judge")
    weights = module.judge.state_dict()
    save_safetensors(
        {key: value for key, value in weights.items() if "heads.color" not in key}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"2 missing: heads\.color"):
        load_judge(str(folder))


def test_no_judge(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_MODELS", str(tmp_path))
    with pytest.raises(UserError, match=r'no judge "nobody".*configs/scenes/judge\.yaml'):
        judge_folder("nobody")


class Spy(Judge):
    """Keeps what it is shown and always says the first name of each attribute."""

    def name(self, x):
        self.shown = x
        return [{key: names[0] for key, names in self.labels.items()} for _ in x]


def test_the_judge_looks_around_the_mask_or_at_the_whole_picture():
    judge = Spy(VALUES, widths=(8,), size=24)
    x = torch.full((1, 3, 100, 100), -1.0)
    x[..., 40:60, 50:70] = 1
    mask = (x[:, :1] > 0).float()
    verdicts(judge, x, mask)
    assert judge.shown.shape == (1, 3, 24, 24)  # 20 pixels and a tenth of them on either side, pixel for pixel
    assert torch.equal(judge.shown[0, 0], torch.nn.functional.pad(torch.ones(20, 20), (2, 2, 2, 2)))
    verdicts(judge, x, None)
    assert judge.shown.mean().item() == pytest.approx(0.04, abs=0.01)


def test_renders_are_judged_by_what_they_show():
    scenes = render_scenes(24, seed=6)
    x = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    hits = judge_renders(Spy(VALUES, widths=(8,), size=16), x, scenes.attributes)
    single = [known for known in scenes.attributes if "second" not in known]
    for key, right in hits.items():
        assert right == [known[key] == VALUES[key][0] for known in single if known[key]]
