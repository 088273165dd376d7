#!/usr/bin/env python
"""The user study: `make` writes pages with pairs to rate, `analyse` reads what raters have saved."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, run
from ldm.evaluation.jobs import StudyJob
from ldm.options import add_options


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="user_study.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{make,analyse}")
    make = commands.add_parser("make", help="write the pages of a study")
    add_options(make, StudyJob)
    analyse = commands.add_parser("analyse", help="majorities, shares and binomial tests")
    analyse.add_argument("folder", type=Path, help="of the study, which holds key.json")
    analyse.add_argument("ratings", type=Path, nargs="+", help="files that the pages have saved")
    return parser


def main(argv: Sequence[str]) -> None:
    given = vars(build_parser().parse_args(argv))
    if given.pop("command") == "analyse":
        from ldm.evaluation.user_study import analyse, markdown, ours_of

        verdicts = analyse(given["folder"], given["ratings"])
        print(markdown(ours_of(given["folder"]), verdicts))
        return
    job = StudyJob(**given)

    from ldm.evaluation.user_study import make_study, pairs_in

    pages = make_study(pairs_in(job), job.ours, job.outdir, job.raters, job.seed)
    print(
        f"{len(pages)} pages, one for each rater: {pages[0].parent}\nwhich method is which, for you alone: "
        f"{job.outdir}/key.json"
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
