"""A network of two layers with an operator of one value behind them, and what interval bounds prove of it."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from conftest import CLASSES, SIDE, make_model
from onnx import helper, numpy_helper
from torch import Tensor, fx

from onnxspect.converters.lowering.bounds import all_bounds
from onnxspect.converters.lowering.channels import looked_at
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.never import PIECEWISE, never_taken
from onnxspect.converters.lowering.observation import operator_of
from onnxspect.converters.lowering.program import Program, unchanged
from onnxspect.converters.lowering.taps import lying_between, results

CHANNELS = 6
LOW, HIGH = torch.zeros(1, 1, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)
node = helper.make_node


def model(second: np.ndarray, bias: np.ndarray, operator: str, seed: int = 0, **attributes: float) -> onnx.ModelProto:
    """A layer with ReLU, a depthwise one, the operator, and a head.

    Args:
        second: the depthwise layer's weights ``(channels, 1, 3, 3)``.
        bias: its bias ``(channels,)``.
        operator: of one value.
        seed: of all other weights.
        attributes: of the operator.
    """
    rng = np.random.default_rng(seed)
    constants = {
        "w1": rng.normal(size=(CHANNELS, 1, 3, 3)),
        "b1": rng.normal(size=CHANNELS),
        "w2": second,
        "b2": bias,
        "head": rng.normal(size=(CHANNELS * (SIDE - 4) ** 2, CLASSES)),
        "low": np.array(0),
        "high": np.array(6),
        "slopes": rng.normal(size=(CHANNELS, 1, 1)),
    }
    more = {"Clip": ["low", "high"], "PRelu": ["slopes"], "Max": ["low"], "Min": ["high"]}.get(operator, [])
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], group=CHANNELS),
        node(operator, ["c2", *more], ["n"], name="looked at", **attributes),
        node("Flatten", ["n"], ["f"]),
        node("MatMul", ["f", "head"], ["logits"]),
    ]
    return make_model(nodes, [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()])


class Looked:
    """The operator in the torch graph, and what is proved of it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        lowered = lower(proto, ["logits"])
        self.program, self.logits = Program(lowered.module), results(lowered)[0]
        self.between = lying_between(lowered.module.graph, self.logits)
        self.node = [n for n in self.program.steps if operator_of(n) in PIECEWISE][-1]
        self.source: fx.Node = next(a for a in self.node.args if isinstance(a, fx.Node) and a in self.between)
        self.bounds = all_bounds(self.program, [self.source], LOW, HIGH)

    def never(self, image: Tensor) -> dict[float, Tensor]:
        env = self.program.run(image, unchanged, keep=True)

        def look(operand: Tensor) -> tuple[Tensor, Tensor]:
            return looked_at(self.node, 0, env, operand)

        return dict(never_taken(self.node, self.source, self.between, env[self.source], look, self.bounds))

    def at(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(the operand, the value, its derivative) on an image."""
        env = self.program.run(image, unchanged, keep=True)
        return env[self.source], *looked_at(self.node, 0, env, env[self.source])
