"""Tiny ONNX graphs for the builder, and the shapes they are built for."""

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

OPSET = 22
"""The first opset whose convolutions support bfloat16."""
TYPES = {
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float32: TensorProto.FLOAT,
}
CHANNELS = 8
SHAPES = {"x": ((1, 3, 8, 8), (2, 3, 16, 16), (4, 3, 32, 32))}


def convolution(*, seed: int = 0, size: int = 3, dtype: torch.dtype = torch.float16) -> onnx.ModelProto:
    """Return x [B, 3, H, W] -> y [B, 8, H, W]: a convolution and ReLU in `dtype`; x and y are float32."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn((CHANNELS, 3, size, size), generator=draw).to(dtype)
    raw = values.view(torch.uint8).numpy().tobytes()
    weights = helper.make_tensor("weights", TYPES[dtype], values.shape, raw, raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], "cast_in", to=TYPES[dtype]),
        helper.make_node("Conv", ["narrow", "weights"], ["sum"], "conv", pads=[size // 2] * 4),
        helper.make_node("Relu", ["sum"], ["active"], "relu"),
        helper.make_node("Cast", ["active"], ["y"], "cast_out", to=TensorProto.FLOAT),
    ]
    return model(nodes, [weights])


def model(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    door, exit_ = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, "height", "width"])
        for name, channels in (("x", 3), ("y", CHANNELS))
    )
    graph = helper.make_graph(nodes, "tiny", [door], [exit_], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"
