"""Export networks to ONNX graphs and TensorRT engines, check their parity with torch, and cache them."""
