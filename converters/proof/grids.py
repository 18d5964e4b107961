"""Values that a quantiser has put on a grid, and how far their grid reaches."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def reaches(model: onnx.ModelProto) -> dict[str, float]:
    """Largest magnitude that the grid of a dequantised value holds, by the value's name.

    A step of the grid is a share of this, and not of what some images happen to take: a value that lies between two steps may be rounded either
    way by two runtimes that sum in another order, and averages of neighbours lie there often. Of DequantizeLinear with a constant scale for
    the whole tensor; half the integers' range, times the scale.
    """
    held = {t.name: t for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 2 or node.input[1] not in held:
            continue
        scale = numpy_helper.to_array(held[node.input[1]])
        if scale.size == 1:
            found[node.output[0]] = float(scale.reshape(-1)[0]) * _half(node, held)
    return found


def _half(node: onnx.NodeProto, held: dict[str, onnx.TensorProto]) -> float:
    """Half of the integers' range; that of eight bits where no zero point says which they are."""
    zero = held.get(node.input[2]) if len(node.input) > 2 else None
    kind = np.dtype(np.uint8) if zero is None else numpy_helper.to_array(zero).dtype
    return float(2 ** (8 * kind.itemsize - 1) - 1) if kind.kind in "iu" else 0.0
