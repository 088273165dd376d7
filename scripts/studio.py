#!/usr/bin/env python
"""Paint masks and type prompts on a page in the browser; the same server is an API for programs."""

from collections.abc import Sequence

from ldm.cli import Parser, run
from ldm.options import add_options
from ldm.studio.settings import StudioSettings


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    add_options(parser, StudioSettings)
    return parser


def main(argv: Sequence[str]) -> None:
    """Serve until Ctrl-C; print where the page is."""
    settings = StudioSettings(**vars(build_parser().parse_args(argv)))

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.studio.server import run_studio

    run_studio(settings, lambda address: print(f"studio: {address} (Ctrl-C ends it)", flush=True))


if __name__ == "__main__":
    raise SystemExit(run(main))
