#!/usr/bin/env python
"""Restore the same edits of held-out photographs in every way: a table, and a picture of the hardest one."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="compare_reconstructions.py", description=__doc__)
    parser.add_argument("--n_edits", type=bounded(int, 1), default=20, help="default 20")
    parser.add_argument("--ddim_steps", type=bounded(int, 1, 1000), default=50, help="default 50")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="default 0")
    parser.add_argument("--model", default="scenes", help="scenes, text2img-large, or a folder (default scenes)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    parser.add_argument(
        "--outdir", "-o", type=Path, default=Path("outputs/compare_reconstructions"), help="where results go"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    from ldm.editing.editor import Editor
    from ldm.evaluation.reconstructions import compare, table
    from ldm.runs.folder import check_writable

    check_writable(args.outdir)
    editor = Editor.load(args.model, device=args.device)
    print(table(compare(editor, args.n_edits, args.seed, args.ddim_steps, args.outdir)))
    print(f"each edit, the table and a picture: {args.outdir}")


if __name__ == "__main__":
    raise SystemExit(run(main))
