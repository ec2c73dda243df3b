"""Networks as ONNX graphs and engine files: specs, export, parity with torch, a cache, TensorRT builds."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
