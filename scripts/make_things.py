"""Compose everyday things onto photographs, into shards: python scripts/make_things.py --count 24000

Fetches the packages of `ldm.data.things.sources` by npm, pip and apt-get, renders views of their 3D models (which
needs pyvista, and Mesa where there is no screen), and composes. What exists already is kept: run it again to resume.
Under --out lie then sources/, cutouts/, train/ and val/ (shards), CREDITS.md (sources, licences and authors) and
sheet.png (48 composites); made.json says by which options, so that two sorts are not mixed.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import Parser, bounded, run
from ldm.errors import UserError

logger = logging.getLogger("ldm.make_things")

VAL_SEED = 1_000_003  # shards of validation are of another seed


def parse(argv: Sequence[str]):
    """The options of this command."""
    parser = Parser(prog="make_things.py", description="Compose everyday things onto photographs, resuming if stopped.")
    parser.add_argument("--out", type=Path, default=Path("data/things"), help="folder (default data/things)")
    parser.add_argument("--count", type=bounded(int, 1), default=24000, help="composites of training (default 24000)")
    parser.add_argument("--val_count", type=bounded(int, 1), default=500, help="of validation (default 500)")
    parser.add_argument("--shard_size", type=bounded(int, 1), default=500, help="composites to a shard (default 500)")
    parser.add_argument("--views", type=bounded(int, 1, 200), default=10, help="views of a 3D model (default 10)")
    parser.add_argument("--workers", type=bounded(int, 1, 256), default=1, help="processes that compose (default 1)")
    parser.add_argument("--compose_only", action="store_true", help="fetch and cut out nothing: take what is in --out")
    parser.add_argument("--seed", type=bounded(int, 0, 2**31), default=0, help="default 0")
    return parser.parse_args(argv)


def check_options(args) -> None:
    """Note what the folder is made by.

    Raises:
        UserError: what is there already was made by other options, or of other nouns.
    """
    from ldm.data.things.nouns import FAMILIAR, NOUNS, PORTRAITS
    from ldm.files import atomic_file

    made = {"seed": args.seed, "shard_size": args.shard_size}
    if not args.compose_only:
        nouns = hashlib.sha256(repr((sorted(NOUNS.items()), sorted(FAMILIAR), PORTRAITS)).encode()).hexdigest()[:12]
        made |= {"views": args.views, "nouns": nouns}
    note = args.out / "made.json"
    begun = any((args.out / part).exists() for part in ("cutouts", "train", "val"))
    known = json.loads(note.read_text(encoding="utf-8")) if begun and note.exists() else {}
    for name, value in made.items():
        if known.get(name, value) != value:
            raise UserError(
                f"{args.out} was made with {name} {known[name]}, and now it is {value}: the two would be mixed; choose "
                "another --out"
            )
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_file(note) as file:
        file.write(json.dumps(known | made).encode())


def make_cutouts(args) -> None:
    """Fetch the sources, cut out or render what the folder lacks, and write its table of credits."""
    from tqdm import tqdm

    from ldm.data.things.catalogues import LICENCES, read_emoji, read_models
    from ldm.data.things.credits import credits_table
    from ldm.data.things.cutouts import write_cutouts
    from ldm.data.things.sources import fetch
    from ldm.files import atomic_file

    sources = args.out / "sources"
    fetch(sources)
    emoji = read_emoji(sources / "fluent", sources / "openmoji")
    models = read_models(next((sources / "furniture").rglob(next(iter(LICENCES)))).parent)
    with tqdm(total=len(models) + 1, unit="object", desc="cutting out", disable=None) as bar:
        cutouts = write_cutouts(args.out / "cutouts", emoji, models, args.views, args.seed, bar.update)
    with atomic_file(args.out / "CREDITS.md") as file:
        file.write(credits_table(cutouts, sources).encode())


_THINGS: dict = {}


def compose_shard(out: Path, split: str, index: int, count: int, seed: int) -> int:
    """Compose shard `index` of a split: it depends on the seed, the split and its index alone. Returns `count`."""
    import torch

    from ldm.data.shards import write_shard
    from ldm.data.things.cutouts import read_cutouts
    from ldm.data.things.photographs import Photographs
    from ldm.data.things.things import Things, shown_of

    torch.set_num_threads(1)
    if split not in _THINGS:  # the photographs are read once in each process
        chosen = shown_of(read_cutouts(out / "cutouts"), split)
        _THINGS[split] = Things(chosen, out / "cutouts", Photographs.of(split, out / "sources"))
    scenes = _THINGS[split].render(count, seed + (VAL_SEED if split == "val" else 0), index)
    write_shard(out / split, index, scenes)
    return count


def missing_shards(args, split: str, count: int) -> list[tuple[int, int]]:
    """(index, composites) of each shard that the split lacks."""
    from ldm.data.shards import shard_length

    sizes = [min(args.shard_size, count - start) for start in range(0, count, args.shard_size)]
    return [(i, size) for i, size in enumerate(sizes) if shard_length(args.out / split, i) < size]


def compose(args) -> None:
    """Compose the shards that the splits lack."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from tqdm import tqdm

    missing = [
        (split, index, size)
        for split, count in (("val", args.val_count), ("train", args.count))
        for index, size in missing_shards(args, split, count)
    ]
    with tqdm(total=sum(size for *_, size in missing), unit="composite", disable=None) as bar:
        if args.workers == 1:
            for split, index, size in missing:
                bar.update(compose_shard(args.out, split, index, size, args.seed))
            return
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as executor:
            jobs = [executor.submit(compose_shard, args.out, *shard, args.seed) for shard in missing]
            for job in as_completed(jobs):
                bar.update(job.result())


def draw_sheet(args) -> None:
    """The first 48 composites of training, with their captions."""
    from ldm.data.shards import SceneShards
    from ldm.data.things.things import contact_sheet
    from ldm.files import atomic_file

    shards = SceneShards(args.out / "train", 1)
    count = min(48, len(shards))
    sheet = contact_sheet([shards.images(i) for i in range(count)], shards.captions[:count])
    with atomic_file(args.out / "sheet.png") as file:
        sheet.save(file, "PNG")


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    check_options(args)
    if not args.compose_only:
        make_cutouts(args)
    compose(args)
    draw_sheet(args)
    logger.info("%d composites in %s", args.count, args.out)


if __name__ == "__main__":
    raise SystemExit(run(main))
