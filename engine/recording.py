"""CUDA graphs recorded while other threads use the GPU."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
    """What the calling thread launches inside is recorded in `graph`, not run.

    Other threads may launch and allocate meanwhile, but not record: a recording begins with a wait for the
    whole device, which one that is under way does not survive. After a failure, too, the thread launches on
    the stream that it came on. What is raised inside is what the caller gets, not what torch says of it.
    """
    with _ONE_AT_A_TIME, torch.cuda.stream(torch.cuda.current_stream()):  # torch stays on its own if it fails
        capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        capture.__enter__()
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):
                capture.__exit__(*sys.exc_info())
            raise
        capture.__exit__(None, None, None)
