"""Cast, CastLike and BitCast (ONNX operator documentation).

On the device every floating type is the working type, so a cast between floating types is the identity there and a
cast to one makes the working type (see the header of lowering.py). On the host the file's own types are kept. A cast
to float8 or float4 rounds to that format's grid (narrow.py).
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from onnxspect.converters.lowering.builder import FLOATS, NodeView, Unsupported
from onnxspect.converters.lowering.narrow import NARROW_FLOATS, to_narrow_float, to_narrow_integer
from onnxspect.converters.lowering.registry import lowering

#: Element type in the file -> the torch type that holds its values.
TORCH_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.UINT64: torch.int64,
}
_NARROW_INTEGERS = frozenset((TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.INT2))
#: Element type in the file -> the torch type of the same bits.
_SAME_BITS: dict[int, torch.dtype] = TORCH_TYPES | {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
}


def to_working(x: Tensor, working: Tensor) -> Tensor:
    """x in the working type; a floating x is already."""
    return x if x.is_floating_point() else x.to(working.dtype)


def to_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another type; towards zero from floating point to integers."""
    return x.to(dtype)


def to_type_of(x: Tensor, like: Tensor) -> Tensor:
    """x in the type of another tensor."""
    return x.to(like.dtype)


def _cast(node: NodeView, target: int) -> Any:
    x = node.input(0)
    if target in NARROW_FLOATS:
        x = x if node.is_float(0) else node.call(to_working, x, node.working())
        saturate, mode = bool(node.attr("saturate", 1)), node.attr("round_mode", "up")
        return node.call(to_narrow_float, x, target, saturate, mode)
    if target in _NARROW_INTEGERS:
        return node.call(to_narrow_integer, x, target)
    if target not in TORCH_TYPES:
        raise Unsupported(f"a cast to {TensorProto.DataType.Name(target) if target else 'an unknown type'}")
    if node.on_host or target not in FLOATS:
        return node.call(to_type, x, TORCH_TYPES[target])
    return x if node.is_float(0) else node.call(to_working, x, node.working())


@lowering("Cast", 1, 6, 9, 13, 19, 21, 23, 24, 25, 28)
def cast(node: NodeView) -> Any:
    target = node.attr("to", 0)
    if isinstance(target, str):  # opset 1 names the type
        target = dict(TensorProto.DataType.items()).get(target.upper(), 0)
    return _cast(node, int(target))


@lowering("CastLike", 15, 19, 21, 23, 24, 25, data=(0,))
def cast_like(node: NodeView) -> Any:
    target = node.dtype(1)
    if target:
        return _cast(node, target)
    return node.call(to_type_of, node.input(0), node.builder.value(node.proto.input[1]))


def bit_cast(x: Tensor, source: torch.dtype, target: torch.dtype, held_as: torch.dtype) -> Tensor:
    """The bits of x, taken as `source`, read as `target`."""
    return x.to(source).view(target).to(held_as)


@lowering("BitCast", 26)
def bit_cast_(node: NodeView) -> Any:
    source, target = node.dtype(0), int(node.attr("to", 0))
    if source not in _SAME_BITS or target not in _SAME_BITS:
        raise Unsupported("a type that torch has no equal of")
    return node.call(bit_cast, node.input(0), _SAME_BITS[source], _SAME_BITS[target], TORCH_TYPES[target])
