"""`--batch auto`: measured once, kept, and a number in all that is recorded."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from engine import generate, run
from engine.auto_batch import timing
from engine.auto_batch.auto import with_default_batches
from engine.auto_batch.settling import settled_batches
from engine.bank.reader import BankReader
from engine.cli import main
from engine.compute import resolved
from engine.recipe import Recipe, load_recipe
from tests.tiny_recipe import write_recipe

AUTO = {"augment.micro_batch": "auto", "filter.micro_batch": "auto"}


@pytest.fixture(scope="module")
def path(recipe: Path) -> Path:
    return recipe


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which size wins is no matter here."""
    monkeypatch.setattr(timing, "SECONDS", 0.02)


def recipe_of(path: Path, engines: Path, **changes: object) -> Recipe:
    recipe = load_recipe(str(path), {"compute.engines": str(engines), **AUTO, **changes})
    return replace(recipe, compute=resolved(recipe.compute))


def test_auto_is_measured_once_and_said(path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = recipe_of(path, tmp_path / "engines")
    found = settled_batches(recipe, said.append)
    assert found.augment.micro_batch in (8, 16)  # a shard has 18 variations
    assert found.filter.micro_batch in (8, 16)
    assert replace(found, augment=recipe.augment, filter=recipe.filter) == recipe
    for line, stage in zip(said, ("augment", "filter"), strict=True):
        size = getattr(found, stage).micro_batch
        assert re.fullmatch(rf"{stage}: batches of {size} \(\d+ img/s\), measured", line)
    again: list[str] = []
    assert settled_batches(recipe, again.append) == found
    assert again == [line.replace("measured", "from the cache") for line in said]


def test_a_cache_that_is_no_good_is_measured_again(path: Path, tmp_path: Path) -> None:
    recipe = recipe_of(path, tmp_path)
    settled_batches(recipe, lambda _: None)
    files = sorted(tmp_path.glob("batch-*.json"))
    assert len(files) == 2
    before = files[0].read_bytes()
    files[0].write_bytes(before[: len(before) // 2])
    said: list[str] = []
    settled_batches(recipe, said.append)
    assert [line.rpartition(", ")[2] for line in said] == ["measured", "from the cache"]
    assert '"measured_for"' in files[0].read_text()


def test_another_device_count_or_network_is_measured_anew(path: Path, tmp_path: Path) -> None:
    settled_batches(recipe_of(path, tmp_path), lambda _: None)
    for change in ({"compute.threads": 2}, {"augment.steps": 1}, {"compute.runtime_precision": "bf16"}):
        said: list[str] = []
        settled_batches(recipe_of(path, tmp_path, **change), said.append)
        assert all(line.endswith("measured") for line in said), change
        assert len(said) == 2


def test_numbers_are_left_alone_and_nothing_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "assemble", None)
    recipe = load_recipe(str(path))
    assert settled_batches(recipe, pytest.fail) == recipe


def test_one_of_the_two_may_be_auto(path: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found = settled_batches(recipe_of(path, tmp_path, **{"filter.micro_batch": 5}), said.append)
    assert found.filter.micro_batch == 5
    assert [line.partition(":")[0] for line in said] == ["augment"]


def test_without_variations_auto_is_the_default(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, augment={"method": "none", "class_condition": "none", "guidance_scale": 1})
    found = settled_batches(recipe_of(path, tmp_path), pytest.fail)
    assert (found.augment.micro_batch, found.filter.micro_batch) == (32, 256)


def test_memory_that_ends_ends_the_search(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = timing.filter_variations

    def filter_variations(sources: object, variations: torch.Tensor, *rest: Any) -> object:
        micro_batch = rest[-1]
        limited = micro_batch.over(len(variations), lambda piece: holds(piece.stop - piece.start, 6))
        list(limited)
        return own(sources, variations, *rest)

    monkeypatch.setattr(timing, "filter_variations", filter_variations)
    found = settled_batches(recipe_of(path, tmp_path, **{"augment.micro_batch": 8}), lambda _: None)
    assert found.filter.micro_batch == 4


def holds(count: int, most: int) -> None:
    if count > most:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_host_without_memory_to_spare_keeps_the_smallest(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.auto_batch.host_memory.HostMemory.fits", lambda *_: False)
    found = settled_batches(recipe_of(path, tmp_path), lambda _: None)
    assert (found.augment.micro_batch, found.filter.micro_batch) == (8, 8)


@pytest.mark.slow
def test_a_bank_and_a_run_record_the_numbers_and_go_on(path: Path, tmp_path: Path) -> None:
    common = ["--recipe", str(path), "--batch", "auto", "--compute.engines", str(tmp_path / "engines")]
    bank, folder = tmp_path / "bank", tmp_path / "run"
    assert main(generate.command, [*common, "--out", str(bank)]) == 0
    recorded = BankReader.open(str(bank)).header.recipe
    assert recorded["augment"]["micro_batch"] in (8, 16)
    assert recorded["filter"]["micro_batch"] in (8, 16)
    assert main(generate.command, [*common, "--out", str(bank), "--shards", "2", "--resume"]) == 0
    assert main(run.command, [*common, "--out", str(folder)]) == 0
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["augment"]["micro_batch"] == recorded["augment"]["micro_batch"]
    assert main(run.command, [*common, "--out", str(folder), "--resume"]) == 0


def test_commands_that_make_no_images_take_the_default(path: Path, tmp_path: Path) -> None:
    found = with_default_batches(recipe_of(path, tmp_path, **{"augment.micro_batch": 7}))
    assert (found.augment.micro_batch, found.filter.micro_batch) == (7, 256)
