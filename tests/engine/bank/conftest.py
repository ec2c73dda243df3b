"""Banks in fsspec's in-memory file system."""

from collections.abc import Iterator
from uuid import uuid4

import pytest


@pytest.fixture
def memory_url() -> Iterator[str]:
    """Yield the URL of a new bank, and delete it afterwards."""
    import fsspec

    path = f"/{uuid4().hex}"
    yield f"memory:/{path}/bank"
    fsspec.filesystem("memory").rm(path, recursive=True)
