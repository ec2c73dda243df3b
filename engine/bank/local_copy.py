"""Copies of remote files on this machine, found by their content."""

from collections.abc import Callable
from pathlib import Path

from engine.atomic import replacing
from engine.bank.fingerprint import Fingerprint
from export.locks import exclusive


def local_copy(
    folder: Path, suffix: str, expected: Fingerprint, download: Callable[[Path], None], *, verify: bool
) -> Path:
    """The copy in `folder`; where there is none, or `verify` finds it altered, `download` writes it anew.

    Of several processes one downloads, the others wait for it. Raises DamagedError where the download has
    another content, and keeps nothing of it.
    """
    path = folder / expected.sha256[:2] / f"{expected.sha256}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_suffix(".lock"), on_wait=lambda: None):
        if not path.exists() or (verify and Fingerprint.of_file(path) != expected):
            with replacing(path) as part:
                download(part)
                expected.require(Fingerprint.of_file(part))
    return path
