"""Models of a few nodes, made from words, and the comparison of their lowering with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from tolerances import SUM_32

from onnxspect.converters.lowering.lower import LoweredModel, lower
from onnxspect.converters.proof.oracle import Oracle

FLOAT = TensorProto.FLOAT


def array(shape: Sequence[int], seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: dict[str, np.ndarray] | None = None,
    shape: Sequence[int | str] = ("n", 4),
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    dtype: int = FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(v, k) for k, v in (initializers or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def expect(proto: onnx.ModelProto, x: np.ndarray, tolerance: float = SUM_32) -> LoweredModel:
    """Lowering answers what onnxruntime answers."""
    lowered = lower(proto)
    found = lowered.module(torch.from_numpy(x))
    found = found if isinstance(found, tuple) else (found,)
    for f, e in zip(found, Oracle(proto.SerializeToString()).run({"x": x}), strict=True):
        assert tuple(f.shape) == e.shape
        np.testing.assert_allclose(f.numpy(), e, rtol=tolerance, atol=tolerance)
    return lowered


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, ["" if i == "_" else i for i in inputs.split()], outputs.split(), **attributes)
