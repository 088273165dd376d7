"""What can be asked of guidance by CLIP: the options of Blended Diffusion, under the names of its public program.

Imports nothing heavy: the command lines are made of these declarations.
"""

from ldm.errors import UserError
from ldm.options import option, options


@options
class GuidanceOptions:
    """How a model is guided by CLIP, and what holds the background (Avrahami, Lischinski and Fried, CVPR 2022).

    Raises:
        UserError: a value that is no option's, out of its range, or against another one.
    """

    timestep_respacing: str = option("100", "how many steps of the model's timesteps, 100 or ddim100 as there")
    skip_timesteps: int = option(25, "steps left out at the noisy start: keeps more of what is there", low=0)
    ddim: bool = option(False, "sample by DDIM, without new noise, and not by the ancestral sampler")
    aug_num: int = option(8, "copies of each picture that CLIP sees, the plain one among them", low=1, high=256)
    clip_guidance_lambda: float | None = option(
        None, "how strongly CLIP guides", low=0, shown="the model's, or else 1000"
    )
    range_lambda: float = option(50.0, "how strongly values are held in their range", low=0)
    background_preservation_loss: bool = option(False, "guide by the background too, by the next two")
    lpips_sim_lambda: float = option(1000.0, "weight of LPIPS outside the mask; needs the package lpips", low=0)
    l2_sim_lambda: float = option(10000.0, "weight of the squared difference outside the mask", low=0)
    local_clip_guided_diffusion: bool = option(
        False, "the baseline of both papers: no blending, only the losses hold the background"
    )
    released_blend: bool = option(
        False, "blend with the background at the level before each step, as the public program does"
    )
    no_enforce_background: bool = option(False, "leave the result as the model painted it, outside the mask too")

    def __post_init__(self) -> None:
        if self.local_clip_guided_diffusion and self.released_blend:
            raise UserError("`local_clip_guided_diffusion` blends nothing: leave out `released_blend`")
