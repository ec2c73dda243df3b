from pathlib import Path

import pytest

from engine.runtime.tensorrt import load_compiled, save_compiled


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kernels.bin"
    assert load_compiled(path) is None
    save_compiled(path, b"first")
    save_compiled(path, b"second")
    assert load_compiled(path) == b"second"


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_one_altered_byte_is_not_loaded(tmp_path: Path, at: int) -> None:
    path = tmp_path / "kernels.bin"
    save_compiled(path, b"kernels")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert load_compiled(path) is None


@pytest.mark.parametrize("length", [0, 10, 35])
def test_a_truncated_file_is_not_loaded(tmp_path: Path, length: int) -> None:
    path = tmp_path / "kernels.bin"
    save_compiled(path, b"kernels")
    path.write_bytes(path.read_bytes()[:length])
    assert load_compiled(path) is None
