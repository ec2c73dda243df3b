"""Fixtures for all tests. CONTRIBUTING.md says what a test must do."""

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the processes share the cores, so none may spin

import pytest
import torch

from tests.commands import CommandServer, command_server

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when a kernel is defined

RAY_TESTS = Path(__file__).parent / "engine/generation/workers"
POISONED_PACKAGES = {"engine", "export", "kernels"}
CHAOS_KILLS = int(os.environ.get("CHAOS_KILLS", "8"))
CHAOS_SEED = int(os.environ.setdefault("CHAOS_SEED", f"{date.today():%Y%m%d}"))  # one for all processes


def pytest_report_header() -> str:
    return f"chaos: CHAOS_KILLS={CHAOS_KILLS} CHAOS_SEED={CHAOS_SEED}"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: on small tensors, a second thread costs more than it saves."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _rare_collections() -> None:
    """Collect garbage rarely, and skip what imports created: exports spend a tenth of their time on it."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _sigint_is_not_ignored() -> Iterator[None]:
    """Handle SIGINT: a background job ignores it, and so would every process that a test starts."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _poison_uninitialised_memory() -> Iterator[None]:
    """Fill the results of `torch.empty` and similar calls in our code: NaN for floats, else the maximum."""
    with torch.device(
        "meta"
    ):  # torch looks up once which functions this applies to: before they are replaced
        assert torch.empty(0).is_meta
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


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _own_engines(run_folder: Path) -> Iterator[None]:
    """Share one store of graphs and engines, so that each is built once per test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_CACHE", str(run_folder / "engines"))
        yield


@pytest.fixture(scope="session")
def commands() -> Iterator[CommandServer]:
    """Yield a server that starts commands in processes that have already imported everything."""
    with command_server() as server:
        yield server


@pytest.fixture(scope="session")
def fashion_mnist_root() -> Path:
    """Return the folder of the real Fashion-MNIST files; skip the test if this machine has none."""
    from engine.datasets import fetch

    try:
        return fetch.fashion_mnist_root()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Yield the URL of a bucket on a local S3 server."""
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
        if filesystem.exists("bucket"):  # from an earlier server: servers in one process share their contents
            filesystem.rm("bucket", recursive=True)
        filesystem.mkdir("bucket")
        yield "s3://bucket"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@contextmanager
def _process_state_kept() -> Iterator[None]:
    """Restore what a run sets for its process: Accelerate's state, torch's threads and flags, kernels."""
    from kernels import backend

    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    held = [dict(state) for state in _accelerate_states()], torch.get_num_threads(), backend._override
    yield
    states, threads, kernels = held
    cudnn.deterministic, cudnn.benchmark = flags
    for state, values in zip_longest(_accelerate_states(), states, fillvalue={}):
        state.clear()
        state.update(values)
    torch.set_num_threads(threads)
    backend.set_backend(kernels)


def _accelerate_states() -> list[dict[str, Any]]:
    """Return Accelerate's two shared states, or nothing if it is not imported yet."""
    state = sys.modules.get("accelerate.state")
    return [state.AcceleratorState._shared_state, state.PartialState._shared_state] if state else []


@pytest.fixture(scope="module", autouse=True)
def _process_state_kept_by_module() -> Iterator[None]:
    with _process_state_kept():
        yield


@pytest.fixture(autouse=True)
def _process_state_kept_by_test() -> Iterator[None]:
    with _process_state_kept():
        yield


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Allow a part of `make test` to be empty, for when ARGS names tests of the other part."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.markexpr:
        session.exitstatus = pytest.ExitCode.OK


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with the most long tests first, so that none starts at the very end."""
    long = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -long[item.path])
    for item in items:
        if item.get_closest_marker("ray") and not item.path.is_relative_to(RAY_TESTS):
            raise pytest.UsageError(
                f"{item.nodeid} must be in {RAY_TESTS}, where `make test` looks for Ray tests"
            )
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
