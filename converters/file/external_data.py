"""External data: tensors that a model keeps in files beside it, read into the model, and from nowhere else.

ONNX's specification (docs/ExternalData.md) gives a tensor a location, an offset and a length. An untrusted model may
name any location, so the file is opened by `safe_open.read_beneath`, and the length must be what the tensor's shape and
type need. After `embed` no tensor is external, so neither onnx nor onnxruntime ever opens another file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.sandbox.safe_open import read_beneath
from onnxspect.converters.text import printable, readable_bytes

# Bits per element, by TensorProto.DataType; STRING has none.
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16,
}
_BITS.update(
    (getattr(TensorProto, name), bits)
    for name, bits in (
        ("FLOAT8E4M3FN", 8),
        ("FLOAT8E4M3FNUZ", 8),
        ("FLOAT8E5M2", 8),
        ("FLOAT8E5M2FNUZ", 8),
        ("FLOAT8E8M0", 8),
        ("UINT4", 4),
        ("INT4", 4),
        ("FLOAT4E2M1", 4),
        ("UINT2", 2),
        ("INT2", 2),
    )
    if hasattr(TensorProto, name)
)


#: protobuf's own limit for one message, hence for one tensor.
MOST_BYTES = (1 << 31) - 1


@dataclass(frozen=True)
class ExternalFile:
    """One piece of external data that was read.

    Attributes:
        location: path relative to the model's folder, as the model gives it.
        offset: where in the file it starts, in bytes.
        length: how long it is, in bytes.
        sha256: digest of these bytes, in hexadecimal.
        tensor: name of the tensor that it is.
    """

    location: str
    offset: int
    length: int
    sha256: str
    tensor: str


def tensor_bytes(tensor: TensorProto) -> int | None:
    """Bytes that the tensor's declared shape and type need, or None for strings and unknown types.

    Raises:
        OnnxspectError: for a negative size.
    """
    if any(d < 0 for d in tensor.dims):
        raise OnnxspectError(f"tensor {printable(tensor.name)} has a negative size in {list(tensor.dims)[:8]}")
    bits = _BITS.get(tensor.data_type)
    return None if bits is None else (math.prod(tensor.dims) * bits + 7) // 8


def embed(model: onnx.ModelProto, folder: Path, limit: int) -> tuple[ExternalFile, ...]:
    """Read all external data into `model`, in place.

    Args:
        model: just parsed.
        folder: the folder that the model's file is in.
        limit: bytes, over all tensors together.

    Raises:
        OnnxspectError: where a location leads out of the folder or over a link, a length is wrong, or the sum is over
            the limit.
    """
    found: list[ExternalFile] = []
    left = limit
    for tensor in tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
            continue
        piece = _read(tensor, folder, left, limit)
        left -= piece.length
        found.append(piece)
    return tuple(found)


def _read(tensor: TensorProto, folder: Path, left: int, limit: int) -> ExternalFile:
    shown = printable(tensor.name)
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if not location:
        raise OnnxspectError(f"tensor {shown} has external data, but no location")
    needed = tensor_bytes(tensor)
    if needed is None:
        raise OnnxspectError(f"tensor {shown} has external data of a type that cannot be external")
    offset = _integer(entries, "offset", shown) or 0
    length = _integer(entries, "length", shown)
    if length is not None and length != needed:
        raise OnnxspectError(f"tensor {shown} needs {needed} bytes, but its external data has {length}")
    if needed > MOST_BYTES:
        raise OnnxspectError(f"tensor {shown} takes {readable_bytes(needed)}, over the 2 GiB of a protobuf message")
    if needed > left:
        raise OnnxspectError(
            f"the model's external data is over the limit of {readable_bytes(limit)}",
            "weights stored as fp16 take half",
        )
    try:
        content = read_beneath(folder, location, left, offset=offset, length=needed)
    except OnnxspectError as error:
        raise error.at(f"external data of tensor {shown}") from None
    tensor.raw_data = content.data
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    return ExternalFile(location, offset, needed, content.sha256, tensor.name)


def _integer(entries: dict[str, str], key: str, shown: str) -> int | None:
    value = entries.get(key, "")
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 19):
        raise OnnxspectError(f"tensor {shown}: external data has {key} {printable(value, 24)!r}, not a number")
    return int(value)


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every TensorProto in `model`: initializers, sparse ones, attributes, those of nested graphs and of functions."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    attributes: list[onnx.AttributeProto] = []
    for function in model.functions:
        attributes += function.attribute_proto
        attributes += _node_attributes(function.node)
    while graphs or attributes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from _sparse(graph.sparse_initializer)
            attributes += _node_attributes(graph.node)
        else:
            attribute = attributes.pop()
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _sparse([attribute.sparse_tensor])
            yield from _sparse(attribute.sparse_tensors)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs += attribute.graphs


def _node_attributes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.AttributeProto]:
    for node in nodes:
        yield from node.attribute


def _sparse(sparse: Iterable[onnx.SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices
