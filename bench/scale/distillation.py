"""A student trained by two processes beside the same one trained by one, with the same global batch."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.rows import Row, commit
from bench.scale.generation import embedded
from bench.scale.workers import machine
from bench.torchrun import distill, losses
from engine.shards import generate
from engine.workers.workforce import Workforce

STEPS, BATCH = 50, 64
SETTINGS = {
    "schedule.rounds": 1,
    "schedule.kd_steps": STEPS,
    "schedule.checkpoint_steps": 1,
    "distill.batch_size": BATCH,
    "distill.warmup_steps": 0,
    "compute.precision": "fp32",
    "compute.runtime": "torch",
    "evaluate.dataset": "none",
}


def rows() -> Iterator[Row]:
    """How far the logged losses are apart, and the time of the steps; a thread a process."""
    with TemporaryDirectory() as folder:
        bank = str(Path(folder) / "bank")
        generate(embedded(32), bank, 2, resume=False, workforce=Workforce(workers=1), watched={})
        outs = {processes: Path(folder) / f"of {processes}" for processes in (1, 2)}
        for processes, out in outs.items():
            distill(bank, out, SETTINGS, processes=processes, threads=1)
        one, two = (losses(out) for out in outs.values())
        seconds = [_seconds(out) for out in outs.values()]
    apart = max(abs(two[step] - one[step]) / abs(one[step]) for step in one)
    assert len(one) == len(two) == STEPS, (len(one), len(two))
    yield _row("scale/distill, 2 processes, loss", "1e-5", apart, 1e-5, "relative difference")
    yield _row("scale/distill, 2 processes", "one process", seconds[1], seconds[0], "s of steps")


def _seconds(out: Path) -> float:
    seconds: float = json.loads((out / "summary.json").read_text())["seconds_by_stage"]["distill"]
    return seconds


def _row(case: str, baseline: str, ours: float, theirs: float, unit: str) -> Row:
    return Row(
        case=case,
        baseline=baseline,
        ours=ours,
        theirs=theirs,
        unit=unit,
        ratio=theirs / ours,
        floor=None,
        device=machine(),
        dtype="fp32",
        shape=f"WRN-16-2 -> WRN-16-1, {STEPS} steps of {BATCH} images, 1 thread a process",
        commit=commit(),
    )
