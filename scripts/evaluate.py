#!/usr/bin/env python
"""Compare methods on a benchmark: tables 1, 2 and 3 of the paper with intervals, and a contact sheet."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run

QUICK = {"count": 4, "n_samples": 2, "ddim_steps": 10}


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    parser.add_argument(
        "--methods",
        default="all",
        help="comma-separated, such as blended_latent,pasted; all: those whose weights are here",
    )
    parser.add_argument(
        "--benchmark", type=Path, metavar="FILE", help="of make_benchmark.py (default: 50 inputs, made in the outdir)"
    )
    parser.add_argument(
        "--labels",
        choices=("auto", "imagenet", "scenes"),
        default="auto",
        help="of the default benchmark (default auto)",
    )
    parser.add_argument("--count", type=bounded(int, 1), help="the first so many inputs (default: all)")
    parser.add_argument("--n_samples", type=bounded(int, 1, 1024), help="predictions of each input (default 8)")
    parser.add_argument("--ddim_steps", type=bounded(int, 1, 1000), help="of every method that has steps (default 50)")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="default 0")
    parser.add_argument("--quick", action="store_true", help="4 inputs, 2 predictions, 10 steps: two minutes")
    parser.add_argument(
        "--classifier",
        default="auto",
        help="efficientnet-lite0, efficientnet-lite2, efficientnet_b0, efficientnet_b7, scenes (default: by the inputs)",
    )
    parser.add_argument(
        "--framing",
        choices=("picture", "square"),
        default="picture",
        help="an ImageNet classifier sees the masked picture, as in the paper, or the square around the mask",
    )
    parser.add_argument(
        "--lpips",
        default="efficientnet-lite0",
        help="backbone of perceptual distances: efficientnet-lite0, alex, vgg, squeeze (default efficientnet-lite0)",
    )
    parser.add_argument("--model", default="scenes", help="of blended_latent: a name or a folder (default scenes)")
    parser.add_argument("--region", choices=("auto", "whole"), default="auto", help="as text_editing.py has it")
    parser.add_argument("--context", type=bounded(float, 0), help="as text_editing.py has it (default: the model's)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--workers", type=bounded(int, 1, 64), default=1, help="processes that paint (default 1)")
    parser.add_argument("--no_cost", action="store_true", help="leave out time, memory and size")
    parser.add_argument("--outdir", "-o", type=Path, default=Path("outputs/evaluate"), help="where results go")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)
    count, n_samples, steps = (
        getattr(args, name) or (QUICK[name] if args.quick else default)
        for name, default in (("count", None), ("n_samples", 8), ("ddim_steps", 50))
    )

    from ldm.evaluation.evaluate import BenchmarkRun, run_benchmark
    from ldm.evaluation.methods import Choice

    choice = Choice(args.model, args.device, args.precision, steps, args.region, args.context)
    same = ("outdir", "benchmark", "methods", "seed", "classifier", "framing", "lpips", "labels", "workers")
    own = {name: getattr(args, name) for name in same}
    outcome = run_benchmark(
        BenchmarkRun(**own, count=count, n_samples=n_samples, choice=choice, measure_cost=not args.no_cost)
    )
    print(outcome.markdown)
    print(f"tables, answers, paintings and contact sheet: {args.outdir}")
    if outcome.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run(main))
