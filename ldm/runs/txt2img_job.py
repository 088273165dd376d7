"""Pictures from a prompt alone, ranked, and their files: what `scripts/txt2img.py` does.

outdir/
  <prompt-slug>.png             the grid, best first
  <prompt-slug>/0000.png ...    the pictures: those of one run, replaced as a whole by the next of that prompt
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.backbones import zoo
from ldm.backbones.defaults import Defaults
from ldm.backbones.words import check_words
from ldm.editing.edit import check_size
from ldm.editing.ranking import CLIPRanker, find_ranker, rank
from ldm.errors import UserError
from ldm.files import write_error
from ldm.imaging.images import make_grid, save_png, to_pil
from ldm.models.diffusion.ddim import DDIMSampler, NoiseSource, StepInfo, guided_denoiser
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.schedule import make_sampling_schedule
from ldm.runs.folder import check_writable, prompt_slug
from ldm.util import choose_device, choose_precision


@dataclass(frozen=True)
class GenerationRequest:
    """What to paint, and how; the names are those of `EditRequest`. A scale of None is the model's, see `Defaults`.

    Raises:
        UserError: a number is out of its range.
    """

    prompt: str
    seed: int = 42
    n_samples: int = 4
    n_iter: int = 1
    ddim_steps: int = 50
    ddim_eta: float = 0.0
    scale: float | None = None

    def __post_init__(self):
        for name, low in (("seed", 0), ("n_samples", 1), ("n_iter", 1), ("scale", 0)):
            if getattr(self, name) is None and name == "scale":
                continue
            if not low <= getattr(self, name) < 2**63:
                raise UserError(f"{name} is {getattr(self, name)}: give a number of at least {low}")

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.n_samples * self.n_iter)


@dataclass(frozen=True)
class Generation:
    """Pictures in rank order, the best first.

    x: (n, 3, H, W) in [-1, 1]; z0: (n, c, h, w), scaled latents; seeds: of each; distances: CLIP's, lower is better,
    or None where nothing ranked them.
    """

    x: Tensor
    z0: Tensor
    seeds: tuple[int, ...]
    distances: tuple[float, ...] | None


@torch.no_grad()
def generate_images(
    model: LatentDiffusion,
    request: GenerationRequest,
    size: tuple[int, int] | None = None,
    ranker: CLIPRanker | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Generation:
    """Paint a prompt from noise by DDIM, several times, and rank the pictures. Each depends on its seed alone.

    Args:
        model: in eval mode; its device and precision are used.
        size: (H, W); None is the model's own.
        ranker: None keeps the pictures in the order of their seeds.
        on_step: called after each step of each batch.

    Raises:
        UserError: a size that does not fit the network, or steps out of range.
    """
    height, width = size or (model.image_size * model.factor,) * 2
    check_size(model, height, width)
    schedule = make_sampling_schedule(model.alphas_cumprod, request.ddim_steps, request.ddim_eta)
    context, empty = (model.get_learned_conditioning([prompt]) for prompt in (request.prompt, ""))
    scale = Defaults().fill(request).scale
    sampler = DDIMSampler(guided_denoiser(model, context, empty, scale), schedule)
    shape = (model.channels, height // model.factor, width // model.factor)
    z0 = []
    for start in range(0, len(request.seeds), request.n_samples):
        noise = NoiseSource(request.seeds[start : start + request.n_samples])
        z_start = noise.draw(shape, torch.empty(0, device=model.device))  # float32, whatever the networks' precision
        z0.append(sampler.sample(z_start, noise, on_step).cpu())
    z0 = torch.cat(z0)
    # One at a time: the decoder needs far more memory a sample than the denoiser.
    x = torch.cat([model.decode_first_stage(one.to(model.device)).cpu() for one in z0.split(1)])
    if not torch.isfinite(x).all():
        raise UserError("the model gave pictures that are no numbers: try --precision float32")
    if ranker is None:
        return Generation(x, z0, tuple(request.seeds), None)
    distances = ranker.distances(x, None, request.prompt)
    order = rank(distances).tolist()
    return Generation(x[order], z0[order], tuple(request.seeds[i] for i in order), tuple(distances[order].tolist()))


@dataclass(frozen=True)
class GenerationJob:
    """One run: a prompt in, pictures out.

    size: (H, W) that the model works at; None in either place is the model's own.
    model, config, ckpt: see `ldm.backbones.zoo.resolve`. device, precision: see `ldm.util`.
    """

    request: GenerationRequest
    outdir: Path
    size: tuple[int | None, int | None] = (None, None)
    model: str = "auto"
    config: Path | None = None
    ckpt: Path | None = None
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class GenerationResult:
    """Where a run is: its grid, and the folder of its pictures."""

    grid: Path
    images: Path


def run_generation(job: GenerationJob) -> GenerationResult:
    """Paint, rank, and write the pictures as a whole. All that can be wrong with the input is found first.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    request = job.request
    folder = job.outdir / prompt_slug(request.prompt)
    check_writable(job.outdir)
    _check_ours(folder)
    files = zoo.resolve(job.model, job.config, job.ckpt)
    request = Defaults.of(files).fill(request)
    device = choose_device(job.device)
    model = zoo.load(files, device, choose_precision(job.precision, device))
    size = tuple(side or model.image_size * model.factor for side in job.size)
    check_size(model, *size)
    make_sampling_schedule(model.alphas_cumprod, request.ddim_steps, request.ddim_eta)
    check_words(model, files, request.prompt, force=True)
    ranker = find_ranker(files.clip, device)

    with tqdm(total=request.ddim_steps * request.n_iter, desc="denoising", unit="step", disable=None) as bar:
        made = generate_images(model, request, size, ranker, lambda _: bar.update())
    return _write(folder, made, [_png_text(request, files.name, size, made, i) for i in range(len(made.x))])


