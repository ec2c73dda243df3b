"""The open teacher: in the precision of the frozen networks, checked against float32."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.cli.resolve import resolve
from engine.distributed import open_accelerator
from engine.networks import OpenPair, load_pair, open_pair
from engine.recipes.load import load_recipe
from export.parity import compare
from tests.logs import log_lines
from tests.tiny_recipe import write_recipe


def opened(path: Path, **compute: object) -> OpenPair:
    settings = {f"compute.{name}": value for name, value in compute.items()}
    recipe = resolve(load_recipe(str(path), settings))
    accelerator = open_accelerator(recipe.compute)
    return open_pair(recipe, load_pair(recipe, accelerator.device), accelerator)


def error(pair: OpenPair) -> float:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = {"logits": pair.teacher(images)}
        return compare(wanted, pair.teacher_forward(images=images), "fp32").relative_error


def test_torch_runs_the_teacher_in_the_precision_of_the_frozen_networks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_recipe(tmp_path)
    errors = {
        (training, frozen): error(opened(path, precision=training, runtime_precision=frozen))
        for training in ("bf16", "fp32")
        for frozen in ("fp32", "bf16", "auto")
    }
    for training in ("bf16", "fp32"):
        assert errors[training, "fp32"] < 1e-5
        assert errors[training, "bf16"] > 1e-4
        assert errors[training, "auto"] == errors[training, training]
    assert log_lines(caplog) == []


def test_a_teacher_beyond_fp16_runs_in_bf16_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_recipe(tmp_path)
    weights = load_file(tmp_path / "teacher.safetensors")
    weights["conv1.weight"] *= 1e7
    save_file(weights, tmp_path / "teacher.safetensors")
    pair = opened(path, precision="fp32", runtime_precision="fp16")
    assert log_lines(caplog) == [
        "teacher: torch fp16 gives numbers that are not finite; falling back to bf16"
    ]
    assert 1e-4 < error(pair) < 2e-2
