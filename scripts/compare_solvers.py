#!/usr/bin/env python
"""Compare solvers: how picture and ranking score converge with the number of steps. Tables, JSON and a plot."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="compare_solvers.py", description=__doc__)
    parser.add_argument(
        "--solvers",
        nargs="+",
        metavar="NAME",
        help='such as ddim "ddim, shared noise" dpmpp_2m; the variants are in docs/solvers.md (default: all)',
    )
    parser.add_argument("--model", default="scenes", help="scenes, or a folder of a model trained on scenes")
    parser.add_argument(
        "--n_triples", type=bounded(int, 1), default=16, help="photographs, masks and prompts (default 16)"
    )
    parser.add_argument(
        "--steps",
        type=bounded(int, 1, 1000),
        nargs="+",
        default=[5, 8, 10, 15, 20, 30, 50, 100],
        help="how many to compare",
    )
    parser.add_argument(
        "--reference_steps", type=bounded(int, 1, 1000), default=200, help="of what they are held against (default 200)"
    )
    parser.add_argument("--scale", type=bounded(float, 0), default=5.0, help="classifier-free guidance (default 5)")
    parser.add_argument(
        "--mask_dilation_iterations",
        type=bounded(int, 0, 16),
        help="wider masks before the tight one (default: by each mask's thickness)",
    )
    parser.add_argument("--outdir", "-o", type=Path, default=Path("outputs/solvers"), help="where results go")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="of the triples (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    from ldm.evaluation.solvers import VARIANTS, SolverComparison, compare_solvers

    steps = tuple(sorted({*args.steps} - {args.reference_steps}))
    solvers = tuple(dict.fromkeys(args.solvers or VARIANTS))
    print(compare_solvers(SolverComparison(**{**vars(args), "steps": steps, "solvers": solvers})))
    print(f"tables, numbers and plot: {args.outdir}/solvers.{{md,json,png}}")


if __name__ == "__main__":
    raise SystemExit(run(main))
