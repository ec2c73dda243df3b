"""A recipe that takes seconds, and the bank that an undisturbed command makes of it."""

from pathlib import Path

import pytest

from tests.commands import Command, CommandServer
from tests.engine.generation.workers.generations import Start, end
from tests.tiny_recipe import write_recipe

SHARDS = 8


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), synthesize={"steps": 20})


@pytest.fixture(scope="session")
def start(recipe: Path, commands: CommandServer) -> Start:
    def start(out: Path | str, *arguments: str) -> Command:
        common = ["--recipe", str(recipe), "--out", str(out), "--threads", "1"]
        return commands.start("engine.generate", [*common, *arguments])

    return start


@pytest.fixture(scope="session")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("banks") / "undisturbed"
    end(start(out, "--shards", str(SHARDS)))
    return out
