"""Types inside half-precision graphs: accurate statistics, folded weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from export.onnx import FILE, write_onnx
from export.spec import Precision
from tests.export.onnx.graphs import (
    HALF,
    Plain,
    assert_equals_torch,
    floats_into,
    images,
    mixed,
    relative_error,
    run,
    spec,
)


def run_in_numpy(path: Path, x: Tensor) -> list[Tensor]:
    """Run in NumPy, each operator in the graph's own type; runtimes may compute in wider types."""
    return [torch.from_numpy(array) for array in ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})]


STATISTICS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "group norm": (lambda x: F.group_norm(x, 2), "GroupNormalization"),
    "instance norm": (F.instance_norm, "InstanceNormalization"),
    "mean": (lambda x: x.mean((2, 3)), "ReduceMean"),
    "root mean square": (lambda x: F.rms_norm(x.movedim(1, -1), (4,)), "ReduceMean"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_large_activations_in_fp16_are_accurate(tmp_path: Path, name: str) -> None:
    """Even a sum of a few values of 3e4 overflows fp16, and so do their squares."""
    function, operator = STATISTICS[name]
    module = Plain(function, channels=4)
    write_onnx(spec(module, channels=4), "fp16", tmp_path)
    assert floats_into(onnx.load(tmp_path / FILE), operator) == {operator: {TensorProto.FLOAT}}
    x = 3e4 + 1e3 * images(3, 4, 6, 5)
    rounded = x.half().float()  # near 3e4, fp16 has steps of 16, which the graph cannot help
    for execute in (run, run_in_numpy):
        assert_equals_torch(module, execute(tmp_path / FILE, rounded), rounded, 2e-3)


class Folding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = mixed().conv, mixed().batch_norm

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.norm(self.conv(x)),)


@pytest.mark.parametrize("precision", HALF)
def test_a_batch_norm_is_folded_into_weights_of_the_precision(tmp_path: Path, precision: Precision) -> None:
    module = Folding().eval()
    write_onnx(spec(module), precision, tmp_path)
    found = onnx.load(tmp_path / FILE).graph
    assert {node.op_type for node in found.node} <= {"Conv", "Cast"}
    (node,) = (node for node in found.node if node.op_type == "Conv")
    weights, bias = (next(w for w in found.initializer if w.name == name) for name in node.input[1:])
    assert {weights.data_type, bias.data_type} == {HALF[precision]}
    norm = module.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    step = {"fp16": 2**-9, "bf16": 2**-6}[precision]
    for given, wanted in (
        (weights, module.conv.weight * gain[:, None, None, None]),
        (bias, norm.bias - norm.running_mean * gain),
    ):
        values = torch.from_numpy(onnx.numpy_helper.to_array(given).astype(np.float32))
        assert relative_error(values, wanted.detach()) <= step
