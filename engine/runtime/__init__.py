"""The frozen networks behind one callable, whatever runs them: torch, OpenVINO, ONNX Runtime or TensorRT."""
