"""The teacher as it is asked: in the precision of the frozen networks, proved against float32."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine.assembly import Pair, assemble_pair
from engine.cli.resolve import resolve
from engine.distributed import open_accelerator
from engine.recipes.load import load_recipe
from export.parity import compare
from tests.tiny_recipe import write_recipe


def assembled(path: Path, said: list[str], **compute: object) -> Pair:
    settings = {f"compute.{name}": value for name, value in compute.items()}
    recipe = resolve(load_recipe(str(path), settings))
    return assemble_pair(recipe, open_accelerator(recipe.compute), said.append)


def error(pair: Pair) -> float:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = {"logits": pair.teacher(images)}
        return compare(wanted, {"logits": pair.ask_teacher(images)[0]}, "fp32").relative_error


def test_torch_asks_the_teacher_in_the_precision_of_the_frozen_networks(tmp_path: Path) -> None:
    path, said = write_recipe(tmp_path), []
    errors = {
        (training, frozen): error(assembled(path, said, precision=training, runtime_precision=frozen))
        for training in ("bf16", "fp32")
        for frozen in ("fp32", "bf16", "auto")
    }
    for training in ("bf16", "fp32"):
        assert errors[training, "fp32"] < 1e-5
        assert errors[training, "bf16"] > 1e-4
        assert errors[training, "auto"] == errors[training, training]
    assert said == []


def test_a_teacher_beyond_fp16_is_asked_in_bf16_aloud(tmp_path: Path) -> None:
    path, said = write_recipe(tmp_path), []
    weights = load_file(tmp_path / "teacher.safetensors")
    weights["conv1.weight"] *= 1e7
    save_file(weights, tmp_path / "teacher.safetensors")
    pair = assembled(path, said, precision="fp32", runtime_precision="fp16")
    assert said == ["teacher: torch fp16 gives numbers that are not finite; taking bf16"]
    assert 1e-4 < error(pair) < 2e-2
