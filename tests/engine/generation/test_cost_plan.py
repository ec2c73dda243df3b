"""The plan follows from its sample."""

import re
from pathlib import Path

import pytest

from engine.cli.main import main
from engine.generate import command
from engine.generation.cost_plan import Sample

SAMPLE = Sample(
    load_seconds=5.0,
    first_seconds=20.0,
    later_seconds=(9.0, 10.0, 12.0),
    shard_bytes=1e6,
    images=800.0,
    acceptance=0.5,
    rss=2**30,
)


@pytest.mark.parametrize(
    ("shards", "workers", "seconds"), [(1, 1, 25.0), (10, 1, 115.0), (10, 4, 45.0), (10, 10, 25.0)]
)
def test_workers_share_the_shards(shards: int, workers: int, seconds: float) -> None:
    """Loading and the first shard take 25 s, each further shard of the busiest worker 10 s."""
    assert SAMPLE.wall_seconds(shards, workers) == pytest.approx(seconds)


def test_the_command_prints_a_row_for_each_number_of_workers(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--recipe", str(recipe), "--plan", "--shards", "100", "--workers", "3", "--threads", "1"]
    assert main(command, arguments) == 0
    out = capsys.readouterr().out
    assert re.search(r"100 shards: 1,\d00 images, 0\.\d\d GB, \d\d% of the variations accepted", out)
    assert "classes: all 3 get images, 200.0 synthesized each on average" in out
    rows = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert rows == ["1", "2", "3", "4", "8", "16", "32", "64"]
    assert "core-hours" in out
    assert "measured here (cpu, torch fp32, 1 thread): networks loaded in" in out


def test_a_sample_that_fails_says_why(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command, ["--recipe", str(recipe), "--plan", "--synthesize.lr", "1e38"]) == 1
    assert "the sample failed: synthesize: no finite loss" in capsys.readouterr().err
