#!/usr/bin/env python
"""Compare methods on a benchmark: tables 1, 2 and 3 of the paper with intervals, and a contact sheet."""

from collections.abc import Sequence
from typing import Any

from ldm.cli import Parser, run
from ldm.evaluation.jobs import QUICK, EvaluationJob
from ldm.options import add_options


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    add_options(parser, EvaluationJob)
    parser.add_argument("--quick", action="store_true", help="4 inputs, 2 predictions, 10 steps: two minutes")
    return parser


def parse(argv: Sequence[str]) -> EvaluationJob:
    """The job; what is given goes before what --quick means."""
    given: dict[str, Any] = vars(build_parser().parse_args(argv))
    quick = given.pop("quick")
    return EvaluationJob(**(QUICK if quick else {}) | given)


def main(argv: Sequence[str]) -> None:
    job = parse(argv)

    from ldm.evaluation.evaluate import evaluate_methods

    outcome = evaluate_methods(job)
    print(outcome.markdown)
    print(f"tables, answers, paintings and contact sheet: {job.outdir}")
    if outcome.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run(main))
