"""ONNX graphs to TensorRT engines; the bindings are loaded where they are used."""
