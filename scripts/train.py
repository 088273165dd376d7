#!/usr/bin/env python
"""Train a model from its config: autoencoder, diffusion or CLIP. Run it again to resume it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ldm.cli import Parser, bounded, run
from ldm.errors import UserError


def build_parser() -> Parser:
    """The options of this command."""
    parser = Parser(prog="train.py", description=__doc__)
    parser.add_argument("config", type=Path, help="a training config, such as configs/scenes/autoencoder.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. trainer.max_steps=1000")
    parser.add_argument("--rundir", type=Path, help="checkpoints and logs (default: runs/<name of the config>)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, and with the step of batches")
    parser.add_argument("--minutes", type=bounded(float, 0), help="as many steps as fit, not the config's max_steps")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the networks, for a GPU")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    return parser


def main(argv: Sequence[str]) -> None:
    args = build_parser().parse_intermixed_args(argv)
    if not args.config.is_file():
        raise UserError(f"there is no config {args.config}: see configs/scenes/")

    import pytorch_lightning as pl
    import torch
    from omegaconf import OmegaConf
    from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
    from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

    from ldm.util import instantiate_from_config

    if args.threads:
        torch.set_num_threads(args.threads)
    node = OmegaConf.load(args.config)
    for override in args.overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f'"{override}" is no override: write key=value, such as trainer.max_steps=1000')
        OmegaConf.update(node, key, OmegaConf.create(f"v: {value}").v)
    config = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    rundir = args.rundir or Path("runs") / args.config.stem
    last = rundir / "last.ckpt"
    done = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["global_step"] if last.exists() else 0
    pl.seed_everything(args.seed + done)  # a resumed run does not begin with the batches of its beginning again
    loggers: list[Logger] = [CSVLogger(rundir, name="csv")]  # a new version for each resumption: no log is overwritten
    try:
        loggers.append(TensorBoardLogger(rundir, name="", version="tensorboard"))
    except ModuleNotFoundError:
        print("no TensorBoard logs: pip install tensorboard")
    # Without the counter a resumed run writes last.ckpt again, and not a last-v1.ckpt that nothing resumes from.
    every = config.get("checkpoint_every", 500)
    checkpoints = ModelCheckpoint(rundir, save_last=True, every_n_train_steps=every, enable_version_counter=False)
    callbacks = [checkpoints, LearningRateMonitor(), *map(instantiate_from_config, config.get("callbacks", []))]
    if args.minutes:
        from ldm.training.budget import TimeBudget

        callbacks.append(TimeBudget(args.minutes))
    trainer = pl.Trainer(logger=loggers, callbacks=callbacks, default_root_dir=rundir, **config["trainer"])
    data = instantiate_from_config(config["data"])  # first: it writes the tokenizer that a module may read
    module = instantiate_from_config(config["module"])
    if args.compile:
        from ldm.training.compiled import compile_parts

        compile_parts(module)
    trainer.fit(
        module,
        datamodule=data,
        ckpt_path=last if last.exists() else None,
        weights_only=True,
    )
    trainer.save_checkpoint(last)  # the end seldom falls on a multiple of `checkpoint_every`
    print(f"done: {last}")


if __name__ == "__main__":
    raise SystemExit(run(main))
