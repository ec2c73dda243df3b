"""Export networks to ONNX graphs and TensorRT engines, check their parity with torch, and cache them."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
