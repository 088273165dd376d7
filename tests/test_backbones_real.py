"""For whoever has a real checkpoint: BLD_SD15=FOLDER pytest -m real, the folder being Stable Diffusion 1.5's."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.editing.editor import Editor
from ldm.editing.reconstruct import psnr
from ldm.imaging.images import to_tensor
from tests.test_backbones import photograph

FOLDER = os.environ.get("BLD_SD15")


@pytest.mark.real
@pytest.mark.skipif(not FOLDER, reason="BLD_SD15 names no folder of Stable Diffusion 1.5")
def test_a_real_stable_diffusion_edits_a_photograph():
    editor = Editor.load(str(FOLDER))
    assert (editor.model.native_size, editor.model.factor, editor.model.channels) == ((512, 512), 8, 4)
    image = Image.open("inputs/img.png").convert("RGB").resize((512, 512))
    x = to_tensor(image)
    x_again = editor.model.decode(editor.model.encode(x.to(editor.model.device))).cpu()
    assert psnr(x_again.clamp(-1, 1), x, torch.ones(1, 1, 512, 512)) > 25, "its autoencoder is whole"

    mask = np.zeros((512, 512), np.uint8)
    mask[128:384, 128:384] = 255
    result = editor.edit(
        photograph(512, 512), mask, "a bright red apple on a white background", n_samples=2, ddim_steps=20, seed=3
    )
    assert [measures.max_difference for measures in result.measures] == [0, 0]
    for picture in result.results:
        inside = np.asarray(picture).astype(int)[192:320, 192:320]
        redness = inside[..., 0] - inside[..., 1:].max(-1)
        assert (redness > 40).mean() > 0.3, "there is no red apple in it"
