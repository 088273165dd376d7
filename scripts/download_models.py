#!/usr/bin/env python
"""Download a model's weights, or list the models: `python scripts/download_models.py text2img-large`."""

from collections.abc import Sequence
from pathlib import Path

from ldm import cli
from ldm.backbones import zoo
from ldm.errors import UserError


def main(argv: Sequence[str]) -> None:
    parser = cli.Parser(description="Download a model's weights. Without a name: list the models.")
    parser.add_argument("name", nargs="?", help="the model to download")
    parser.add_argument("--list", action="store_true", help="list the models and what is here of them")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder for model.ckpt (default: where --model looks)")
    parser.add_argument("--force", action="store_true", help="download it even if it is here")
    args = parser.parse_args(argv)
    if args.list or args.name is None:
        for name, model in zoo.MODELS.items():
            print(f"{name:24}{_state(name):12}{model.about}")
        return
    path = zoo.download(args.name, args.to, force=args.force)
    if args.to is None:
        print(f"use it with: --model {args.name}")
    else:
        print(f"use it with: --config {zoo.REPOSITORY / str(zoo.MODELS[args.name].config)} --ckpt {path}")


def _state(name: str) -> str:
    try:
        zoo.resolve(name)
    except UserError:
        return "not here"
    return "here"


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
