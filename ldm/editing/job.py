"""An edit from files to a run folder: what `scripts/text_editing.py` does."""

import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm import zoo
from ldm.editing.edit import Edit, EditRequest, check_size, edit_image
from ldm.editing.images import load_image, make_grid, to_pil, to_tensor
from ldm.editing.masks import load_mask
from ldm.editing.ranking import find_ranker
from ldm.editing.run_folder import RunRecord, check_writable, prompt_slug, write_run
from ldm.editing.video import decode_steps, require_video_writer, write_video
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.schedule import make_sampling_schedule
from ldm.util import choose_device, choose_precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditJob:
    """One run: files in, a run folder out.

    size: (H, W) that the model works at; None in either place is the model's own.
    model, config, ckpt: see `ldm.zoo.resolve`. device, precision: see `ldm.util`.
    """

    request: EditRequest
    init_image: Path
    mask: Path
    outdir: Path
    invert_mask: bool = False
    size: tuple[int | None, int | None] = (None, None)
    save_video: bool = False
    model: str = "auto"
    config: Path | None = None
    ckpt: Path | None = None
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class EditResult:
    """Where a run is: its grid, and the `samples` folder."""

    grid: Path
    samples: Path


def run_edit(job: EditJob) -> EditResult:
    """Edit, rank, and write the run folder as a whole. All that can be wrong with the input is found first.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    check_writable(job.outdir)
    if job.save_video:
        require_video_writer()
    picture = load_image(job.init_image)
    files = zoo.resolve(job.model, job.config, job.ckpt)
    device = choose_device(job.device)
    dtype = choose_precision(job.precision, device)
    # A first look at the mask's file, so that a bad one is told of before a large model is loaded.
    load_image(job.mask)
    model = zoo.load(files, device, dtype)
    size = tuple(side or model.image_size * model.factor for side in job.size)
    check_size(model, *size)
    make_sampling_schedule(model.alphas_cumprod, job.request.ddim_steps, job.request.ddim_eta, job.request.skip_steps)
    x_source = to_tensor(picture.rgb, size)
    mask = load_mask(job.mask, size, job.invert_mask, image_size=(picture.rgb.height, picture.rgb.width))
    _tell_unknown_words(model, job.request.prompt)
    ranker = find_ranker(files.clip, device)

    steps = (job.request.ddim_steps - job.request.skip_steps) * job.request.n_iter
    with tqdm(total=steps, desc="denoising", unit="step", disable=None) as bar:
        edit = edit_image(model, x_source, mask, job.request, ranker, lambda _: bar.update(), job.save_video)
    return _write(job, files, model, x_source, mask, edit)


def _tell_unknown_words(model: LatentDiffusion, prompt: str) -> None:
    unknown = model.cond_stage_model.tokenize.unknown_words(prompt)
    if unknown:
        words = ", ".join(f'"{word}"' for word in unknown[:5])
        logger.warning("the model does not know %s and paints without; text2img-large knows more words", words)


def _write(
    job: EditJob, files: zoo.ModelFiles, model: LatentDiffusion, x_source: Tensor, mask: Tensor, edit: Edit
) -> EditResult:
    request = job.request
    options = {name: value for name, value in asdict(request).items() if name not in ("prompt", "seed")}
    record = RunRecord(
        prompt=request.prompt,
        model=files.name,
        config=str(files.config),
        weights=str(files.weights),
        seed=request.seed,
        seeds=edit.seeds,
        image=str(job.init_image),
        mask=str(job.mask),
        size=tuple(x_source.shape[2:]),
        options={**options, "device": job.device, "precision": job.precision},
        scores=edit.distances,
        invert_mask=job.invert_mask,
    )
    images = [to_pil(x) for x in edit.x]
    assets = {"input": to_pil(x_source), "mask": _grey(mask)}
    videos = tempfile.mkdtemp() if job.save_video else None
    try:
        paths = [Path(videos) / f"{i:04d}.mp4" for i in range(len(images))] if videos else None
        for path, z0_steps in zip(paths or (), edit.z0_steps, strict=True):
            write_video(decode_steps(model, z0_steps), path)
        samples = write_run(job.outdir, record, _grid(edit, images, assets), images, edit.z0, assets, paths)
    finally:
        if videos:
            shutil.rmtree(videos, ignore_errors=True)
    return EditResult(job.outdir / f"{prompt_slug(request.prompt)}.png", samples)


def _grey(mask: Tensor) -> Image.Image:
    """A mask (1, 1, h, w) in {0, 1} as a grey picture."""
    return Image.fromarray((mask[0, 0] * 255).to(torch.uint8).numpy())


def _grid(edit: Edit, images: list[Image.Image], assets: dict[str, Image.Image]) -> Image.Image:
    """Input, mask and tight latent mask, then the predictions with their place, seed and CLIP distance."""
    captions = ["input", "mask", "latent mask"]
    for i, seed in enumerate(edit.seeds):
        score = "" if edit.distances is None else f" · {edit.distances[i]:.3f}"
        captions.append(f"{i} · seed {seed}{score}")
    pictures = [assets["input"], assets["mask"], _grey(edit.latent_masks[-1:]), *images]
    return make_grid(pictures, min(7, len(pictures)), captions)
