"""Render captioned scenes into shards: python scripts/make_scenes.py --out data/scenes/train --count 40000

Shards that exist already are kept, so that a run that was stopped resumes there. Shard k holds the same
scenes for the same --seed and --shard_size, however many workers render it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run

logger = logging.getLogger("ldm.make_scenes")

SETTINGS = "settings.json"
SEED_STRIDE = 1_000_000_007  # two seeds share a shard only if they are this far apart


def parse(argv: Sequence[str]):
    """The options of this command, checked against each other."""
    parser = Parser(prog="make_scenes.py", description="Render captioned scenes into shards, resuming if stopped.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--count", type=bounded(int, 1), default=40000, help="how many scenes (default 40000)")
    parser.add_argument("--shard_size", type=bounded(int, 1), default=2000, help="scenes to a shard (default 2000)")
    parser.add_argument("--workers", type=bounded(int, 1, 256), default=2, help="processes (default 2)")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="default 0")
    return parser.parse_args(argv)


def render_shard(folder: Path, index: int, count: int, seed: int) -> int:
    """Render shard `index` of `folder`: `count` scenes that depend on (seed, index) only. Returns `count`."""
    import torch

    from ldm.data.scenes.scenes import render_scenes
    from ldm.data.shards import write_shard

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed * SEED_STRIDE + index)
    write_shard(folder, index, render_scenes(count, generator, _pool()))
    return count


_POOL: list = []


def _pool():
    """The backgrounds, read once in each process."""
    from ldm.data.scenes.backgrounds import Backgrounds

    if not _POOL:
        _POOL.append(Backgrounds())
    return _POOL[0]


def check_settings(folder: Path, args) -> None:
    """Note --seed and --shard_size in `folder`; raise UserError if its shards were rendered with others."""
    import json

    from ldm.errors import UserError
    from ldm.files import atomic_file

    wanted = {"seed": args.seed, "shard_size": args.shard_size}
    file = folder / SETTINGS
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found != wanted:
            given = " ".join(f"--{name} {value}" for name, value in found.items())
            raise UserError(f'"{folder}" holds shards of {given}: give the same, or another --out')
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as stream:
        stream.write(json.dumps(wanted).encode())


def missing_shards(folder: Path, args) -> list[tuple[int, int]]:
    """(index, scenes) of each shard that `folder` lacks, or whose last run asked for fewer scenes."""
    from ldm.data.shards import shard_length

    sizes = [min(args.shard_size, args.count - start) for start in range(0, args.count, args.shard_size)]
    return [(index, size) for index, size in enumerate(sizes) if shard_length(folder, index) < size]


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from tqdm import tqdm

    check_settings(args.out, args)
    missing = missing_shards(args.out, args)
    done = args.count - sum(size for _, size in missing)
    with tqdm(total=args.count, initial=done, unit="scene", disable=None) as bar:
        if args.workers == 1 or len(missing) < 2:
            for index, size in missing:
                bar.update(render_shard(args.out, index, size, args.seed))
        else:
            workers = min(args.workers, len(missing))
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
                jobs = [executor.submit(render_shard, args.out, index, size, args.seed) for index, size in missing]
                for job in as_completed(jobs):
                    bar.update(job.result())
    logger.info("%d scenes in %s", args.count, args.out)


if __name__ == "__main__":
    raise SystemExit(run(main))
