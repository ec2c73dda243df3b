"""Graphs against torch: values at any size, names and types, separate weight files."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from export.onnx import FILE, graph, write_onnx
from export.spec import PRECISIONS, Precision
from tests.export.onnx.graphs import (
    FLOATS,
    HALF,
    TOLERANCE,
    assert_equals_torch,
    floats_into,
    images,
    mixed,
    mixed_spec,
    run,
    spec,
    types,
)

SIZES = [(1, 8, 8), (3, 4, 12), (8, 7, 5), (2, 1, 1)]
"""Batch, height and width; networks are traced with other sizes."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """Export Mixed in each precision."""
    folder = tmp_path_factory.mktemp("mixed")
    for precision in PRECISIONS:
        (folder / precision).mkdir()
        write_onnx(mixed_spec(), precision, folder / precision)
    return {precision: folder / precision / FILE for precision in PRECISIONS}


def run_openvino(path: Path, x: Tensor) -> list[Tensor]:
    from engine.runtime.openvino import core

    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({"x": x.numpy()})
    return [torch.from_numpy(found[index].copy()) for index in range(len(compiled.outputs))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_graph_computes_what_torch_does_at_any_size(
    paths: dict[Precision, Path], precision: Precision, size: tuple[int, int, int]
) -> None:
    batch, *sides = size
    x = images(batch, 3, *sides)
    execute = run_openvino if precision == "bf16" else run  # ONNX Runtime has no bf16 on a CPU
    assert_equals_torch(mixed(), execute(paths[precision], x), x, TOLERANCE[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_are_float32_with_the_names_of_the_spec(
    paths: dict[Precision, Path], precision: Precision
) -> None:
    found = onnx.load(paths[precision]).graph
    assert [value.name for value in found.input] == ["x"]
    assert [value.name for value in found.output] == ["y", "probabilities"]
    assert {v.type.tensor_type.elem_type for v in (*found.input, *found.output)} == {TensorProto.FLOAT}
    dims = found.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "height", "width"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_statistics_are_float32_and_products_are_half(
    paths: dict[Precision, Path], precision: Precision
) -> None:
    found = onnx.load(paths[precision])
    statistics = floats_into(found, "GroupNormalization", "LayerNormalization", "Softmax")
    assert len(statistics) == 3
    assert set().union(*statistics.values()) == {TensorProto.FLOAT}
    products = floats_into(found, "Conv", "MatMul", "Gemm")
    assert products.keys() >= {"Conv", "MatMul"}
    assert set().union(*products.values()) == {HALF[precision]}
    weights = {weight.data_type for weight in found.graph.initializer} & FLOATS
    assert weights == {HALF[precision]}


def test_a_graph_in_fp32_has_no_other_floats(paths: dict[Precision, Path]) -> None:
    assert set(types(onnx.load(paths["fp32"])).values()) & FLOATS == {TensorProto.FLOAT}


class Wide(nn.Module):
    """A module whose weights are larger than the rest of its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 300, 5, padding=2), nn.Conv2d(300, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.narrow(self.wide(x)),)


def test_large_weights_go_to_a_separate_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Wide()
    num_bytes = sum(weight.nbytes for weight in module.parameters())
    x = images(3, 3, 9, 7)
    for limit, name in ((num_bytes, "one"), (num_bytes - 1, "two")):
        monkeypatch.setattr(graph, "ONE_FILE_BYTES", limit)
        (tmp_path / name).mkdir()
        write_onnx(spec(module), "fp32", tmp_path / name)
        assert_equals_torch(module, run(tmp_path / name / FILE, x), x, TOLERANCE["fp32"])
    assert [path.name for path in (tmp_path / "one").iterdir()] == [FILE]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {FILE, f"{FILE}.data"}
    assert (tmp_path / "one" / FILE).stat().st_size > num_bytes
    assert (tmp_path / "two" / FILE).stat().st_size < num_bytes / 4
    (tmp_path / "two").rename(tmp_path / "moved")
    assert_equals_torch(module, run(tmp_path / "moved" / FILE, x), x, TOLERANCE["fp32"])
