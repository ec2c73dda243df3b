"""Signals that control a generation; their handlers are restored afterwards."""

import os
import signal

from engine.generation.workers.signals import handle_signals


def test_the_first_sigterm_drains_the_second_abandons() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handle_signals() as requests:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (requests.drain, requests.abandon) == (True, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (requests.drain, requests.abandon) == (True, True)
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
