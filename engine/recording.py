"""CUDA graphs recorded while other threads use the GPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
    """What the calling thread launches inside is recorded in `graph`, not run.

    Other threads may launch and allocate meanwhile, but not record: a recording begins with a wait for the
    whole device, which one that is under way does not survive.
    """
    with _ONE_AT_A_TIME, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        yield
