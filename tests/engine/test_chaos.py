"""Generation and distillation that are killed at random moments and resumed give the same files.

CHAOS_KILLS is the number of kills of each. CHAOS_SEED decides the moments; by default it is the date. The
head of the test report shows it.
"""

import hashlib
import itertools
import random
import shutil
from pathlib import Path

import pytest

from engine.bank.verify import verify
from tests.commands import CommandServer
from tests.conftest import CHAOS_KILLS, CHAOS_SEED
from tests.tiny_recipe import write_recipe

SHARDS = 8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    schedule = {"rounds": 1, "kd_steps": 40, "checkpoint_steps": 4}
    distill = {"views": 2, "mixup": 0.5, "w_ce": 0.0, "w_feature": 0.0}
    return str(write_recipe(tmp_path_factory.mktemp("recipe"), schedule=schedule, distill=distill))


def run(commands: CommandServer, module: str, arguments: list[str]) -> float:
    """Run the command undisturbed; return the seconds that it took."""
    command = commands.start(module, arguments)
    _, error = command.communicate()
    assert command.returncode == 0, error
    return command.seconds


@pytest.fixture(scope="module")
def bank(
    commands: CommandServer, recipe: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """Return an undisturbed bank, and the seconds that it took."""
    out = tmp_path_factory.mktemp("banks") / "undisturbed"
    arguments = ["--recipe", recipe, "--out", str(out), "--shards", str(SHARDS)]
    return out, run(commands, "engine.generate", arguments)


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.timeout(300 + 10 * CHAOS_KILLS)
def test_generation_survives_kills(
    commands: CommandServer, recipe: str, bank: tuple[Path, float], tmp_path: Path
) -> None:
    undisturbed, seconds = bank
    draw, kills, tries = random.Random(CHAOS_SEED), 0, itertools.count()
    while kills < CHAOS_KILLS:
        out = tmp_path / str(next(tries))
        arguments = ["--recipe", recipe, "--out", str(out), "--shards", str(SHARDS)]
        kills += commands.until_done("engine.generate", arguments, draw=draw, seconds=seconds)
        assert hashes(out) == hashes(undisturbed)
        assert verify(str(out)) == []


@pytest.mark.slow
@pytest.mark.timeout(300 + 10 * CHAOS_KILLS)
def test_distillation_survives_kills(
    commands: CommandServer, bank: tuple[Path, float], tmp_path: Path
) -> None:
    student, draw, kills, tries = "student.safetensors", random.Random(CHAOS_SEED + 1), 0, itertools.count()
    arguments = ["--bank", str(bank[0]), "--runtime", "torch", "--compute.threads", "1"]
    arguments += ["--compute.precision", "fp32", "--out"]
    seconds = run(commands, "engine.distill", [*arguments, str(tmp_path / "undisturbed")])
    expected, files = (tmp_path / "undisturbed" / student).read_bytes(), hashes(bank[0])
    while kills < CHAOS_KILLS:
        out = tmp_path / str(next(tries))
        shutil.rmtree(bank[0] / "views")
        kills += commands.until_done("engine.distill", [*arguments, str(out)], draw=draw, seconds=seconds)
        assert (out / student).read_bytes() == expected
        assert hashes(bank[0]) == files
