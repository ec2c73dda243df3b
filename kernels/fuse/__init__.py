"""Networks rewritten to run on the fused ops: while their statistics are measured, or frozen for good."""

from kernels.fuse.frozen import fuse_frozen
from kernels.fuse.layers import sharing_tensors
from kernels.fuse.statistics import BatchNormStatistics, batch_norm_statistics, measured

__all__ = ["BatchNormStatistics", "batch_norm_statistics", "fuse_frozen", "measured", "sharing_tensors"]
