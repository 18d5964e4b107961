"""Any framework to ONNX, ONNX to an exact differentiable torch graph, and torch parameters back to initializers."""

import os

# An auditing tool must not phone home: onnxruntime on Linux writes a telemetry device id under the user's
# cache unless this is set before its first import. Every import of onnxruntime in this project comes after
# this package's, because this is the lowest layer.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
