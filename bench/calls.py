"""Prepare calls for measurement: CUDA graphs, and torch's default cuDNN flags for baselines."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from bench.timing import Call

P = ParamSpec("P")
R = TypeVar("R")


def replayed(call: Call) -> Call:
    """Return a replay of `call` captured in a CUDA graph, so that no launch waits for the host.

    The tensors that `call` uses must outlive the graph, which reads their memory.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def as_published(call: Callable[P, R]) -> Callable[P, R]:
    """Return a baseline's `call` under torch's default cuDNN flags; `open_accelerator` sets the engine's."""

    @wraps(call)
    def under_defaults(*args: P.args, **kwargs: P.kwargs) -> R:
        with cudnn_flags(deterministic=False, benchmark=False):
            return call(*args, **kwargs)

    return under_defaults


@contextmanager
def cudnn_flags(*, deterministic: bool, benchmark: bool) -> Iterator[None]:
    """Set cuDNN's flags inside the block, for all threads. torch's defaults are False."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
