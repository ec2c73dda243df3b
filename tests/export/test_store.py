"""The store: one build per key, verified entries, processes that share it, and its size limit."""

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.store import Key, Store
from tests.logs import log_lines, record_info

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def key(weights: str = "w", *, kind: str = "tensorrt", **parts: str) -> Key:
    return Key(
        network="unet", kind=kind, precision="fp16", parts={"weights": weights, "shapes": "s", **parts}
    )


def writes(**files: bytes) -> Callable[[Path], None]:
    def build(part: Path) -> None:
        for name, content in files.items():
            (part / name).write_bytes(content)

    return build


def forbidden(_: Path) -> None:
    raise AssertionError("built although the entry exists")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def content(folder: Path) -> set[str]:
    """Return the names of the entries, complete or not."""
    return {path.name for path in folder.iterdir()} - {".locks", ".beside"}


def test_an_entry_is_built_once_and_found_by_an_equal_key(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_info(caplog)
    with Store(folder) as store:
        entry = store.get(key(), writes(engine=b"plan"))
        assert store.get(Key(**key().fields()), forbidden) == store.find(key()) == entry
        assert entry == folder / f"unet-tensorrt-fp16-{key().digest[:16]}"
        assert store.read(entry, "engine") == b"plan"
    with Store(folder) as another:
        assert another.get(key(), forbidden) == entry
    assert log_lines(caplog) == ["unet: building tensorrt fp16 for the first time"]


def test_the_digest_depends_on_every_field_and_not_on_the_order_of_parts() -> None:
    plain = Key(network="a", kind="onnx", precision="fp16", parts={"x": "1", "y": "2"})
    assert plain.digest == Key(network="a", kind="onnx", precision="fp16", parts={"y": "2", "x": "1"}).digest
    others = [
        Key(network="b", kind="onnx", precision="fp16", parts=plain.parts),
        Key(network="a", kind="openvino", precision="fp16", parts=plain.parts),
        Key(network="a", kind="onnx", precision="fp32", parts=plain.parts),
        Key(network="a", kind="onnx", precision="fp16", parts={"x": "1", "y": "3"}),
        Key(network="a", kind="onnx", precision="fp16", parts={"x": "12"}),
    ]
    assert len({one.digest for one in [plain, *others]}) == 6


def test_a_rebuild_says_what_changed_since_the_newest(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    record_info(caplog)
    with Store(folder) as store:
        store.get(key("w"), writes(engine=b"1"))
        store.get(key("w", kind="onnx"), writes(graph=b"2"))
        store.get(key("v"), writes(engine=b"3"))
        store.get(key("v", shapes="t", device="H100"), writes(engine=b"4"))
    assert log_lines(caplog) == [
        "unet: building tensorrt fp16 for the first time",
        "unet: building onnx fp16 for the first time",
        "unet: weights changed, building tensorrt fp16 again",
        "unet: shapes and device changed, building tensorrt fp16 again",
    ]


@pytest.mark.parametrize("name", ["engine", "weights.data"])
@pytest.mark.parametrize("at", [0, -1])
def test_one_altered_byte_is_rejected(folder: Path, name: str, at: int) -> None:
    with Store(folder) as store:
        entry = store.get(key(), writes(**{"engine": b"plan", "weights.data": bytes(9000)}))
        flip(entry / name, at)
        for use in (lambda: store.find(key()), lambda: store.get(key(), forbidden)):
            with pytest.raises(ExportError) as refused:
                use()
            assert str(refused.value) == (
                f"{entry / name} was altered; delete the folder {entry} to have it rebuilt"
            )
        with pytest.raises(ExportError, match="was altered"):
            store.read(entry, name)


def alter_hash(entry: dict[str, Any]) -> None:
    entry["files"]["engine"]["sha256"] = "0" * 64


def alter_size(entry: dict[str, Any]) -> None:
    entry["files"]["engine"]["bytes"] += 1


def alter_key(entry: dict[str, Any]) -> None:
    entry["key"]["parts"]["weights"] = "other"


def drop_files(entry: dict[str, Any]) -> None:
    del entry["files"]


@pytest.mark.parametrize("alter", [alter_hash, alter_size, alter_key, drop_files])
def test_an_altered_entry_file_is_rejected(folder: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    with Store(folder) as store:
        entry = store.get(key(), writes(engine=b"plan"))
        content = json.loads((entry / "entry.json").read_text())
        alter(content)
        (entry / "entry.json").write_text(json.dumps(content))
        with pytest.raises(ExportError, match="delete the folder"):
            store.find(key())


def remove(path: Path) -> None:
    path.unlink()


def add(path: Path) -> None:
    path.with_name("stranger").touch()


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["engine", "entry.json"])
@pytest.mark.parametrize("spoil", [remove, add, truncate, link, replace_by_folder])
def test_a_folder_that_differs_from_the_build_is_rejected(
    folder: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    with Store(folder) as store:
        spoil(store.get(key(), writes(engine=b"plan")) / name)
        with pytest.raises(ExportError, match="delete the folder"):
            store.find(key())


def test_a_link_instead_of_an_entry_is_rejected(folder: Path, tmp_path: Path) -> None:
    with Store(folder) as store:
        entry = store.get(key(), writes(engine=b"plan"))
        entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ExportError, match="is a link"):
            store.find(key())


def test_a_deleted_entry_is_rebuilt(folder: Path) -> None:
    with Store(folder) as store:
        entry = store.get(key(), writes(engine=b"plan"))
        flip(entry / "engine", 0)
        for path in entry.iterdir():
            path.unlink()
        entry.rmdir()
        assert store.read(store.get(key(), writes(engine=b"again")), "engine") == b"again"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(folder: Path, error: BaseException) -> None:
    def fail(part: Path) -> None:
        (part / "engine").write_bytes(b"half")
        raise error

    with Store(folder) as store:
        with pytest.raises(type(error)) as raised:
            store.get(key(), fail)
        assert raised.value.args[:2] == error.args[:2]
        if isinstance(raised.value, OSError):
            assert key().name in raised.value.filename
        assert content(folder) == set()
        assert store.read(store.get(key(), writes(engine=b"whole")), "engine") == b"whole"


def build_in_another_process(folder: Path, lines: Any) -> None:
    logging.basicConfig(level=logging.INFO, handlers=[QueueHandler(lines)], format="%(message)s")
    with Store(folder) as store:
        lines.put(store.read(store.get(key(), writes(engine=b"second")), "engine"))


def test_one_of_two_processes_builds_while_the_other_waits(folder: Path) -> None:
    lines = SPAWN.Queue()
    other = SPAWN.Process(target=build_in_another_process, args=(folder, lines))

    def build(part: Path) -> None:
        other.start()
        line = lines.get(timeout=60).getMessage()
        assert line == "unet: waiting for another process to build tensorrt fp16"
        (part / "engine").write_bytes(b"first")

    with Store(folder) as store:
        assert store.read(store.get(key(), build), "engine") == b"first"
    assert lines.get(timeout=60) == b"first"
    other.join()


def build_half(folder: Path, half_built: Any) -> None:
    def build(part: Path) -> None:
        (part / "engine").write_bytes(b"half")
        half_built.set()
        signal.pause()

    Store(folder).get(key(), build)


def test_leftovers_of_a_killed_builder_are_ignored_and_removed(folder: Path) -> None:
    half_built = SPAWN.Event()
    builder = SPAWN.Process(target=build_half, args=(folder, half_built))
    builder.start()
    assert half_built.wait(60)
    with Store(folder) as store:
        store.get(key(kind="onnx"), writes(graph=b""))
        part = f".part-{key().name}"
        assert content(folder) == {key(kind="onnx").name, part}, "an unfinished build was touched"
        builder.kill()
        builder.join()
        assert store.find(key()) is None
        store.get(key(kind="onnx"), forbidden)
        assert content(folder) == {key(kind="onnx").name}

        (folder / part).mkdir()
        (folder / part / "stale").touch()
        entry = store.get(key(), writes(engine=b"whole"))
        assert {path.name for path in entry.iterdir()} == {"engine", "entry.json"}


def fill(folder: Path, *weights: str) -> None:
    """Build entries of 10 kB each, in this order of last use, and release them."""
    with Store(folder) as store:
        for age, one in enumerate(weights):
            entry = store.get(key(one), writes(engine=bytes(10_000)))
            os.utime(entry / "entry.json", (age, age))


def test_the_least_recently_used_entries_are_removed_first(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_info(caplog)
    fill(folder, "a", "b", "c")
    with Store(folder) as store:
        store.find(key("a"))
    caplog.clear()
    with Store(folder, max_bytes=32_000) as store:
        store.get(key("d"), writes(engine=bytes(10_000)))
    assert content(folder) == {key("a").name, key("c").name, key("d").name}
    assert log_lines(caplog)[1:] == [
        f"removed {key('b').name}, the least recently used (0.00 GB), to keep {folder} under 0.00 GB"
    ]


def test_no_entry_in_use_is_removed(folder: Path) -> None:
    fill(folder, "a", "b")
    with Store(folder) as user, Store(folder, max_bytes=1) as store:
        user.find(key("a"))
        store.get(key("c"), writes(engine=bytes(10_000)))
        assert content(folder) == {key("a").name, key("c").name}
        store.get(key("d"), writes(engine=bytes(10_000)))
        assert content(folder) == {key("a").name, key("c").name, key("d").name}
    with Store(folder, max_bytes=1) as store:
        store.get(key("c"), forbidden)
        assert content(folder) == {key("c").name}


def test_derived_files_count_and_are_removed_with_their_entry(folder: Path) -> None:
    fill(folder, "a", "b")
    with Store(folder) as store:
        kept = store.derived_folder(store.get(key("b"), forbidden)) / "kernels"
        (store.derived_folder(store.get(key("a"), forbidden)) / "deep").mkdir()
        (folder / ".beside" / key("a").name / "deep" / "kernels").write_bytes(bytes(50_000))
        kept.write_bytes(b"small")
    os.utime(folder / key("a").name / "entry.json", (0, 0))
    with Store(folder, max_bytes=32_000) as store:
        store.get(key("b"), forbidden)
    assert content(folder) == {key("b").name}
    assert kept.read_bytes() == b"small"
    assert {path.name for path in (folder / ".beside").iterdir()} == {key("b").name}


def test_derived_files_without_an_entry_are_removed_first(folder: Path) -> None:
    fill(folder, "a", "b")
    with Store(folder) as store:
        entry = store.get(key("a"), forbidden)
        (store.derived_folder(entry) / "kernels").write_bytes(bytes(50_000))
        shutil.rmtree(entry)
    with Store(folder, max_bytes=32_000) as store:
        store.get(key("b"), forbidden)
    assert content(folder) == {key("b").name}
    assert not list((folder / ".beside").iterdir())
