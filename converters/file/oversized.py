"""Models beyond what one protobuf message can hold: 2 GiB, which ends serialising, not what a message in memory holds.

What needs a model's bytes (onnxruntime, a child process) gets such a one as a light message without its large tensors, and
these beside it: as a data file in the child's folder, or as arrays in memory. Smaller models are handled as one message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxspect.converters.file.external_data import tensor_bytes, tensors
from onnxspect.converters.file.external_layout import KEPT, Placement, without_data

#: A model whose tensors take more is handled in parts. Half of protobuf's limit, for what comes on top of the tensors.
WHOLE = 1 << 30
#: Tensors of fewer bytes stay in the message: shapes, axes and biases, which shape inference wants to see.
SMALL = 1 << 16
#: onnxruntime maps data files from offsets that are multiples of this.
_ALIGNED = 1 << 16


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the tensors whose data is inside a model."""
    return sum(tensor_bytes(t) or 0 for t in tensors(model) if t.data_location != TensorProto.EXTERNAL)


def oversized(model: onnx.ModelProto) -> bool:
    """Whether a model's tensors take more than `WHOLE` bytes."""
    return weight_bytes(model) > WHOLE


def parted(
    model: onnx.ModelProto, location: str
) -> tuple[onnx.ModelProto, Mapping[str, TensorProto], dict[str, Placement]]:
    """The light message, the tensors that are not in it by name, and their places in a data file called `location`.

    Only initializers of the main graph with raw bytes and a name of their own are taken out.
    """
    named = Counter(t.name for t in tensors(model))
    large = {
        t.name: t
        for t in model.graph.initializer
        if named[t.name] == 1 and t.HasField("raw_data") and (tensor_bytes(t) or 0) >= SMALL
    }
    places, offset = {}, 0
    for name, tensor in large.items():
        length = tensor_bytes(tensor) or 0
        places[name] = Placement(0, offset, length)
        offset += -(-length // _ALIGNED) * _ALIGNED
    return without_data(model, places, [location]), large, places


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model; of an oversized one without the data of its large tensors, which `write_like` finds in the original."""
    if oversized(model):
        return parted(model, KEPT)[0]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def data_file(large: Mapping[str, TensorProto], places: Mapping[str, Placement]) -> Iterator[bytes]:
    """The data file's content, piece by piece."""
    end = 0
    for name, place in places.items():
        yield bytes(place.offset - end)
        yield large[name].raw_data
        end = place.offset + place.length


def arrays(large: Mapping[str, TensorProto]) -> dict[str, np.ndarray]:
    """The tensors as arrays, for onnxruntime to read from memory."""
    return {name: numpy_helper.to_array(tensor) for name, tensor in large.items()}
