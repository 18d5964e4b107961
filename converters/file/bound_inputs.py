"""Inputs beside the image: what a training framework left in an exported graph (keep_prob, is_training), given a value.

A bound input stays an input and gets a default, as ONNX allows: an initializer of its name. So everything that reads the
model sees one image input, and a patched file still takes the value from whoever feeds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.text import printable

#: Names, without marks and in small letters, of inputs of one number, and what they are when a network is used and not trained.
_IN_USE: Mapping[str, float] = {
    **dict.fromkeys(("keepprob", "keepprobability", "dropoutkeepprob", "keeprate", "kp"), 1.0),
    **dict.fromkeys(("dropout", "dropoutrate", "droprate", "dropoutprob", "dropprob"), 0.0),
    **dict.fromkeys(
        ("training", "istraining", "istrain", "train", "trainingmode", "trainphase", "phasetrain", "phase"), 0.0
    ),
    **dict.fromkeys(("learningphase", "keraslearningphase", "trainflag", "trainingflag", "bntraining"), 0.0),
}


def free_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must feed: those without a default."""
    given = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in given]


def bound(file: OnnxFile, values: Mapping[str, float] | None = None) -> OnnxFile:
    """The file with values for the inputs beside the image, where it has such.

    Inputs of one number whose names say what they are for need no value from the user; a warning says what was taken.

    Args:
        file: as it was read; left as it is.
        values: input name -> the number that fills it.

    Raises:
        OnnxspectError: a name that is no free input, or one whose shape is not known.
    """
    free = free_inputs(file.proto)
    given = dict(values or {})
    inputs = {i.name: i for i in file.proto.graph.input}
    for name in given:
        if name not in inputs:
            others = ", ".join(printable(i.name) for i in free[:10])
            raise OnnxspectError(
                f"{file.path}: has no input named {printable(name)} to bind", f"its inputs are {others}"
            )
    left = [i for i in free if i.name not in given]
    if not left:
        raise OnnxspectError(
            f"{file.path}: every input is bound, and none is left for the image", "leave --bind of the image away"
        )
    notes = []
    if len(left) > 1:
        for info in left:
            if _elements(info) != 1:
                continue
            known = _IN_USE.get(_plain(info.name))
            if known is not None:
                given[info.name] = known
                notes.append(
                    f"input {printable(info.name)} is taken as {known:g}, as in use (--bind NAME=VALUE for another)"
                )
    if not given:
        return file
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    kept = [t for t in proto.graph.initializer if t.name not in given]
    if len(kept) < len(proto.graph.initializer):  # a default that the file has, and the user wants another
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
    proto.graph.initializer.extend(_tensor(inputs[name], value, file) for name, value in given.items())
    return replace(file, proto=proto, warnings=(*file.warnings, *notes), bound=tuple(sorted(given.items())))


def bound_feeds(file: OnnxFile) -> dict[str, np.ndarray]:
    """What the bound inputs are fed, for a session over the file on disk."""
    values = {t.name: t for t in file.proto.graph.initializer}
    return {name: numpy_helper.to_array(values[name]) for name, _ in file.bound}


def several_inputs(model: onnx.ModelProto, what: str) -> OnnxspectError:
    """The error for a model with more than one input to feed; its hint names the way to bind what is no image."""
    free = free_inputs(model)
    names = ", ".join(printable(i.name) for i in free[:5])
    others = [i for i in free if 0 < _elements(i) < 64]
    hint = "export it with one image as its only input"
    if others and len(others) < len(free):
        hint = "bind what is no image: " + " ".join(f"--bind {printable(i.name)}=VALUE" for i in others[:3])
    return OnnxspectError(f"{what} has {len(free)} inputs ({names}); an image classifier has one", hint)


def _plain(name: str) -> str:
    """A name as people mean it: `model/keep_prob:0` is keepprob."""
    return "".join(c for c in name.rsplit("/", 1)[-1].split(":")[0].lower() if c.isalpha())


def _elements(info: onnx.ValueInfoProto) -> int:
    """How many numbers an input takes for one image; 0 where that is not known."""
    if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
        return 0
    return math.prod(_sizes(info))


def _sizes(info: onnx.ValueInfoProto) -> list[int]:
    dims = info.type.tensor_type.shape.dim
    return [d.dim_value if d.dim_value > 0 else (1 if i == 0 else 0) for i, d in enumerate(dims)]


def _tensor(info: onnx.ValueInfoProto, value: float, file: OnnxFile) -> onnx.TensorProto:
    if _elements(info) == 0:
        raise OnnxspectError(
            f"{file.path}: the shape of its input {printable(info.name)} is not known, so it cannot be bound",
            "export it with the shapes of its inputs",
        )
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    return numpy_helper.from_array(np.full(_sizes(info), value).astype(kind), info.name)
