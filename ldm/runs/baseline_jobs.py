"""What the commands of the predecessor and of the baselines can be told.

Imports nothing heavy: the command lines are made of these declarations.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.request import Place, SamplingRequest, check_text, numbers
from ldm.errors import UserError
from ldm.options import option, options, same
from ldm.runs.jobs import EditJob, PrecisionChoice

logger = logging.getLogger(__name__)

Side = Annotated[int, Field(ge=0)]


@options
class Inputs:
    """What is edited; the mask is the methods' own."""

    prompt: str = same(SamplingRequest, "prompt", help="what to paint", kw_only=True)
    init_image: Path = same(EditJob, "init_image")


@options
class MethodJob(PrecisionChoice, Place, Inputs):
    """What the commands of the predecessor and of the baselines have in common."""

    seed: int = same(SamplingRequest, "seed")
    overwrite: bool = same(EditJob, "overwrite")

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)

    @property
    def models(self) -> tuple[Mapping[str, Any], ...]:
        """See `MethodOptions`."""
        return (self.named,)

    @property
    def loading(self) -> Mapping[str, Any]:
        """See `MethodOptions`."""
        return {**self.named, "precision": self.precision}

    @property
    def together(self) -> Any:
        """See `MethodOptions`: each is sampled by itself."""
        return self


@options
class BlendedDiffusionJob(GuidanceOptions, MethodJob):
    """One edit by Blended Diffusion, under the names and defaults of its public program."""

    outdir_option: ClassVar[str] = "output_path"
    video_option: ClassVar[str | None] = "vid"

    model: str = option(
        "auto",
        "which model: pixels, blended-diffusion-256, blended-diffusion-512, another that CLIP may guide, or a folder",
        group="with what",
        shown="auto: blended-diffusion-256 where it has been downloaded, else pixels",
        record=False,
    )
    prompt: str = same(MethodJob, "prompt", help="what to paint; '' is guided by nothing")
    mask: Path | None = option(
        None, "the mask: white is edited", group="what to edit", shown="the whole image", record=False
    )
    extrapolate: Annotated[tuple[Side, Side, Side, Side] | None, BeforeValidator(numbers)] = option(
        None,
        "paint so many pixels beyond the image on its left, top, right and bottom",
        group="what to edit",
        expects="four numbers of pixels from 0: left, top, right, bottom",
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
    )
    model_output_size: int | None = option(
        None, "size to work at; 512 takes the network of that size", low=8, high=4096, shown="the model's, 256"
    )
    seed: int = same(MethodJob, "seed", default=404)
    iterations_num: int = same(SamplingRequest, "n_iter", default=8)
    batch_size: int = same(
        SamplingRequest, "n_samples", help="predictions in one batch; halved where memory does not suffice"
    )
    output_path: Path = option(Path("output"), "where results go", group="what comes out", record=False)
    output_file: str = option(
        "output.png", "what results in `ranked` are named after", group="what comes out", short="-o", record=False
    )
    overwrite: bool = same(
        MethodJob, "overwrite", help="replace the last run in `output_path`, which is otherwise kept as samples.1"
    )
    vid: bool = option(False, "an mp4 of the x0 estimates for each prediction", group="what comes out", record=False)
    export_assets: bool = option(
        False, "taken as there; image and mask are always kept, in samples/assets", group="what comes out", record=False
    )

    def __post_init__(self) -> None:
        GuidanceOptions.__post_init__(self)
        MethodJob.__post_init__(self)
        if self.invert_mask and self.mask is None:
            raise UserError("`invert_mask` needs `mask`: without one the whole image is edited")

    @property
    def named(self) -> dict[str, Any]:
        """The arguments of `zoo.resolve`: "auto" is the public network of that size, or the small one."""
        from ldm.backbones import zoo

        if self.model != "auto" or self.config or self.ckpt:
            return super().named
        if self.model_output_size == 512:
            return {"model": "blended-diffusion-512"}
        large, small = "blended-diffusion-256", "pixels"
        with suppress(UserError):
            zoo.resolve(large)
            return {"model": large}
        logger.info(f"model: {small}, the small one; for the public one, {large}: {zoo.DOWNLOAD} {large}")
        return {"model": small}

    @property
    def seeds(self) -> range:
        """Of its predictions."""
        return range(self.seed, self.seed + self.batch_size * self.iterations_num)


@options
class BaselineJob(MethodJob):
    """What the commands of the other baselines have in common."""

    outdir_option: ClassVar[str] = "outdir"
    video_option: ClassVar[str | None] = None
    mask: Path = same(EditJob, "mask")
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
    n_samples: int = same(SamplingRequest, "n_samples", default=24)
    n_iter: int = same(SamplingRequest, "n_iter")
    scale: float = option(5.0, "strength of classifier-free guidance of the base", low=0)
    base_respacing: str = option("100", "steps of the base, as `timestep_respacing`")
    upsample_respacing: str = option("fast27", "steps of the upsampler, as `timestep_respacing`")

    @property
    def models(self) -> tuple[Mapping[str, Any], ...]:
        """See `MethodOptions`."""
        return self.named, {"model": self.upsampler}

    @property
    def loading(self) -> Mapping[str, Any]:
        """See `MethodOptions`."""
        return {**super().loading, "upsampler": self.upsampler, "tokenizer": self.tokenizer}

    @property
    def seeds(self) -> range:
        """Of its predictions."""
        return range(self.seed, self.seed + self.n_samples * self.n_iter)


@options
class PaintByWordJob(BaselineJob):
    """One edit by PaintByWord++, which makes one picture."""

    model: str = option("vqgan-imagenet", "the VQGAN: vqgan-imagenet, or a folder", group="with what", record=False)
    size: int = option(256, "size to work at", group="where", low=8, high=4096)
    steps: int = option(300, "steps of Adam", low=1, high=100000)
    learning_rate: Annotated[float, Field(gt=0)] = option(0.1, "of Adam", expects="a number above 0")
    aug_num: int = option(32, "copies of the picture that CLIP sees, the plain one among them", low=1, high=256)
    clip_guidance_lambda: float = option(1000.0, "weight of CLIP's distance", low=0)
    lpips_sim_lambda: float = same(GuidanceOptions, "lpips_sim_lambda")
    l2_sim_lambda: float = same(GuidanceOptions, "l2_sim_lambda")

    @property
    def loading(self) -> Mapping[str, Any]:
        """See `MethodOptions`."""
        return {**super().loading, "size": self.size}

    @property
    def seeds(self) -> range:
        """Of its one prediction."""
        return range(self.seed, self.seed + 1)
