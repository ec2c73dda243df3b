"""The tiny recipe that most tests of the engine run."""

from pathlib import Path

import pytest

from tests.tiny_recipe import write_recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return its file; a test that changes it or its networks writes its own."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))
