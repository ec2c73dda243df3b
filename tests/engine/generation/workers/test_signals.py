"""Signals that control a generation; their handlers are restored afterwards."""

import os
import signal

import pytest

from engine.generation.workers.signals import handle_signals
from engine.terminal import Terminated, interruptible


@pytest.mark.parametrize("can_drain", [True, False])
def test_sigterm_drains_if_there_are_shards_and_ends_a_command_otherwise(can_drain: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        ours = signal.getsignal(signal.SIGTERM)
        with handle_signals() as requests:
            requests.can_drain = can_drain
            if can_drain:
                os.kill(os.getpid(), signal.SIGTERM)
                assert requests.drain
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_are_asked_for_one_by_one_and_one_stays() -> None:
    with handle_signals() as requests:
        os.kill(os.getpid(), signal.SIGTTIN)
        assert requests.workers(2) == 3
        for _ in range(9):
            os.kill(os.getpid(), signal.SIGTTOU)
        assert requests.workers(2) == 1
        os.kill(os.getpid(), signal.SIGTTIN)
        assert requests.workers(2) == 2
