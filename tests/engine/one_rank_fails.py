"""Under torchrun: rank 1 makes the error that is named, rank 0 waits for it in a collective."""

import sys
from collections.abc import Sequence

import torch

from engine import distributed
from engine.cli.main import main_on_ranks
from engine.cli.resolve import resolve_compute
from engine.config.compute import ComputeConfig
from engine.distributed import open_accelerator
from engine.errors import UserError


def command(arguments: Sequence[str]) -> None:
    accelerator = open_accelerator(
        resolve_compute(ComputeConfig(device="cpu", precision="fp32", runtime="torch"))
    )
    print("working")
    if not distributed.is_main():
        raise {"mistake": UserError("bank b: shard 3 is damaged"), "defect": KeyError("b")}[arguments[0]]
    accelerator.reduce(torch.zeros(3))


if __name__ == "__main__":
    sys.exit(main_on_ranks(command))
