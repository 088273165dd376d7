#!/usr/bin/env python
"""Pack what everyday things are composed of into one archive, which scripts/train_things_fast.py takes elsewhere."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run

logger = logging.getLogger("ldm.pack_things")


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="pack_things.py", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/things"), help="the folder of make_things.py")
    parser.add_argument("--quality", type=bounded(int, 1, 90), default=75, help="of the pictures (default 75)")
    parser.add_argument("--most", type=bounded(float, 1), default=40.0, help="megabytes (default 40)")
    parser.add_argument("--out", "-o", type=Path, default=Path("runs/things-pack.zip"), help="the archive")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)

    from ldm.data.things.pack import pack

    size = pack(args.data, args.out, args.quality, args.most)
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    raise SystemExit(run(main))
