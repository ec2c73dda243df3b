"""The progress of a build, and its end by Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from export.tensorrt.bindings import trt

OnProgress = Callable[[str, int, int], None]
"""Gets the name of a phase, the steps done and the number of steps; phases are nested."""


class _Monitor(trt.IProgressMonitor):
    """Calls back, and ends the build where that fails: the bindings swallow exceptions."""

    def __init__(self, on_progress: OnProgress) -> None:
        super().__init__()
        self.stop: BaseException | None = None
        self._on_progress = on_progress
        self._num_steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
        self._num_steps[phase_name] = num_steps
        self._report(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self._report(phase_name, step + 1)
        return self.stop is None

    def phase_finish(self, phase_name: str) -> None:
        self._num_steps.pop(phase_name, None)

    def _report(self, phase: str, done: int) -> None:
        if self.stop is None:
            try:
                self._on_progress(phase, done, self._num_steps[phase])
            except BaseException as error:
                self.stop = error


@contextmanager
def reporting(config: trt.IBuilderConfig, on_progress: OnProgress) -> Iterator[None]:
    """Reports the steps of the build within, then raises what stopped it: Ctrl-C or a callback's error."""
    monitor = _Monitor(on_progress)
    config.progress_monitor = monitor
    with _interrupts_kept(monitor):
        yield
    if monitor.stop:
        raise monitor.stop


@contextmanager
def _interrupts_kept(monitor: _Monitor) -> Iterator[None]:
    """Ctrl-C sets `stop`; raised in a callback, KeyboardInterrupt would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def keep(*_: object) -> None:
        monitor.stop = KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
