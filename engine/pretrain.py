"""Train the bundled networks again: the teachers on the private half of the data, the priors on the public.

Each network resumes from its last epoch in --work; finished networks are skipped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from engine.cli.arguments import command_parser, parse
from engine.cli.main import main
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator
from engine.errors import UserError
from engine.pretraining import Part
from engine.terminal import add_log_flags


def command(arguments: Sequence[str]) -> None:
    """Run `python -m engine.pretrain` with these arguments."""
    parser = command_parser("engine.pretrain", __doc__)
    parser.add_argument("--out", metavar="DIR", default="assets/fashion-mnist", help="output folder")
    parser.add_argument("--work", metavar="DIR", default="runs/pretrain", help="folder for the checkpoints")
    parser.add_argument(
        "--data", metavar="DIR", help="folder of the Fashion-MNIST files (default: the usual places)"
    )
    parser.add_argument(
        "--only", choices=get_args(Part), help="train these networks; --out holds the others already"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every random draw")
    parser.add_class_arguments(ComputeConfig, "compute")
    add_log_flags(parser)
    options = parse(parser, arguments)
    from engine.pretraining.assets import make_assets

    root = Path(options.data) if options.data else None
    accelerator = open_accelerator(resolve_compute(options.compute))
    try:
        make_assets(
            Path(options.out), Path(options.work), root, accelerator, seed=options.seed, only=options.only
        )
    except FileNotFoundError as error:
        raise UserError(f"--data: {error}") from error


if __name__ == "__main__":
    sys.exit(main(command))
