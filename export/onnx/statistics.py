"""Fix the types inside half-precision graphs: statistics in float32, folded weights in half precision.

The exporter computes normalizations and softmaxes in the type of their input. But a sum of squares over a
group of activations overflows fp16 long before the activations do, and bf16 has only 8 bits of precision to
accumulate it. Conversely, when the optimizer folds a BatchNorm into a convolution in bf16, NumPy's type
promotion leaves the product in float32.
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
FOLDED_INTO = {"Conv", "ConvTranspose", "Gemm"}
HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def keep_statistics_in_fp32(model: ir.Model) -> None:
    """Cast to float32 before each node of STATISTICS and back to its input's type after it, in place."""
    for node in list(model.graph.all_nodes()):
        if node.domain == "" and node.op_type in STATISTICS:
            _widen(node)


def narrow_weights(model: ir.Model) -> None:
    """Cast float32 weights of half-precision convolutions and products to their input's type, in place."""
    for node in model.graph.all_nodes():
        if node.op_type not in FOLDED_INTO:
            continue
        half = node.inputs[0].dtype if node.inputs[0] is not None else None
        if half not in HALVES:
            continue
        for value in node.inputs[1:]:
            if value is not None and value.const_value is not None and value.dtype == ir.DataType.FLOAT:
                narrow = value.const_value.numpy().astype(half.numpy())
                value.const_value = ir.tensor(narrow, dtype=half, name=value.name)
                value.dtype = half


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
