"""Build TensorRT engines from ONNX graphs, and load them. Importing this package loads no bindings."""
