"""Fixtures for all tests; see CONTRIBUTING.md for what a test must do."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it where a kernel is defined

POISONED_PACKAGES = {"engine", "export", "kernels"}


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _poison_uninitialised_memory() -> Iterator[None]:
    """Fills what our own code gets from `torch.empty` and its like: NaN in floats, else the largest value."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            patch.setattr(owner, name, _poisoned(getattr(owner, name)))
        yield


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = allocate(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.split(".")[0] in POISONED_PACKAGES and out.device.type != "meta":
            floating = out.is_floating_point() or out.is_complex()
            bad = torch.nan if floating else True if out.dtype == torch.bool else torch.iinfo(out.dtype).max
            out.detach().fill_(bad)
        return out

    return allocate_poisoned


@pytest.fixture(scope="session", autouse=True)
def _own_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Graphs and engines of the tests, made once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_CACHE", str(tmp_path_factory.mktemp("engines")))
        yield


@pytest.fixture(scope="session")
def fashion_mnist_root() -> Path:
    """The folder of the real Fashion-MNIST files; skips where they are not on this machine."""
    from engine.datasets import fetch

    try:
        return fetch.fashion_mnist_root()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket of a real S3 server on the loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        filesystem = s3fs.S3FileSystem()
        if filesystem.exists("bucket"):  # of an earlier server: those of a process share what they hold
            filesystem.rm("bucket", recursive=True)
        filesystem.mkdir("bucket")
        yield "s3://bucket"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def accelerator_state_kept() -> Iterator[None]:
    """Accelerate's shared state after the test is that before it: other modules hold an Accelerator."""
    from accelerate.state import AcceleratorState, PartialState

    shared = AcceleratorState._shared_state, PartialState._shared_state
    before = [dict(state) for state in shared]
    yield
    for state, values in zip(shared, before, strict=True):
        state.clear()
        state.update(values)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
