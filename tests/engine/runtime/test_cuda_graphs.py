"""Captures of CUDA graphs, above all failed ones: the thread's stream, the error, the next capture."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.generation.overlap import own_stream
from engine.runtime.micro_batch import is_out_of_memory
from engine.runtime.torch import capture_cuda_graph


class Stream:
    """Replaces `torch.cuda.stream(stream)`; `now` is the current stream."""

    now = "the thread's own"

    def __init__(self, stream: str) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.before, Stream.now = Stream.now, self.stream

    def __exit__(self, *_: object) -> None:
        Stream.now = self.before


class Graph:
    """A fake CUDA graph that notes the stream of its capture; its begin or end fails, as `fails` says."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.captured_on = fails, ""

    def capture_begin(self, **_: object) -> None:
        self.captured_on = Stream.now
        if self.fails == "begin":
            raise RuntimeError("capture_begin failed")

    def capture_end(self) -> None:
        if self.fails == "end":
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.fixture(autouse=True)
def _streams(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace what needs a GPU under torch's own `torch.cuda.graph`."""
    if request.node.get_closest_marker("gpu"):
        yield
        return
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(torch.cuda, "stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream.now)
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", "torch's")
    Stream.now = "the thread's own"
    yield


def capture(graph: Any, stream: Any = None, error: BaseException | None = None) -> None:
    with capture_cuda_graph(graph, stream):
        if error is not None:
            raise error


@pytest.mark.parametrize("stream", [None, "given"])
def test_a_capture_uses_its_own_stream_and_restores_the_threads(stream: str | None) -> None:
    graph = Graph()
    capture(graph, stream)
    assert graph.captured_on == (stream or "torch's")
    assert Stream.now == "the thread's own"


@pytest.mark.parametrize("fails", ["begin", "end"])
@pytest.mark.parametrize("stream", [None, "given"])
def test_a_failed_capture_restores_the_threads_stream(fails: str, stream: str | None) -> None:
    with pytest.raises(RuntimeError, match=r"capture_begin failed|during capture"):
        capture(Graph(fails), stream)
    assert Stream.now == "the thread's own"
    capture(graph := Graph())
    assert graph.captured_on == "torch's", "the next capture does not wait"


@pytest.mark.parametrize("fails", ["", "end"])
def test_the_caller_gets_the_error_raised_inside(fails: str) -> None:
    """Even if torch raises an error of its own when it ends the broken capture."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        capture(Graph(fails), error=error)
    assert caught.value is error
    assert is_out_of_memory(caught.value)
    assert Stream.now == "the thread's own"


@pytest.mark.gpu
def test_other_threads_launch_and_allocate_meanwhile() -> None:
    device, done, failed = torch.device("cuda", torch.cuda.current_device()), threading.Event(), []
    busy = threading.Barrier(3)

    def work() -> None:
        try:
            with own_stream(device):
                busy.wait(60)
                while not done.is_set():
                    assert (torch.ones(1 << 20, device=device) + 1).sum().item() == 1 << 21
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    x, outputs, graphs = torch.arange(4.0, device=device), [], []
    with own_stream(device):
        busy.wait(60)
        for _ in range(10):
            graphs.append(torch.cuda.CUDAGraph())
            with capture_cuda_graph(graphs[-1]):
                outputs.append(x.add(1).mul(2))
            graphs[-1].replay()
        found = [output.tolist() for output in outputs]
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert found == [[2, 4, 6, 8]] * 10


@pytest.mark.gpu
@pytest.mark.parametrize("given", [False, True])
def test_the_thread_captures_again_after_a_real_failure(given: bool) -> None:
    x = torch.arange(4.0, device="cuda")
    own = torch.cuda.Stream()
    capture_on = torch.cuda.Stream() if given else None
    with torch.cuda.stream(own):
        x.add(1)  # loads the kernel
        with (
            pytest.raises(RuntimeError, match="captur"),
            capture_cuda_graph(torch.cuda.CUDAGraph(), capture_on),
        ):
            x.sum().item()
        assert torch.cuda.current_stream() == own
        assert not torch.cuda.is_current_stream_capturing()
        graph, found = torch.cuda.CUDAGraph(), SimpleNamespace()
        with capture_cuda_graph(graph, capture_on):
            found.y = x.add(1)
        assert torch.cuda.current_stream() == own
        graph.replay()
        assert found.y.tolist() == [1, 2, 3, 4]
