"""Proof by execution: onnxruntime, parity of torch with it, tolerances, write-back of weights."""
