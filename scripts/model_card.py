#!/usr/bin/env python
"""Write the card of a model of everyday things: sources, licences, logs, and the figures that its judges wrote."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="model_card.py", description=__doc__)
    parser.add_argument("model", help="its folder, such as models/ldm/things")
    parser.add_argument("--name", help="what the card calls it (default: the folder's name)")
    parser.add_argument("--credits", type=Path, default=Path("data/things/CREDITS.md"), help="of make_things.py")
    parser.add_argument("--evaluation", type=Path, help="the folder of evaluate_things.py (default: none yet)")
    parser.add_argument("--logs", type=Path, nargs="+", default=(), metavar="RUNDIR", help="of its trainings")
    parser.add_argument("--out", "-o", type=Path, help="file (default: README.md in the model's folder)")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    from ldm.backbones import zoo
    from ldm.evaluation.things_card import write_card
    from ldm.files import atomic_file

    text = write_card(args.model, args.credits, args.evaluation, args.logs, args.name)
    path = args.out or zoo.resolve(args.model).config.parent / "README.md"
    with atomic_file(path) as file:
        file.write(text.encode())
    print(f"card: {path}")


if __name__ == "__main__":
    raise SystemExit(run(main))
