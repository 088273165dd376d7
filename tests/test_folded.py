"""Trainings that begin with the denoiser and the words of a model of another first stage."""

import pytest
import torch
import torch.nn.functional as F

from ldm.backbones import zoo
from ldm.data.tokenizer import write_tokenizer
from ldm.errors import UserError
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.encoders.modules import BERTEmbedder
from ldm.training.folded import fold, take_words
from tests.tiny import normal


@pytest.fixture(scope="module")
def scenes():
    return zoo.load_ours(zoo.resolve("scenes"), torch.device("cpu"), torch.float32)


def finer_network(**changes) -> UNetModel:
    """That of `scenes` on latents of half the cell, folded, with a level of their own."""
    options = {
        "image_size": 32, "in_channels": 6, "out_channels": 6, "model_channels": 64, "attention_resolutions": [2, 4],
        "num_res_blocks": [3, 2, 1], "channel_mult": [1, 2, 3], "num_head_channels": 32, "context_dim": 192,
        "pooled_context": True, "patch_size": 2, "fine_channels": 32,
    }  # fmt: skip
    return UNetModel(**{**options, **changes})


@torch.no_grad()
def test_what_the_latents_are_linear_in_is_seen_as_they_were(scenes):
    x = normal(4, 3, 128, 128).clamp(-1, 1)
    z = scenes.encode(x)
    # 6 channels, of which the first four are the latents, each four times: a matrix that fits them exactly.
    seen = F.interpolate(torch.cat([z, torch.zeros_like(z[:, :2])], dim=1), scale_factor=2, mode="nearest")
    unet = finer_network()
    for parameter in unet.input_blocks[0].parameters():
        parameter.zero_()
    fold(unet, scenes, x, seen)
    old = scenes.model.diffusion_model
    emb = normal(4, 256)
    stem = unet.input_blocks[0](F.pixel_unshuffle(unet.fine_in(seen, emb, None), 2), emb, None)
    torch.testing.assert_close(stem, old.input_blocks[0](z, emb, None), atol=2e-3, rtol=1e-3)
    # All else is the old network: with its features at the first stage, the prompt is read as it was.
    context = scenes.condition(["a red ball"]).contexts
    own, given = unet.prepare_context(context), old.prepare_context(context)
    torch.testing.assert_close(own.pooled, given.pooled)
    h = normal(1, 128, 8, 8)
    torch.testing.assert_close(
        unet.input_blocks[6](h, emb[:1], own.keys_values[6]), old.input_blocks[6](h, emb[:1], given.keys_values[6])
    )


def test_a_network_of_other_widths_is_told(scenes):
    x, seen = normal(2, 3, 128, 128), normal(2, 6, 32, 32)
    with pytest.raises(UserError, match="64 channels cannot become one of 32"):
        fold(finer_network(model_channels=32), scenes, x, seen)
    with pytest.raises(UserError, match="has no beginning for one of"):
        fold(finer_network(num_res_blocks=[4, 2, 1]), scenes, x, seen)


def reader(folder, words: list[str], width: int = 16) -> BERTEmbedder:
    write_tokenizer(words, folder, 8)
    return BERTEmbedder(width, 1, vocab_size=24, max_seq_len=8, tokenizer=str(folder), with_logits=False)


def test_words_that_both_know_keep_their_meaning(tmp_path):
    own = reader(tmp_path / "own", ["teapot", "ball", "red"])
    known = reader(tmp_path / "known", ["a", "ball", "cube", "red"])
    before = own.transformer.token_emb.weight.clone()
    shared = take_words(own, known)
    ids = [(own.tokenize.tokenizer.token_to_id(word), known.tokenize.tokenizer.token_to_id(word))
           for word in ("ball", "red", "[CLS]")]  # fmt: skip
    rows, others = own.transformer.token_emb.weight, known.transformer.token_emb.weight
    for mine, theirs in ids:
        assert torch.equal(rows[mine], others[theirs])
    teapot = own.tokenize.tokenizer.token_to_id("teapot")
    assert torch.equal(rows[teapot], before[teapot])
    assert shared == len(own.tokenize.tokenizer.get_vocab().keys() & known.tokenize.tokenizer.get_vocab().keys())
    with torch.no_grad():
        torch.testing.assert_close(own(["red ball"]), known(["red ball"]))


def test_a_text_encoder_of_another_size_is_told(tmp_path):
    with pytest.raises(UserError, match="another size"):
        take_words(reader(tmp_path / "own", ["ball"]), reader(tmp_path / "known", ["ball"], width=32))
