"""A file that replaces another is on the disk before it has the other's name."""

import os
from pathlib import Path

import pytest

from engine.files import replacing


def test_contents_then_name_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another order a machine that loses power may keep an empty file under the name."""
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> None:
        done.append(f"rename {self.name}")
        rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with replacing(tmp_path / "manifest.json", writer="one") as part:
        part.write_text("new")
    assert done == ["fsync .manifest.onepart.json", "rename .manifest.onepart.json", f"fsync {tmp_path.name}"]
    assert (tmp_path / "manifest.json").read_text() == "new"


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "manifest.json") as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"manifest.json": "old"}
