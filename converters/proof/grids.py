"""Values that a quantiser has put on a grid, and how far their grid reaches."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

#: Operators that give values of their first operand back.
_SAME = frozenset(("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Slice", "Gather"))


def reaches(model: onnx.ModelProto) -> dict[str, float]:
    """Largest magnitude that the grid of a value holds, or of its integers, by the value's name.

    A step of the grid is a share of this, and not of what some images happen to take: a value that lies between two steps may be rounded either
    way by two runtimes that sum in another order, and averages of neighbours lie there often. Of what is put on a grid or comes from one with
    a constant scale for the whole tensor, and of what only moves such values; half the integers' range, times the scale.
    """
    held = {t.name: t for t in model.graph.initializer}
    found: dict[str, float] = {}
    for node in model.graph.node:
        if node.op_type in _SAME and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 1 and node.input[1] in held:
            scale = numpy_helper.to_array(held[node.input[1]])
            if scale.size == 1:
                half = _half(node, held)
                wide, integers = node.input[0], node.output[0]
                if node.op_type == "DequantizeLinear":
                    wide, integers = integers, wide
                found[wide] = max(found.get(wide, 0.0), float(scale.reshape(-1)[0]) * half)
                found[integers] = half
    return found


def _half(node: onnx.NodeProto, held: dict[str, onnx.TensorProto]) -> float:
    """Half of the integers' range; that of eight bits where no zero point says which they are."""
    zero = held.get(node.input[2]) if len(node.input) > 2 else None
    kind = np.dtype(np.uint8) if zero is None else numpy_helper.to_array(zero).dtype
    return float(2 ** (8 * kind.itemsize - 1) - 1) if kind.kind in "iu" else 0.0
