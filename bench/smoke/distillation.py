"""A step of distillation: as it is, and what it would take as a CUDA graph."""

from collections.abc import Mapping
from contextlib import nullcontext
from unittest.mock import patch

from bench.smoke.probe import Probe
from bench.stages.distill import BATCH, opened
from engine.stages import distill


def eager(probe: Probe) -> Mapping[str, object]:
    step = opened(probe.accelerator, _size(probe))
    return {"ms": probe.ms(step), "launches": probe.launches(step, "distillation")}


def as_a_graph(probe: Probe) -> Mapping[str, object]:
    """Without the reseeding around the student, which a graph cannot hold; these networks draw nothing."""
    step = opened(probe.accelerator, _size(probe))
    with patch.object(distill, "seeded", lambda *_: nullcontext()):
        return {"without seeds, ms": probe.ms(step), "graph, ms": probe.ms(probe.as_graph(step))}


def _size(probe: Probe) -> int:
    return BATCH if probe.on_gpu else 4
