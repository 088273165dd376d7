"""What all tests share: none asks the hub, also where there is a network, and each process has one thread.

Tiny models gain nothing from more, and on a busy machine the threads of one process wait for each other at every
operation, which turns seconds into minutes.
"""

import os

# Before torch and huggingface_hub are imported, which read them once, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
