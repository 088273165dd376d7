#!/usr/bin/env python
"""Make a benchmark: photographs, a random rectangle and a random label for each, as one file of rows."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="make_benchmark.py", description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="of photographs (default: four that scikit-image carries, no model's training)",
    )
    parser.add_argument("--count", type=bounded(int, 1), default=50, help="inputs (default 50, as in the paper)")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="default 0")
    parser.add_argument(
        "--labels",
        choices=("imagenet", "scenes"),
        default="imagenet",
        help="classes of ImageNet, or what the judge of scenes tells apart (default imagenet)",
    )
    parser.add_argument(
        "--model", help="ask only for labels that this model knows, such as scenes (default: any model, all labels)"
    )
    parser.add_argument("--outdir", "-o", type=Path, default=Path("outputs/benchmark"), help="where it is written")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    from ldm.evaluation.inputs import make_benchmark
    from ldm.evaluation.labels import labels

    asked = labels(args.labels, args.model, args.seed)
    path = make_benchmark(args.folder, args.outdir, args.count, args.seed, asked)
    print(f"{args.count} inputs of {len(asked)} labels: {path}")


if __name__ == "__main__":
    raise SystemExit(run(main))
