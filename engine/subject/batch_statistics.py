"""Which input range a file's first BatchNorm was trained at: its running mean and variance are those of what real images cause there.

For each reading of the images, the mean and variance of the values that enter the first BatchNormalization are compared with the
stored ones, as the divergence of two normal laws, averaged over channels. A reading that comes near (`FITS`), where others do not
(`APART` times as far), is what the file was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.subject import InputSpec, Subject

#: Divergence up to which statistics agree. History: docs/decisions.md.
FITS = 0.5
#: How many times as far a reading is that the statistics speak against. History: docs/decisions.md.
APART = 4.0
#: Images that are looked at.
_IMAGES = 64


def stated_by_statistics(subject: Subject, options: Sequence[InputSpec], images: np.ndarray) -> dict[int, str]:
    """The options that the statistics speak for, by index; none where there is no BatchNorm, or it does not decide.

    Args:
        subject: with a file behind it.
        options: readings.
        images: real ones ``(n, channels, height, width)`` in [0, 1].
    """
    if subject.file is None or subject.lowered is None:
        return {}
    found = _first(subject.file.proto)
    if found is None:
        return {}
    value, mean, variance = found
    pixels = torch.from_numpy(np.ascontiguousarray(images[:_IMAGES]))
    try:
        oracle = Oracle(subject.file.proto, "cpu", 1, [value])
        distances = []
        for option in options:
            entering = oracle.map(subject.lowered.inputs[0], option.encode(pixels).numpy(), value)
            distances.append(_divergence(np.asarray(entering, np.float64), mean, variance))
    except (OnnxspectError, ValueError, RuntimeError):
        return {}
    least = min(distances)
    if not least <= FITS:
        return {}
    near = [i for i, d in enumerate(distances) if d <= APART * least + 0.05]
    return dict.fromkeys(near, "the running statistics of its first BatchNorm fit") if len(near) < len(options) else {}


def _first(proto: onnx.ModelProto) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(value that enters, running mean, running variance) of the first BatchNorm whose statistics lie in the file."""
    stored = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization" and len(node.input) == 5:
            tensors = [stored.get(n) for n in node.input[3:]]
            if any(t is None or t.data_location == onnx.TensorProto.EXTERNAL for t in tensors):
                return None
            mean, variance = (np.asarray(numpy_helper.to_array(t), np.float64) for t in tensors if t is not None)
            usable = mean.size and np.isfinite(mean).all() and np.isfinite(variance).all() and (variance > 0).all()
            return (node.input[0], mean, variance) if usable else None
    return None


def _divergence(entering: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """Mean over channels of the divergence of the normal law of what enters ``(n, channels, ...)`` from the stored one."""
    if entering.ndim < 2 or entering.shape[1] != len(mean) or not np.isfinite(entering).all():
        return np.inf
    axes = (0, *range(2, entering.ndim))
    ratio = entering.var(axes) / variance
    shift = (entering.mean(axes) - mean) ** 2 / variance
    return float(np.mean(0.5 * (shift + ratio - 1 - np.log(np.maximum(ratio, 1e-12)))))
