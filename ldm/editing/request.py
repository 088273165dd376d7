"""What can be asked of the method: the options of an edit, of a picture from nothing, and of a reconstruction.

Imports nothing heavy: the command lines are made of these declarations.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ldm.errors import UserError
from ldm.options import option, options, required

NoiseLevel = Annotated[float, Field(ge=0, le=1)]

_RELEASED_NOISE = {"one": "shared", "fresh": "resampled"}  # as earlier versions named them


def numbers(value: Any) -> Any:
    """Numbers in a text, as a spreadsheet's cell has them: spaces or commas between, or a list as Python writes it."""
    return value.strip("[]() ").replace(",", " ").split() or None if isinstance(value, str) else value


def _auto(value: Any) -> Any:
    return None if value == "auto" else value


def _noise(value: Any) -> Any:
    return _RELEASED_NOISE.get(value, value) if isinstance(value, str) else value


def check_text(option: str, given: str) -> None:
    """Refuse what is no text: a command line may hold bytes of another encoding.

    Raises:
        UserError: it names the option.
    """
    text = given.encode("utf-8", "replace").decode()
    if text != given:
        raise UserError(f'`{option}` is "{text}", which is not UTF-8: type it anew')


@options
class SamplingRequest:
    """A prompt, and how to sample it: what edits and pictures from nothing have in common.

    Raises:
        UserError: a value that is no option's, or out of its range.
    """

    prompt: str = required("what to paint; '' paints what fits", group="what to edit", short="-p")
    negative_prompt: str = option("", "what to move away from, where the model is guided", group="what to edit")
    n_samples: int = option(4, "predictions in one batch: as many as the memory takes", low=1, high=1024)
    n_iter: int = option(1, "how many batches", low=1, high=1024)
    seed: int = option(42, "seed of prediction 0; prediction i has seed + i, whatever its batch", low=0, high=2**63 - 1)
    ddim_steps: int | None = option(
        None, "denoising steps, of any sampler", low=1, high=1000, shown="the model's, or else 50"
    )
    ddim_eta: float = option(0.0, "noise that each step adds: 0 is deterministic, 1 as noisy as DDPM", low=0, high=1)
    scale: float | None = option(
        None, "strength of classifier-free guidance; 1 is none", low=0, shown="the model's, or else 5"
    )
    guidance_interval: Annotated[tuple[NoiseLevel, NoiseLevel] | None, BeforeValidator(numbers)] = option(
        None,
        "guide between these noise levels only, 0 (clean) to 1 (noise); other steps cost half",
        shown="everywhere",
        expects="two numbers, the lower first, from 0 (clean) to 1 (pure noise)",
        metavar=("LOW", "HIGH"),
    )
    sampler: Literal["ddim", "dpmpp_2m", "lcm"] | None = option(
        None,
        "ddim is Euler's for flow matching; dpmpp_2m is DPM-Solver++, second order: it needs fewer steps; lcm is for "
        "latent consistency models",
        shown="the model's, or else ddim",
    )
    H: int | None = option(None, "height to work at", group="where", low=8, high=8192, shown="the model's")
    W: int | None = option(None, "width to work at", group="where", low=8, high=8192, shown="the model's")
    force: bool = option(False, "paint a prompt of which the model knows no word", record=False)

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            check_text(name, getattr(self, name))
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise UserError(f"`guidance_interval` is {low:g} {high:g}: give the lower noise level first")
        if self.ddim_eta > 0 and self.sampler not in (None, "ddim"):
            raise UserError(f"`ddim_eta={self.ddim_eta:g}` needs `sampler=ddim`: {self.sampler} adds no noise")

    @property
    def seeds(self) -> range:
        """Of all predictions, in the order of their making."""
        return range(self.seed, self.seed + self.n_samples * self.n_iter)

    @property
    def steps(self) -> int:
        """How many steps are made, those of all batches together; see `Defaults.fill`."""
        assert self.ddim_steps is not None
        return self.ddim_steps * self.n_iter


@options
class Place:
    """Where an image is edited, and how the edit joins it: what all methods have in common."""

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
    invert_mask: bool = option(False, "edit where the mask is black", group="where")