def _png_text(
    request: GenerationRequest, model: str, size: tuple[int, int], made: Generation, index: int
) -> dict[str, str]:
    """The text chunks of a picture: `parameters` as common viewers read it, and `ldm`, JSON of the same."""
    words = {
        "Steps": request.ddim_steps,
        "Sampler": "DDIM",
        "Eta": request.ddim_eta,
        "CFG scale": request.scale,
        "Seed": made.seeds[index],
        "Size": f"{size[1]}x{size[0]}",  # width first, as everybody has it
        "Model": model,
    }
    about = {**asdict(request), "seed": made.seeds[index], "size": size, "model": model}
    if made.distances is not None:
        words["CLIP distance"] = f"{made.distances[index]:.4f}"
        about["clip_distance"] = made.distances[index]
    line = ", ".join(f"{key}: {value}" for key, value in words.items())
    return {"parameters": f"{request.prompt}\n{line}", "ldm": json.dumps(about, ensure_ascii=False)}


def _write(folder: Path, made: Generation, texts: list[dict[str, str]]) -> GenerationResult:
    """The pictures in the place of an earlier run's, then the grid."""
    images = [to_pil(x) for x in made.x]
    staging = folder.with_name(f".{uuid.uuid4().hex[:12]}.part")
    grid = folder.with_name(f"{folder.name}.png")
    try:
        (staging / "new").mkdir(parents=True)
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            save_png(image, staging / "new" / f"{i:04d}.png", text)
        if folder.exists():
            os.rename(folder, staging / "old")
        os.rename(staging / "new", folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        if (staging / "old").exists() and not folder.exists():  # Ctrl-C between the two
            os.rename(staging / "old", folder)
        shutil.rmtree(staging, ignore_errors=True)
    save_png(_grid(made, images), grid, {"parameters": texts[0]["parameters"]})
    return GenerationResult(grid, folder)


def _grid(made: Generation, images: list[Image.Image]) -> Image.Image:
    """The pictures with their place, seed and CLIP distance."""
    captions = [f"{i} · seed {seed}" for i, seed in enumerate(made.seeds)]
    if made.distances is not None:
        captions = [f"{caption} · {d:.3f}" for caption, d in zip(captions, made.distances, strict=True)]
    return make_grid(images, min(4, len(images)), captions)


def _check_ours(folder: Path) -> None:
    """Refuse to replace what we did not write.

    Raises:
        UserError: the folder holds anything but numbered pictures.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f'"{folder}" is no folder: move it away or choose another "--outdir"')
    strange = [path.name for path in folder.glob("*") if not re.fullmatch(r"\d{4,}\.png", path.name)]
    if strange:
        raise UserError(f'"{folder}" holds "{strange[0]}", not of ours: move it away or choose another "--outdir"')
