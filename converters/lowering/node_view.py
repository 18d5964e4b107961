"""One ONNX node as a lowering sees it: inputs as fx nodes, attributes as Python values, constants as arrays."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.lowering import registry
from onnxspect.converters.lowering.shape_arithmetic import Shape, size

if TYPE_CHECKING:
    from onnxspect.converters.lowering.builder import Builder

#: Element types that are floating point.
FLOATS = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16))


class Unsupported(Exception):
    """Raised by a lowering for a form of its operator that it cannot compute; collected into one error for the user."""


class Alias(str):
    """What a lowering returns for an output that is an existing value, by its name."""

    __slots__ = ()


class NodeView:
    """One ONNX node as a lowering sees it: inputs as fx nodes, attributes as Python values, constants as arrays."""

    def __init__(self, proto: onnx.NodeProto, opset: int, builder: Builder, entry: registry.Entry) -> None:
        self.proto = proto
        self.op_type = proto.op_type
        self.opset = opset
        self.version = registry.since_version(proto.domain, proto.op_type, opset) or opset
        self.builder = builder
        self._attributes = {a.name: attribute_value(a) for a in proto.attribute}
        slots = range(len(proto.input)) if entry.data is None else entry.data
        data = [proto.input[i] for i in slots if i < len(proto.input) and proto.input[i]]
        #: Whether this node runs on the host (see the header of lowering.py).
        self.on_host = builder.runs_on_host(data)
        self.result_on_host = entry.on_host or self.on_host

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute's Python value (int, float, str, list, numpy array, GraphProto), or `default`."""
        return self._attributes.get(name, default)

    @property
    def n_inputs(self) -> int:
        """Inputs as written in the file, including empty (omitted) ones."""
        return len(self.proto.input)

    @property
    def n_outputs(self) -> int:
        """Outputs as written in the file, including empty (unused) ones."""
        return len(self.proto.output)

    def has(self, i: int) -> bool:
        """Whether input `i` is given."""
        return i < len(self.proto.input) and self.proto.input[i] != ""

    def wants(self, i: int) -> bool:
        """Whether output `i` is named, and so may be used."""
        return i < len(self.proto.output) and self.proto.output[i] != ""

    def input(self, i: int) -> Any:
        """Data input `i` as an fx node, where this node runs; None where it is omitted."""
        if not self.has(i):
            return None
        name = self.proto.input[i]
        if self.on_host:
            return self.builder.on_host(name)
        return self.builder.on_device(name)

    def inputs(self) -> list[Any]:
        """All inputs, in order."""
        return [self.input(i) for i in range(self.n_inputs)]

    def steer(self, i: int) -> Any:
        """Steering input `i` (a shape, axes, pads, ...): an array where it is constant, else its fx node; or None."""
        if not self.has(i):
            return None
        known = self.constant(i)
        return known if known is not None else self.builder.value(self.proto.input[i])

    def ints(self, i: int) -> Any:
        """Steering input `i` as a tuple of ints where it is constant, else its fx node; None where it is omitted."""
        value = self.steer(i)
        return tuple(int(v) for v in value.reshape(-1)) if isinstance(value, np.ndarray) else value

    def scalar(self, i: int) -> Any:
        """Steering input `i`, of one element, as a Python number where it is constant, else its fx node; or None."""
        value = self.steer(i)
        if not isinstance(value, np.ndarray):
            return value
        if value.size != 1:
            raise Unsupported(f"input {i} has {value.size} elements where one is expected")
        return value.reshape(-1)[0].item()

    def constant(self, i: int) -> np.ndarray | None:
        """Input `i` as an array where it is an initializer, a Constant or follows from such, else None."""
        return self.builder.constants.get(self.proto.input[i]) if self.has(i) else None

    def rank(self, i: int) -> int | None:
        """Rank of input `i` where it is known before anything runs, else None."""
        shape = self.shape(i)
        return None if shape is None else len(shape)

    def shape(self, i: int) -> Shape | None:
        """Shape of input `i` at any batch size: None for each size that is unknown or may depend on the batch.

        None where even the rank is unknown.
        """
        return self._shape(self.builder.knowledge.shapes, self.proto.input, i)

    def file_shape(self, i: int) -> Shape | None:
        """As `shape`, at the batch size that the file is made for where it is made for one."""
        return self._shape(self.builder.knowledge.file_shapes, self.proto.input, i)

    def output_shape(self, i: int) -> Shape | None:
        """Shape of output `i` at any batch size, as `shape` has it."""
        return self._shape(self.builder.knowledge.shapes, self.proto.output, i)

    def _shape(self, shapes: Mapping[str, Shape], names: Sequence[str], i: int) -> Shape | None:
        if i >= len(names) or not names[i]:
            return None
        known = self.builder.constants.get(names[i])
        return tuple(known.shape) if known is not None else shapes.get(names[i])

    def partial(self, i: int) -> Shape | None:
        """What is known of the integer vector at input `i`: None for each unknown element; None where nothing is."""
        known = self.builder.partial.get(self.proto.input[i]) if self.has(i) else None
        return None if known is None else tuple(size(v) for v in known.reshape(-1))

    def dtype(self, i: int) -> int | None:
        """Element type of input `i` in the file (onnx.TensorProto.*), where it is known, else None."""
        if not self.has(i):
            return None
        name = self.proto.input[i]
        return self.builder.dtypes.get(name) or self.builder.knowledge.dtypes.get(name) or None

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Emit ``function(*args, **kwargs)`` and return the fx node of its result."""
        return self.builder.graph.call_function(function, args, kwargs)

    def item(self, many: Any, i: int) -> Any:
        """Emit ``many[i]``."""
        return self.call(operator.getitem, many, i)

    def is_float(self, i: int) -> bool:
        """Whether input `i` is known to be floating point."""
        return self.dtype(i) in FLOATS

    def working(self) -> Any:
        """An fx node of an empty tensor of the working type, on the device: what new float values are made like."""
        return self.builder.working()


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """The attribute as a Python value: int, float, str, list, numpy array, GraphProto, ..."""
    if not attribute.type:  # in IR version 3 and before the type follows from the field that is set
        attribute = _typed(attribute)
    value = helper.get_attribute_value(attribute)
    if attribute.type == onnx.AttributeProto.STRING:
        return value.decode("utf-8", "replace")
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [v.decode("utf-8", "replace") for v in value]
    if attribute.type == onnx.AttributeProto.TENSOR:
        return numpy_helper.to_array(value)
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value


def _typed(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    """A copy with its type filled in from the one field that is set."""
    kinds = {"f": "FLOAT", "i": "INT", "s": "STRING", "t": "TENSOR", "g": "GRAPH"}
    kinds |= {"floats": "FLOATS", "ints": "INTS", "strings": "STRINGS", "tensors": "TENSORS", "graphs": "GRAPHS"}
    typed = onnx.AttributeProto()
    typed.CopyFrom(attribute)
    for descriptor, _ in attribute.ListFields():
        if descriptor.name in kinds:
            typed.type = onnx.AttributeProto.AttributeType.Value(kinds[descriptor.name])
            return typed
    typed.type = onnx.AttributeProto.INTS  # an empty list of integers: axes or pads
    return typed
