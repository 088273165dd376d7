"""What each command can be told: the options of the method, of the model, and of the files.

Imports nothing heavy: the command lines are made of these declarations.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, Field

from ldm.editing.request import EditRequest, ReconstructionOptions, SamplingRequest
from ldm.options import option, options, required, subset


def _texts(value: Any) -> Any:
    """Texts in one, as a spreadsheet's cell has them: spaces or commas between."""
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


OUTDIR = Path("outputs/edit_results")


@options
class ModelChoice:
    """Which model, and where it runs; see `ldm.backbones.zoo.resolve` and `ldm.util`."""

    model: str = option(
        "auto",
        "which model: things, scenes, text2img-large, a folder, a .safetensors of Stable Diffusion, an id of the hub",
        group="with what",
        shown="auto: text2img-large where it has been downloaded, else things",
        record=False,
    )
    revision: str | None = option(None, "which revision of an id of the hub", group="with what", kw_only=True)
    lora: Annotated[tuple[str, ...], BeforeValidator(_texts)] = option(
        (),
        "LoRAs for a model of diffusers, each with its weight",
        group="with what",
        shown="none",
        metavar="FILE_OR_ID[:WEIGHT]",
        kw_only=True,
    )
    config: Path | None = option(
        None,
        "a config of your own, with `ckpt`; of a single file in `model`, the folder of its configs",
        group="with what",
        record=False,
    )
    ckpt: Path | None = option(None, "weights of your own, with `config`", group="with what", record=False)

    @property
    def named(self) -> dict[str, Any]:
        """The arguments of `ldm.backbones.zoo.resolve`."""
        return {name: getattr(self, name) for name in ("model", "config", "ckpt", "revision", "lora")}

    device: str = option(
        "auto",
        "where the model runs: cuda, cuda:1, mps, cpu",
        group="with what",
        shown="auto: the first of these that there is",
        record=False,
    )


def words_of(given: Mapping[str, Any]) -> list[str]:
    """Lines that say which words a model knows, see `ldm.backbones.words.words_in_full`.

    Args:
        given: options, of which those of `ModelChoice` name the model.

    Raises:
        UserError: there is no such model.
    """
    from ldm.backbones import zoo
    from ldm.backbones.words import words_in_full

    return words_in_full(zoo.resolve(**ModelChoice(**subset(ModelChoice, given)).named))


@options
class PrecisionChoice(ModelChoice):
    """The same, and in which precision."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "precision of the networks",
        group="with what",
        shown="auto: bfloat16 where the device is fast in it, else float16 on a GPU, float32 on a CPU",
        record=False,
    )


@options
class SamplingChoice(PrecisionChoice):
    """The same for what samples."""

    low_memory: bool = option(
        False, "keep text encoders off the GPU, in main memory, and decode large pictures in tiles", group="with what"
    )
    compile: Literal["off", "regions", "graphs"] = option(
        "off",
        "compile the denoiser: its blocks, each kind once, or all of it into CUDA graphs; pays after many steps",
        group="with what",
    )

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `Editor.load`, but for the device."""
        names = ("model", "config", "ckpt", "revision", "lora", "precision", "low_memory", "compile")
        return {name: getattr(self, name) for name in names}


class MethodOptions(Protocol):
    """A job that some method can be asked for; see `ldm.runs.program` for what makes it.

    The class is one of options: `outdir_option` is its name for the folder of the run, and `video_option` that for an
    mp4 of each prediction, where it makes any.
    """

    outdir_option: ClassVar[str]
    video_option: ClassVar[str | None]

    @property
    def prompt(self) -> str:
        """What to paint."""
        ...

    @property
    def init_image(self) -> Path:
        """The image."""
        ...

    @property
    def mask(self) -> Path | None:
        """The mask; None edits the whole image."""
        ...

    @property
    def overwrite(self) -> bool:
        """Whether the last run in its folder is replaced."""
        ...

    @property
    def device(self) -> str:
        """See `ldm.util.choose_device`."""
        ...

    @property
    def seeds(self) -> range:
        """Of its predictions."""
        ...

    @property
    def models(self) -> tuple[Mapping[str, Any], ...]:
        """The arguments of `ldm.backbones.zoo.resolve` for each model that decides what is painted."""
        ...

    @property
    def loading(self) -> Mapping[str, Any]:
        """What jobs must have in common to be made by one program, models once loaded."""
        ...

    @property
    def together(self) -> Any:
        """What jobs of one program must have in common to be sampled in one batch."""
        ...


