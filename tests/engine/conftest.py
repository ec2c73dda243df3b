"""The tiny recipe that most tests of the engine run."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_recipe import write_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return its file; a test that changes it or its networks writes its own."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may get larger than 20,000 bytes, which fails as a full disk does."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)
