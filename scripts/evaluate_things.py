#!/usr/bin/env python
"""Measure what a model of everyday things can do: a table with intervals, and a contact sheet for people to look at."""

from collections.abc import Sequence

from ldm.cli import Parser, run
from ldm.evaluation.jobs import ThingsJob
from ldm.options import add_options


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="evaluate_things.py", description=__doc__)
    add_options(parser, ThingsJob)
    return parser


def main(argv: Sequence[str]) -> None:
    job = ThingsJob(**vars(build_parser().parse_args(argv)))

    from ldm.evaluation.things import evaluate_things
    from ldm.evaluation.things_report import markdown

    print(markdown(evaluate_things(job)))
    print(f"table, answers, paintings and contact sheet: {job.outdir}")


if __name__ == "__main__":
    raise SystemExit(run(main))
