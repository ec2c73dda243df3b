"""Options for opening networks in tests."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from engine.runtime.base import RuntimeOptions
from export.store import Store


def torch_options(**changes: object) -> RuntimeOptions:
    """Return runtime torch in float32 on the CPU, with the test run's store and these `changes`."""
    store = Store(Path(os.environ["ENGINE_CACHE"]))
    options = RuntimeOptions(
        runtime="torch",
        precision="fp32",
        device=torch.device("cpu"),
        threads=2,
        store=store,
    )
    return replace(options, **changes)
