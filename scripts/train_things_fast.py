#!/usr/bin/env python
"""Train the model of everyday things further in a quarter of an hour of a GPU: composites, denoiser, decoder, ranker.

Takes the archive of scripts/pack_things.py; nothing is downloaded. Run it again to go on where it was stopped: each
stage has a share of --minutes and keeps count of what it has used. At the end --out holds the exported model with its
ranker, ready for text_editing.py --model.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run
from ldm.errors import UserError

logger = logging.getLogger("ldm.train_things_fast")

HERE = Path(__file__).resolve().parent
SHARES = {"diffusion": 0.6, "decoder": 0.25, "clip": 0.15}
"""Of the time that is left after composing."""

GPU = {
    "diffusion": ["data.params.batch_size=512", "module.params.learning_rate=1.2e-3"],
    "decoder": ["data.params.batch_size=32", "module.params.learning_rate=6e-4"],
    "clip": ["data.params.batch_size=256"],
}
"""What a GPU takes instead of the config's, which are for a core."""


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="train_things_fast.py", description=__doc__)
    parser.add_argument("--pack", type=Path, default=Path("runs/things-pack.zip"), help="of pack_things.py")
    parser.add_argument("--minutes", type=bounded(float, 0.1), default=12.0, help="of all trainings (default 12)")
    parser.add_argument("--composites", type=bounded(int, 1), default=24000, help="of training (default 24000)")
    parser.add_argument("--workers", type=bounded(int, 1, 256), default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--work", type=Path, default=Path("runs/things-fast"), help="data, checkpoints and logs")
    parser.add_argument("--out", "-o", type=Path, default=Path("runs/things-fast/model"), help="the exported model")
    parser.add_argument("--compile", action="store_true", help="torch.compile; costs minutes at a stage's beginning")
    parser.add_argument("overrides", nargs="*", metavar="STAGE:KEY=VALUE", help="as of train.py")
    return parser


def commands(args) -> dict[str, list[str]]:
    """Stage -> the arguments of train.py; the GPU's numbers where there is one, and then what was asked for."""
    import torch

    data, work = args.work / "data", args.work
    own = {
        "diffusion": [f"data.params.cache={work / 'latents'}"],
        "decoder": [],
        "clip": [f"data.params.workers={max(0, args.workers - 1)}"],
    }
    asked: dict[str, list[str]] = {stage: [] for stage in SHARES}
    for override in args.overrides:
        stage, separator, what = override.partition(":")
        if stage not in SHARES or not separator:
            raise UserError(f'"{override}" is no override: write STAGE:key=value with a stage of {", ".join(SHARES)}')
        asked[stage].append(what)
    result = {}
    for stage, share in SHARES.items():
        line = [str(HERE.parent / "configs" / "things" / f"{stage}.yaml"), "--rundir", str(work / stage)]
        line += ["--minutes", f"{share * args.minutes:g}", *(["--compile"] if args.compile else [])]
        line += [f"data.params.train={data / 'train'}", f"data.params.val={data / 'val'}", *own[stage]]
        result[stage] = line + (GPU[stage] if torch.cuda.is_available() else []) + asked[stage]
    return result


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_intermixed_args(argv)

    from ldm.data.things.pack import unpack

    data = args.work / "data"
    data.mkdir(parents=True, exist_ok=True)
    unpack(args.pack, data)
    threads = {"OMP_NUM_THREADS": "1"}
    many = ["--count", str(args.composites), "--val_count", str(min(500, args.composites)), "--out", str(data)]
    _run("make_things.py", ["--compose_only", *many, "--workers", str(args.workers)], threads)
    for stage, line in commands(args).items():
        _run("train.py", line, {})
        logger.info("%s is trained", stage)
    for stage, folder in (("diffusion", args.out), ("decoder", args.out), ("clip", args.out / "clip")):
        folder.mkdir(parents=True, exist_ok=True)
        _run("export_model.py", [str(args.work / stage / "last.ckpt"), str(folder)], {})
    print(f"model: {args.out}")


def _run(script: str, argv: Sequence[str], environment: dict[str, str]) -> None:
    """A script in a process of its own, so that memory is free again after each."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(HERE / script), *argv], env={**os.environ, **environment})
    if done.returncode:
        raise UserError(f"{script} ended with {done.returncode}: mend it and run this again, it goes on there")
    logger.info("%s: %.0f s", script, time.monotonic() - began)


if __name__ == "__main__":
    raise SystemExit(run(main))
