"""Which settings decide a bank's images: a bank is continued only with the same ones."""

import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from engine.bank.manifest import Header
from engine.bank.merge import by_bank
from engine.bank.writer import BankWriter
from engine.config.compute import ComputeConfig
from engine.config.recipe import Recipe
from engine.errors import UserError
from engine.generation.provenance import (
    CLIP,
    DECIDING_COMPUTE,
    PRIOR,
    bank_header,
    require_same_weights,
    require_teacher_of_bank,
    weights_of,
)
from engine.recipes.load import load_recipe


@pytest.fixture(scope="module")
def recipe(recipe: Path) -> Recipe:
    return load_recipe(str(recipe))


def test_compute_settings_decide_except_the_engine_store_cuda_graphs_and_shared_cores() -> None:
    others = {field.name for field in fields(ComputeConfig)}.difference(DECIDING_COMPUTE)
    assert others == {"engines", "engines_gb", "cuda_graphs", "share_cores"}


@pytest.mark.parametrize(
    ("synthesize", "distill", "difference"),
    [
        ({}, {"flip": False}, "synthesize.flip: True -> False"),
        ({}, {"crop_padding": 0}, "synthesize.crop_padding: 4 -> 0"),
        ({"flip": True, "crop_padding": 4}, {"flip": False, "crop_padding": 0}, None),
        ({"flip": False}, {}, "synthesize.flip: True -> False"),
    ],
    ids=["flip", "crop", "of the student alone", "of the images alone"],
)
def test_the_views_that_images_are_made_by_decide(
    synthesize: dict[str, Any],
    distill: dict[str, Any],
    difference: str | None,
    recipe: Recipe,
    tmp_path: Path,
) -> None:
    then = replace(
        recipe,
        synthesize=replace(recipe.synthesize, **synthesize),
        distill=replace(recipe.distill, **distill),
    )
    BankWriter.open(str(tmp_path), bank_header(recipe), resume=False).close()
    if difference is None:
        BankWriter.open(str(tmp_path), bank_header(then), resume=True).close()
        return
    with pytest.raises(UserError, match=difference):
        BankWriter.open(str(tmp_path), bank_header(then), resume=True)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"onnx_provider": "tensorrt"}, "compute.onnx_provider: 'cuda' -> 'tensorrt'"),
        ({"runtime_precision": "fp32"}, "compute.runtime_precision: 'fp16' -> 'fp32'"),
        ({"engines": "elsewhere", "cuda_graphs": False}, None),
    ],
)
def test_a_bank_made_on_a_gpu_continues_with_the_same_runtime(
    change: dict[str, Any], difference: str | None, recipe: Recipe, tmp_path: Path
) -> None:
    given = {
        "device": "cuda",
        "runtime": "onnxruntime",
        "runtime_precision": "fp16",
        "onnx_provider": "cuda",
    }
    first = replace(recipe, compute=ComputeConfig(**given))
    then = replace(recipe, compute=ComputeConfig(**(given | change)))
    BankWriter.open(str(tmp_path), bank_header(first), resume=False).close()
    if difference is None:
        BankWriter.open(str(tmp_path), bank_header(then), resume=True).close()
        return
    with pytest.raises(UserError, match=difference):
        BankWriter.open(str(tmp_path), bank_header(then), resume=True)


def bank(recipe: Recipe, **facts: Any) -> Header:
    return replace(bank_header(recipe), facts=facts or weights_of(recipe))


def with_teacher(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, teacher=replace(recipe.teacher, **changes))


def test_a_copy_of_the_teacher_under_another_name_is_the_same_teacher(recipe: Recipe, tmp_path: Path) -> None:
    copy = tmp_path / "copied.safetensors"
    shutil.copy(recipe.teacher.weights or "", copy)
    header = bank(recipe)
    require_teacher_of_bank(with_teacher(recipe, weights=str(copy), mean=(0.2,)), "BANK", header)
    copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(
        UserError, match=rf"--bank BANK was made with another teacher: .*{copy} has \w+; restore"
    ):
        require_teacher_of_bank(with_teacher(recipe, weights=str(copy)), "BANK", header)
    assert header.facts["teacher"]["sha256"] == weights_of(recipe)["teacher"]["sha256"]


def test_a_copied_prior_is_the_same_prior(recipe: Recipe, tmp_path: Path) -> None:
    copy = shutil.copytree(recipe.augment.prior, tmp_path / "moved")
    moved = replace(recipe, augment=replace(recipe.augment, prior=str(copy)))
    known, made_with = weights_of(recipe), [asdict(recipe)]
    require_same_weights(moved, known, made_with, whose="--run R", fix="restore it", networks=(PRIOR, CLIP))
    (copy / "extra.json").write_text("{}")
    with pytest.raises(UserError, match=r"--run R was made with another diffusion prior: .*; restore it"):
        require_same_weights(
            moved, known, made_with, whose="--run R", fix="restore it", networks=(PRIOR, CLIP)
        )


def test_of_a_merged_bank_each_teacher_is_compared(recipe: Recipe) -> None:
    facts = weights_of(recipe)
    other = {"teacher": {**facts["teacher"], "sha256": "0" * 64}}
    require_teacher_of_bank(recipe, "BANK", bank(recipe, **by_bank([facts, by_bank([facts, facts])])))
    with pytest.raises(UserError, match="its sha256 was 000000000000"):
        require_teacher_of_bank(recipe, "BANK", bank(recipe, **by_bank([facts, by_bank([other, facts])])))
    unknown = {"teacher": {**facts["teacher"], "sha256": None}}
    require_teacher_of_bank(recipe, "BANK", bank(recipe, **unknown))


def test_a_teacher_with_other_normalization_is_refused(recipe: Recipe) -> None:
    with pytest.raises(
        UserError, match=r"made with teacher\.mean \[0\.2\], but this command has \[0\.5\]; remove"
    ):
        require_teacher_of_bank(with_teacher(recipe, mean=(0.5,)), "BANK", bank(recipe))


def test_the_part_of_the_teachers_file_decides(recipe: Recipe, tmp_path: Path) -> None:
    named = replace(recipe, teacher=replace(recipe.teacher, weights_key="ema"))
    BankWriter.open(str(tmp_path), bank_header(recipe), resume=False).close()
    with pytest.raises(UserError, match=r"teacher\.weights_key: None -> 'ema'"):
        BankWriter.open(str(tmp_path), bank_header(named), resume=True)


def test_the_hash_of_weights_in_several_files_is_of_all_of_them(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "part.safetensors").write_bytes(b"one")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"fc.weight": "part.safetensors"}}')
    recipe = replace(recipe, teacher=replace(recipe.teacher, weights=str(index)))
    before = weights_of(recipe)["teacher"]["sha256"]
    (tmp_path / "part.safetensors").write_bytes(b"two")
    assert weights_of(recipe)["teacher"]["sha256"] != before
