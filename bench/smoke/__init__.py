"""The first minute on a GPU: its speed, what our steps need, and what might break only there."""

from bench.smoke import ops, steps, unet
from bench.smoke.probe import Check, Probe
from bench.smoke.running import run

__all__ = ["CHECKS", "Probe", "run"]

CHECKS: dict[str, Check] = {
    "ceilings": ops.ceilings,
    "bn_stats": ops.bn_stats_in_a_graph,
    "synthesis": steps.synthesis,
    "at-once": steps.synthesis_at_once,
    "distillation": steps.distillation,
    "distillation-graph": steps.distillation_as_a_graph,
    "waits": steps.waits,
    "unet": unet.few,
    "unet-many": unet.many,
}
"""In order of value; each check runs without the others."""
