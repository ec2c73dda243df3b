"""Weights that the exporter's optimizer leaves in float32 in a half-precision graph.

Where it folds a BatchNorm into a convolution in bf16, NumPy's promotion widens the product.
"""

import onnx_ir as ir

from export.onnx.statistics import HALVES

FOLDED_INTO = {"Conv", "ConvTranspose", "Gemm"}


def narrow_weights(model: ir.Model) -> None:
    """Gives the float32 weights of half-precision convolutions and products their input's type, in place."""
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
