"""GLIDE's inpainting: what its networks are told, what stays, and the command from files to a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.backbones import zoo
from ldm.errors import UserError
from ldm.models.diffusion.glide import Glide, GlideSampling
from ldm.models.diffusion.sampling import NoiseSource
from ldm.modules.diffusionmodules.glide import padded
from ldm.runs.baselines import byte_pairs, load_glide
from ldm.runs.folder import read_run
from scripts import glide_inpaint, paint_by_word
from tests.tiny import normal, tiny_picture
from tests.tiny_pixels import glide_config, pixel_config, save_byte_pairs, save_model

QUICK = GlideSampling(3.0, "3", "2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("glide")
    base, above = (
        save_model(root / "base", glide_config(False)),
        save_model(root / "up", glide_config(True), clip=False),
    )
    return base, above, save_byte_pairs(root / "bpe")


@pytest.fixture(scope="module")
def model(folders) -> Glide:
    base, above, pairs = folders
    files = [zoo.resolve(str(folder)) for folder in (base, above)]
    return load_glide(*files, torch.device("cpu"), torch.float32, byte_pairs(str(pairs)))


def mask() -> Tensor:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:11] = 1
    return mask


def test_byte_pairs_are_those_of_the_merges(folders):
    encode, end = byte_pairs(str(folders[2]))
    assert list(encode("red")) == [257] and len(encode("rd")) == 2 and end == 258
    with pytest.raises(UserError, match="tokenizer"):
        byte_pairs("a-name-that-is-not-here")


def test_tokens_are_padded_by_the_end_and_cut():
    assert padded([5, 6], 4, 9) == ([5, 6, 9, 9], [True, True, False, False])
    assert padded([1, 2, 3], 2, 9) == ([1, 2], [True, True])


def test_padding_has_its_own_embedding_whatever_the_token(model):
    tokens, known = torch.tensor([[5, 6, 0, 0, 0, 0]]), torch.tensor([[True, True, False, False, False, False]])
    read = model.base.read(tokens, known)
    other = model.base.read(torch.where(known, tokens, 7), known)
    torch.testing.assert_close(read.pooled, other.pooled)
    assert not torch.allclose(read.pooled, model.base.read(tokens, torch.ones_like(known)).pooled)


@torch.no_grad()
def test_what_is_hidden_is_hidden_from_the_network(model):
    text = model.base.read(torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 6, dtype=torch.bool))
    x, t, image = normal(2, 3, 8, 8), torch.tensor([100.0, 100.0]), normal(1, 3, 8, 8, seed=4)
    known = torch.ones(1, 1, 8, 8)
    known[..., 2:5, 2:5] = 0
    out = model.base.fill_in(x, t, text, image, known)
    assert out.shape == (2, 6, 8, 8)
    torch.testing.assert_close(model.base.fill_in(x, t, text, image + 9 * (1 - known), known), out)
    assert not torch.allclose(model.base.fill_in(x, t, text, image + 9 * known, known), out)


@torch.no_grad()
def test_the_text_reaches_the_noise_by_both_ways(model):
    tokens, known = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]]), torch.ones(2, 6, dtype=torch.bool)
    both = model.base.read(tokens, known)
    assert not torch.allclose(both.pooled[0], both.pooled[1])  # by the last token
    assert any(one and not torch.allclose(one[0].k[0], one[0].k[1]) for one in both.keys_values)  # by attention


def test_the_known_part_of_a_picture_stays(model):
    x_source, inside = tiny_picture(16, 16), mask().bool()[0, 0]
    made = model.paint(x_source, mask(), "red", NoiseSource([1, 2]), QUICK)
    assert made.shape == (2, 3, 16, 16) and made.abs().max() <= 1
    torch.testing.assert_close(made[:, :, ~inside], x_source.expand(2, -1, -1, -1)[:, :, ~inside])
    assert (made - x_source)[:, :, inside].abs().mean() > 0.05


def test_a_prediction_is_the_same_alone_and_in_a_batch(model):
    x_source = tiny_picture(16, 16)
    both = model.paint(x_source, mask(), "red", NoiseSource([1, 2]), QUICK)
    torch.testing.assert_close(
        both[1:], model.paint(x_source, mask(), "red", NoiseSource([2]), QUICK), rtol=1e-3, atol=1e-3
    )


def test_at_scale_one_the_empty_prompt_does_not_matter_and_at_zero_the_prompt_does_not(model):
    x_source = tiny_picture(16, 16)

    def low(prompt: str, scale: float) -> Tensor:
        seen: list[Tensor] = []
        told = GlideSampling(scale, "3", "1")
        model.paint(x_source, mask(), prompt, NoiseSource([1]), told, lambda info: seen.append(info.z0))
        return seen[2]  # of the base's last step

    own = [low(prompt, scale) for prompt, scale in (("red", 1.0), ("er", 1.0), ("red", 0.0), ("red", 4.0))]
    assert not torch.allclose(own[0], own[1]) and not torch.allclose(own[0], own[3])
    assert own[2].shape == (1, 3, 8, 8)


@pytest.fixture
def files(tmp_path) -> list[str]:
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    area = np.zeros((24, 30), np.uint8)
    area[6:18, 8:22] = 255
    Image.fromarray(area).save(tmp_path / "mask.png")
    return [
        "-p",
        "red",
        "-i",
        str(tmp_path / "in.png"),
        "--mask",
        str(tmp_path / "mask.png"),
        "-o",
        str(tmp_path / "out"),
    ]


def test_the_command_leaves_a_run(files, folders, tmp_path):
    base, above, pairs = folders
    steps = ["--base_respacing", "2", "--upsample_respacing", "2", "--n_samples", "2", "--n_iter", "2"]
    glide_inpaint.main([*files, *steps, "--model", str(base), "--upsampler", str(above), "--tokenizer", str(pairs)])
    run = read_run(tmp_path / "out")
    assert len(run) == 4 and run.record.options["method"] == "glide" and run.record.options["base_respacing"] == "2"
    assert run.record.options["fit_mask"] == "off"
    assert run.record.scores == tuple(sorted(run.record.scores))
    made, source = (
        np.asarray(Image.open(path).convert("RGB")) for path in (run.path / "results/0000.png", tmp_path / "in.png")
    )
    assert made.shape == source.shape and (made[:3] == source[:3]).all() and (made != source).any()


def test_without_its_public_files_each_command_says_in_one_line_where_they_are(files, tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_MODELS", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"download_models\.py glide-base"):
        glide_inpaint.main(files)
    with pytest.raises(UserError, match=r"download_models\.py vqgan-imagenet"):
        paint_by_word.main(files)
    assert not (tmp_path / "out").exists()


def test_another_network_is_refused(files, folders, tmp_path):
    other = save_model(tmp_path / "other", {"model": pixel_config()})
    with pytest.raises(UserError, match="this command takes InpaintText2ImUNet"):
        glide_inpaint.main(
            [*files, "--model", str(other), "--upsampler", str(folders[1]), "--tokenizer", str(folders[2])]
        )


def test_the_networks_in_each_others_place_are_told_apart(files, folders, tmp_path):
    base, above, pairs = (str(folder) for folder in folders)
    for model, upsampler, wrong in ((above, above, "model"), (base, base, "upsampler")):
        with pytest.raises(UserError, match=f"not by `{wrong}`"):
            glide_inpaint.main([*files, "--model", model, "--upsampler", upsampler, "--tokenizer", pairs])
    assert not (tmp_path / "out").exists()


def test_what_is_odd_is_told_once_and_so_is_a_prompt_that_is_too_long(files, folders, tmp_path, caplog):
    base, above, pairs = (str(folder) for folder in folders)
    Image.new("L", (40, 40), 255).save(tmp_path / "mask.png")
    steps = ["--base_respacing", "2", "--upsample_respacing", "2", "--n_samples", "1", "--n_iter", "2"]
    own = ["--model", base, "--upsampler", above, "--tokenizer", pairs, "--prompt", "red red red red"]
    glide_inpaint.main([*files, *steps, *own])
    assert caplog.text.count("it is resized") == caplog.text.count("all white") == 1
    assert caplog.text.count("GLIDE reads 6 byte pairs") == 1
