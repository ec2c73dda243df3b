"""Run `engine.distill` in several processes on this machine, and read the losses it logs."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.training.run_folder import TENSORBOARD

ROOT = Path(__file__).parents[1]


def torchrun(module: str, arguments: Sequence[str], *, processes: int) -> "subprocess.CompletedProcess[str]":
    """Run `python -m MODULE ARGUMENTS` in `processes` processes with OMP_NUM_THREADS=1.

    Paths in `arguments` must be absolute. The output is captured, and a failure raises nothing.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *launcher, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def distill(
    bank: str,
    out: Path,
    settings: Mapping[str, object],
    *,
    processes: int,
    threads: int,
    resume: bool = False,
) -> None:
    """Train a student on `bank` into the folder `out`, with `threads` threads per process.

    `settings` holds values by recipe key, such as `distill.lr`. `resume` continues the run in `out`. Raises
    RuntimeError with the processes' output if they fail.
    """
    arguments = [f"--{key}={value}" for key, value in {"compute.threads": threads, **settings}.items()]
    if resume:
        arguments.append("--resume")
    process = torchrun("engine.distill", ["--bank", bank, "--out", str(out), *arguments], processes=processes)
    if process.returncode:
        raise RuntimeError(f"engine.distill in {processes} processes: {process.stderr}")


def losses(out: Path, name: str = "loss") -> dict[int, float]:
    """Return the means that the run in `out` logged, by step; each covers the steps since the last.

    A run logs every 50 steps and at each checkpoint, so with `schedule.checkpoint_steps` 1 at every step.
    `name` is one of loss, kl, ce, feature, label_agreement, lr.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / TENSORBOARD), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(f"distill/{name}")}
