#!/usr/bin/env python
"""Restore the background of chosen predictions of a run, outside the mask."""

from collections.abc import Sequence

from ldm.cli import Parser, add_released_options, run, with_released_options
from ldm.options import add_options
from ldm.runs.jobs import ReconstructionJob


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    add_options(parser, ReconstructionJob)
    add_released_options(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Restore; print where each picture is, and how good."""
    job = ReconstructionJob(**with_released_options(vars(build_parser().parse_args(argv))))

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.runs.reconstruct import run_reconstruction

    for saved in run_reconstruction(job):
        print(f"{saved.path}: {saved.summary()}")


if __name__ == "__main__":
    raise SystemExit(run(main))
