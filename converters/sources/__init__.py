"""Any framework's model to ONNX, one from_<framework>.py each."""
