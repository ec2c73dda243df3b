"""Normalizations and softmaxes of a half-precision graph, computed in float32.

The exporter writes them in the type of their input. A sum of squares over a group of activations leaves
fp16's range long before the activations do, and bf16 has 8 bits to add them up with.
"""

import onnx_ir as ir

STATISTICS = {
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "RMSNormalization",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
    "LogSoftmax",
}
HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def keep_statistics_in_fp32(model: ir.Model) -> None:
    """Casts to float32 before each node of STATISTICS and back to its input's type behind it, in place."""
    for node in list(model.graph.all_nodes()):
        if node.domain == "" and node.op_type in STATISTICS:
            _widen(node)


def _widen(node: ir.Node) -> None:
    first = node.inputs[0]
    assert first is not None
    half = first.dtype
    if half not in HALVES:
        return
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == half:
            cast = _cast(value, ir.DataType.FLOAT)
            _insert(node, cast, after=False)
            node.replace_input_with(index, cast.outputs[0])
    output = node.outputs[0]
    output.dtype = ir.DataType.FLOAT
    narrowed = _cast(output, half)
    ir.convenience.replace_all_uses_with(output, narrowed.outputs[0], replace_graph_outputs=True)
    narrowed.replace_input_with(0, output)
    _insert(node, narrowed, after=True)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(dtype)})
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    return node


def _insert(node: ir.Node, new: ir.Node, *, after: bool) -> None:
    graph = node.graph
    assert graph is not None
    (graph.insert_after if after else graph.insert_before)(node, new)
