"""v of patches as the best linear estimate and what remains of it."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ldm.checkpoint import load_model, save_safetensors
from ldm.data.tokenizer import write_tokenizer
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.precondition import patch_statistics, plain_statistics, preconditioned
from tests.tiny import WORDS, tiny_config

A = torch.tensor([0.99, 0.7, 0.3, 0.05])
B = (1 - A**2).sqrt()


def tiny_params(folder: Path) -> dict:
    write_tokenizer(WORDS, folder / "tokenizer", max_length=77)
    return tiny_config(str(folder / "tokenizer"))["model"]["params"]


def latents(n: int = 64) -> torch.Tensor:
    """Smooth ones, whose channels go together and have a mean."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 2, 16, 16, generator=generator)
    z = F.avg_pool2d(z, 3, stride=1, padding=1) + 0.1 * z
    return torch.stack([z[:, 0] + 0.5, z[:, 1] + 0.7 * z[:, 0]], dim=1)


def test_without_an_output_it_is_the_posterior_mean_of_a_gaussian():
    z = latents(4)
    statistics = patch_statistics(latents(), 2)
    noisy = A.view(-1, 1, 1, 1) * z + B.view(-1, 1, 1, 1) * torch.randn(z.shape, generator=torch.Generator())
    v = preconditioned(noisy, torch.zeros_like(z), A, B, statistics, 2)
    patches = F.pixel_unshuffle(latents().double(), 2).movedim(1, 0).flatten(1)
    mean, covariance = patches.mean(1), torch.cov(patches)
    for i, (a, b) in enumerate(zip(A.double(), B.double(), strict=True)):
        seen = F.pixel_unshuffle(noisy[i : i + 1].double(), 2)[0].flatten(1)
        gain = a * covariance @ torch.linalg.inv(a**2 * covariance + b**2 * torch.eye(8))
        x0 = mean[:, None] + gain @ (seen - a * mean[:, None])
        expected = F.pixel_shuffle(((a * seen - x0) / b).view(1, 8, 8, 8), 2)
        torch.testing.assert_close(v[i : i + 1].double(), expected, rtol=1e-3, atol=1e-4)


def test_what_the_network_is_to_say_has_the_same_scale_along_every_direction_at_every_level():
    statistics = patch_statistics(latents(), 2)
    assert statistics.std.max() > 4 * statistics.std.min()  # or there would be nothing to mend
    z = latents(256)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(A, B, strict=True):
        known = preconditioned(a * z + b * noise, torch.zeros_like(z), *(x.expand(256) for x in (a, b)), statistics, 2)
        left = F.pixel_unshuffle(a * noise - b * z - known, 2).movedim(1, 0).flatten(1)
        one = preconditioned(
            torch.zeros_like(z[:1]), torch.ones_like(z[:1]), a.view(1), b.view(1), plain_statistics(2, 2), 2
        )
        torch.testing.assert_close(one, torch.ones_like(one))  # of plain statistics the output is v
        scale = statistics.std / ((a * statistics.std).square() + b**2).sqrt()
        asked = (statistics.basis.T @ left) / scale[:, None]
        torch.testing.assert_close(asked.std(dim=1), torch.ones(8), rtol=0.1, atol=0.0)


@torch.no_grad()
def test_a_model_knows_its_latents_exactly_in_any_precision(tmp_path):
    plain = tiny_params(tmp_path) | {"parameterization": "v"}
    torch.manual_seed(0)
    model = LatentDiffusion(**plain, precondition_patch=2).eval()
    z, context, t = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32), torch.tensor([5, 800])
    torch.nn.init.normal_(model.model.diffusion_model.out[2].weight, std=0.1)
    before = model.apply_model(z, t, context)
    torch.testing.assert_close(before, model.model(z, t, context))  # as long as it has seen none, plain v

    model.fit_precondition(torch.randn(8, 4, 8, 8).cumsum(dim=2))
    kept = copy.deepcopy(model.patches)
    model.fit_precondition(torch.randn(8, 4, 8, 8))
    assert all(torch.equal(one, other) for one, other in zip(kept, model.patches, strict=True))
    after = model.apply_model(z, t, context)
    assert not torch.allclose(before, after, atol=0.1)

    save_safetensors(model.state_dict(), tmp_path / "model.safetensors")
    half = load_model(
        {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": plain | {"precondition_patch": 2}}},
        tmp_path / "model.safetensors",
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, half.patches, strict=True))
    said = half.apply_model(z, t, context.bfloat16())
    assert said.dtype == torch.float32
    torch.testing.assert_close(said, after, rtol=0.05, atol=0.05)


def test_only_v_is_preconditioned(tmp_path):
    params = tiny_params(tmp_path)
    with pytest.raises(ValueError, match="precondition_patch 2 is for parameterization v, not eps"):
        LatentDiffusion(**params, precondition_patch=2)
