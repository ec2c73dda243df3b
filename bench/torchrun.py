"""`engine.distill` in several processes on this machine, and the losses that it logs."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.training.run_folder import SCALARS

ROOT = Path(__file__).parents[1]


def torchrun(module: str, arguments: Sequence[str], *, processes: int) -> "subprocess.CompletedProcess[str]":
    """`python -m MODULE ARGUMENTS` in so many processes, each of one thread unless it takes another number.

    The paths among `arguments` must be absolute. What the processes print is kept, and nothing is raised.
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
    """A student of `bank` into the folder `out`, `threads` a process; `settings` by key, as `distill.lr`.

    With `resume` it goes on in `out`. Raises RuntimeError with what the processes wrote where they fail.
    """
    arguments = [f"--{key}={value}" for key, value in {"compute.threads": threads, **settings}.items()]
    if resume:
        arguments.append("--resume")
    ended = torchrun("engine.distill", ["--bank", bank, "--out", str(out), *arguments], processes=processes)
    if ended.returncode:
        raise RuntimeError(f"engine.distill in {processes} processes: {ended.stderr}")


def losses(out: Path, name: str = "loss") -> dict[int, float]:
    """By step, the means that the run in `out` logged, each over the steps since the last.

    It logs after every 50 steps and at each checkpoint: every step with `schedule.checkpoint_steps` 1. `name`
    is one of loss, kl, ce, feature, label_agreement, lr.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / SCALARS), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars(f"distill/{name}")}
