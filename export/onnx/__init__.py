"""Export an nn.Module to an ONNX graph of one precision, and check graphs before anything opens them."""

from export.onnx.external import check_external_data
from export.onnx.graph import FILE, write_onnx

__all__ = ["FILE", "check_external_data", "write_onnx"]
