#!/usr/bin/env python
"""Edit an image by PaintByWord++: a VQGAN optimised under CLIP inside a mask."""

from collections.abc import Sequence

from ldm.cli import Parser, add_released_options, run, with_released_options
from ldm.options import add_options
from ldm.runs.baseline_jobs import PaintByWordJob


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    add_options(parser, PaintByWordJob)
    add_released_options(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Edit; print where the results are."""
    job = PaintByWordJob(**with_released_options(vars(build_parser().parse_args(argv))))

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.runs.baselines import run_paint_by_word

    saved = run_paint_by_word(job)
    print(saved.summary())
    print(f"grid: {saved.grid}\nresults: {saved.samples / 'results'} (as the model sees them: images)")


if __name__ == "__main__":
    raise SystemExit(run(main))
