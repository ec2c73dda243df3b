"""Small modules to export, and ways to run and inspect their graphs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

from export.spec import Axis, Input, NetworkSpec

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOATS = {TensorProto.FLOAT, *HALF.values()}
TOLERANCE = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 2e-2}
BATCH = Axis(name="batch", min=1, opt=2, max=8)
HEIGHT, WIDTH = (Axis(name=name, min=4, opt=8, max=12) for name in ("height", "width"))


class Mixed(nn.Module):
    """A convolution with BatchNorm, GroupNorm, LayerNorm, softmax and both kinds of attention."""

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
    """Applies a function to weights times its input [B, C, H, W]."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.function(x * self.weight),)


def spec(module: nn.Module, *, channels: int = 3, outputs: tuple[str, ...] = ("y",)) -> NetworkSpec:
    x = Input(name="x", shape=(BATCH, channels, HEIGHT, WIDTH))
    return NetworkSpec(name="net", module=module.eval(), inputs=(x,), outputs=outputs)


def mixed_spec() -> NetworkSpec:
    return spec(mixed(), outputs=("y", "probabilities"))


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(path: Path, x: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(array) for array in session.run(None, {"x": x.numpy()})]


def relative_error(given: Tensor, wanted: Tensor) -> float:
    assert given.shape == wanted.shape
    assert given.dtype == torch.float32
    return ((given - wanted).norm() / wanted.norm()).item()


@torch.no_grad()
def assert_equals_torch(module: nn.Module, found: list[Tensor], x: Tensor, tolerance: float) -> None:
    for given, wanted in zip(found, module(x), strict=True):
        assert relative_error(given, wanted) <= tolerance


def types(found: onnx.ModelProto) -> dict[str, int]:
    """Infer the element type of each value again, from the types of the inputs and weights."""
    bare = onnx.ModelProto()
    bare.CopyFrom(found)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    weights = {weight.name: weight.data_type for weight in inferred.initializer}
    return {value.name: value.type.tensor_type.elem_type for value in values} | weights


def floats_into(found: onnx.ModelProto, *operators: str) -> dict[str, set[int]]:
    """Return the float types of the inputs and outputs of each operator."""
    known = types(found)
    taken: dict[str, set[int]] = {}
    for node in found.graph.node:
        if node.op_type in operators:
            kinds = {known[name] for name in (*node.input, *node.output) if name}
            taken.setdefault(node.op_type, set()).update(kinds & FLOATS)
    return taken


def by_value(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x
