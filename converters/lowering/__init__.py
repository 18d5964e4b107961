"""ONNX graph to torch FX graph: lowering, what is known of values, taps and logits."""
