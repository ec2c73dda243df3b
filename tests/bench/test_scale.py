"""The arithmetic of the scale bench, and a generation with its observer."""

from pathlib import Path

import pytest

from bench.scale import respawn
from bench.scale.generation import Commits, generation, slope
from bench.scale.throughput import seconds_per_image
from engine.cli.resolve import resolve
from engine.generation.messages import Job, Lost, Ready
from engine.generation.provenance import bank_header
from engine.generation.workers.in_process import InProcessPool
from engine.generation.workers.processes import ProcessPool
from engine.recipes.load import load_recipe
from tests.tiny_recipe import write_recipe


def test_the_pace_counts_from_each_workers_first_shard() -> None:
    commits = Commits(images_per_shard=10.0)
    commits.times["a"] = [5.0, 6.0, 7.0]  # one shard per second
    commits.times["b"] = [9.0, 11.0]  # one shard per two seconds
    commits.times["c"] = [8.0]
    assert commits.images_per_second() == pytest.approx(15.0)


def test_the_slope_fits_a_line_after_the_warm_up() -> None:
    commits = Commits()
    commits.rss["a"] = [1_000, 0, *(5_000 + 30 * shard for shard in range(10))]
    commits.rss["b"] = [1_000, 0, *(9_000 + 10 * shard for shard in range(10))]
    assert slope(commits, 2) == pytest.approx(20.0)


def test_seconds_per_image_ignore_the_first_shard() -> None:
    commits = Commits(images_per_shard=4.0)
    commits.times["a"] = [7.0, 9.0, 11.0, 13.0, 99.0]
    assert seconds_per_image(commits, 4) == pytest.approx(0.5)


def test_every_shard_of_a_generation_is_recorded(tmp_path: Path) -> None:
    recipe = resolve(load_recipe(str(write_recipe(tmp_path))))
    made = generation(recipe, InProcessPool, 3)
    assert [len(times) for times in made.times.values()] == [3]
    assert made.images_per_shard == 24
    assert all(held > 50e6 for held in made.rss["worker 1"])


def test_a_respawn_that_cannot_load_its_networks_ends_the_bench(tmp_path: Path) -> None:
    recipe = resolve(load_recipe(str(write_recipe(tmp_path))))
    job = Job(recipe=recipe, url=str(tmp_path / "bank"), header=bank_header(recipe))
    with ProcessPool(job, 1) as pool:
        pool.resize(1)
        respawn._until(pool, Ready)
        (tmp_path / "teacher.safetensors").unlink()
        pool.workers[0].kill()
        respawn._until(pool, Lost)
        pool.resize(1)
        with pytest.raises(RuntimeError, match=r"expected Ready, got LoadFailed.*teacher\.safetensors"):
            respawn._until(pool, Ready)
