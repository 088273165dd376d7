"""The options of an edit, for every command that makes edits. Imports nothing heavy: `--help` answers at once."""

import argparse
from pathlib import Path

from ldm.cli import bounded

Group = argparse._ArgumentGroup


def add_edit_options(parser: argparse.ArgumentParser) -> tuple[Group, Group]:
    """Give a parser all that an edit can be told, under the names of `EditRequest`, `Place` and `EditJob`.

    Returns:
        The groups "what to edit" and "with what", for what the command adds of its own.
    """
    what = parser.add_argument_group("what to edit")
    what.add_argument("--prompt", "-p", help="what to paint inside the mask; '' paints what fits")
    what.add_argument("--init_image", "-i", type=Path, help="the image, of any size")
    what.add_argument("--mask", type=Path, help="the mask: white is edited")
    what.add_argument("--invert_mask", action="store_true", help="edit where the mask is black")
    _add_how(parser.add_argument_group("how"))
    _add_where(parser.add_argument_group("where"))

    model = parser.add_argument_group("with what")
    model.add_argument("--model", default="auto", help="auto, scenes, text2img-large, or a folder")
    model.add_argument("--config", type=Path, default=None, help="a config of your own, with --ckpt")
    model.add_argument("--ckpt", type=Path, default=None, help="weights of your own, with --config")
    model.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    model.add_argument("--low_memory", action="store_true", help="keep the text encoder off the GPU, in main memory")
    return what, model


def _add_how(how: Group) -> None:
    how.add_argument("--n_samples", type=bounded(int, 1), default=4, help="predictions in one batch")
    how.add_argument("--n_iter", type=bounded(int, 1), default=1, help="batches")
    how.add_argument("--seed", type=bounded(int, 0, 2**63 - 1), default=42, help="of prediction 0; i has seed + i")
    how.add_argument("--ddim_steps", type=bounded(int, 1, 1000), default=50, help="denoising steps")
    how.add_argument("--ddim_eta", type=bounded(float, 0, 1), default=0.0, help="0 deterministic, 1 as noisy as DDPM")
    how.add_argument(
        "--scale",
        type=bounded(float, 0),
        default=None,
        help="classifier-free guidance; 1 is without (default: the model's, or else 5)",
    )
    how.add_argument(
        "--guidance_interval",
        type=bounded(float, 0, 1),
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=None,
        help="guide only at these noise levels, 0 (clean) to 1 (pure noise): half the cost elsewhere",
    )
    how.add_argument(
        "--sampler", choices=("ddim", "dpmpp_2m"), default="ddim", help="dpmpp_2m is second order: 20 steps do"
    )
    how.add_argument(
        "--background_noise",
        choices=("fresh", "one"),
        default=None,
        help="noise what is kept anew at each step, or with one noise (default: the model's, else fresh for ddim)",
    )
    how.add_argument(
        "--skip_steps", type=bounded(int, 0, 999), default=0, help="steps left out at the start: keeps more"
    )
    how.add_argument(
        "--percentage_of_pixel_blending",
        type=bounded(float, 0, 1),
        default=0.0,
        help="last part of the steps (0 to 1) that blends pixels, not latents",
    )
    how.add_argument("--save_video", action="store_true", help="an mp4 of the x0 estimates for each prediction")


def _add_where(where: Group) -> None:
    where.add_argument(
        "--region",
        choices=("auto", "whole"),
        default="auto",
        help="edit a window around the mask, or the whole image squashed to the working size",
    )
    where.add_argument(
        "--context",
        type=bounded(float, 0),
        default=None,
        help="of the window, around the mask, in parts of its extent (default: the model's, or else 0.5)",
    )
    where.add_argument(
        "--feather",
        type=bounded(float, 0),
        default=None,
        help="band around the mask, in pixels of the image, where the edit fades out (default: half a latent cell)",
    )
    where.add_argument("--H", type=bounded(int, 8), default=None, help="working height (default: the model's)")
    where.add_argument("--W", type=bounded(int, 8), default=None, help="working width (default: the model's)")
    where.add_argument(
        "--mask_dilation_iterations",
        type=iterations,
        default="auto",
        help="wider masks before the tight one (progressive mask shrinking): 0 to 16, or auto by the mask's thickness",
    )
    where.add_argument(
        "--mask_downsample",
        choices=("adaptive", "area", "nearest", "cover"),
        default="adaptive",
        help="how pixels of the mask become latent cells",
    )
    where.add_argument(
        "--soft_mask", action="store_true", help="grey levels of the mask: the darker, the later edited, the more kept"
    )


def iterations(text: str) -> int | None:
    """None for auto."""
    return None if text == "auto" else bounded(int, 0, 16)(text)
