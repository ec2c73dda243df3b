"""Workers that are forked after the imports: their environment, and what happens if a process dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.cli.resolve import resolve
from engine.generation.messages import Event, Job, LoadFailed, Logged, Lost, Ready, Report
from engine.generation.provenance import bank_header
from engine.generation.workers.fork_server import (
    ANSWER_SECONDS,
    BINDING,
    NAME,
    ForkedProcess,
    ForkServer,
    can_fork,
)
from engine.generation.workers.preload import QUIET, names_for
from engine.generation.workers.processes import ProcessPool
from engine.generation.workers.worker_process import WorkerPlacement
from engine.recipes.load import load_recipe
from tests.commands import ROOT
from tests.engine.generation.workers.spy import HEAVY

pytestmark = pytest.mark.skipif(not can_fork(), reason="no fork server on this system or in this environment")
THREADS = 2


@pytest.fixture(scope="module")
def job(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A job whose teacher comes from the spy."""
    folder = tmp_path_factory.mktemp("spied")
    settings = {"teacher.name": "tests.engine.generation.workers.spy:teacher", "compute.threads": THREADS}
    loaded = resolve(load_recipe(str(recipe), settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPY", str(folder / "facts.json"))
        yield Job(recipe=loaded, url=str(folder / "bank"), header=bank_header(loaded))


@pytest.fixture(scope="module")
def pool(job: Job) -> Iterator[ProcessPool]:
    with ProcessPool(job, 1) as pool:
        yield pool


@pytest.fixture
def worker(pool: ProcessPool) -> psutil.Process:
    """The only worker, once it has loaded its networks."""
    pool.resize(1)
    until(pool, lambda _: pool.workers[0].ready)
    (child,) = server_of(pool).children()
    return child


@pytest.fixture
def facts(worker: psutil.Process) -> dict[str, Any]:  # noqa: ARG001
    """What the spy recorded in the worker's process."""
    found: dict[str, Any] = json.loads(Path(os.environ["SPY"]).read_text())
    return found


def until(pool: ProcessPool, happened: Callable[[list[Event]], bool]) -> list[Event]:
    """Return all events from now until `happened` returns True for them."""
    events: list[Event] = []
    last = time.monotonic() + 60
    while not happened(events):
        assert time.monotonic() < last, events
        events += pool.wait(0.1)
    return events


def server_of(pool: ProcessPool) -> psutil.Process:
    assert pool._server is not None
    return psutil.Process(pool._server._process.pid)


def test_a_worker_is_forked_with_everything_imported(
    pool: ProcessPool, worker: psutil.Process, facts: dict[str, Any]
) -> None:
    assert facts["parent"] == server_of(pool).pid
    assert facts["imported"] == list(HEAVY)
    assert worker.name() == pool.workers[0].name
    assert server_of(pool).name() == NAME


def test_the_server_runs_no_thread(pool: ProcessPool, worker: psutil.Process) -> None:
    assert worker.num_threads() > 1
    assert server_of(pool).num_threads() == 1


def test_a_worker_computes_on_its_threads_and_its_cores(pool: ProcessPool, facts: dict[str, Any]) -> None:
    groups = pool._cores or [tuple(sorted(os.sched_getaffinity(0)))]
    assert facts["cores"] == list(groups[0])
    assert (facts["threads"], facts["team"]) == (THREADS, THREADS)
    assert not facts["cuda"]


def test_a_worker_has_the_environment_of_the_command(facts: dict[str, Any]) -> None:
    assert {name: facts["environment"].get(name) for name in QUIET} == {
        name: os.environ.get(name) for name in QUIET
    }
    assert facts["environment"]["SPY"] == os.environ["SPY"]


def test_signals_to_the_group_leave_the_server_and_its_workers(
    pool: ProcessPool, worker: psutil.Process
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        server_of(pool).send_signal(number)
        worker.send_signal(number)
    assert pool.wait(0.5) == []
    assert server_of(pool).is_running()


def test_a_killed_worker_is_replaced_by_the_same_server(pool: ProcessPool, worker: psutil.Process) -> None:
    server = server_of(pool)
    worker.kill()
    events = until(pool, bool)
    assert [event.what for event in events] == [Lost((), "worker killed by SIGKILL (out of memory?)")]
    pool.resize(1)
    until(pool, lambda events: any(isinstance(event.what, Ready) for event in events))
    assert server_of(pool) == server
    assert [child.name() for child in server.children()] == [pool.workers[0].name]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_workers_survive_the_end_of_the_server_and_a_new_one_replaces_them(
    number: signal.Signals, pool: ProcessPool, worker: psutil.Process
) -> None:
    assert pool._server is not None
    assert pool._server._socket.gettimeout() == ANSWER_SECONDS
    pool._server._socket.settimeout(0.5)
    server_of(pool).send_signal(number)
    assert pool.wait(0.5) == []
    assert worker.is_running()
    worker.kill()
    events = until(pool, bool)
    assert [event.what for event in events] == [
        Lost((), "worker died, and so had the fork server that knows its exit code")
    ]
    pool.resize(1)
    until(pool, lambda events: any(isinstance(event.what, Ready) for event in events))
    assert server_of(pool).children()


def test_a_pool_may_be_closed_and_signalled_while_the_server_imports(job: Job) -> None:
    with ProcessPool(job, 2) as pool:
        server = server_of(pool)
        for number in (signal.SIGINT, signal.SIGTERM):
            server.send_signal(number)
        pool.resize(2)
        assert pool.wait(0.2) == []
    assert not server.is_running()


def test_a_process_forked_by_a_worker_holds_up_no_end(job: Job) -> None:
    teacher = replace(job.recipe.teacher, name="tests.engine.generation.workers.spy:forking_teacher")
    forking = replace(job, recipe=replace(job.recipe, teacher=teacher))
    with ExitStack() as afterwards:
        with ProcessPool(forking, 1) as pool:
            pool.resize(1)
            until(pool, lambda _: pool.workers[0].ready)
            (worker,) = server_of(pool).children()
            (sleeping,) = worker.children()
            afterwards.callback(sleeping.kill)
        assert not worker.is_running()
        assert sleeping.is_running()


def started(server: ForkServer, job: Job) -> ForkedProcess:
    """Start a worker and wait until its process runs."""
    worker = server.start("worker 1", job, WorkerPlacement(gpu=None, cores=None))
    while worker._pid is None:
        assert worker.pipe.poll(60)
        assert list(worker.reports()) == []
    return worker


def test_the_server_knows_exit_codes_if_the_coordinator_ignores_sigchld(job: Job) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        server = ForkServer([], on_gpu=False)
    finally:
        signal.signal(signal.SIGCHLD, before)
    for _ in range(2):
        worker = started(server, job)
        worker.kill()
        assert worker.join() == -signal.SIGKILL
    assert server.is_alive
    server.kill()


def test_the_kill_of_a_worker_that_cannot_be_forked_leaves_the_server(job: Job) -> None:
    ours, theirs = Pipe()
    server = ForkServer([], on_gpu=False)
    with theirs:  # the server's end is still open
        worker = ForkedProcess(ours, server)
        theirs.send(LoadFailed("cannot start a process: test"))
        worker.kill()
        assert worker.join() is None
    assert server.is_alive
    worker = started(server, job)
    worker.kill()
    assert worker.join() == -signal.SIGKILL
    server.kill()


@pytest.mark.parametrize("name", BINDING)
def test_workers_are_not_forked_if_openmp_would_bind_them(
    name: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ProcessPool(job, 1)._forks
    monkeypatch.setenv(name, "true")
    assert not ProcessPool(job, 1)._forks


def test_a_pool_also_forks_outside_its_context(job: Job) -> None:
    pool = ProcessPool(job, 1)
    worker = pool.start("worker 1")
    assert isinstance(worker.process, ForkedProcess)
    worker.kill()
    worker.join()
    pool.close()


COUNTING = """
import sys, torch
from engine.generation.workers.preload import preload
calls = []
torch.cuda._device_count_nvml = lambda: 1
for name in ("_cuda_init", "_cuda_getDeviceCount"):
    setattr(torch._C, name, lambda name=name: calls.append(name) or 0)
preload(sys.argv[1:])
sys.exit(str(calls) if calls else 0)
"""


def test_the_imports_do_not_initialise_cuda_if_nvml_counts_the_gpus(job: Job) -> None:
    names = names_for(job.recipe, job.url)
    subprocess.run([sys.executable, "-c", COUNTING, *names], cwd=ROOT, check=True)


@pytest.mark.slow
def test_a_worker_on_a_gpu_is_a_new_interpreter_if_an_import_has_initialised_cuda(job: Job) -> None:
    """Counting GPUs by CUDA makes CUDA unusable in a fork, even if there are none."""
    server = ForkServer(
        ["diffusers:AutoencoderKL", "tests.engine.generation.workers.spy:driver.gpus"], on_gpu=True
    )
    worker = server.start("worker 1", job, WorkerPlacement(gpu=None, cores=None))
    reports: list[Report] = []
    while not reports:
        assert worker.pipe.poll(60)
        reports += [report for report in worker.reports() if not isinstance(report, Logged)]
    assert isinstance(reports[0], Ready)
    facts = json.loads(Path(os.environ["SPY"]).read_text())
    assert facts["parent"] == server._process.pid
    assert "diffusers" not in facts["imported"]
    worker.kill()
    assert worker.join() == -signal.SIGKILL
    server.kill()


@pytest.mark.slow
def test_a_worker_may_be_a_new_interpreter(job: Job) -> None:
    with ProcessPool(job, 1, forks=False) as pool:
        pool.resize(1)
        until(pool, lambda _: pool.workers[0].ready)
        pool.workers[0].kill()
        (event,) = until(pool, bool)
        assert event.what == Lost((), "worker killed by SIGKILL (out of memory?)")
