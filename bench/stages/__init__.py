"""Compare the loop's stages with the same work as published, one module per stage."""

from bench.stages.measure import STAGES, rows

__all__ = ["STAGES", "rows"]
