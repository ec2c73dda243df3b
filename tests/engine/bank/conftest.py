"""Folders of a file system in memory."""

from collections.abc import Iterator
from uuid import uuid4

import pytest


@pytest.fixture
def memory_url() -> Iterator[str]:
    import fsspec

    path = f"/{uuid4().hex}"
    yield f"memory:/{path}/bank"
    fsspec.filesystem("memory").rm(path, recursive=True)
