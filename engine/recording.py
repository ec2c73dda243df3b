"""CUDA graphs recorded while other threads use the GPU."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
    """Capture what the calling thread launches inside in `graph` instead of running it.

    Only one capture may run at a time: starting one synchronizes the device, which invalidates any capture
    in progress. Other threads may launch and allocate meanwhile. If the capture fails, the caller's stream
    is current again, and the caller gets the error raised inside, not what torch makes of it.
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
