"""What the commands of the predecessor and of the baselines can be told.

Imports nothing heavy: the command lines are made of these declarations.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ldm.editing.guided_request import GuidanceOptions
from ldm.options import option, options, required
from ldm.runs.jobs import ModelChoice

Side = Annotated[int, Field(ge=0)]


@options
class BlendedDiffusionJob(ModelChoice, GuidanceOptions):
    """One edit by Blended Diffusion, under the names and defaults of its public program."""

    model: str = option(
        "auto",
        "which model: pixels, blended-diffusion-256, blended-diffusion-512, another that CLIP may guide, or a folder",
        group="with what",
        shown="auto: the first of blended-diffusion-256, pixels and scenes that is there",
        record=False,
    )
    prompt: str = required("what to paint; '' is guided by nothing", group="what to edit", short="-p", kw_only=True)
    init_image: Path = required(
        "the image, of any size and kind", group="what to edit", short="-i", kw_only=True, record=False
    )
    mask: Path | None = option(
        None, "the mask: white is edited", group="what to edit", shown="the whole image", record=False
    )
    invert_mask: bool = option(False, "edit where the mask is black", group="what to edit")
    extrapolate: tuple[Side, Side, Side, Side] | None = option(
        None,
        "paint so many pixels beyond the image on its left, top, right and bottom",
        group="what to edit",
        expects="four numbers of pixels from 0: left, top, right, bottom",
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
    )
    model_output_size: int | None = option(
        None, "size to work at; 512 takes the network of that size", low=8, high=4096, shown="the model's, 256"
    )
    region: Literal["auto", "whole"] = option(
        "auto", "edit a window around the mask, or the whole image squashed to the working size", group="where"
    )
    context: float | None = option(
        None,
        "how much of the window lies around the mask on each side, as a share of the mask's extent",
        group="where",
        low=0,
        shown="the model's, or else 0.5",
    )
    feather: float | None = option(
        None,
        "width of the band around the mask, in pixels of the image, in which the edit fades out",
        group="where",
        low=0,
        shown="half a latent cell",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "precision of the networks",
        group="with what",
        shown="auto: bfloat16 where the device is fast in it, else float16 on a GPU, float32 on a CPU",
        record=False,
    )
    seed: int = option(
        404, "seed of prediction 0; prediction i has seed + i, whatever its batch", low=0, high=2**63 - 1
    )
    iterations_num: int = option(8, "how many batches", low=1, high=1024)
    batch_size: int = option(4, "predictions in one batch; halved where memory does not suffice", low=1, high=1024)
    output_path: Path = option(Path("output"), "where results go", group="what comes out", record=False)
    output_file: str = option(
        "output.png", "what results in `ranked` are named after", group="what comes out", short="-o", record=False
    )
    overwrite: bool = option(
        False,
        "replace the last run in `output_path`, which is otherwise kept as samples.1",
        group="what comes out",
        record=False,
    )
    vid: bool = option(False, "an mp4 of the x0 estimates for each prediction", group="what comes out", record=False)
    export_assets: bool = option(
        False, "taken as there; image and mask are always kept, in samples/assets", group="what comes out", record=False
    )


@options
class BaselineJob(ModelChoice):
    """What the commands of the other baselines have in common."""

    prompt: str = required("what to paint", group="what to edit", short="-p", kw_only=True)
    init_image: Path = required(
        "the image, of any size and kind", group="what to edit", short="-i", kw_only=True, record=False
    )
    mask: Path = required("the mask: white is edited", group="what to edit", kw_only=True, record=False)
    invert_mask: bool = option(False, "edit where the mask is black", group="what to edit")
    region: Literal["auto", "whole"] = option(
        "auto", "edit a window around the mask, or the whole image squashed to the working size", group="where"
    )
    context: float | None = option(
        None,
        "how much of the window lies around the mask on each side, as a share of the mask's extent",
        group="where",
        low=0,
        shown="the model's, or else 0.5",
    )
    feather: float | None = option(
        None,
        "width of the band around the mask, in pixels of the image, in which the edit fades out",
        group="where",
        low=0,
        shown="half a latent cell",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "precision of the networks",
        group="with what",
        shown="auto: bfloat16 where the device is fast in it, else float16 on a GPU, float32 on a CPU",
        record=False,
    )
    seed: int = option(42, "seed of prediction 0; prediction i has seed + i, whatever its batch", low=0, high=2**63 - 1)
    overwrite: bool = option(
        False,
        "replace the last run in `outdir`, which is otherwise kept as samples.1",
        group="what comes out",
        record=False,
    )
    outdir: Path = option(
        Path("outputs/baseline_results"), "where results go", group="what comes out", short="-o", record=False
    )


@options
class GlideJob(BaselineJob):
    """One edit by GLIDE-filtered's inpainting."""

    model: str = option("glide-base", "the network at 64x64: glide-base, or a folder", group="with what", record=False)
    upsampler: str = option("glide-upsample", "the network from 64x64 to 256x256, or a folder", group="with what")
    tokenizer: str = option(
        "gpt2",
        "the byte pairs, by a name on the hub, from which they come once, or a folder",
        group="with what",
        record=False,
    )
    n_samples: int = option(24, "predictions in one batch", low=1, high=1024)
    n_iter: int = option(1, "how many batches", low=1, high=1024)
    scale: float = option(5.0, "strength of classifier-free guidance of the base", low=0)
    base_respacing: str = option("100", "steps of the base, as `timestep_respacing`")
    upsample_respacing: str = option("fast27", "steps of the upsampler, as `timestep_respacing`")


@options
class PaintByWordJob(BaselineJob):
    """One edit by PaintByWord++, which makes one picture."""

    model: str = option("vqgan-imagenet", "the VQGAN: vqgan-imagenet, or a folder", group="with what", record=False)
    size: int = option(256, "size to work at", group="where", low=8, high=4096)
    steps: int = option(300, "steps of Adam", low=1, high=100000)
    learning_rate: Annotated[float, Field(gt=0)] = option(0.1, "of Adam", expects="a number above 0")
    aug_num: int = option(32, "copies of the picture that CLIP sees, the plain one among them", low=1, high=256)
    clip_guidance_lambda: float = option(1000.0, "weight of CLIP's distance", low=0)
    lpips_sim_lambda: float = option(1000.0, "weight of LPIPS outside the mask; needs the package lpips", low=0)
    l2_sim_lambda: float = option(10000.0, "weight of the squared difference outside the mask", low=0)
