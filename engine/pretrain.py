"""Train the embedded assets again: the teacher on the private half, the tiny priors on the public half.

Each network continues from its last epoch in --work; finished networks are not trained again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from engine.cli.main import main
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator
from engine.errors import UserError
from engine.terminal import add_log_flags


def command(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(prog="python -m engine.pretrain", description=__doc__, exit_on_error=False)
    parser.add_argument("--out", metavar="DIR", default="assets/fashion-mnist", help="where the assets go")
    parser.add_argument("--work", metavar="DIR", default="runs/pretrain", help="where the checkpoints go")
    parser.add_argument("--data", metavar="DIR", default=None, help="folder of the Fashion-MNIST files")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and noise")
    parser.add_class_arguments(ComputeConfig, "compute")
    add_log_flags(parser)
    options = parser.instantiate(parser.parse_args(list(arguments)))
    from engine.pretraining.assets import make_assets

    root = Path(options.data) if options.data else None
    accelerator = open_accelerator(resolve_compute(options.compute))
    try:
        make_assets(Path(options.out), Path(options.work), root, accelerator, seed=options.seed)
    except FileNotFoundError as error:
        raise UserError(f"--data: {error}") from error


if __name__ == "__main__":
    sys.exit(main(command))
