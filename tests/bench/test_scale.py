"""The arithmetic of the bench of scale, and a generation under its observer."""

from pathlib import Path

import pytest

from bench.scale import respawn
from bench.scale.generation import Commits, generation, slope
from bench.scale.shards import seconds_an_image
from engine.preparing import settled_here
from engine.provenance import bank_header
from engine.recipe import load_recipe
from engine.workers.events import Lost, Ready
from engine.workers.here import HereCrew
from engine.workers.job import Job
from engine.workers.pool import PoolCrew
from tests.tiny_recipe import write_recipe


def test_the_pace_is_that_after_each_workers_first_shard() -> None:
    commits = Commits(images_a_shard=10.0)
    commits.times["a"] = [5.0, 6.0, 7.0]  # a shard a second
    commits.times["b"] = [9.0, 11.0]  # one in two
    commits.times["c"] = [8.0]
    assert commits.images_a_second() == pytest.approx(15.0)


def test_the_slope_is_that_of_a_line_after_the_warm_up() -> None:
    commits = Commits()
    commits.rss["a"] = [1_000, 0, *(5_000 + 30 * shard for shard in range(10))]
    commits.rss["b"] = [1_000, 0, *(9_000 + 10 * shard for shard in range(10))]
    assert slope(commits, 2) == pytest.approx(20.0)


def test_seconds_an_image_leave_the_first_shard_out() -> None:
    commits = Commits(images_a_shard=4.0)
    commits.times["a"] = [7.0, 9.0, 11.0, 13.0, 99.0]
    assert seconds_an_image(commits, 4) == pytest.approx(0.5)


def test_every_shard_of_a_generation_is_seen(tmp_path: Path) -> None:
    recipe = settled_here(load_recipe(str(write_recipe(tmp_path))))
    made = generation(recipe, lambda job: HereCrew(job), 3)
    assert [len(times) for times in made.times.values()] == [3]
    assert made.images_a_shard == 24
    assert all(held > 50e6 for held in made.rss["worker 1"])


def test_a_respawn_that_cannot_load_its_networks_ends_the_bench(tmp_path: Path) -> None:
    recipe = settled_here(load_recipe(str(write_recipe(tmp_path))))
    job = Job(recipe=recipe, url=str(tmp_path / "bank"), header=bank_header(recipe))
    with PoolCrew(job, 1) as crew:
        crew.resize(1)
        respawn._until(crew, Ready)
        (tmp_path / "teacher.safetensors").unlink()
        crew.members[0].kill()
        respawn._until(crew, Lost)
        crew.resize(1)
        with pytest.raises(RuntimeError, match=r"expected Ready, got Unable.*teacher\.safetensors"):
            respawn._until(crew, Ready)
