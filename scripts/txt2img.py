#!/usr/bin/env python
"""Paint pictures from a text prompt alone."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    parser = Parser(prog="txt2img.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = parser.add_argument_group("what to paint")
    what.add_argument("--prompt", "-p", required=True, help="what to paint; '' paints whatever the model knows")
    what.add_argument("--outdir", "-o", type=Path, default=Path("outputs/txt2img_results"), help="where results go")

    how = parser.add_argument_group("how")
    how.add_argument("--n_samples", type=bounded(int, 1), default=4, help="pictures in one batch")
    how.add_argument("--n_iter", type=bounded(int, 1), default=1, help="batches")
    how.add_argument("--seed", type=bounded(int, 0, 2**63 - 1), default=42, help="of picture 0; i has seed + i")
    how.add_argument("--ddim_steps", type=bounded(int, 1, 1000), default=50, help="denoising steps")
    how.add_argument("--ddim_eta", type=bounded(float, 0, 1), default=0.0, help="0 deterministic, 1 as noisy as DDPM")
    how.add_argument(
        "--scale",
        type=bounded(float, 0),
        default=None,
        help="classifier-free guidance; 1 is without (default: the model's, or else 5)",
    )
    how.add_argument("--H", type=bounded(int, 8), default=None, help="height (default: the model's)")
    how.add_argument("--W", type=bounded(int, 8), default=None, help="width (default: the model's)")

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
    from ldm.runs.txt2img_job import GenerationJob, GenerationRequest, run_generation

    options = vars(args)
    request = GenerationRequest(**{name: options[name] for name in GenerationRequest.__dataclass_fields__})
    names = GenerationJob.__dataclass_fields__.keys() - {"request", "size"}
    result = run_generation(GenerationJob(request, size=(args.H, args.W), **{name: options[name] for name in names}))
    print(f"grid: {result.grid}\npictures, best first: {result.images}")


if __name__ == "__main__":
    raise SystemExit(run(main))
