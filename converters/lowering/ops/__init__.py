"""Lowerings of ONNX operators to torch, one file an operator family."""
