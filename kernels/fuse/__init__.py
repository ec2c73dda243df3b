"""Networks rewritten to run on the fused ops: measured for their BatchNorm statistics, or frozen."""

from kernels.fuse.frozen import fuse_frozen
from kernels.fuse.graph import sharing_tensors
from kernels.fuse.norms import (
    has_statistics,
    is_batch_norm,
    is_scripted,
)
from kernels.fuse.statistics import coverage, measured

__all__ = [
    "coverage",
    "fuse_frozen",
    "has_statistics",
    "is_batch_norm",
    "is_scripted",
    "measured",
    "sharing_tensors",
]
