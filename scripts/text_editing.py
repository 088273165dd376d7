#!/usr/bin/env python
"""Edit an image inside a mask by a text prompt."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    parser = Parser(prog="text_editing.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = parser.add_argument_group("what to edit")
    what.add_argument("--prompt", "-p", help="what to paint inside the mask; '' paints what fits")
    what.add_argument("--init_image", "-i", type=Path, help="the image, of any size")
    what.add_argument("--mask", type=Path, help="the mask: white is edited")
    what.add_argument("--invert_mask", action="store_true", help="edit where the mask is black")
    what.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PNG",
        help="make the prediction of this picture of a run again; other options change what they name",
    )
    what.add_argument(
        "--check", action="store_true", help="look at image and mask, tell what is odd, and do not run the model"
    )
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
    how.add_argument("--save_video", action="store_true", help="an mp4 of the x0 estimates for each prediction")

    where = parser.add_argument_group("where")
    where.add_argument(
        "--region",
        choices=("auto", "whole"),
        default="auto",
        help="edit a window around the mask, or the whole image squashed to the working size",
    )
    where.add_argument(
        "--context", type=bounded(float, 0), default=0.5, help="of the window, around the mask, in parts of its extent"
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

    model = parser.add_argument_group("with what")
    model.add_argument("--model", default="auto", help="auto, scenes, text2img-large, or a folder")
    model.add_argument("--config", type=Path, default=None, help="a config of your own, with --ckpt")
    model.add_argument("--ckpt", type=Path, default=None, help="weights of your own, with --config")
    model.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    model.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    return parser


def iterations(text: str) -> int | None:
    return None if text == "auto" else bounded(int, 0, 16)(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; those that are not given are the defaults, or with --from those that made that picture."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.source is not None:
        from ldm.editing.again import options_of

        parser.set_defaults(**options_of(args.source))
        args = parser.parse_args(argv)
    missing = [name for name in ("prompt", "init_image", "mask") if getattr(args, name) is None]
    if missing and not (args.check and missing == ["prompt"]):
        parser.error(f"the following arguments are required: {', '.join(f'--{name}' for name in missing)}")
    return args


def main(argv: Sequence[str]) -> None:
    args = parse(argv)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.editing.canvas import Place
    from ldm.editing.edit import EditRequest
    from ldm.editing.job import EditJob, check_edit, run_edit

    options = vars(args) | {"prompt": args.prompt or ""}
    request = EditRequest(**{name: options[name] for name in EditRequest.__dataclass_fields__})
    place = Place(args.region, args.context, (args.H, args.W), args.feather)
    names = EditJob.__dataclass_fields__.keys() - {"request", "place"}
    job = EditJob(request, place=place, **{name: options[name] for name in names})
    if args.check:
        report, picture = check_edit(job)
        print(*report.lines(), f"picture: {picture}", sep="\n")
        return
    result = run_edit(job)
    samples = result.samples
    print(result.summary())
    print(f"grid: {result.grid}\nresults, best first: {samples / 'results'} (as the model sees them: images)")


if __name__ == "__main__":
    raise SystemExit(run(main))
