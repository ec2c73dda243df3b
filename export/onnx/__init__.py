"""An nn.Module as an ONNX graph of one precision, checked before anything opens it."""

from export.onnx.external import check_external_data
from export.onnx.graph import FILE, write_onnx

__all__ = ["FILE", "check_external_data", "write_onnx"]
