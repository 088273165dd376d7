#!/usr/bin/env python
"""Edit thin masks with every downsampling, with and without progressive shrinking: a table and a figure."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="compare_masks.py", description=__doc__)
    parser.add_argument("--n_masks", type=bounded(int, 1), default=30, help="default 30")
    parser.add_argument("--ddim_steps", type=bounded(int, 1, 1000), default=50, help="default 50")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="default 0")
    parser.add_argument("--batch_size", type=bounded(int, 1), default=10, help="edits at a time (default 10)")
    parser.add_argument("--model", default="scenes", help="scenes, or a folder (default scenes)")
    parser.add_argument("--scale", type=bounded(float, 0), help="classifier-free guidance (default: the model's)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    parser.add_argument("--outdir", "-o", type=Path, default=Path("outputs/compare_masks"), help="where results go")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    from dataclasses import replace

    from ldm.backbones import zoo
    from ldm.backbones.defaults import Defaults
    from ldm.evaluation.thin_masks import compare, table
    from ldm.runs.folder import check_writable
    from ldm.util import choose_device, choose_precision

    check_writable(args.outdir)
    device = choose_device(args.device)
    files = zoo.resolve(args.model)
    model = zoo.load_ours(files, device, choose_precision("auto", device))
    defaults = Defaults.of(files)
    if args.scale is not None:
        defaults = replace(defaults, scale=args.scale)
    print(table(compare(model, args.n_masks, args.seed, args.ddim_steps, args.batch_size, args.outdir, defaults)))
    print(f"each edit, the table and a figure: {args.outdir}")


if __name__ == "__main__":
    raise SystemExit(run(main))
