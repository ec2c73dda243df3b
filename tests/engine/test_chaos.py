"""Generation and distillation killed at random moments and resumed end as if nothing had happened."""

import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.bank.verify import verify
from tests.mortal import Mortals, mortals
from tests.tiny_recipe import write_recipe

KILLS = 20
SHARDS = 8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    schedule = {"rounds": 1, "kd_steps": 40, "checkpoint_steps": 4}
    return str(write_recipe(tmp_path_factory.mktemp("recipe"), schedule=schedule))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortals]:
    with mortals(tmp_path_factory.mktemp("logs") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def bank(server: Mortals, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Never disturbed, and the seconds it took."""
    out = tmp_path_factory.mktemp("banks") / "undisturbed"
    ended = server.run("generate", ["--recipe", recipe, "--out", str(out), "--shards", str(SHARDS)])
    assert ended.code == 0
    return out, ended.seconds


def hashes(folder: Path) -> dict[str, str]:
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in visible}


@pytest.mark.slow
def test_generation_survives_kills(
    server: Mortals, recipe: str, bank: tuple[Path, float], tmp_path: Path
) -> None:
    undisturbed, seconds = bank
    draw, kills, tries = random.Random(0), 0, itertools.count()
    while kills < KILLS:
        out = tmp_path / str(next(tries))
        arguments = ["--recipe", recipe, "--out", str(out), "--shards", str(SHARDS)]
        kills += server.until_done("generate", arguments, draw=draw, seconds=seconds)
        assert hashes(out) == hashes(undisturbed)
        assert verify(str(out)) == []


@pytest.mark.slow
def test_distillation_survives_kills(server: Mortals, bank: tuple[Path, float], tmp_path: Path) -> None:
    student, draw, kills, tries = "student.safetensors", random.Random(1), 0, itertools.count()
    arguments = ["--bank", str(bank[0]), "--runtime", "torch", "--out"]
    ended = server.run("distill", [*arguments, str(tmp_path / "undisturbed")])
    assert ended.code == 0
    expected = (tmp_path / "undisturbed" / student).read_bytes()
    while kills < KILLS:
        out = tmp_path / str(next(tries))
        kills += server.until_done("distill", [*arguments, str(out)], draw=draw, seconds=ended.seconds)
        assert (out / student).read_bytes() == expected
