"""Train a student in two processes and in one, with the same global batch."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from bench.rows import Row
from bench.scale.generation import embedded
from bench.scale.row import row
from bench.torchrun import distill, losses
from engine.generation.generate_bank import WorkerOptions, generate

STEPS, BATCH = 50, 64
SETTINGS = {
    "schedule.rounds": 1,
    "schedule.kd_steps": STEPS,
    "schedule.checkpoint_steps": 1,
    "distill.batch_size": BATCH,
    "distill.warmup_steps": 0,
    "compute.precision": "fp32",
    "compute.runtime": "torch",
    "evaluate.data": None,
}


def rows() -> Iterator[Row]:
    """Yield the time of the steps, and the difference of the losses against the effect of rounding alone.

    The kinks of a ReLU network amplify rounding; tests/engine/test_distributed.py compares a smooth student.
    """
    with TemporaryDirectory() as folder:
        bank = str(Path(folder) / "bank")
        generate(
            embedded(32),
            bank,
            2,
            resume=False,
            worker_options=WorkerOptions(workers=1, retries=0),
            monitor_options={},
        )
        ways = {"one": (1, 1), "two threads": (1, 2), "two processes": (2, 1)}
        for name, (processes, threads) in ways.items():
            distill(bank, Path(folder) / name, SETTINGS, processes=processes, threads=threads)
        curves = {name: losses(Path(folder) / name) for name in ways}
        seconds = {name: _seconds(Path(folder) / name) for name in ways}
    differences = {name: _difference(curve, curves["one"]) for name, curve in curves.items()}
    shape = f"WRN-16-2 -> WRN-16-1, {STEPS} steps of {BATCH} images, 1 thread per process"
    same = partial(row, dtype="fp32", shape=shape)
    yield same("distill, 2 processes", "one process", seconds["two processes"], seconds["one"], "s of steps")
    yield same(
        "distill, 2 processes, loss",
        "one process with 2 threads",
        differences["two processes"],
        differences["two threads"],
        "mean relative difference to 1 thread",
    )


def _difference(curve: dict[int, float], other: dict[int, float]) -> float:
    assert len(curve) == len(other) == STEPS, (len(curve), len(other))
    return mean(abs(curve[step] - other[step]) / abs(other[step]) for step in other)


def _seconds(out: Path) -> float:
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    seconds: float = summary["seconds_by_stage"]["distill"]
    return seconds
