"""Nodes in the order of their use, and tensors in their plain form: what onnxruntime puts right by itself when it loads a file.

ONNX wants nodes in topological order; tools that insert a Cast at the end (float16 converters) leave them otherwise, and onnxruntime
sorts them. A sparse initializer is a tensor that lists only what is not zero, and onnxruntime makes it dense.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.text import printable, readable_bytes


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Put the nodes of a graph in the order of their use, as far as possible where they are; whether that changed anything.

    A graph with a cycle is left as it is: whoever lowers it says what is read before it is computed.
    """
    made_by = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    if all(made_by.get(name, -1) < i for i, node in enumerate(graph.node) for name in _read(node)):
        return False
    order: list[int] = []
    state = bytearray(len(graph.node))  # 0 new, 1 waits for its inputs, 2 placed
    for start in range(len(graph.node)):
        stack = [start]
        while stack:
            i = stack[-1]
            if state[i] == 2:
                stack.pop()
                continue
            waits = [made_by[n] for n in _read(graph.node[i]) if n in made_by and state[made_by[n]] != 2]
            if not waits:
                state[i] = 2
                order.append(i)
                stack.pop()
            elif state[i] == 1 and any(state[j] == 1 for j in waits):
                return False
            else:
                state[i] = 1
                stack.extend(waits)
    nodes = [graph.node[i] for i in order]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return True


def _read(node: onnx.NodeProto) -> list[str]:
    """Values that a node reads, those of its bodies included."""
    names = [name for name in node.input if name]
    bodies = [b for a in node.attribute for b in (*([a.g] if a.HasField("g") else []), *a.graphs)]
    while bodies:
        for inner in bodies.pop().node:
            names += [name for name in inner.input if name]
            bodies += [b for a in inner.attribute for b in (*([a.g] if a.HasField("g") else []), *a.graphs)]
    return names


def make_dense(graph: onnx.GraphProto, most: int) -> int:
    """Turn the sparse initializers of a graph into plain ones; how many there were.

    Args:
        graph: changed.
        most: bytes that all of them may take.

    Raises:
        OnnxspectError: one is damaged, or they would take more.
    """
    left = most
    for sparse in graph.sparse_initializer:
        name = printable(sparse.values.name)
        if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
            raise OnnxspectError(f"the sparse tensor {name} lies in another file", "save it inside the model")
        try:
            values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        except (ValueError, TypeError) as error:
            raise OnnxspectError(f"the sparse tensor {name} is damaged") from error
        shape = tuple(sparse.dims)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        left -= count * values.dtype.itemsize
        if min(shape, default=1) < 1 or left < 0:
            raise OnnxspectError(
                f"the sparse tensor {name} of shape {list(shape)[:8]} would take {readable_bytes(count * values.dtype.itemsize)}",
                "export the model with dense weights",
            )
        if places.ndim == 2 and places.shape[1] == len(shape):
            fits = bool((places >= 0).all() and (places < np.array(shape)).all())
            places = np.ravel_multi_index(tuple(places.T), shape) if fits else np.full(1, -1)
        if (
            values.ndim != 1
            or places.shape != values.shape
            or (places.size and not 0 <= places.min() <= places.max() < count)
        ):
            raise OnnxspectError(f"the sparse tensor {name} is damaged: its places are not those of its shape")
        dense = np.zeros(count, values.dtype)
        dense[places] = values
        graph.initializer.append(numpy_helper.from_array(dense.reshape(shape), sparse.values.name))
    count = len(graph.sparse_initializer)
    del graph.sparse_initializer[:]
    return count
