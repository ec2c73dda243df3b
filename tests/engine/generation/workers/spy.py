"""Factories of teachers: one records the process in which it was called, one forks."""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from engine.models.networks import wrn_16_1

HEAVY = ("torch", "accelerate", "diffusers", "transformers", "open_clip", "pandas", "pyarrow.parquet")


def teacher(num_classes: int, in_channels: int) -> nn.Module:
    """Write facts about this process to the file $SPY, and return a `wrn_16_1`."""
    alone = _threads()
    torch.rand(2_000_000).exp().sum()
    facts = {
        "parent": os.getppid(),
        "imported": [name for name in HEAVY if name in sys.modules],
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "team": 1 + _threads() - alone,
        "cuda": torch.cuda.is_initialized(),
        "environment": dict(os.environ),
    }
    Path(os.environ["SPY"]).write_text(json.dumps(facts))
    return wrn_16_1(num_classes, in_channels)


def forking_teacher(num_classes: int, in_channels: int) -> nn.Module:
    """Return a `wrn_16_1`, and leave a sleeping fork behind that holds all open files of this process."""
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    return wrn_16_1(num_classes, in_channels)


class _Driver:
    @property
    def gpus(self) -> int:
        """Return the number of GPUs by initialising CUDA."""
        return torch._C._cuda_getDeviceCount()


driver = _Driver()


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))
