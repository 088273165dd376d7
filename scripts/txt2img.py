#!/usr/bin/env python
"""Paint pictures from a text prompt alone."""

from collections.abc import Sequence

from ldm.cli import Parser, add_words_option, run
from ldm.options import add_options
from ldm.runs.jobs import GenerationJob, words_of


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    add_options(parser, GenerationJob)
    add_words_option(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Paint, or list words; print where the pictures are."""
    given = vars(build_parser().parse_args(argv))
    if given.pop("words"):
        print(*words_of(given), sep="\n")
        return
    job = GenerationJob(**given)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.runs.txt2img import run_generation

    saved = run_generation(job)
    print(f"grid: {saved.grid}\npictures, best first: {saved.images}")


if __name__ == "__main__":
    raise SystemExit(run(main))
