"""Under torchrun: rank 1 makes the error that is named, rank 0 waits for it in a collective."""

import sys
from collections.abc import Sequence

import torch

from engine import ranks
from engine.compute import ComputeConfig, open_accelerator
from engine.ending import main
from engine.errors import UserError


def command(arguments: Sequence[str]) -> None:
    accelerator = open_accelerator(ComputeConfig(device="cpu", precision="fp32", runtime="torch"))
    print("working")
    if not ranks.is_main():
        raise {"mistake": UserError("bank b: shard 3 is damaged"), "defect": KeyError("b")}[arguments[0]]
    accelerator.reduce(torch.zeros(3))


if __name__ == "__main__":
    sys.exit(main(command))
