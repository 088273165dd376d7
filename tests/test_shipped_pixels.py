"""The model of pixels that comes along: Blended Diffusion paints by it, and CLIP sees it."""

from pathlib import Path

from ldm.runs.folder import read_run
from scripts import blended_diffusion

ROOT = Path(__file__).parents[1]


def test_it_is_small():
    assert (ROOT / "models/pixels/scenes/model.safetensors").stat().st_size < 12e6


def test_guided_by_clip_it_paints_what_the_prompt_says_in_the_mask(tmp_path):
    argv = ["-p", "a red ball", "-i", str(ROOT / "inputs/img.png"), "--mask", str(ROOT / "inputs/donut_mask.png")]
    quick = ["--timestep_respacing", "25", "--skip_timesteps", "6", "--aug_num", "4", "--iterations_num", "1"]
    scores = []
    for strength in ("0", "1000"):
        out = tmp_path / strength
        more = ["--batch_size", "2", "--model", "pixels", "--clip_guidance_lambda", strength]
        blended_diffusion.main([*argv, *quick, *more, "--output_path", str(out)])
        record = read_run(out).record
        assert record.measures[0]["max_difference"] == 0
        scores.append(min(record.scores))
    assert scores[1] < scores[0] - 0.05
