"""The manifest as one writer keeps it: whoever finds that another has changed it ends."""

from engine.bank.manifest import Manifest
from engine.bank.names import MANIFEST
from engine.bank.storage import Storage
from engine.errors import UserError


class Ledger:
    """Knows the bytes that its own writer last read or wrote."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: bytes | None = None

    def read(self) -> Manifest | None:
        """None where there is none. Raises UserError for a damaged one."""
        self._known = self._found()
        return None if self._known is None else Manifest.from_json(self._known, self._storage.url)

    def replace(self, manifest: Manifest) -> None:
        """The moment at which what is new is committed. Raises UserError where another writer was here."""
        self.require_unchanged()
        data = manifest.to_json()
        if data != self._known:
            self._storage.write(MANIFEST, data)
        self._known = data

    def require_unchanged(self) -> None:
        if self._found() != self._known:
            raise UserError(
                f"{self._storage.url} was taken over by another writer; nothing committed is lost;"
                " let one writer alone continue it with --resume"
            )

    def _found(self) -> bytes | None:
        try:
            return self._storage.read(MANIFEST)
        except FileNotFoundError:
            return None
