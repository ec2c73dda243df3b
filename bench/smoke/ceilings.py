"""The speeds that every other figure is held against."""

from collections.abc import Mapping

import torch

from bench.machine import copy_ceiling, gemm_ceiling
from bench.smoke.probe import Probe

NODES = 1000


def ceilings(probe: Probe) -> Mapping[str, object]:
    """The copy, the matrix product, a node of a graph, an eager launch."""
    copy, product = copy_ceiling(probe.device), gemm_ceiling(probe.device, torch.bfloat16)
    few = torch.zeros(8, device=probe.device)

    def nodes() -> None:
        for _ in range(NODES):
            few.add_(1)

    graph_ms = probe.ms(probe.as_graph(nodes))
    return {
        "copy TB/s": copy.amount / probe.ms(copy.call, 10) / 1e9,
        "bf16 TFLOP/s": product.amount / probe.ms(product.call, 10) / 1e9,
        "us a graph node": 1e3 * graph_ms / NODES,
        "us an eager launch": 1e3 * probe.ms(lambda: few.add_(1), 2000),
    }
