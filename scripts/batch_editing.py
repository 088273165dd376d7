#!/usr/bin/env python
"""Edit many images, each inside its mask by its prompt; started again, it does what is missing."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run
from ldm.runs.options import add_edit_options


def build_parser() -> Parser:
    parser = Parser(
        prog="batch_editing.py",
        description=__doc__,
        epilog="The options of an edit are defaults: a row may give its own by the same names, without the dashes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "rows",
        type=Path,
        help="edits.jsonl or edits.csv with image, mask, prompt and what else a row needs; or a folder of photo.jpg "
        "and photo_mask.png, or of images/ and masks/, with prompts in photo.txt",
    )
    rows.add_argument(
        "--outdir", "-o", type=Path, default=Path("outputs/batch"), help="where each row gets a folder of its own"
    )
    rows.add_argument(
        "--check", "--dry_run", action="store_true", help="look at all rows and their files, and do not run the model"
    )
    rows.add_argument(
        "--batch_size",
        type=bounded(int, 1),
        default=8,
        help="predictions sampled at a time, of whichever rows; halved where memory does not suffice",
    )
    _, model = add_edit_options(parser)
    model.add_argument(
        "--devices", default="auto", help="auto, cpu, or one worker for each of cuda:0,cuda:1; auto is all of CUDA"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.runs.batch.job import BatchJob, check_batch, run_batch

    job = BatchJob(args.rows, args.outdir, vars(args), args.batch_size, args.devices)
    if args.check:
        check = check_batch(job)
        print(*check.errors, check.summary(), sep="\n")
        failed = bool(check.errors)
    else:
        result = run_batch(job)
        print(result.summary())
        failed = result.failed > 0
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run(main))
