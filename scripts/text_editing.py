#!/usr/bin/env python
"""Edit an image inside a mask by a text prompt."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, run
from ldm.runs.options import add_edit_options


def build_parser() -> Parser:
    parser = Parser(prog="text_editing.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what, model = add_edit_options(parser)
    what.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PNG",
        help="make the prediction of this picture of a run again; other options change what they name",
    )
    what.add_argument(
        "--check", action="store_true", help="look at image and mask, tell what is odd, and do not run the model"
    )
    what.add_argument("--outdir", "-o", type=Path, default=Path("outputs/edit_results"), help="where results go")
    model.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps, cpu")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; those that are not given are the defaults, or with --from those that made that picture."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.source is not None:
        from ldm.runs.again import options_of

        parser.set_defaults(**options_of(args.source))
        args = parser.parse_args(argv)
    missing = [name for name in ("prompt", "init_image", "mask") if getattr(args, name) is None]
    if missing and not (args.check and missing == ["prompt"]):
        parser.error(f"the following arguments are required: {', '.join(f'--{name}' for name in missing)}")
    return args


def main(argv: Sequence[str]) -> None:
    args = parse(argv)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.runs.job import EditJob, check_edit, run_edit

    job = EditJob.from_options(vars(args) | {"prompt": args.prompt or ""})
    if args.check:
        report, picture = check_edit(job)
        print(*report.lines(), f"picture: {picture}", sep="\n")
        return
    result = run_edit(job)
    samples = result.samples
    print(result.summary())
    print(f"grid: {result.grid}\nresults, best first: {samples / 'results'} (as the model sees them: images)")


if __name__ == "__main__":
    raise SystemExit(run(main))
