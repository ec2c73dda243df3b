"""Networks rewritten to run on the fused ops: while their statistics are measured, or frozen for good."""

from kernels.fuse.frozen import fuse_frozen
from kernels.fuse.layers import sharing_tensors
from kernels.fuse.norms import has_statistics, is_batch_norm
from kernels.fuse.statistics import BatchNormStatistics, batch_norm_statistics, coverage, measured

__all__ = [
    "BatchNormStatistics",
    "batch_norm_statistics",
    "coverage",
    "fuse_frozen",
    "has_statistics",
    "is_batch_norm",
    "measured",
    "sharing_tensors",
]
