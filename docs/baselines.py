"""Draw docs/baselines.jpg: one photograph, mask and prompt through every method that can run here, and what each costs.

    OMP_NUM_THREADS=1 python docs/baselines.py

Seconds are of one core, also where the machine is busy. Methods whose public files are not here are left out.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from ldm.editing.editor import Editor
from ldm.errors import UserError
from ldm.files import atomic_file
from ldm.imaging.images import as_picture, make_grid
from ldm.imaging.masks import mask_from
from ldm.imaging.region import flat_mask, mask_box
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.runs.baseline_jobs import BlendedDiffusionJob, GlideJob, PaintByWordJob
from ldm.runs.baselines import run_glide, run_paint_by_word
from ldm.runs.blended_diffusion import run_blended_diffusion
from ldm.runs.edit import run_edit
from ldm.runs.folder import read_run
from ldm.runs.jobs import EditJob

ROOT = Path(__file__).parents[1]
IMAGE, MASK, PROMPT = ROOT / "inputs/img.png", ROOT / "inputs/donut_mask.png", "a red ball"
COUNT = 4
SIDE = 320  # of a cell, in pixels


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many pictures the network is asked about: one for each row of a batch."""
    seen, forward = [0], UNetModel.forward

    def count(self: UNetModel, z: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        seen[0] += len(z)
        return forward(self, z, *args, **kwargs)

    UNetModel.forward = count  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        UNetModel.forward = forward  # type: ignore[method-assign]


def methods(folder: Path) -> dict[str, Callable[[Path], object]]:
    """By name, what writes a run of each method to a folder."""
    same = {"prompt": PROMPT, "init_image": IMAGE, "mask": MASK}

    def guided(outdir: Path, **more) -> object:
        job = BlendedDiffusionJob(**same, output_path=outdir, batch_size=COUNT, iterations_num=1, **more)
        return run_blended_diffusion(job)

    local = {"local_clip_guided_diffusion": True, "background_preservation_loss": True, "lpips_sim_lambda": 0}
    return {
        "Blended Latent Diffusion": lambda out: run_edit(EditJob(**same, n_samples=COUNT, outdir=out)),
        "Blended Diffusion": lambda out: guided(out, model="pixels"),
        "as released": lambda out: guided(out, model="pixels", released_blend=True),
        "local CLIP-guided": lambda out: guided(out, model="pixels", **local),
        "Blended Diffusion, latents": lambda out: guided(
            out, model="scenes", timestep_respacing="30", skip_timesteps=3, clip_guidance_lambda=300
        ),
        "GLIDE": lambda out: run_glide(GlideJob(**same, n_samples=COUNT, outdir=out)),
        "PaintByWord++": lambda out: run_paint_by_word(PaintByWordJob(**same, outdir=out)),
    }


def near(image: Image.Image) -> Image.Image:
    """The part of the photograph around the mask."""
    rows, columns = mask_box(flat_mask(mask_from(MASK, (image.height, image.width))))
    side = 2 * max(rows.stop - rows.start, columns.stop - columns.start)
    x, y = (columns.start + columns.stop) // 2, (rows.start + rows.stop) // 2
    left, top = min(max(x - side // 2, 0), image.width - side), min(max(y - side // 2, 0), image.height - side)
    return image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    Editor.load("scenes")  # so that the first method does not pay for the imports
    picture = as_picture(IMAGE).rgb
    cells, captions = [near(picture)], ["input"]
    with TemporaryDirectory() as made:
        for number, (name, run) in enumerate(methods(Path(made)).items()):
            outdir, start = Path(made) / str(number), time.process_time()
            try:
                with counted() as seen:
                    run(outdir)
            except UserError as error:
                print(f"{name}: left out, {error}")
                continue
            seconds, found = time.process_time() - start, read_run(outdir)
            print(
                f"{name}: {seconds:.0f} s, {seen[0] / len(found):.0f} evaluations a prediction, {found.record.scores}"
            )
            cells.append(near(as_picture(found.path / "results" / "0000.png").rgb))
            captions.append(f"{name} · {seconds:.0f} s · {seen[0] / len(found):.0f}")
    with atomic_file(Path(__file__).with_suffix(".jpg")) as file:
        make_grid(cells, 3, captions).save(file, "JPEG", quality=90)
