#!/usr/bin/env python
"""Measure what a model of scenes can do, by an independent judge: a table, a contact sheet and a plot."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run
from ldm.errors import UserError

PARTS = ("edits", "background", "scribble", "autoencoder", "judge", "ranking", "cost")


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="evaluate_scenes.py", description=__doc__)
    parser.add_argument("--model", default="scenes", help="scenes, or a folder of a model trained on scenes")
    parser.add_argument(
        "--n_triples", type=bounded(int, 1), default=300, help="photographs, masks and prompts (default 300)"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which to measure (default {','.join(PARTS)})")
    parser.add_argument("--outdir", "-o", type=Path, default=Path("outputs/evaluation"), help="where results go")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="of the triples (default 0)")
    parser.add_argument("--region", choices=("auto", "whole"), default="auto", help="as text_editing.py has it")
    parser.add_argument("--context", type=bounded(float, 0), help="as text_editing.py has it (default: the model's)")
    parser.add_argument(
        "--workers", type=bounded(int, 1, 64), default=1, help="processes that paint; as many as cores (default 1)"
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)
    parts = tuple(part.strip() for part in args.parts.split(",") if part.strip())
    if not parts or set(parts) - set(PARTS):
        raise UserError(f'--parts "{args.parts}": give some of {",".join(PARTS)}')

    from ldm.evaluation.evaluation import Evaluation, run_evaluation
    from ldm.evaluation.report import markdown

    rows = run_evaluation(Evaluation(**vars(args) | {"parts": parts}))
    print(markdown(rows))
    print(f"table, answers and contact sheet: {args.outdir}")


if __name__ == "__main__":
    raise SystemExit(run(main))
