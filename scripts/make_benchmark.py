#!/usr/bin/env python
"""Make a benchmark: photographs, a random rectangle and a random label for each, as one file of rows."""

from collections.abc import Sequence

from ldm.cli import Parser, run
from ldm.evaluation.jobs import BenchmarkJob
from ldm.options import add_options


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="make_benchmark.py", description=__doc__)
    parser.add_argument("folder", nargs="?", default=None, help="photographs (default: four that scikit-image carries)")
    add_options(parser, BenchmarkJob, without=("folder",))
    return parser


def main(argv: Sequence[str]) -> None:
    job = BenchmarkJob(**vars(build_parser().parse_args(argv)))

    from ldm.evaluation.inputs import make_benchmark
    from ldm.evaluation.labels import labels

    asked = labels(job.labels, job.model, job.seed)
    path = make_benchmark(job.folder, job.outdir, job.count, job.seed, asked)
    print(f"{job.count} inputs, of {len(asked)} labels: {path}")


if __name__ == "__main__":
    raise SystemExit(run(main))
