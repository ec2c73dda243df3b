import logging
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from export.errors import ExportError
from export.onnx import FILE, graph, write_onnx
from export.spec import PRECISIONS, Axis, Input, NetworkSpec, Precision

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOATS = {TensorProto.FLOAT, *HALF.values()}
TOLERANCE = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 2e-2}
BATCH = Axis(name="batch", min=1, opt=2, max=8)
HEIGHT, WIDTH = (Axis(name=name, min=4, opt=8, max=12) for name in ("height", "width"))
SIZES = [(1, 8, 8), (3, 4, 12), (8, 7, 5), (2, 1, 1)]
"""Batch, height and width; no network is traced with any of them."""


class Mixed(nn.Module):
    """A convolution with BatchNorm, GroupNorm, LayerNorm, softmax, and attention of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.group_norm, self.layer_norm = nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.qkv, self.attention = nn.Linear(8, 24), nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(self.group_norm(self.batch_norm(self.conv(x))))
        tokens = self.layer_norm(h.flatten(2).transpose(1, 2))
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, -1))
        tokens = tokens + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        y = self.last(tokens.transpose(1, 2).unflatten(2, h.shape[2:]))
        return y, y.softmax(1)


@cache
def mixed() -> Mixed:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Mixed()
        for weight in network.parameters():
            if weight.ndim == 1:
                nn.init.normal_(weight)
        nn.init.normal_(network.batch_norm.running_mean)
        nn.init.uniform_(network.batch_norm.running_var, 0.5, 2)
    return network.eval()


class Plain(nn.Module):
    """Calls a function on weights times its input [B, C, H, W]."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.function(x * self.weight),)


def spec(module: nn.Module, *, channels: int = 3, outputs: tuple[str, ...] = ("y",)) -> NetworkSpec:
    door = Input(name="x", shape=(BATCH, channels, HEIGHT, WIDTH))
    return NetworkSpec(name="net", module=module.eval(), inputs=(door,), outputs=outputs)


