from pathlib import Path

import pytest

from engine.runtime import compiled


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kernels.bin"
    assert compiled.load(path) is None
    compiled.save(path, b"first")
    compiled.save(path, b"second")
    assert compiled.load(path) == b"second"


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_one_altered_byte_is_not_loaded(tmp_path: Path, at: int) -> None:
    path = tmp_path / "kernels.bin"
    compiled.save(path, b"kernels")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert compiled.load(path) is None


@pytest.mark.parametrize("length", [0, 10, 35])
def test_a_truncated_file_is_not_loaded(tmp_path: Path, length: int) -> None:
    path = tmp_path / "kernels.bin"
    compiled.save(path, b"kernels")
    path.write_bytes(path.read_bytes()[:length])
    assert compiled.load(path) is None
