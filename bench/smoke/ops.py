"""Check the peak speeds of the device, the fused op's values against float64, and its speed in a graph."""

import itertools
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from bench.machine import copy_ceiling, gemm_ceiling
from bench.smoke.probe import Probe
from kernels.bn_stats import bn_stats
from kernels.bn_stats.reference import bn_stats_reference

NODES = 1000
SHAPES = ((100, 32, 32, 32), (200, 128, 8, 8), (256, 256, 56, 56))
SHAPES_CPU = ((2, 16, 8, 8),)
COMPARED = 10_000_000
"""Only shapes with fewer elements are compared with float64."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
PASSES = 5  # forward 1R + 1W, backward 2R + 1W


def ceilings(probe: Probe) -> Mapping[str, object]:
    """Return the speed of a copy and a matrix product, and the time of a graph node and an eager launch."""
    copy, product = copy_ceiling(probe.device), gemm_ceiling(probe.device, torch.bfloat16)
    few = torch.zeros(8, device=probe.device)

    def nodes() -> None:
        for _ in range(NODES):
            few.add_(1)

    graph_ms = probe.ms(probe.as_graph(nodes))
    return {
        "copy TB/s": copy.amount / probe.ms(copy.call, 10) / 1e9,
        "bf16 TFLOP/s": product.amount / probe.ms(product.call, 10) / 1e9,
        "us per graph node": 1e3 * graph_ms / NODES,
        "us per eager launch": 1e3 * probe.ms(lambda: few.add_(1), 2000),
    }


def bn_stats_in_a_graph(probe: Probe) -> Mapping[str, object]:
    """Return the time of forward and backward by shape and dtype. Runs are back to back, so L2 stays warm."""
    found = {}
    for shape, dtype in itertools.product(SHAPES if probe.on_gpu else SHAPES_CPU, TOLERANCES):
        x, grad, layer = _inputs(shape, dtype, probe.device)
        if x.numel() < COMPARED:
            _require_close(x, grad, layer)
        ms = probe.ms(probe.as_graph(partial(_forward_backward, x, grad, layer)))
        name = f"{list(shape)} {str(dtype).removeprefix('torch.')}"
        found[name] = f"{ms:.4f} ms = {PASSES * x.nbytes / ms / 1e9:.2f} TB/s"
    return found


def _inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return x and the gradient of y in channels_last, and [weight, bias, running mean, running variance]."""
    torch.manual_seed(0)
    x, grad = (
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight, bias, mean = torch.randn(3, shape[1], device=device)
    return x.requires_grad_(), grad, [weight, bias, mean, torch.rand(shape[1], device=device) + 0.5]


def _forward_backward(x: Tensor, grad: Tensor, layer: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias, mean, var = layer
    y, loss = bn_stats(x, weight, bias, mean, var, activation="relu")
    return y, loss, torch.autograd.grad([y, loss], x, [grad, torch.ones_like(loss)])[0]


def _require_close(x: Tensor, grad: Tensor, layer: list[Tensor]) -> None:
    exact = x.detach().double().requires_grad_()
    weight, bias, mean, var = (value.double() for value in layer)
    y, loss = bn_stats_reference(exact, weight, bias, mean, var, activation="relu")
    (grad_x,) = torch.autograd.grad([y, loss], exact, [grad.double(), torch.ones_like(loss)])
    for what, ours, wanted in zip(
        ("y", "loss", "gradient"), _forward_backward(x, grad, layer), (y, loss, grad_x), strict=True
    ):
        error = ((ours.double() - wanted).norm() / wanted.norm()).item()
        if not error < TOLERANCES[x.dtype]:
            raise AssertionError(f"{list(x.shape)} {x.dtype}: {what} differs from float64 by {error:.1e}")
