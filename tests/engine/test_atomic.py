"""A file that replaces another is on the disk before it has the other's name."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.atomic import replacing
from engine.training import checkpoint


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


def _safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(10_000)}, path)


def _picture(path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "weights.safetensors": _safetensors,
    "picture.png": _picture,
    "plain.bin": lambda path: path.write_bytes(bytes(30_000)),
}


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_whatever_the_library_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    def write() -> None:
        with replacing(path) as part:
            WRITERS[name](part)

    with pytest.raises(OSError, match=f"'{path}'$") as failed:
        write()
    assert failed.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_files")
def test_a_checkpoint_on_a_full_disk_is_named_and_the_last_one_stays(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"step": 1})
    with pytest.raises(OSError, match=r"state\.pt'$"):
        checkpoint.save(tmp_path, {"step": 2, "weight": torch.zeros(10_000)})
    assert checkpoint.load(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
