"""The ONNX file itself: reading with limits, external data, and the probe of it in a child process."""
