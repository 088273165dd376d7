#!/usr/bin/env python
"""Edit an image inside a mask by a text prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.cli import Parser, add_released_options, add_words_option, run, with_released_options
from ldm.options import add_options, as_flags
from ldm.runs.jobs import EditJob, words_of


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    add_options(parser, EditJob)
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PNG",
        help="make the prediction of this picture of a run again; other options change what they name",
    )
    parser.add_argument(
        "--check", action="store_true", help="look at image and mask, tell what is odd, and do not run the model"
    )
    add_words_option(parser)
    add_released_options(parser, batch_size="n_samples")
    return parser


def parse(argv: Sequence[str]) -> tuple[EditJob, bool]:
    """The job, and whether it is only to be checked. With --from, what is not given is as it was for that picture."""
    given: dict[str, Any] = with_released_options(vars(build_parser().parse_args(argv)))
    source, check, _ = given.pop("source"), given.pop("check"), given.pop("words")
    options: dict[str, Any] = {"prompt": ""} if check else {}
    if source is not None:
        from ldm.runs.again import options_of

        options |= options_of(source, given)
    return EditJob(**options | given), check


def main(argv: Sequence[str]) -> None:
    """Edit, or check, or list words; print where the result is."""
    given = vars(build_parser().parse_args(argv))
    if given["words"]:
        print(*words_of(given), sep="\n")
        return
    job, check = parse(argv)

    # Nothing heavy is imported before the arguments are known to be good: --help answers at once.
    from ldm.runs.edit import check_edit, run_edit

    if check:
        report, picture = check_edit(job)
        print(*map(as_flags, report.lines()), f"picture: {picture}", sep="\n")
        return
    saved = run_edit(job)
    print(saved.summary())
    print(f"grid: {saved.grid}\nresults, best first: {saved.samples / 'results'} (as the model sees them: images)")


if __name__ == "__main__":
    raise SystemExit(run(main))
