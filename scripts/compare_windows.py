#!/usr/bin/env python
"""Edit long masks in windows of the model's shape and of the mask's, on the same seeds: a table and a figure."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="compare_windows.py", description=__doc__)
    parser.add_argument("--n_masks", type=bounded(int, 1), default=24, help="masks, each both ways (default 24)")
    parser.add_argument("--n_samples", type=bounded(int, 2), default=2, help="predictions of each (default 2)")
    parser.add_argument("--ddim_steps", type=bounded(int, 1, 1000), default=50, help="default 50")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="default 0")
    parser.add_argument("--model", default="scenes", help="scenes, or a folder (default scenes)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    parser.add_argument("--outdir", "-o", type=Path, default=Path("outputs/compare_windows"), help="where results go")
    return parser


def main(argv: Sequence[str]) -> None:
    """Compare; print the table."""
    args = build_parser().parse_args(argv)

    from ldm.editing.editor import Editor
    from ldm.evaluation.windows import compare, table
    from ldm.runs.folder import check_writable

    check_writable(args.outdir)
    editor = Editor.load(args.model, device=args.device)
    looks = compare(editor, args.n_masks, args.seed, args.ddim_steps, args.n_samples, args.outdir)
    print(table(looks), end="")
    print(f"each prediction, the table and a figure: {args.outdir}")


if __name__ == "__main__":
    raise SystemExit(run(main))
