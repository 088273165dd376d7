#!/usr/bin/env python
"""One experiment of the paper, or of this project: a table and a figure. `list` tells what there is."""

from collections.abc import Sequence

from ldm.cli import Parser, run
from ldm.evaluation.jobs import ExperimentJob
from ldm.options import add_options


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="experiments.py", description=__doc__)
    parser.add_argument("experiment", help="which; `list` tells what there is")
    add_options(parser, ExperimentJob, without=("experiment",))
    return parser


def main(argv: Sequence[str]) -> None:
    job = ExperimentJob(**vars(build_parser().parse_args(argv)))

    from ldm.evaluation.experiments import listing, run_experiment

    if job.experiment == "list":
        print(listing())
        return
    table, outdir = run_experiment(job)
    print(table)
    print(f"table, numbers and figure: {outdir}")


if __name__ == "__main__":
    raise SystemExit(run(main))
