"""`--batch auto`: measured once, cached, and recorded as a number."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from engine import generate, networks, run
from engine.bank.reader import BankReader
from engine.cli.main import main
from engine.cli.resolve import resolve_compute
from engine.config.recipe import Recipe, with_default_batches
from engine.generation.auto_batch import measure
from engine.generation.auto_batch.resolve import resolve_micro_batches
from engine.recipes.load import load_recipe
from tests.logs import log_lines, record_info
from tests.tiny_recipe import write_recipe

AUTO = {"augment.micro_batch": "auto", "filter.micro_batch": "auto"}


@pytest.fixture(scope="module")
def path(recipe: Path) -> Path:
    return recipe


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do not depend on which size wins."""
    monkeypatch.setattr(measure, "SECONDS", 0.02)


def resolve_and_log(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> tuple[Recipe, list[str]]:
    """Return the resolved recipe, and the log lines about sizes."""
    caplog.clear()
    record_info(caplog)
    found = resolve_micro_batches(recipe)
    return found, [line for line in log_lines(caplog) if "batches of" in line]


def recipe_of(path: Path, engines: Path, **changes: object) -> Recipe:
    recipe = load_recipe(str(path), {"compute.engines": str(engines), **AUTO, **changes})
    return replace(recipe, compute=resolve_compute(recipe.compute))


def test_auto_is_measured_once_and_logged(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(path, tmp_path / "engines")
    found, logged = resolve_and_log(recipe, caplog)
    assert found.augment.micro_batch in (8, 16)  # a shard has 18 variations
    assert found.filter.micro_batch in (8, 16)
    assert replace(found, augment=recipe.augment, filter=recipe.filter) == recipe
    for line, stage in zip(logged, ("augment", "filter"), strict=True):
        size = getattr(found, stage).micro_batch
        assert re.fullmatch(rf"{stage}: batches of {size} \(\d+ img/s\), measured", line)
    same, again = resolve_and_log(recipe, caplog)
    assert same == found
    assert again == [line.replace("measured", "from the cache") for line in logged]


def test_a_damaged_cache_is_measured_again(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(path, tmp_path)
    resolve_micro_batches(recipe)
    files = sorted(tmp_path.glob("batch-*.json"))
    assert len(files) == 2
    before = files[0].read_bytes()
    files[0].write_bytes(before[: len(before) // 2])
    _, logged = resolve_and_log(recipe, caplog)
    assert [line.rpartition(", ")[2] for line in logged] == ["measured", "from the cache"]
    assert '"measured_for"' in files[0].read_text()


def test_other_threads_steps_or_precision_are_measured_again(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_micro_batches(recipe_of(path, tmp_path))
    for change in ({"compute.threads": 2}, {"augment.steps": 1}, {"compute.runtime_precision": "bf16"}):
        _, logged = resolve_and_log(recipe_of(path, tmp_path, **change), caplog)
        assert all(line.endswith("measured") for line in logged), change
        assert len(logged) == 2


def test_numbers_are_left_alone_and_nothing_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "load", None)
    recipe = load_recipe(str(path))
    assert resolve_micro_batches(recipe) == recipe


def test_one_of_the_two_may_be_auto(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, logged = resolve_and_log(recipe_of(path, tmp_path, **{"filter.micro_batch": 5}), caplog)
    assert found.filter.micro_batch == 5
    assert [line.partition(":")[0] for line in logged] == ["augment"]


def test_without_variations_auto_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "load", None)
    path = write_recipe(tmp_path, augment={"method": "none", "class_condition": "none", "guidance_scale": 1})
    found = resolve_micro_batches(recipe_of(path, tmp_path))
    assert (found.augment.micro_batch, found.filter.micro_batch) == (32, 256)


def test_the_search_ends_if_memory_runs_out(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = measure.filter_variations

    def filter_variations(sources: object, variations: torch.Tensor, *rest: Any) -> object:
        micro_batch = rest[-1]
        limited = micro_batch.over(len(variations), lambda piece: require_fit(piece.stop - piece.start, 6))
        list(limited)
        return original(sources, variations, *rest)

    monkeypatch.setattr(measure, "filter_variations", filter_variations)
    found = resolve_micro_batches(recipe_of(path, tmp_path, **{"augment.micro_batch": 8}))
    assert found.filter.micro_batch == 4


def require_fit(count: int, most: int) -> None:
    if count > most:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_host_without_memory_to_spare_keeps_the_smallest(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.generation.auto_batch.measure.HostMemory.fits", lambda *_: False)
    found = resolve_micro_batches(recipe_of(path, tmp_path))
    assert (found.augment.micro_batch, found.filter.micro_batch) == (8, 8)


@pytest.mark.slow
def test_a_bank_and_a_run_record_the_numbers_and_resume(path: Path, tmp_path: Path) -> None:
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


def test_commands_that_generate_no_images_use_the_default(path: Path, tmp_path: Path) -> None:
    found = with_default_batches(recipe_of(path, tmp_path, **{"augment.micro_batch": 7}))
    assert (found.augment.micro_batch, found.filter.micro_batch) == (7, 256)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_both_searches_load_the_networks_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    loads: list[Recipe] = []
    load = networks.load

    def counting(recipe: Recipe, device: torch.device, **options: Any) -> networks.LoadedNetworks:
        loads.append(recipe)
        return load(recipe, device, **options)

    monkeypatch.setattr(networks, "load", counting)
    opens: list[int] = []
    original = networks.open

    def opening(*arguments: Any, **options: Any) -> networks.OpenNetworks:
        opens.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(networks, "open", opening)
    resolve_micro_batches(recipe_of(path, tmp_path, **{"compute.runtime": runtime}))
    assert len(loads) == 1
    assert (len(opens) > 1) == (runtime == "openvino")
