"""Find and fetch the Fashion-MNIST files, with small fake files and without a network."""

import gzip
import hashlib
from pathlib import Path

import pytest

from engine.datasets import fetch
from engine.errors import UserError

PAYLOADS = {name: f"payload of {name}".encode() * 50 for name in fetch.PAYLOAD_SHA256}
FIRST = next(iter(PAYLOADS))


@pytest.fixture(autouse=True)
def _small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small payloads, and move every folder where the engine looks below `tmp_path`."""
    digests = {name: hashlib.sha256(payload).hexdigest() for name, payload in PAYLOADS.items()}
    monkeypatch.setattr(fetch, "PAYLOAD_SHA256", digests)
    monkeypatch.setattr(fetch, "INSTALLED_FOLDER", tmp_path / "installed")
    monkeypatch.setattr(fetch, "PROJECT_ROOT", tmp_path / "checkout")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(fetch.ROOT_VARIABLE, raising=False)
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "pyproject.toml").touch()


def write_files(folder: Path, *, level: int = 9) -> Path:
    folder.mkdir(parents=True)
    for name, payload in PAYLOADS.items():
        (folder / name).write_bytes(gzip.compress(payload, level))
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def broken_source(_scratch: Path) -> Path:
    raise fetch.SourceError("no network")


def test_folders_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_cache = write_files(tmp_path / "home" / ".cache" / "dda-engine" / "fashion-mnist")
    assert fetch.fashion_mnist_root() == user_cache
    in_checkout = write_files(tmp_path / "checkout" / "data" / "fashion-mnist")
    assert fetch.fashion_mnist_root() == in_checkout
    installed = write_files(tmp_path / "installed")
    assert fetch.fashion_mnist_root() == installed
    named = write_files(tmp_path / "named")
    monkeypatch.setenv(fetch.ROOT_VARIABLE, str(named))
    assert fetch.fashion_mnist_root() == named
    given = write_files(tmp_path / "given")
    assert fetch.fashion_mnist_root(given) == given


def test_data_is_never_stored_next_to_an_installed_package(tmp_path: Path) -> None:
    (tmp_path / "checkout" / "pyproject.toml").unlink()
    assert fetch.cache_folders() == [tmp_path / "home" / ".cache" / "dda-engine" / "fashion-mnist"]


def test_missing_files_name_the_next_step() -> None:
    with pytest.raises(FileNotFoundError, match=r"make data.*ENGINE_FASHION_MNIST"):
        fetch.fashion_mnist_root()


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_named_folder_is_never_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    write_files(tmp_path / "installed")
    named = write_files(tmp_path / "named")
    (named / FIRST).unlink()
    monkeypatch.setenv(fetch.ROOT_VARIABLE, str(named) if way == "environment" else "")
    with pytest.raises(FileNotFoundError, match=str(named / FIRST)):
        fetch.fashion_mnist_root(named if way == "argument" else None)


def test_fetch_skips_sources_that_fail(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    altered = write_files(tmp_path / "altered")
    (altered / FIRST).write_bytes(gzip.compress(b"something else"))
    good = write_files(tmp_path / "good", level=1)
    folder = tmp_path / "data"
    sources = {
        "cut": broken_source,
        "empty": lambda _: empty,
        "altered": lambda _: altered,
        "good": lambda _: good,
    }
    assert fetch.fetch(folder, sources) == "good"
    assert files_in(folder) == sorted(PAYLOADS)
    assert fetch.read_verified(folder / FIRST) == PAYLOADS[FIRST]
    assert files_in(good) == sorted(PAYLOADS)


def test_fetch_keeps_complete_files(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "data")
    assert fetch.fetch(folder, {"cut": broken_source}) == "already there"


def test_fetch_completes_a_half_filled_folder(tmp_path: Path) -> None:
    folder, good = write_files(tmp_path / "data"), write_files(tmp_path / "good")
    (folder / FIRST).unlink()
    assert fetch.fetch(folder, {"good": lambda _: good}) == "good"
    assert files_in(folder) == sorted(PAYLOADS)


def test_fetch_without_any_source_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    altered = write_files(tmp_path / "altered")
    (altered / FIRST).write_bytes(b"no gzip")
    folder = tmp_path / "data"
    with pytest.raises(UserError, match=r"cut: no network; altered: .*wrong SHA-256") as caught:
        fetch.fetch(folder, {"cut": broken_source, "altered": lambda _: altered})
    assert "\n" not in str(caught.value)
    assert files_in(folder) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"no gzip" + data,
        lambda _: gzip.compress(b"something else"),
        lambda data: data[:-12] + bytes(12),
        lambda data: data[:20] + bytes([data[20] ^ 255]) + data[21:],
        lambda _: b"",
    ],
    ids=["truncated", "no gzip", "other payload", "bad trailer", "flipped byte", "empty"],
)
def test_a_corrupt_file_is_named(tmp_path: Path, damage) -> None:
    folder = write_files(tmp_path / "data")
    (folder / FIRST).write_bytes(damage((folder / FIRST).read_bytes()))
    with pytest.raises(UserError, match=f"{folder / FIRST}: not the published") as caught:
        fetch.fetch(folder, {"cut": broken_source})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("flags", "code"), [([], 1), (["--optional"], 0)], ids=["required", "optional"])
def test_exit_code_if_no_source_works(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
) -> None:
    folder = write_files(tmp_path / "data")
    (folder / FIRST).write_bytes(b"")
    assert fetch.main(["--root", str(folder), *flags]) == code
    stderr = capsys.readouterr().err
    assert str(folder / FIRST) in stderr
    assert stderr.count("\n") == 1


def test_command_uses_the_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    installed = write_files(tmp_path / "installed")
    assert fetch.main([]) == 0
    assert capsys.readouterr().out == f"Fashion-MNIST: {installed} (already there)\n"


def test_command_copies_the_installed_package(tmp_path: Path) -> None:
    write_files(tmp_path / "installed")
    assert fetch.main(["--root", str(tmp_path / "copy")]) == 0
    assert files_in(tmp_path / "copy") == sorted(PAYLOADS)


def test_command_fetches_to_a_folder_where_the_engine_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch._default_folder() == tmp_path / "checkout" / "data" / "fashion-mnist"
    monkeypatch.setenv(fetch.ROOT_VARIABLE, str(tmp_path / "named"))
    assert fetch._default_folder() == tmp_path / "named"
