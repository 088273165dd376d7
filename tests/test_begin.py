"""Training that begins from shipped weights."""

import logging

import pytest
import torch
from torch import nn

from ldm.checkpoint import save_safetensors
from ldm.data.tokenizer import write_tokenizer
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.begin import begin_from
from tests.convert import randomise
from tests.tiny import WORDS, normal, tiny_config, tiny_model


def network(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, width))


@pytest.fixture
def weights(tmp_path):
    """Those of a network, in half precision and under a prefix, as they ship."""
    path = tmp_path / "model.safetensors"
    save_safetensors({f"net.{name}": value.half() for name, value in network().state_dict().items()}, path)
    return path


def test_a_network_begins_where_the_shipped_one_stands(weights, caplog):
    one, other = network(), network()
    with caplog.at_level(logging.WARNING):
        begin_from(one, weights, "net.")
    begin_from(other, weights, "net.")
    for name, value in one.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, other.state_dict()[name])
    assert "4 of 4 tensors" in caplog.text and "new" not in caplog.text


def test_what_the_file_lacks_stays_fresh_and_is_named(weights, caplog):
    grown = network(5)
    before = {name: value.clone() for name, value in grown.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        begin_from(grown, weights, "net.")
    changed = [name for name, value in grown.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["0.weight", "0.bias"]
    assert "2 of 4 tensors" in caplog.text and "new: 1.bias, 1.weight" in caplog.text


def test_a_file_of_another_model_is_refused(weights):
    with pytest.raises(UserError, match=r"nothing in .* fits"):
        begin_from(network(), weights, "other.")


# --- a denoiser with more residual blocks ----------------------------------------------------------------------------


def denoiser(blocks: int | list[int], tokenizer: str, conv_resample: bool = True) -> LatentDiffusion:
    """The tiny model with that `num_res_blocks`; three levels, of which the middle one alone has no attention."""
    params = tiny_config(tokenizer)["model"]["params"]
    options = {"num_res_blocks": blocks, "channel_mult": [1, 2, 1], "attention_resolutions": [1, 4]}
    params["unet_config"]["params"] |= options | {"conv_resample": conv_resample}
    return LatentDiffusion(**params).eval().requires_grad_(False)


@pytest.fixture
def tokenizer(tmp_path) -> str:
    write_tokenizer(WORDS, tmp_path / "tokenizer", max_length=77)
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize("conv_resample", [True, False])
@pytest.mark.parametrize(("before", "now"), [(1, [3, 2, 1]), ([2, 1, 3], [2, 4, 4]), (2, [2, 2, 2])])
def test_a_deeper_denoiser_begins_where_the_shallower_one_stands(before, now, conv_resample, tokenizer, tmp_path):
    shallow, deep = denoiser(before, tokenizer, conv_resample), denoiser(now, tokenizer, conv_resample)
    randomise(shallow.model)
    save_safetensors(shallow.state_dict(), tmp_path / "model.safetensors")
    begin_from(deep, tmp_path / "model.safetensors")
    z, t, context = normal(2, 4, 8, 8), torch.tensor([981, 3]), normal(2, 7, 32, seed=2)
    torch.testing.assert_close(deep.apply_model(z, t, context), shallow.apply_model(z, t, context))

    deep.model.requires_grad_(True)
    deep.apply_model(z, t, context).square().mean().backward()
    still = [name for name, value in deep.model.named_parameters() if "out_layers.3" in name and not value.grad.any()]
    assert not still, "a new block can never change"


@pytest.mark.parametrize("now", [1, [3, 2, 1], [2, 2]])
def test_a_denoiser_does_not_become_a_shallower_one(now, tokenizer, tmp_path):
    save_safetensors(denoiser([2, 2, 2], tokenizer).state_dict(), tmp_path / "model.safetensors")
    other = denoiser(now, tokenizer) if now != [2, 2] else tiny_model()
    with pytest.raises(UserError, match=r"\[2, 2, 2\] residual blocks a level.*num_res_blocks"):
        begin_from(other, tmp_path / "model.safetensors")
