#!/usr/bin/env python
"""Measure how quick and how exact this machine runs the models, part by part and side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="benchmark.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--model",
        nargs="+",
        default=["full", "scenes"],
        help="full (the public architecture with random weights), things, scenes, text2img-large, or folders",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        default=[],
        help="some of: text unet-2 unet-8 unet-48 decoder encoder clip batch edit tuning process (default: all)",
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--compare", choices=("diffusers",), default=None, help="the same with this library's classes")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compiled forms: minutes; auto: on a GPU",
    )
    parser.add_argument("--repeats", type=bounded(int, 1), default=5, help="of each measurement, after a warm-up")
    parser.add_argument("--quick", action="store_true", help="small sizes, twice: to see that all of it works")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark.json"), help="the JSON")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.benchmark.benchmark import Benchmark, run_benchmark
    from ldm.errors import UserError

    compare, choices = args.compare is not None, (args.compiled, args.repeats, args.quick)
    job = Benchmark(args.model, args.parts, args.device, args.precision, compare, *choices)
    report = run_benchmark(job, on_way=lambda so_far: so_far.write(args.out))
    report.write(args.out)
    print(report.table())
    print(*(f"note: {note}" for note in report.notes), f"JSON: {args.out}", sep="\n")
    if report.failures:
        raise UserError("; ".join(report.failures))


if __name__ == "__main__":
    raise SystemExit(run(main))
