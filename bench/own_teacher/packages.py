"""Fetch packages of Debian and npm by name and unpack them into a cache, without installing anything."""

import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.errors import UserError


def debian(names: Sequence[str], cache: Path) -> dict[str, Path]:
    """Return the unpacked folder of each Debian package, `cache`/NAME, in the version that apt-get offers.

    Raises UserError if apt-get or dpkg-deb is missing or fails.
    """
    missing = [name for name in names if not (cache / name).is_dir()]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as folder:
            _run(["apt-get", "download", *missing], Path(folder))
            for name in missing:
                archive = next(Path(folder).glob(f"{name}_*.deb"))
                unpacked = Path(folder) / name
                _run(["dpkg-deb", "--extract", str(archive), str(unpacked)], Path(folder))
                unpacked.replace(cache / name)
    return {name: cache / name for name in names}


def npm(name: str, version: str, members: Sequence[str], cache: Path) -> Path:
    """Return `cache`/NAME-VERSION with the files of an npm package whose paths start with one of `members`.

    Raises UserError if npm is missing or fails.
    """
    target = cache / f"{name}-{version}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as folder:
            _run(["npm", "pack", f"{name}@{version}"], Path(folder))
            unpacked = Path(folder) / "unpacked"
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
                wanted = [
                    member
                    for member in archive
                    if member.name.removeprefix("package/").startswith(tuple(members))
                ]
                archive.extractall(unpacked, wanted, filter="data")
            (unpacked / "package").replace(target)
    return target


def _run(command: Sequence[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed; this benchmark fetches its artwork with it")
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"'{' '.join(command[:3])} ...' failed: {lines[-1]}")
