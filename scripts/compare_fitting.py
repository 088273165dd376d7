#!/usr/bin/env python
"""Edit with masks as given and with fitted ones, on the same seeds: a table and a figure; and ask `fit_mask=auto`."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="compare_fitting.py", description=__doc__)
    parser.add_argument("--n_triples", type=bounded(int, 1), default=80, help="edits, each both ways (default 80)")
    parser.add_argument("--n_samples", type=bounded(int, 1), default=2, help="predictions of each (default 2)")
    parser.add_argument("--n_masks", type=bounded(int, 0), default=24, help="thin masks (default 24)")
    parser.add_argument("--n_labelled", type=bounded(int, 0), default=20, help="edits of each kind (default 20)")
    parser.add_argument("--ddim_steps", type=bounded(int, 1, 1000), default=50, help="default 50")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="default 0")
    parser.add_argument("--model", default="scenes", help="scenes, or a folder (default scenes)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    parser.add_argument("--outdir", "-o", type=Path, default=Path("outputs/compare_fitting"), help="where results go")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    from ldm.editing.editor import Editor
    from ldm.evaluation.fitting import compare, table
    from ldm.runs.folder import check_writable

    check_writable(args.outdir)
    editor = Editor.load(args.model, device=args.device)
    counts = (args.n_triples, args.n_masks, args.n_labelled)
    print(table(compare(editor, *counts, args.seed, args.ddim_steps, args.n_samples, args.outdir)))
    print(f"each prediction, the table and a figure: {args.outdir}")


if __name__ == "__main__":
    raise SystemExit(run(main))
