"""ONNX files that lead to other files, or that take far more than they are once they are read or run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def classifier(seed: int = 0) -> onnx.ModelProto:
    """A tiny classifier: (batch, 1, 4, 4) -> (batch, 3)."""
    rng = np.random.default_rng(seed)
    weight = numpy_helper.from_array(rng.standard_normal((16, 3)).astype(np.float32), "weight")
    bias = numpy_helper.from_array(np.zeros(3, np.float32), "bias")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    return model(nodes, [weight, bias], out=("N", 3))


def model(
    nodes: list[onnx.NodeProto],
    initializers: list[TensorProto] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    shape: tuple[int | str, ...] = ("N", 1, 4, 4),
    out: tuple[int | str, ...] | None = None,
) -> onnx.ModelProto:
    """A model with one input `image` and one output `logits`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, out)],
        initializers or [],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, functions=functions or [])
    made.ir_version = 10
    return made


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def const(name: str, value: object, dtype: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    length, size = b"", len(payload)
    while True:
        length += bytes([size & 127 | (128 if size > 127 else 0)])
        size >>= 7
        if not size:
            return bytes([number << 3 | 2]) + length + payload


def external(folder: Path, location: str, **entries: int | str) -> Path:
    """Write the classifier with its weight outside, at `location`."""
    folder.mkdir(exist_ok=True)
    proto = classifier()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    return write(folder / "m.onnx", proto)


WEIGHT = classifier().graph.initializer[0].raw_data


def loop(trips: int | None, *, condition: str = "true") -> list[onnx.NodeProto]:
    """A Loop that adds 1 to the image; its condition is "true", "passed on" or "computed"."""
    inner: list[onnx.NodeProto] = [helper.make_node("Relu", ["x"], ["y"])]
    if condition == "true":
        inner.append(helper.make_node("Constant", [], ["go"], value=const("", True, np.bool_)))
    elif condition == "passed on":
        inner.append(helper.make_node("Identity", ["keep"], ["go"]))
    else:
        inner.append(helper.make_node("Not", ["keep"], ["go"]))
    body = helper.make_graph(
        inner,
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    nodes = []
    if trips is not None:
        nodes.append(helper.make_node("Constant", [], ["trips"], value=const("", trips)))
    nodes.append(helper.make_node("Loop", ["trips" if trips is not None else "", "", "image"], ["logits"], body=body))
    return nodes


BOMBS: dict[str, tuple[list[onnx.NodeProto], list[TensorProto]]] = {
    "ConstantOfShape": ([helper.make_node("ConstantOfShape", ["s"], ["b"])], [const("s", [10**6, 10**6])]),
    "Expand": ([helper.make_node("Expand", ["image", "s"], ["b"])], [const("s", [10**9, 1, 4, 4])]),
    "Tile": ([helper.make_node("Tile", ["image", "s"], ["b"])], [const("s", [1, 1, 10**5, 10**5])]),
    "Range": (
        [helper.make_node("Range", ["z", "n", "o"], ["r"]), helper.make_node("Cast", ["r"], ["b"], to=1)],
        [const("z", 0), const("n", 10**11), const("o", 1)],
    ),
    "Resize": (
        [helper.make_node("Resize", ["image", "", "s"], ["b"])],
        [const("s", [1, 1, 1e5, 1e5], np.float32)],
    ),
    "Pad": ([helper.make_node("Pad", ["image", "s"], ["b"])], [const("s", [0, 0, 0, 0, 0, 0, 10**6, 10**6])]),
    "Loop of Concat": (loop(100)[:-1], []),
}


def bomb(name: str) -> onnx.ModelProto:
    nodes, initializers = BOMBS[name]
    if name == "Loop of Concat":  # doubles what it carries, a hundred times: no shape is known beforehand
        (trips, run) = loop(100)
        body = run.attribute[0].g
        body.node[0].CopyFrom(helper.make_node("Concat", ["x", "x"], ["y"], axis=0))
        return model([trips, run])
    return model([*nodes, helper.make_node("ReduceSum", ["b"], ["logits"])], initializers)


def nested_functions() -> onnx.ModelProto:
    """Fifty functions, each calling the next twice: 2^50 nodes in a few kilobytes."""
    functions = []
    for i in range(50):
        callee = ("local", f"f{i + 1}") if i < 49 else ("", "Relu")
        body = [
            helper.make_node(callee[1], ["x"], ["h"], domain=callee[0]),
            helper.make_node(callee[1], ["h"], ["y"], domain=callee[0]),
        ]
        functions.append(helper.make_function("local", f"f{i}", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    return model([helper.make_node("f0", ["image"], ["logits"], domain="local")], functions=functions)


def recursive_function() -> onnx.ModelProto:
    """Two functions that call each other."""
    functions = [
        helper.make_function("local", n, ["x"], ["y"], [helper.make_node(m, ["x"], ["y"], domain="local")], [])
        for n, m in (("a", "b"), ("b", "a"))
    ]
    return model([helper.make_node("a", ["image"], ["logits"], domain="local")], functions=functions)


def deep(levels: int = 3000) -> bytes:
    """Graphs in attributes of nodes of graphs, as bytes of a file."""
    data = b""
    for _ in range(levels):  # node { attribute { g { ... } } }
        data = field(1, field(5, field(6, data)))
    return field(7, data)
