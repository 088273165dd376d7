"""Training that begins from shipped weights."""

import logging

import pytest
import torch
from torch import nn

from ldm.checkpoint import save_safetensors
from ldm.errors import UserError
from ldm.training.optim import begin_from


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
