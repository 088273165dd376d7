"""Our commands load the shipped ranker without torch's compiler and transformers, and rank as any program does."""

import subprocess
import sys

import pytest
import torch

from ldm.backbones import zoo
from ldm.editing.ranking import CLIPRanker

FOLDER = zoo.REPOSITORY / "models/clip/scenes"
HEAVY = ("torch._dynamo", "sympy", "transformers")

# Each runs in a process of its own: what is imported there is what the test is about.
COMMAND = f"""
import sys, torch
from ldm import imports
from ldm.cli import run
from ldm.editing.ranking import CLIPRanker

def main(argv):
    exec(argv[0])
    ranker = CLIPRanker.from_folder("{FOLDER}")
    heavy = [name for name in {HEAVY} if name in sys.modules]
    exec(argv[1])
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 10:40, 20:50] = 1
    torch.save((ranker.distances(x, mask, "a red ball"), heavy), argv[2])

sys.exit(run(main))
"""
WHOLE_AGAIN = """
import open_clip.hf_model, torch._dynamo, torchvision
assert open_clip.hf_model.transformers is None
imports.import_transformers_too()
assert open_clip.hf_model.transformers.__name__ == "transformers"
torchvision.ops.roi_align.__globals__["is_compile_supported"]("cpu")
assert "optimize" in vars(torch._dynamo) and "is_compile_supported" in vars(torch._dynamo.utils)
from timm.models.naflexvit import NaFlexRopeIterator
assert torch._dynamo.is_dynamo_supported() is not None and callable(NaFlexRopeIterator.__next__)
"""
NEWER_LIBRARY = "imports._disable = None"  # a library that asks for what no stand-in has


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """What a program that imports open_clip whole gets."""
    ranker = CLIPRanker.from_folder(FOLDER)
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 10:40, 20:50] = 1
    return ranker.distances(x, mask, "a red ball")


@pytest.mark.parametrize(
    ("before", "after", "light"),
    [("", WHOLE_AGAIN, True), (NEWER_LIBRARY, "", False)],
    ids=["light", "whole where that does not work"],
)
def test_a_command_ranks_alike(expected, tmp_path, before, after, light):
    path = tmp_path / "distances.pt"
    subprocess.run([sys.executable, "-c", COMMAND, before, after, path], check=True, cwd=zoo.REPOSITORY)
    distances, heavy = torch.load(path)
    torch.testing.assert_close(distances, expected, rtol=0, atol=1e-6)  # threads may sum in another order
    assert heavy == [] if light else "torch._dynamo" in heavy


def test_a_program_gets_open_clip_whole(tmp_path):
    code = f"""if True:
        import sys
        from ldm.editing.ranking import CLIPRanker
        CLIPRanker.from_folder("{FOLDER}")
        import open_clip
        sys.exit(open_clip.hf_model.transformers is None)
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=zoo.REPOSITORY).returncode == 0
