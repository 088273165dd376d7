"""The ranker on a tiny open_clip model with random weights; nothing is downloaded."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.backbones import zoo
from ldm.editing import ranking
from ldm.editing.ranking import CLIPRanker, Framing, find_ranker, rank
from ldm.errors import UserError

OPENAI = "ViT-B-16-quickgelu/openai"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "ball", "on", "grass"]
CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": len(WORDS),
            "width": 32,
            "heads": 2,
            "layers": 1,
            "pool_type": "eos",
            "eos_id": WORDS.index("[SEP]"),
            "hf_tokenizer_name": "wordpiece",
        },
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"},
}


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from open_clip.model import CLIP

    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(**CONFIG["model_cfg"])
    save_file({key: value.half() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def ranker(folder) -> CLIPRanker:
    return CLIPRanker.from_folder(folder)


def predictions(count: int, size: tuple[int, int] = (40, 56)) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def box(top: int, left: int, height: int, width: int, size: tuple[int, int] = (40, 56)) -> torch.Tensor:
    mask = torch.zeros(1, 1, *size)
    mask[..., top : top + height, left : left + width] = 1
    return mask


def test_rank_sorts_ascending_and_ties_keep_the_order_of_the_seeds():
    assert rank(torch.tensor([0.5, 0.2, 0.9, 0.2, 0.2])).tolist() == [1, 3, 4, 0, 2]
    assert rank(torch.tensor([0.7])).tolist() == [0]


def test_distances_are_cosine_distances_of_the_models_own_embeddings(ranker):
    x = predictions(3, (32, 32))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    pixels = ((x + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    ids = torch.tensor([[2, 4, 5, 7, 3, 0, 0, 0]])  # [CLS] a red ball [SEP] [PAD]...
    image, text = ranker.model.encode_image(pixels), ranker.model.encode_text(ids)
    expected = 1 - torch.cosine_similarity(image, text)
    torch.testing.assert_close(ranker.distances(x, None, "A red ball"), expected)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("mask", [None, box(4, 5, 20, 30)], ids=["no mask", "mask"])
def test_any_number_of_predictions(ranker, monkeypatch, mask):
    monkeypatch.setattr(ranking, "CHUNK", 2)
    x = predictions(5)
    together = ranker.distances(x, mask, "a red ball")
    assert together.shape == (5,) and not together.requires_grad
    alone = torch.cat([ranker.distances(one, mask, "a red ball") for one in x.split(1)])
    torch.testing.assert_close(together, alone)


def test_each_prediction_may_have_its_own_mask(ranker):
    ranker = CLIPRanker(ranker.model, ranker.tokenizer, framing=Framing(crop=True))
    x, masks = predictions(2), [box(4, 5, 20, 30), box(10, 10, 12, 12)]
    together = ranker.distances(x, torch.cat(masks), "a red ball")
    alone = [ranker.distances(one, mask, "a red ball") for one, mask in zip(x.split(1), masks, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert together[1] != ranker.distances(x, masks[0], "a red ball")[1]


@pytest.mark.parametrize("framing", [Framing(), Framing(crop=True, margin=0.1)], ids=["whole", "crop"])
def test_only_what_the_mask_shows_counts(ranker, framing):
    ranker = CLIPRanker(ranker.model, ranker.tokenizer, framing=framing)
    x, mask = predictions(2), box(3, 30, 17, 20)
    score = ranker.distances(x, mask, "a red ball")
    outside, inside = x.clone(), x.clone()
    outside[mask.expand_as(x) == 0] = 0.3
    inside[mask.expand_as(x) == 1] = 0.3
    torch.testing.assert_close(ranker.distances(outside, mask, "a red ball"), score)
    assert (ranker.distances(inside, mask, "a red ball") - score).abs().min() > 1e-4


def test_cropping_makes_the_place_of_the_mask_immaterial(ranker):
    crop = CLIPRanker(ranker.model, ranker.tokenizer, framing=Framing(crop=True))
    x, patch = predictions(1).expand(1, 3, 40, 56).clone(), predictions(1, (16, 16))
    x[..., 2:18, 3:19] = patch
    x[..., 20:36, 37:53] = patch
    here, there = box(2, 3, 16, 16), box(20, 37, 16, 16)
    torch.testing.assert_close(crop.distances(x, here, "a ball"), crop.distances(x, there, "a ball"))
    assert (ranker.distances(x, here, "a ball") - ranker.distances(x, there, "a ball")).abs() > 1e-4


def test_an_oblong_picture_keeps_its_ends(ranker):
    x = predictions(1, (24, 64))
    changed = x.clone()
    changed[..., -4:] = -changed[..., -4:]
    assert (ranker.distances(x, None, "a ball") - ranker.distances(changed, None, "a ball")).abs() > 1e-4


def test_prompts_of_every_length(ranker):
    x = predictions(1)
    long = ranker.distances(x, None, "a red ball " * 1000)
    torch.testing.assert_close(long, ranker.distances(x, None, "a red ball a red ball on grass"))  # 6 words fit
    assert ranker.distances(x, None, "").isfinite().all()
    assert ranker.distances(x, None, "🧶/\n") != long


def test_a_prompt_that_is_cut_is_told_of_once(ranker, caplog):
    ranker = CLIPRanker(ranker.model, ranker.tokenizer)
    fits = "a red ball on a ball"  # 6 words, [CLS] and [SEP]: all 8 tokens
    for prompt in (fits, fits + " on grass", fits + " on grass", ""):
        ranker.distances(predictions(1), None, prompt)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "CLIP reads 8 tokens" in caplog.text


def test_shapes_that_do_not_fit_are_named(ranker):
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        ranker.distances(torch.zeros(3, 8, 8), None, "")
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 9\)"):
        ranker.distances(torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 9), "")


def test_a_picture_and_its_mirror_image_are_ranked_alike_where_both_are_seen(ranker):
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, both = (CLIPRanker(ranker.model, ranker.tokenizer, framing=Framing(mirror=m)) for m in (False, True))
    there, back = (plain.distances(one, None, "a red ball") for one in (x, x.flip(-1)))
    assert not torch.allclose(there, back, atol=1e-4)
    torch.testing.assert_close(both.distances(x, None, "a red ball"), both.distances(x.flip(-1), None, "a red ball"))
    # cos(a + b, t) of unit vectors is (cos(a, t) + cos(b, t)) / |a + b|: their mean, times a factor of at least 1.
    mean = 1 - (there + back) / 2
    assert ((1 - both.distances(x, None, "a red ball")) / mean >= 1).all()


def test_find_ranker_loads_a_folder_and_its_framing(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG | {"ranking": {"crop": True, "margin": 0.25}}))
    ranker = find_ranker(str(tmp_path), "cpu")
    assert ranker.framing == Framing(crop=True, margin=0.25)
    weights = ranker.model.visual.conv1.weight
    assert weights.dtype == torch.float32 and not weights.requires_grad


PROMPTS = ("", "a red ball", "A  RED\nball,", "é &amp; “ball”", "[MASK] [SEP] ball", "🧶", "a ball " * 50)


@pytest.mark.parametrize("model", ["tiny", "scenes"])
def test_a_local_tokenizer_is_read_as_open_clip_reads_it(folder, model):
    import open_clip

    folder = folder if model == "tiny" else zoo.REPOSITORY / "models/clip/scenes"
    ours, theirs = CLIPRanker.from_folder(folder).tokenizer, open_clip.get_tokenizer(f"local-dir:{folder}")
    assert type(ours) is not type(theirs)
    for prompt in PROMPTS:
        for length in (None, 5):
            assert torch.equal(ours(prompt, length), theirs(prompt, length))


@pytest.mark.parametrize("change", [{"tokenizer_class": "BertTokenizerFast"}, {"padding_side": "left"}])
def test_a_tokenizer_with_settings_of_its_own_is_left_to_transformers(folder, tmp_path, change):
    from open_clip.tokenizer import HFTokenizer

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | change))
    assert type(CLIPRanker.from_folder(tmp_path).tokenizer) is HFTokenizer


def test_a_missing_folder_gives_one_notice_and_no_ranker(tmp_path, caplog):
    for folder in (tmp_path / "clip", str(tmp_path / "clip")):
        caplog.clear()
        assert find_ranker(folder, "cpu") is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(tmp_path) in caplog.text


def test_a_model_without_a_ranker_gives_one_notice(caplog):
    assert find_ranker(None, "cpu") is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_an_unknown_name_is_the_users_to_mend():
    with pytest.raises(UserError, match="ViT-B-99/openai"):
        find_ranker("ViT-B-99/openai", "cpu")


@pytest.mark.parametrize("damage", ["config", "json", "key", "weights", "truncated", "shape", "tokenizer", "ranking"])
def test_a_damaged_folder_is_the_users_to_mend(folder, tmp_path, damage):
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    weights = files["open_clip_model.safetensors"]
    changes = {
        "config": {"open_clip_config.json": None},
        "json": {"open_clip_config.json": b"{"},
        "key": {"open_clip_config.json": b'{"model_cfg": {"embed_dim": 16}}'},
        "weights": {"open_clip_model.safetensors": None},
        "truncated": {"open_clip_model.safetensors": weights[: len(weights) // 2]},
        "shape": {"open_clip_config.json": json.dumps(CONFIG).replace('"width": 32', '"width": 48').encode()},
        "tokenizer": {"tokenizer.json": b"", "tokenizer_config.json": b""},
        "ranking": {"open_clip_config.json": json.dumps(CONFIG | {"ranking": {"corp": True}}).encode()},
    }[damage]
    for name, content in (files | changes).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        find_ranker(tmp_path, "cpu")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_without_network_or_cache_one_notice_and_no_download(monkeypatch, caplog):
    def unreachable(*args, **kwargs):
        assert kwargs["timeout"] <= 10
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: pytest.fail("the slow way was tried"))
    assert find_ranker(OPENAI, "cpu") is None
    assert len(caplog.records) == 1 and "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize("name", [OPENAI, "ViT-B-16/openai"])
def test_openai_weights_come_from_the_cache_and_get_quick_gelu(monkeypatch, name):
    import open_clip
    from open_clip.factory import create_model

    def create_on_meta(architecture, *, pretrained, require_pretrained, **kwargs):
        assert pretrained == "/cache/timm/vit_base_patch16_clip_224.openai/open_clip_model.safetensors"
        with torch.device("meta"):
            return create_model(architecture, device="meta", **kwargs)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: f"/cache/{repo}/{file}")
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *args: pytest.fail("asked the network"))
    monkeypatch.setattr(open_clip, "create_model", create_on_meta)
    ranker = CLIPRanker.from_name(name, "meta")
    model = ranker.model
    assert type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert type(model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert (model.visual.image_size, model.visual.patch_size) == ((224, 224), (16, 16))
    assert tuple(model.visual.image_mean) == (0.48145466, 0.4578275, 0.40821073)  # OpenAI's preprocessing
    assert tuple(model.visual.image_std) == (0.26862954, 0.26130258, 0.27577711)
    assert ranker.tokenizer("a cat").tolist()[0][:4] == [49406, 320, 2368, 49407]  # OpenAI's byte pairs
    assert ranker.framing == Framing()  # as the paper: the whole picture, black outside the mask


def test_open_clip_leaves_logging_as_it_was(folder, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "filters", [])
    find_ranker(folder, "cpu")
    assert root.handlers == [] and root.filters == []


def test_importing_the_ranker_does_not_import_open_clip():
    code = "import sys, ldm.editing.ranking; sys.exit('open_clip' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
