"""The first minute on a GPU: what it can do, what our steps need of it, and what might break only there."""

from bench.smoke import ceilings, distillation, ops, synthesis, unet, waits
from bench.smoke.probe import Check, Probe
from bench.smoke.running import run

__all__ = ["CHECKS", "Probe", "run"]

CHECKS: dict[str, Check] = {
    "ceilings": ceilings.ceilings,
    "bn_stats": ops.bn_stats_in_a_graph,
    "synthesis": synthesis.steps,
    "at-once": synthesis.at_once,
    "distillation": distillation.eager,
    "distillation-graph": distillation.as_a_graph,
    "waits": waits.of_the_host,
    "unet": unet.few,
    "unet-many": unet.many,
}
"""In order of value; all but the first are of use alone."""