@options
class EditJob(SamplingChoice, EditRequest):
    """One edit: files in, a run folder out."""

    outdir_option: ClassVar[str] = "outdir"
    video_option: ClassVar[str | None] = "save_video"

    init_image: Path = required(
        "the image, of any size and kind", group="what to edit", short="-i", kw_only=True, record=False
    )
    mask: Path = required("the mask: white is edited", group="what to edit", kw_only=True, record=False)
    outdir: Path = option(OUTDIR, "where results go", group="what comes out", short="-o", record=False)
    overwrite: bool = option(
        False,
        "replace the last run in `outdir`, which is otherwise kept as samples.1",
        group="what comes out",
        record=False,
    )
    save_video: bool = option(False, "an mp4 of the x0 estimates for each prediction", group="what comes out")

    @property
    def request(self) -> EditRequest:
        """What the method is asked."""
        return EditRequest(**subset(EditRequest, vars(self)))

    @property
    def models(self) -> tuple[Mapping[str, Any], ...]:
        """See `MethodOptions`."""
        return (self.named,)

    @property
    def together(self) -> Any:
        """See `MethodOptions`."""
        return self.request.batch_key, self.save_video


@options
class GenerationJob(SamplingChoice, SamplingRequest):
    """Pictures from a prompt alone: a prompt in, a folder of pictures out."""

    outdir: Path = option(
        Path("outputs/txt2img_results"), "where results go", group="what comes out", short="-o", record=False
    )

    @property
    def request(self) -> SamplingRequest:
        """What the method is asked."""
        return SamplingRequest(**subset(SamplingRequest, vars(self)))


@options
class ReconstructionJob(ModelChoice, ReconstructionOptions):
    """Which predictions of which run to restore, and how. The model "auto" is the one that made the run."""

    model: str = option("auto", "which model, as for an edit", group="with what", shown="auto: that of the run")
    images_path: Path = option(OUTDIR / "samples", "the samples folder of a run", group="what to restore")
    selected_indices: tuple[Annotated[int, Field(ge=0)], ...] | None = option(
        None,
        "predictions by the number of their file, 0 is the best",
        group="what to restore",
        shown="all",
        expects="numbers of predictions, from 0",
        metavar="INDEX",
    )
    init_image: Path | None = option(None, "the image", group="what to restore", short="-i", shown="the run's")
    mask: Path | None = option(None, "the mask: white was edited", group="what to restore", shown="the run's")
    invert_mask: bool = option(False, "the mask that is given is black where it was edited", group="what to restore")
    H: int | None = option(None, "the run's height, and no other", group="what to restore", low=8, shown="the run's")
    W: int | None = option(None, "the run's width, and no other", group="what to restore", low=8, shown="the run's")
    feather: float | None = option(
        None,
        "width of the band around the mask, in pixels of the image, in which the edit fades out",
        group="what to restore",
        low=0,
        shown="the run's",
    )

    @property
    def options(self) -> ReconstructionOptions:
        """What the method is told."""
        return ReconstructionOptions(**subset(ReconstructionOptions, vars(self)))


def _place(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Place = Annotated[str, BeforeValidator(_place)]
"""A path, or a URL that fsspec knows."""


@options
class BatchJob:
    """Rows in, a run folder for each out."""

    rows: Place = required(
        "edits.jsonl, edits.csv or edits.parquet with image, mask, prompt and what else a row needs; or a folder of "
        "photo.jpg and photo_mask.png, or of images/ and masks/, with prompts in photo.txt",
        group="rows",
        metavar="PATH",
    )
    outdir: Place = option(
        "outputs/batch",
        "where each row gets a folder of its own; a URL such as s3://bucket/run too",
        group="rows",
        short="-o",
        metavar="PATH",
    )
    where: tuple[str, ...] = option(
        (),
        "only rows with this text in a column, such as 'split=test'; of several, all must fit",
        group="rows",
        shown="all rows",
        metavar="COLUMN=TEXT",
    )
    limit: int | None = option(None, "only the first rows, so many", group="rows", low=1, shown="all rows")
    shard: str | None = option(
        None,
        "only a share of the rows: 3/8 is the third of eight, which together make all",
        group="rows",
        shown="of a Slurm job array its task's; else all rows",
        metavar="I/N",
    )
    retry_failed: bool = option(False, "make also rows that were set aside, having killed two workers", group="rows")
    batch_size: int = option(
        8, "predictions sampled at a time, of whichever rows; halved where memory does not suffice", group="rows", low=1
    )
    devices: str = option(
        "auto",
        "devices, a worker for each, such as cpu or cuda:0,cuda:1",
        group="engine",
        shown="auto: every CUDA device",
    )
    engine: Literal["local", "ray"] = option(
        "local", "this machine's devices, or those of a Ray cluster", group="engine"
    )
    address: str | None = option(
        None,
        "of the Ray cluster: auto, host:port, ray://host:port, or local",
        group="engine",
        shown="auto: this machine's",
    )
    workers: int | None = option(
        None,
        "most workers in the Ray cluster; on this machine only 0, which makes the rows in the command's own process",
        group="engine",
        low=0,
        shown="as many as it has place for; on this machine one for each device",
    )
    cpus: int | None = option(
        None,
        "CPUs for each worker in the Ray cluster, which then uses no GPU",
        group="engine",
        low=1,
        shown="a GPU each",
    )
    cache: float = option(
        4.0, "gigabytes of images and masks from URLs that each worker keeps on its disk", group="engine", low=0
    )
    metrics: Path | None = option(
        None, "a file of counters for Prometheus, written again every few seconds", group="engine"
    )
