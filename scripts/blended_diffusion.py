#!/usr/bin/env python
"""Edit an image by Blended Diffusion (CVPR 2022): a model of pixels under CLIP's guidance."""

from collections.abc import Sequence
from typing import Any

from ldm.cli import Parser, add_released_options, run, with_released_options
from ldm.options import add_options
from ldm.runs.baseline_jobs import BlendedDiffusionJob


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    add_options(parser, BlendedDiffusionJob)
    add_released_options(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Edit; print where the results are."""
    given: dict[str, Any] = with_released_options(vars(build_parser().parse_args(argv)))
    job = BlendedDiffusionJob(**given)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.runs.blended_diffusion import run_blended_diffusion

    made = run_blended_diffusion(job)
    print(made.saved.summary())
    print(f"grid: {made.saved.grid}\nresults, best first: {made.ranked} (the run: {made.saved.samples})")


if __name__ == "__main__":
    raise SystemExit(run(main))
