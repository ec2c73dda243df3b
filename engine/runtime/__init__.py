"""Run frozen networks in torch, OpenVINO, ONNX Runtime or TensorRT, all behind one protocol."""
