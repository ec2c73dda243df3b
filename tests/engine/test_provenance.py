"""Which settings decide a bank's images, so that it can be continued with the same ones only."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from engine.bank.writer import BankWriter
from engine.compute import ComputeConfig
from engine.errors import UserError
from engine.provenance import DECIDING_COMPUTE, bank_header, weights_of
from engine.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def recipe(recipe: Path) -> Recipe:
    return load_recipe(str(recipe))


def test_of_compute_all_decides_but_where_engines_are_kept_and_how_steps_are_launched() -> None:
    others = {field.name for field in fields(ComputeConfig)}.difference(DECIDING_COMPUTE)
    assert others == {"engines", "engines_gb", "cuda_graphs"}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"onnx_provider": "tensorrt"}, "compute.onnx_provider: 'cuda' -> 'tensorrt'"),
        ({"runtime_precision": "fp32"}, "compute.runtime_precision: 'fp16' -> 'fp32'"),
        ({"engines": "elsewhere", "cuda_graphs": False}, None),
    ],
)
def test_a_bank_made_on_a_gpu_goes_on_as_it_was_begun(
    change: dict[str, Any], difference: str | None, recipe: Recipe, tmp_path: Path
) -> None:
    begun = {"device": "cuda", "runtime": "onnxruntime", "runtime_precision": "fp16", "onnx_provider": "cuda"}
    first = replace(recipe, compute=ComputeConfig(**begun))
    then = replace(recipe, compute=ComputeConfig(**(begun | change)))
    BankWriter.open(str(tmp_path), bank_header(first), resume=False, say=pytest.fail).close()
    if difference is None:
        BankWriter.open(str(tmp_path), bank_header(then), resume=True, say=pytest.fail).close()
        return
    with pytest.raises(UserError, match=difference):
        BankWriter.open(str(tmp_path), bank_header(then), resume=True, say=pytest.fail)


def test_the_part_of_the_teachers_file_decides(recipe: Recipe, tmp_path: Path) -> None:
    named = replace(recipe, teacher=replace(recipe.teacher, weights_key="ema"))
    BankWriter.open(str(tmp_path), bank_header(recipe), resume=False, say=pytest.fail).close()
    with pytest.raises(UserError, match=r"teacher\.weights_key: None -> 'ema'"):
        BankWriter.open(str(tmp_path), bank_header(named), resume=True, say=pytest.fail)


def test_the_hash_of_weights_in_several_files_is_of_all_of_them(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "part.safetensors").write_bytes(b"one")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"fc.weight": "part.safetensors"}}')
    recipe = replace(recipe, teacher=replace(recipe.teacher, weights=str(index)))
    before = weights_of(recipe)["teacher"]["sha256"]
    (tmp_path / "part.safetensors").write_bytes(b"two")
    assert weights_of(recipe)["teacher"]["sha256"] != before
