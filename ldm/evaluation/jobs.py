"""What the commands of the evaluation can be told. Imports nothing heavy: the command lines are made of it."""

from pathlib import Path
from typing import Literal, get_args

from ldm.errors import UserError
from ldm.options import option, options, required, same, subset

ClassifierName = Literal[
    "auto", "efficientnet-lite0", "efficientnet-lite2", "efficientnet_b0", "efficientnet_b7", "scenes"
]
BackboneName = Literal["efficientnet-lite0", "alex", "vgg", "squeeze"]
BACKBONES: tuple[str, ...] = get_args(BackboneName)
CLASSIFIERS: tuple[str, ...] = get_args(ClassifierName)[1:]
LITE = "efficientnet-lite0"


@options
class MethodChoice:
    """The model of the methods that share ours, and how it is asked: as `scripts/text_editing.py` has it."""

    model: str = option("scenes", "which model: things, scenes, text2img-large, or a folder", group="methods")
    ddim_steps: int = option(
        50, "denoising steps; Blended Diffusion takes twice as many", group="methods", low=1, high=1000
    )
    region: Literal["auto", "whole"] = option(
        "auto", "edit a window around the mask, or the whole image squashed to the working size", group="methods"
    )
    context: float | None = option(
        None, "how much of the window lies around the mask on each side", group="methods", low=0, shown="the model's"
    )
    device: str = option("auto", "where the models run: cuda, cuda:1, mps, cpu", group="methods")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "precision of the networks", group="methods"
    )


@options
class EvaluationJob(MethodChoice):
    """Methods to compare on a benchmark, who looks at them, and where it is written."""

    methods: str = option(
        "all",
        "which, comma-separated, such as blended_latent,pasted",
        group="methods",
        shown="all whose weights are here",
    )
    benchmark: Path | None = option(
        None, "a file of make_benchmark.py", group="inputs", shown="50 inputs, made in `outdir`"
    )
    labels: Literal["auto", "imagenet", "scenes"] = option(
        "auto", "what the default benchmark asks for; auto is what the model was trained on", group="inputs"
    )
    count: int | None = option(None, "the first so many inputs", group="inputs", low=1, shown="all")
    n_samples: int = option(4, "predictions of each input", group="inputs", low=1, high=1024)
    seed: int = option(0, "of the default benchmark and of the predictions", group="inputs", low=0, high=2**31)
    classifier: ClassifierName = option(
        "auto", "who says what is right", group="measures", shown="auto, by what the inputs ask for"
    )
    framing: Literal["square", "picture"] = option(
        "square",
        "an ImageNet classifier sees the square around the mask, or all of the masked picture, as in the paper",
        group="measures",
    )
    lpips: BackboneName = option("efficientnet-lite0", "backbone of perceptual distances", group="measures")
    cost: bool = option(True, "measure time, memory and size, each method alone", group="measures", shown="on")
    workers: int = option(1, "processes that paint", low=1, high=64)
    outdir: Path = option(Path("outputs/evaluate"), "where results go", group="what comes out", short="-o")

    @property
    def choice(self) -> MethodChoice:
        """What methods are told."""
        return MethodChoice(**subset(MethodChoice, vars(self)))


THINGS_PARTS = ("things", "autoencoder", "shapes", "sheet")


