"""The real Fashion-MNIST files, if this machine has them."""

from pathlib import Path

import pytest

from engine.datasets import fetch


@pytest.mark.parametrize("name", fetch.PAYLOAD_SHA256)
def test_files_are_as_published(fashion_mnist_root: Path, name: str) -> None:
    num_items = 60_000 if name.startswith("train") else 10_000
    bytes_per_item, header = (784, 16) if "images" in name else (1, 8)
    assert len(fetch.read_verified(fashion_mnist_root / name)) == header + num_items * bytes_per_item
