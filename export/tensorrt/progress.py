"""Report the progress of a build and stop it on Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from export.tensorrt.bindings import trt

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a phase, the steps done and the total; phases may be nested."""


class _Monitor(trt.IProgressMonitor):
    """Forwards progress to a callback; stops the build if that raises: the bindings swallow exceptions."""

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
    """Report the steps of a build inside the block, then re-raise Ctrl-C or the callback's error."""
    monitor = _Monitor(on_progress)
    config.progress_monitor = monitor
    with _interrupt_deferred(monitor):
        yield
    if monitor.stop:
        raise monitor.stop


@contextmanager
def _interrupt_deferred(monitor: _Monitor) -> Iterator[None]:
    """Let `stop` be what the handlers of Ctrl-C and SIGTERM raise: the bindings swallow it in a callback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in found.items() if callable(handler)}

    def defer(number: int, frame: FrameType | None) -> None:
        try:
            before[signal.Signals(number)](number, frame)
        except KeyboardInterrupt as error:
            monitor.stop = error

    for number in before:
        signal.signal(number, defer)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == defer:  # an interrupt leaves the next signal to the system
                signal.signal(number, handler)