@options
class ThingsJob(MethodChoice):
    """A model of everyday things and what is to be measured of it."""

    model: str = same(MethodChoice, "model", default="things")
    parts: str = option(",".join(THINGS_PARTS), "what to measure, comma-separated", group="what")
    split: Literal["test", "val"] = option(
        "test", "test is for tables; val, other photographs and seeds, is what weights are chosen by", group="what"
    )
    count: int = option(180, "nouns to ask for", group="what", low=1)
    n_triples: int = option(300, "prompts of shapes, colours and materials", group="what", low=1)
    sampler: Literal["ddim", "dpmpp_2m"] = option("ddim", "as text_editing.py has it", group="methods")
    ranker: Path | None = option(
        None, "a folder or a checkpoint of a CLIP, to rank by", group="methods", shown="the model's own"
    )
    against: Path | None = option(
        None, "the folder of another model's evaluation, to stand beside", group="what", shown="none"
    )
    seed: int = option(0, "of photographs, masks, prompts and predictions", group="what", low=0, high=2**31)
    data: Path = option(Path("data/things"), "the folder of make_things.py: photographs and cut-outs", group="inputs")
    workers: int = option(1, "processes that paint", low=1, high=64)
    outdir: Path = option(Path("outputs/things"), "where results go", group="what comes out", short="-o")

    def __post_init__(self) -> None:
        if not self.chosen or set(self.chosen) - set(THINGS_PARTS):
            raise UserError(f"`parts={self.parts}`: give some of {','.join(THINGS_PARTS)}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The parts."""
        return tuple(part.strip() for part in self.parts.split(",") if part.strip())


QUICK = {"count": 4, "n_samples": 2, "ddim_steps": 10}
"""An evaluation of two minutes."""


@options
class BenchmarkJob:
    """A benchmark to make."""

    folder: Path | None = option(
        None, "photographs", group="inputs", shown="four that scikit-image carries, of no model's training"
    )
    count: int = option(50, "how many inputs; the paper has 50", group="inputs", low=1)
    seed: int = option(0, "of rectangles and labels", group="inputs", low=0, high=2**31)
    labels: Literal["imagenet", "scenes"] = option(
        "imagenet", "classes of ImageNet, or what the judge of scenes tells apart", group="inputs"
    )
    model: str | None = option(
        None, "ask only for labels that this model knows, such as scenes", group="inputs", shown="all labels"
    )
    outdir: Path = option(Path("outputs/benchmark"), "where it is written", group="what comes out", short="-o")


@options
class ExperimentJob(MethodChoice):
    """An experiment, and where it is written. Numbers that are not given are the experiment's own."""

    experiment: str = required("which experiment; `list` tells what there is", group="what", kw_only=True)
    benchmark: Path | None = option(
        None, "a file of make_benchmark.py", group="inputs", shown="50 inputs, made in `outdir`"
    )
    labels: Literal["auto", "imagenet", "scenes"] = same(EvaluationJob, "labels")
    count: int | None = option(None, "inputs", group="inputs", low=1, shown="the experiment's")
    n_samples: int | None = option(None, "predictions of each", group="inputs", low=1, shown="the experiment's")
    seed: int = option(0, "of inputs and predictions", group="inputs", low=0, high=2**31)
    methods: str = option("blended_latent", "of the experiments that compare methods", group="methods")
    classifier: ClassifierName = same(EvaluationJob, "classifier")
    framing: Literal["square", "picture"] = same(EvaluationJob, "framing")
    lpips: BackboneName = same(EvaluationJob, "lpips")
    ways: str = option(
        "all,lambda", "of `reconstruction`, comma-separated, such as optimization,poisson", group="methods"
    )
    workers: int = option(1, "processes that paint, where methods are compared", low=1, high=64)
    outdir: Path | None = option(
        None, "where results go", group="what comes out", short="-o", shown="outputs/experiments/NAME"
    )

    @property
    def choice(self) -> MethodChoice:
        """What methods are told."""
        return MethodChoice(**subset(MethodChoice, vars(self)))


@options
class StudyJob:
    """A user study to make of an evaluation."""

    evaluation: Path = option(Path("outputs/evaluate"), "the folder of evaluate.py", group="what to rate")
    benchmark: Path | None = option(
        None, "the file of its inputs", group="what to rate", shown="that of the evaluation's folder"
    )
    ours: str = option("blended_latent", "the method that is compared", group="what to rate")
    against: str | None = option(
        None, "other methods, comma-separated", group="what to rate", shown="all that the evaluation has"
    )
    count: int | None = option(None, "pairs of each method, the first", group="what to rate", low=1, shown="all")
    raters: int = option(5, "pages: each is rated by one person", group="who rates", low=1, high=1000)
    seed: int = option(0, "of orders and sides", group="who rates", low=0, high=2**31)
    outdir: Path = option(Path("outputs/user_study"), "where pages go", group="what comes out", short="-o")
