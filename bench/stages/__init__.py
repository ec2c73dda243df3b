"""The loop's stages beside the same work as published, one module a stage."""

from bench.stages.measure import STAGES, rows

__all__ = ["STAGES", "rows"]
