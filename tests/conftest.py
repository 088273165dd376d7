"""One thread for each process of the tests: tiny models gain nothing from more, and on a busy machine the threads of
one process wait for each other at every operation, which turns seconds into minutes."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported here, and for the processes that tests start

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """No test asks the hub, also where there is a network: it reads this from the environment once, at its import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
