"""A bank of more classes than a batch has images, made by workers that are killed."""

import random
from pathlib import Path

import numpy as np
import pytest

from engine.bank.reader import BankReader
from engine.generation.monitor.status import status
from tests.commands import CommandServer
from tests.conftest import CHAOS_SEED
from tests.engine.generation.workers.generations import end, kill_at_random, same_bank, until_made
from tests.many_classes import write_many_classes

SHARDS = ("--shards", "32")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_many_classes(tmp_path_factory.mktemp("recipe"), classes=1000, batch_size=64)


@pytest.mark.slow
def test_every_class_comes_twice_if_workers_are_killed(
    recipe: Path, commands: CommandServer, tmp_path: Path
) -> None:
    def start(out: Path, *arguments: str):
        settings = ["--recipe", str(recipe), "--out", str(out), "--threads", "1"]
        return commands.start("engine.generate", [*settings, *arguments])

    alone, out = tmp_path / "alone", tmp_path / "bank"
    end(start(alone, *SHARDS))
    running = start(out, "--shards", "16", "--workers", "2")
    until_made(running, out, 1)
    kill_at_random(running, "worker ", 1, random.Random(CHAOS_SEED), longest_pause=0.3)
    until_made(running, out, 4)
    running.kill()
    running.communicate()
    end(start(out, "--shards", "16", "--resume"))
    assert "all 1,000 classes have images" in status(str(out))  # 16 shards of 64 images
    end(start(out, *SHARDS, "--workers", "2", "--resume"))
    assert same_bank(out, alone)
    bank = BankReader.open(str(out))
    labels = np.concatenate([bank.rows(number).labels for number in bank.numbers])
    assert np.bincount(labels, minlength=1000).tolist().count(2) == 952
    assert set(np.bincount(labels, minlength=1000)) == {2, 3}


def test_a_bank_with_too_few_shards_says_so_everywhere(
    recipe: Path, commands: CommandServer, tmp_path: Path
) -> None:
    out = tmp_path / "bank"
    running = commands.start(
        "engine.generate", ["--recipe", str(recipe), "--out", str(out), "--threads", "1"]
    )
    out_text, _ = running.communicate()
    assert "warning: 64 synthesized images cover 64 of 1,000 classes" in out_text
    assert "(warning: 936 of 1,000 classes have no images)" in status(str(out))
    assert "Warning: 936 of 1,000 classes have no images." in (out / "README.md").read_text(encoding="utf-8")
