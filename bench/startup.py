"""Measure the response time of commands that load no network: `--help`, and an up-to-date export."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from bench.machine import describe
from bench.rows import Row, commit

ROOT = Path(__file__).parents[1]
COMMANDS = ("engine.run", "engine.generate", "engine.distill", "engine.evaluate", "engine.bank", "export")
ROUNDS = 5


def rows() -> Iterator[Row]:
    """Yield medians of wall-clock seconds; commands and baselines alternate."""
    baselines = {"bare": ["-c", "pass"], "torch": ["-c", "import torch"]}
    calls = {name: ["-m", name, "--help"] for name in COMMANDS} | baselines
    seconds = {name: median(times) for name, times in _in_turns(calls).items()}
    for name in COMMANDS:
        yield _row(f"{name} --help", "import torch", seconds[name], seconds["torch"], seconds["bare"])
    with TemporaryDirectory() as folder:
        network = ["--network", "teacher", "--runtime", "onnxruntime"]
        export = ["-m", "export", "--out", folder, *network]
        first = _seconds(export)
        again = median(_seconds(export) for _ in range(ROUNDS))
    yield _row(f"export {' '.join(network)}, again", "the first time", again, first, seconds["bare"])


def _in_turns(calls: dict[str, list[str]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(_seconds(call))
    return times


def _seconds(arguments: Sequence[str]) -> float:
    """Return the time of `python ARGUMENTS`. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def _row(case: str, baseline: str, ours: float, theirs: float, floor: float) -> Row:
    return Row(
        case=f"startup/{case}",
        baseline=baseline,
        ours=ours,
        theirs=theirs,
        unit="s",
        ratio=theirs / ours,
        floor=floor,
        device=describe(torch.device("cpu")),
        dtype="",
        shape="",
        commit=commit(),
    )
