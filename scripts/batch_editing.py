#!/usr/bin/env python
"""Edit many images, each inside its mask by its prompt; started again, it does what is missing."""

from collections.abc import Sequence

from ldm.cli import Parser, run
from ldm.options import add_options, as_flags, declared, subset
from ldm.runs.jobs import BatchJob, EditJob


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        description=__doc__,
        epilog="The options of an edit are defaults: a row may give its own by the same names, without the dashes.",
    )
    parser.add_argument("rows", help=declared(BatchJob)["rows"].description)
    add_options(parser, BatchJob, without=("rows",))
    parser.add_argument(
        "--check", "--dry_run", action="store_true", help="look at all rows and their files, and do not run the model"
    )
    parser.add_argument("--merge", action="store_true", help="make no rows: put the summaries of the shares together")
    add_options(parser, EditJob, without=("outdir", "overwrite", "device"))
    return parser


def main(argv: Sequence[str]) -> None:
    """Make the rows, or check them; print what came of them."""
    argv = ["--retry_failed" if word == "--retry-failed" else word for word in argv]  # as other tools spell it
    given = vars(build_parser().parse_args(argv))
    job, options = BatchJob(**subset(BatchJob, given)), subset(EditJob, given)
    options.pop("outdir", None)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    if given["check"]:
        from ldm.runs.batch.check import check_batch

        check = check_batch(job, options, lambda text: print(as_flags(text), flush=True))
        print(check.summary())
        failed = check.bad > 0
    elif given["merge"]:
        from ldm.runs.batch.merge import merge_batch

        merged = merge_batch(job, options)
        print(merged.summary())
        failed = merged.failed + merged.missing > 0
    else:
        from ldm.runs.batch.job import run_batch

        result = run_batch(job, options)
        print(result.summary())
        failed = result.failed > 0
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run(main))
