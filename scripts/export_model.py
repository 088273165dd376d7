#!/usr/bin/env python
"""Export a training checkpoint as a model that the other scripts run: weights in half precision and a config."""

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="export_model.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="of the diffusion, of CLIP, or of a new decoder for FOLDER")
    parser.add_argument("folder", type=Path, help="such as models/ldm/scenes or models/clip/scenes")
    parser.add_argument(
        "--average",
        type=Path,
        nargs="+",
        default=(),
        metavar="CKPT",
        help="more checkpoints of this model, to export the mean of all their weights",
    )
    parser.add_argument(
        "--reconstruction_lr", type=bounded(float, 0, 1), help="learning rate that reconstruct.py takes for this model"
    )
    parser.add_argument(
        "--context", type=bounded(float, 0), help="around masks, that text_editing.py takes for this model"
    )
    parser.add_argument("--scale", type=bounded(float, 0), help="of guidance, that the other scripts take for it")
    parser.add_argument("--background_noise", choices=("one",), help="that text_editing.py takes for it")
    parser.add_argument(
        "--clip_guidance_lambda", type=bounded(float, 0), help="that blended_diffusion.py takes for a model of pixels"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_args(argv)
    from ldm.training.export import export_checkpoint

    sections = {}
    if args.reconstruction_lr is not None:
        sections["reconstruction"] = {"learning_rate": args.reconstruction_lr}
    editing = {name: getattr(args, name) for name in ("context", "scale", "background_noise")}
    if told := {name: value for name, value in editing.items() if value is not None}:
        sections["editing"] = told
    if args.clip_guidance_lambda is not None:
        sections["guidance"] = {"clip_guidance_lambda": args.clip_guidance_lambda}
    print(f"exported: {export_checkpoint(args.checkpoint, args.folder, sections, args.average)}")


if __name__ == "__main__":
    raise SystemExit(run(main))
