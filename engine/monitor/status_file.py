"""Keeps .status.json in the bank's folder, for `python -m engine.generate --status`."""

from time import monotonic

from engine.bank.manifest import STATUS
from engine.bank.storage import Storage
from engine.monitor.record import Record
from engine.workers.tally import Tally

EVERY = 5.0
"""Seconds between two writes, at least."""


class StatusFile:
    """Raises OSError where the file cannot be written; the next try is as far off as after a success."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._written: float | None = None

    def update(self, tally: Tally) -> None:
        if self._written is None or monotonic() >= self._written + EVERY:
            self._write(tally, ended=False)

    def close(self, tally: Tally) -> None:
        if self._written is not None:
            self._write(tally, ended=True)

    def _write(self, tally: Tally, *, ended: bool) -> None:
        try:
            self._storage.write(STATUS, Record.of(tally, ended=ended).to_json())
        finally:
            self._written = monotonic()