@options
class EditRequest(Place, SamplingRequest):
    """What to do with an image and a mask. None stands for what the model, the mask or the sampler decide.

    Raises:
        UserError: a value that is no option's, out of its range, or against another one.
    """

    skip_steps: int = option(0, "steps left out at the noisy start: keeps more of what lies under the mask", low=0)
    background_noise: Annotated[Literal["resampled", "shared"] | None, BeforeValidator(_noise)] = option(
        None,
        "noise of the background: new at each step, as in the paper, or that of the start",
        shown="the model's, or else resampled; shared for dpmpp_2m",
    )
    percentage_of_pixel_blending: float = option(
        0.0, "share of the steps, the last ones, that blend pixels instead of latents, 0 to 1", low=0, high=1
    )
    aspect: Literal["native", "mask"] = option(
        "native",
        "shape of the window, where neither `H` nor `W` is given: the model's own, or that of the mask's surroundings "
        "at about the same area",
        group="where",
    )
    mask_dilation_iterations: Annotated[int | None, BeforeValidator(_auto)] = option(
        None,
        "wider masks before the tight one (progressive mask shrinking), 0 to 16",
        group="where",
        low=0,
        high=16,
        shown="auto, by the mask's thickness",
        expects="auto or an integer from 0 to 16",
    )
    mask_downsample: Literal["adaptive", "area", "nearest", "cover"] = option(
        "adaptive", "how pixels of the mask become latent cells", group="where"
    )
    fit_mask: Literal["auto", "off", "on"] = option(
        "auto",
        "shrink each prediction's mask to what the prompt painted: auto does where it holds background that is to stay",
        group="where",
    )
    soft_mask: bool = option(False, "use the mask's grey levels: the darker, the more stays", group="where")
    strip: bool = option(False, "leave EXIF, DPI and the like of the image out of the results", group="what comes out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.background_noise == "resampled" and self.sampler == "dpmpp_2m":
            raise UserError(f"`background_noise=resampled` needs `sampler=ddim`: {self.sampler} needs shared noise")
        if self.ddim_steps is not None and self.skip_steps >= self.ddim_steps:
            most = self.ddim_steps - 1
            raise UserError(f"`skip_steps` is {self.skip_steps}: give 0 to {most} with `ddim_steps={self.ddim_steps}`")

    @property
    def steps(self) -> int:
        """See `SamplingRequest.steps`."""
        assert self.ddim_steps is not None
        return (self.ddim_steps - self.skip_steps) * self.n_iter

    @property
    def batch_key(self) -> "EditRequest":
        """What requests must have in common to be sampled in one batch: all but prompt, seeds, and place."""
        fallback = EditRequest("")
        own = (
            "prompt",
            "negative_prompt",
            "seed",
            "n_samples",
            "n_iter",
            "force",
            "region",
            "aspect",
            "context",
            "feather",
            "invert_mask",
        )
        masks = ("invert_mask", "soft_mask", "mask_downsample", "mask_dilation_iterations", "fit_mask", "strip")
        return replace(self, **{name: getattr(fallback, name) for name in (*own, *masks)})


@options
class ReconstructionOptions:
    """How to restore a background.

    Raises:
        UserError: a value that is no option's, or out of its range.
    """

    reconstruction_type: Literal["optimization", "residual", "pixel", "poisson"] = option(
        "optimization",
        "fit the decoder to this image; give back what the autoencoder lost; paste; or clone seamlessly by OpenCV",
    )
    optimization_mode: Literal["weights", "latents"] = option(
        "weights", "what the optimization changes: weights keep fine detail, latents blur it"
    )
    optimization_steps: int = option(75, "steps of Adam", low=1)
    learning_rate: Annotated[float, Field(gt=0)] | None = option(
        None, "learning rate of Adam", shown="the model's", expects="a number above 0"
    )
    background_weight: float = option(100.0, "the paper's lambda: how much the background counts", low=0)
    tuned_levels: int | None = option(
        None,
        "tune only so many of the decoder's finest levels: much faster, a little farther from the prediction",
        low=1,
        shown="all weights, as in the paper",
    )
    precision: Literal["float32", "bfloat16"] = option("float32", "precision of the decoder during the steps")

    @staticmethod
    def way(kind: str) -> dict[str, Any]:
        """The options that mean a name in `RECONSTRUCTIONS`, as `kind` has it."""
        if kind == "optimization_latents":
            return {"reconstruction_type": "optimization", "optimization_mode": "latents"}
        return {"reconstruction_type": kind}

    @property
    def kind(self) -> str:
        """The name in `RECONSTRUCTIONS`, and of the folder of results."""
        latents = self.reconstruction_type == "optimization" and self.optimization_mode == "latents"
        return "optimization_latents" if latents else self.reconstruction_type
