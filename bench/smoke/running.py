"""Run checks one after the other; a failure is reported, and the next check runs."""

import gc
import time
import traceback
from collections.abc import Mapping

import torch

from bench.smoke.probe import Check, NeedsGpuError, Probe
from bench.timing import time_limit

LONGEST_REASON = 250


def run(checks: Mapping[str, Check], probe: Probe, *, seconds: float) -> list[str]:
    """Run each check for at most `seconds` and print a line for it; return the names of the failed checks.

    The traceback of a failure goes to NAME.trace.
    """
    failed = []
    for name, check in checks.items():
        start = time.perf_counter()
        try:
            with time_limit(seconds):
                line = f"OK   {name}: {_line(check(probe))}"
        except NeedsGpuError:
            line = f"SKIP {name}: needs a GPU"
        except Exception as error:  # of any kind: the other checks still run
            failed.append(name)
            (probe.out / f"{name}.trace").write_text(traceback.format_exc(), encoding="utf-8")
            line = f"FAIL {name}: {type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
        print(f"{line} [{time.perf_counter() - start:.0f} s]", flush=True)
        gc.collect()
        if probe.on_gpu:
            torch.cuda.empty_cache()
    return failed


def _line(found: Mapping[str, object]) -> str:
    return "; ".join(f"{name} {_short(value)}" for name, value in found.items())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
