#!/usr/bin/env python
"""Edit an image inside a mask by a text prompt."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    parser = Parser(prog="text_editing.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = parser.add_argument_group("what to edit")
    what.add_argument("--prompt", "-p", required=True, help="what to paint inside the mask; '' paints what fits")
    what.add_argument("--init_image", "-i", type=Path, required=True, help="the image")
    what.add_argument("--mask", type=Path, required=True, help="the mask: white is edited")
    what.add_argument("--invert_mask", action="store_true", help="edit where the mask is black")
    what.add_argument("--outdir", "-o", type=Path, default=Path("outputs/edit_results"), help="where results go")

    how = parser.add_argument_group("how")
    how.add_argument("--n_samples", type=bounded(int, 1), default=4, help="predictions in one batch")
    how.add_argument("--n_iter", type=bounded(int, 1), default=1, help="batches")
    how.add_argument("--seed", type=bounded(int, 0, 2**63 - 1), default=42, help="of prediction 0; i has seed + i")
    how.add_argument("--ddim_steps", type=bounded(int, 1, 1000), default=50, help="denoising steps")
    how.add_argument("--ddim_eta", type=bounded(float, 0, 1), default=0.0, help="0 deterministic, 1 as noisy as DDPM")
    how.add_argument("--scale", type=bounded(float, 0), default=5.0, help="classifier-free guidance; 1 is without")
    how.add_argument(
        "--skip_steps", type=bounded(int, 0, 999), default=0, help="steps left out at the start: keeps more"
    )
    how.add_argument(
        "--percentage_of_pixel_blending",
        type=bounded(float, 0, 1),
        default=0.0,
        help="last part of the steps (0 to 1) that blends pixels, not latents",
    )
    how.add_argument(
        "--mask_dilation_iterations",
        type=bounded(int, 0, 16),
        default=3,
        help="wider masks before the tight one (progressive mask shrinking)",
    )
    how.add_argument("--H", type=bounded(int, 8), default=None, help="working height (default: the model's)")
    how.add_argument("--W", type=bounded(int, 8), default=None, help="working width (default: the model's)")
    how.add_argument("--save_video", action="store_true", help="an mp4 of the x0 estimates for each prediction")

    model = parser.add_argument_group("with what")
    model.add_argument("--model", default="auto", help="auto, scenes, text2img-large, or a folder")
    model.add_argument("--config", type=Path, default=None, help="a config of your own, with --ckpt")
    model.add_argument("--ckpt", type=Path, default=None, help="weights of your own, with --config")
    model.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    model.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.editing.edit import EditRequest
    from ldm.editing.job import EditJob, run_edit

    options = vars(args)
    request = EditRequest(**{name: options[name] for name in EditRequest.__dataclass_fields__})
    names = EditJob.__dataclass_fields__.keys() - {"request", "size"}
    result = run_edit(EditJob(request, size=(args.H, args.W), **{name: options[name] for name in names}))
    print(f"grid: {result.grid}\npredictions, best first: {result.samples / 'images'}")


if __name__ == "__main__":
    raise SystemExit(run(main))
