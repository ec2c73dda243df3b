"""What signals ask for, and that the process is as before afterwards."""

import os
import signal

from engine.generation.workers.signals import requests


def test_the_first_sigterm_drains_the_second_abandons() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with requests() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (asked.drain, asked.abandon) == (True, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (asked.drain, asked.abandon) == (True, True)
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_are_asked_for_one_by_one_and_one_stays() -> None:
    with requests() as asked:
        os.kill(os.getpid(), signal.SIGTTIN)
        assert asked.workers(2) == 3
        for _ in range(9):
            os.kill(os.getpid(), signal.SIGTTOU)
        assert asked.workers(2) == 1
        os.kill(os.getpid(), signal.SIGTTIN)
        assert asked.workers(2) == 2
