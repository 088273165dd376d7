#!/usr/bin/env python
"""Restore the background of chosen predictions of a run, outside the mask."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    parser = Parser(prog="reconstruct.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = parser.add_argument_group("what to restore")
    what.add_argument(
        "--images_path", type=Path, default=Path("outputs/edit_results/samples"), help="the samples folder of a run"
    )
    what.add_argument(
        "--selected_indices",
        type=bounded(int, 0),
        nargs="+",
        default=[0],
        metavar="INDEX",
        help="predictions by the number of their file, 0 is the best",
    )
    what.add_argument("--init_image", "-i", type=Path, default=None, help="the image (default: the run's)")
    what.add_argument("--mask", type=Path, default=None, help="the mask: white was edited (default: the run's)")
    what.add_argument(
        "--invert_mask", action="store_true", help="the mask given by --mask is black where it was edited"
    )
    what.add_argument("--H", type=bounded(int, 8), default=None, help="the run's height, and no other")
    what.add_argument("--W", type=bounded(int, 8), default=None, help="the run's width, and no other")

    what.add_argument(
        "--feather",
        type=bounded(float, 0),
        default=None,
        help="band around the mask, in pixels of the image, where the edit fades out (default: the run's)",
    )

    how = parser.add_argument_group("how")
    how.add_argument(
        "--reconstruction_type",
        choices=("optimization", "residual", "pixel", "poisson"),
        default="optimization",
        help="fit the decoder to this image; give back what the autoencoder lost; paste the edit; or clone it "
        "seamlessly by OpenCV",
    )
    how.add_argument(
        "--optimization_mode",
        choices=("weights", "latents"),
        default="weights",
        help="what the optimization changes: weights keep fine detail, latents blur it",
    )
    how.add_argument("--optimization_steps", type=bounded(int, 1), default=75, help="steps of Adam")
    how.add_argument(
        "--tuned_levels",
        type=bounded(int, 1),
        default=None,
        help="tune only so many of the decoder's finest levels: much faster, a little farther from the prediction "
        "(default: all weights, as the paper does)",
    )
    how.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the decoder's work during the steps"
    )
    how.add_argument("--learning_rate", type=bounded(float, 0), default=None, help="of Adam (default: the model's)")

    model = parser.add_argument_group("with what")
    model.add_argument("--model", default=None, help="scenes, text2img-large or a folder (default: the run's)")
    model.add_argument("--config", type=Path, default=None, help="a config of your own, with --ckpt")
    model.add_argument("--ckpt", type=Path, default=None, help="weights of your own, with --config")
    model.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.runs.reconstruct_job import ReconstructionJob, run_reconstruction

    kind = args.reconstruction_type
    if kind == "optimization" and args.optimization_mode == "latents":
        kind = "optimization_latents"
    options = vars(args)
    names = ReconstructionJob.__dataclass_fields__.keys() & options.keys()
    job = ReconstructionJob(
        **{name: options[name] for name in names}, kind=kind, indices=args.selected_indices, size=(args.H, args.W)
    )
    for restored in run_reconstruction(job):
        print(f"{restored.path}: {restored.summary()}")


if __name__ == "__main__":
    raise SystemExit(run(main))
