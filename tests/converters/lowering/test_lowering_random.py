"""Random graphs of all operators that classifiers are made of: torch computes what onnxruntime computes, at every node.

`make test` draws some; ONNXSPECT_FULL=1 (`make test-converters`) draws twenty times as many.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from random_graphs import classifiers

from onnxspect.converters.lowering import registry
from onnxspect.converters.lowering.lower import load_operators, lower
from onnxspect.converters.proof.parity import check_gradients, check_parity

EXAMPLES = 4000 if os.environ.get("ONNXSPECT_FULL") == "1" else 200
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def test_random_graphs_hold_parity_at_every_value() -> None:
    seen: set[str] = set()

    @SETTINGS
    @given(classifiers())
    def hold(proto: onnx.ModelProto) -> None:
        onnx.checker.check_model(proto, full_check=True)
        seen.update(node.op_type for node in proto.graph.node)
        lowered = lower(proto)
        inside = [o for node in proto.graph.node for o in node.output if o in lowered.values]
        check_parity(proto, lowered, batch_sizes=(1, 3), taps=inside)

    hold()
    load_operators()
    known = {operator for domain, operator, _ in registry.registered() if not domain}
    assert seen <= known
    assert len(seen) >= 60, sorted(seen)  # most of what a classifier is made of was drawn


@settings(SETTINGS, max_examples=EXAMPLES // 4)
@given(classifiers(steps=6))
def test_random_graphs_have_right_gradients(proto: onnx.ModelProto) -> None:
    lowered = lower(proto)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    check_gradients(lowered, np.random.default_rng(0).random((2, *shape)), directions=1)