def mixed_spec() -> NetworkSpec:
    return spec(mixed(), outputs=("y", "probabilities"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The graph of Mixed in each precision."""
    folder = tmp_path_factory.mktemp("mixed")
    for precision in PRECISIONS:
        (folder / precision).mkdir()
        write_onnx(mixed_spec(), precision, folder / precision)
    return {precision: folder / precision / FILE for precision in PRECISIONS}


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(path: Path, x: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {"x": x.numpy()})]


def run_openvino(path: Path, x: Tensor) -> list[Tensor]:
    from engine.runtime.openvino import core

    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({"x": x.numpy()})
    return [torch.from_numpy(found[index].copy()) for index in range(len(compiled.outputs))]


def run_by_the_letter(path: Path, x: Tensor) -> list[Tensor]:
    """In NumPy, each operator in the type that the graph gives it; runtimes widen where they please."""
    return [torch.from_numpy(array) for array in ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})]


def relative_error(given: Tensor, wanted: Tensor) -> float:
    assert given.shape == wanted.shape
    assert given.dtype == torch.float32
    return ((given - wanted).norm() / wanted.norm()).item()


@torch.no_grad()
def assert_equals_torch(module: nn.Module, found: list[Tensor], x: Tensor, tolerance: float) -> None:
    for given, wanted in zip(found, module(x), strict=True):
        assert relative_error(given, wanted) <= tolerance


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_graph_computes_what_torch_does_at_any_size(
    paths: dict[Precision, Path], precision: Precision, size: tuple[int, int, int]
) -> None:
    batch, *sides = size
    x = images(batch, 3, *sides)
    execute = run_openvino if precision == "bf16" else run  # the ONNX Runtime has no bf16 on a CPU
    assert_equals_torch(mixed(), execute(paths[precision], x), x, TOLERANCE[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_doors_are_float32_and_named_as_in_the_spec(
    paths: dict[Precision, Path], precision: Precision
) -> None:
    found = onnx.load(paths[precision]).graph
    assert [value.name for value in found.input] == ["x"]
    assert [value.name for value in found.output] == ["y", "probabilities"]
    assert {v.type.tensor_type.elem_type for v in (*found.input, *found.output)} == {TensorProto.FLOAT}
    dims = found.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "height", "width"]


def types(found: onnx.ModelProto) -> dict[str, int]:
    """The element type of each value, worked out anew from those of inputs and weights."""
    bare = onnx.ModelProto()
    bare.CopyFrom(found)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    weights = {weight.name: weight.data_type for weight in inferred.initializer}
    return {value.name: value.type.tensor_type.elem_type for value in values} | weights


def floats_into(found: onnx.ModelProto, *operators: str) -> dict[str, set[int]]:
    """The float types that each of the operators takes and gives, by operator."""
    known = types(found)
    taken: dict[str, set[int]] = {}
    for node in found.graph.node:
        if node.op_type in operators:
            kinds = {known[name] for name in (*node.input, *node.output) if name}
            taken.setdefault(node.op_type, set()).update(kinds & FLOATS)
    return taken


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


STATISTICS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "group norm": (lambda x: F.group_norm(x, 2), "GroupNormalization"),
    "instance norm": (F.instance_norm, "InstanceNormalization"),
    "mean": (lambda x: x.mean((2, 3)), "ReduceMean"),
    "root mean square": (lambda x: F.rms_norm(x.movedim(1, -1), (4,)), "ReduceMean"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_large_activations_in_fp16_are_accurate(tmp_path: Path, name: str) -> None:
    """A sum over a few values of 3e4, let alone of their squares, is beyond fp16."""
    function, operator = STATISTICS[name]
    module = Plain(function, channels=4)
    write_onnx(spec(module, channels=4), "fp16", tmp_path)
    assert floats_into(onnx.load(tmp_path / FILE), operator) == {operator: {TensorProto.FLOAT}}
    x = 3e4 + 1e3 * images(3, 4, 6, 5)
    rounded = x.half().float()  # near 3e4 fp16 has steps of 16, which are no fault of the graph
    for execute in (run, run_by_the_letter):
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


def by_row(x: Tensor) -> Tensor:
    return torch.stack([x[row] * 2 for row in range(x.shape[0])])


def fixed_rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1).unflatten(0, (2, 3))


def added_position(x: Tensor) -> Tensor:
    return x + torch.ones(4, 4)


def for_squares(x: Tensor) -> Tensor:
    return x * 2 if x.shape[2] == x.shape[3] else x


def by_value(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def failing(_: Tensor) -> Tensor:
    raise NotImplementedError("no forward here\n\nand a second paragraph")


REFUSED = {
    "loop over the batch": (by_row, "static shape of 2 for dimension inputs[0].shape[0]"),
    "number of rows in the code": (fixed_rows, "static shape of 2 for dimension inputs[0].shape[0]"),
    "constant of one size": (added_position, "4"),
    "comparison of sizes": (for_squares, "net runs with width equal to height only: its code compares them"),
    "branch on a value": (by_value, "Could not guard on data-dependent expression"),
    "error": (failing, "net cannot be exported (NotImplementedError: no forward here)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_said_in_one_line(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(ExportError) as refused:
        write_onnx(spec(Plain(function)), "fp32", tmp_path)
    line = str(refused.value)
    assert line.startswith("net ")
    assert reason in line
    assert line.endswith("; take --runtime torch")
    assert "\n" not in line
    assert "\x1b" not in line
    assert capfd.readouterr() == ("", ""), "what the exporter prints"
    assert list(tmp_path.iterdir()) == []


def test_an_axis_that_the_exporter_fixes_in_silence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = graph._program(spec(Plain(torch.relu)), Plain(torch.relu), 20)
    door = program.model.graph.inputs[0]
    door.shape = onnx_ir.Shape([2, *list(door.shape or ())[1:]])
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    with pytest.raises(ExportError, match=r"^net runs with one batch only \(2\): its code depends on it"):
        graph._program(spec(Plain(torch.relu)), Plain(torch.relu), 20)


def test_an_unsound_graph_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise onnx.checker.ValidationError("bad node\n\n==> Context: everything")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ExportError, match=r"^net: the exported graph is not sound: bad node$"):
        write_onnx(spec(Plain(torch.relu)), "fp32", tmp_path)


class Wide(nn.Module):
    """Large enough for its weights to outweigh the rest of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 300, 5, padding=2), nn.Conv2d(300, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.narrow(self.wide(x)),)


def test_large_weights_lie_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def state(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """All that a module holds: its tensors with their places and bytes, its modes, its attributes."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    held = {
        name: (id(t), t.data_ptr(), t.dtype, t.requires_grad, t.grad, t.detach().numpy().tobytes())
        for name, t in tensors
    }
    modes = {f"mode {name}": (part.training, sorted(vars(part))) for name, part in module.named_modules()}
    return held | modes


def global_state() -> tuple[Any, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.random.get_rng_state().numpy().tobytes(),
        logging.root.manager.disable,
        list(warnings.filters),
    )


@pytest.fixture(params=[True, False], ids=["fast path", "no fast path"])
def _fast_path(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


class Attention(nn.Module):
    """Takes the fast path where it may."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, dropout=0.5)
        self.function = function

    def forward(self, x: Tensor) -> tuple[Tensor]:
        tokens = x.flatten(2).mT
        return (self.function(self.attention(tokens, tokens, tokens, need_weights=False)[0]),)


@pytest.mark.usefixtures("_fast_path")
def test_the_module_and_torch_are_left_as_they_were(tmp_path: Path) -> None:
    module = Attention(torch.relu).eval()
    x = images(3, 4, 3, 5)
    held, around, computed = state(module), global_state(), module(x)[0].detach()
    write_onnx(spec(module, channels=4), "fp32", tmp_path)
    assert state(module) == held
    assert global_state() == around
    assert (module(x)[0] == computed).all()
    assert_equals_torch(module, run(tmp_path / FILE, x), x, TOLERANCE["fp32"])


@pytest.mark.usefixtures("_fast_path")
def test_a_failed_export_leaves_the_module_and_torch_as_they_were(tmp_path: Path) -> None:
    module = Attention(by_value).eval()
    held, around = state(module), global_state()
    with pytest.raises(ExportError):
        write_onnx(spec(module, channels=4), "fp16", tmp_path)
    assert state(module) == held
    assert global_state() == around
