"""Find the four Fashion-MNIST files, or fetch them: `python -m engine.datasets.fetch`."""

import gzip
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from engine import terminal
from engine.errors import UserError
from engine.paths import PROJECT_ROOT

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "ENGINE_FASHION_MNIST"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
INSTALLED_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TIMEOUT_SECONDS = 600

# sha256 of the uncompressed files: Debian recompresses what upstream publishes.
PAYLOAD_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class SourceError(Exception):
    """A source that cannot provide the files; the message says why, in one line."""


def fashion_mnist_root(root: Path | None = None) -> Path:
    """Return the folder of the four idx.gz files, without fetching anything.

    Looks in `root`, or in the folder that ENGINE_FASHION_MNIST names, or in the installed Debian package and
    then where `make data` puts them. Raises FileNotFoundError, with the next step, if they are missing.
    """
    named = root or (Path(os.environ[ROOT_VARIABLE]) if os.environ.get(ROOT_VARIABLE) else None)
    if named:
        missing = _missing(named)
        if missing:
            origin = "the given folder" if root else ROOT_VARIABLE
            raise FileNotFoundError(f"Fashion-MNIST: {named / missing[0]} does not exist ({origin})")
        return named
    for folder in (INSTALLED_FOLDER, *cache_folders()):
        if not _missing(folder):
            return folder
    raise FileNotFoundError(
        "Fashion-MNIST is not on this machine: run `make data` (`python -m engine.datasets.fetch`) "
        f"or set {ROOT_VARIABLE} to the folder of its four .gz files"
    )


def cache_folders() -> list[Path]:
    """Return the folders that may hold fetched files: the checkout's `data/`, then the user's cache."""
    in_checkout = (PROJECT_ROOT / "pyproject.toml").is_file()
    project = [PROJECT_ROOT / "data" / "fashion-mnist"] if in_checkout else []
    return [*project, Path.home() / ".cache" / "dda-engine" / "fashion-mnist"]


def read_verified(path: Path) -> bytes:
    """Return the uncompressed bytes of one of the four files. Raises UserError if it is not as published."""
    try:
        payload = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error):
        payload = b""
    if hashlib.sha256(payload).hexdigest() != PAYLOAD_SHA256[path.name]:
        raise UserError(
            f"{path}: not the published Fashion-MNIST file (wrong SHA-256); delete it and run `make data`"
        )
    return payload


def from_installed_package(_scratch: Path) -> Path:
    """Return the folder of the Debian package if it is installed."""
    if _missing(INSTALLED_FOLDER):
        raise SourceError(f"{DEBIAN_PACKAGE} is not installed")
    return INSTALLED_FOLDER


def from_debian_archive(scratch: Path) -> Path:
    """Download the Debian package through apt and unpack it. Needs no privileges; nothing is installed."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SourceError("no apt-get on this machine")
    if not _apt_download(scratch, []) and not _apt_download(scratch, _own_package_lists(scratch)):
        raise SourceError("apt knows no such package; its lists may be missing (`sudo apt-get update`)")
    for package in scratch.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, scratch], check=True, timeout=TIMEOUT_SECONDS)
    return scratch / INSTALLED_FOLDER.relative_to("/")


def from_torchvision(scratch: Path) -> Path:
    """Download the files from the mirrors that torchvision knows."""
    from torchvision.datasets import FashionMNIST

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        FashionMNIST(str(scratch), download=True)
    except RuntimeError as error:
        raise SourceError(_one_line(error)) from error
    finally:
        socket.setdefaulttimeout(before)
    return scratch / "FashionMNIST" / "raw"


Source = Callable[[Path], Path]  # given a scratch folder, returns the folder of the four files
SOURCES: Mapping[str, Source] = {
    "installed Debian package": from_installed_package,
    "apt": from_debian_archive,
    "torchvision": from_torchvision,
}


def fetch(folder: Path, sources: Mapping[str, Source] = SOURCES) -> str:
    """Put the four verified files into `folder` and return the name of their source.

    Raises a UserError that names a corrupt file in `folder`, or every source's failure if none works.
    """
    for path in (folder / name for name in PAYLOAD_SHA256):
        if path.exists():
            read_verified(path)
    if not _missing(folder):
        return "already there"
    folder.mkdir(parents=True, exist_ok=True)
    reasons = []
    for name, source in sources.items():
        logger.info("Fashion-MNIST: trying %s", name)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            try:
                _adopt(source(Path(scratch)), folder)
            except (SourceError, UserError, OSError, subprocess.SubprocessError) as error:
                reasons.append(f"{name}: {_one_line(error)}")
            else:
                return name
    raise UserError(f"Fashion-MNIST cannot be fetched into {folder} ({'; '.join(reasons)})")


def _apt_download(scratch: Path, options: list[str]) -> bool:
    command = ["apt-get", *options, "download", DEBIAN_PACKAGE]
    return _quiet(command, scratch) and any(scratch.glob("*.deb"))


def _own_package_lists(scratch: Path) -> list[str]:
    """Download package lists into `scratch`, for machines without any; return apt options for them."""
    lists, cache = scratch / "lists", scratch / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    options = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User="]
    _quiet(["apt-get", *options, "update"], scratch)
    return options


def _quiet(command: list[str], folder: Path) -> bool:
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    return done.returncode == 0


def _adopt(source: Path, folder: Path) -> None:
    """Verify the four files of `source`, then move each into `folder` in one step."""
    with tempfile.TemporaryDirectory(prefix=".verified-", dir=folder) as staged:
        for name in PAYLOAD_SHA256:
            read_verified(source / name)
            shutil.copyfile(source / name, Path(staged) / name)
        for name in PAYLOAD_SHA256:
            (Path(staged) / name).replace(folder / name)


def _missing(folder: Path) -> list[str]:
    return [name for name in PAYLOAD_SHA256 if not (folder / name).is_file()]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _default_folder() -> Path:
    """Return the folder in use, or the one that the environment names, or the first writable cache."""
    try:
        return fashion_mnist_root()
    except FileNotFoundError:
        if os.environ.get(ROOT_VARIABLE):
            return Path(os.environ[ROOT_VARIABLE])
    return next((folder for folder in cache_folders() if _can_be_made(folder)), cache_folders()[-1])


def _can_be_made(folder: Path) -> bool:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return os.access(existing, os.W_OK)


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m engine.datasets.fetch` with these arguments and return the exit code."""
    from engine.cli.arguments import command_parser, parse

    description = "Fetch and verify the four Fashion-MNIST files."
    parser = command_parser("engine.datasets.fetch", description, exit_on_error=True)
    parser.add_argument("--root", metavar="DIR", help="target folder (default: the first usual place)")
    parser.add_argument("--optional", action="store_true", help="exit with code 0 even if no source works")
    terminal.add_log_flags(parser)
    with terminal.on_console(sys.argv[1:] if arguments is None else arguments) as rest:
        options = parse(parser, rest)
        folder = Path(options.root) if options.root else _default_folder()
        try:
            print(f"Fashion-MNIST: {folder} ({fetch(folder)})")
        except (UserError, OSError) as error:
            print(f"engine.datasets.fetch: {_one_line(error)}", file=sys.stderr)
            return 0 if options.optional else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
