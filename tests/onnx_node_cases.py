"""The onnx package's own node tests, run through lowering. Used by the tests and by benchmarks/operators.py."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tolerances import OPERATION_32

from onnxspect.converters.lowering.builder import host_dtype
from onnxspect.converters.lowering.lower import LoweredModel, lower

_TWO_UNITS = {"float16": 2.0**-9, "bfloat16": 2.0**-6}

#: Operators of the default domain that an image classifier has no use for, and why.
OUT_OF_SCOPE: dict[str, str] = {
    **dict.fromkeys(("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch"), "works on strings"),
    "TfIdfVectorizer": "counts words",
    "ImageDecoder": "reads image files",
    "MelWeightMatrix": "audio",
    **dict.fromkeys(("NonMaxSuppression", "RoiAlign", "MaxRoiPool"), "detection: works on boxes"),
    **dict.fromkeys(("Bernoulli", "Multinomial"), "random: the same image would get another answer each time"),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "random: the same image would get another answer each time",
    ),
}
_AT_RUN_TIME = "the condition or trip count is an input of the model; lowering unrolls what is known beforehand"
_LENGTH = "loops over a sequence whose length is only known at run time"
_TRAINING = "training mode: the answers would be random"
_ALIGN_CORNERS = "the reference divides by the size before it is rounded; onnxruntime, the oracle, and the text do not"
#: Node tests in scope that do not pass: name -> why.
KNOWN: dict[str, str] = {
    **dict.fromkeys(("test_if", "test_if_seq", "test_if_opt"), _AT_RUN_TIME),
    **dict.fromkeys(("test_loop11", "test_loop13_seq", "test_loop16_seq_none"), _AT_RUN_TIME),
    **{
        f"test_range_{kind}_delta_expanded": _AT_RUN_TIME
        for kind in ("float_type_positive", "float16_type_positive", "bfloat16_type_positive", "int32_type_negative")
    },
    **{
        f"test_sequence_map_{kind}{expanded}": _LENGTH
        for kind in (
            *("identity_1_sequence", "identity_2_sequences", "identity_1_sequence_1_tensor"),
            *("add_2_sequences", "add_1_sequence_1_tensor", "extract_shapes"),
        )
        for expanded in ("", "_expanded")
    },
    **{
        f"test_training_dropout{kind}": _TRAINING
        for kind in ("", "_mask", "_default", "_default_mask", "_zero_ratio", "_zero_ratio_mask")
    },
    "test_affine_grid_3d_align_corners_expanded": _AT_RUN_TIME,
    "test_scan_sum": "Scan of opset 8, which was replaced a version later and has another form",
    "test_resize_downsample_scales_linear_align_corners": _ALIGN_CORNERS,
    "test_resize_downsample_scales_cubic_align_corners": _ALIGN_CORNERS,
}


@dataclass(frozen=True)
class NodeCase:
    """One node test: a model of one node (or of the function body of one), inputs, and what it must answer."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    rtol: float
    atol: float

    @property
    def operator(self) -> str:
        """The operator it is about; of the body of a function, the operator whose values it computes first."""
        return str(self.model.graph.node[0].op_type)

    @property
    def out_of_scope(self) -> str | None:
        """Why it is out of scope, or None where it is in."""
        for node in self.model.graph.node:
            if node.domain not in ("", "ai.onnx"):
                return f"domain {node.domain}"
            if node.op_type in OUT_OF_SCOPE:
                return OUT_OF_SCOPE[node.op_type]
        tensors = (i.type.tensor_type.elem_type for i in (*self.model.graph.input, *self.model.graph.output))
        return "strings" if onnx.TensorProto.STRING in tensors else None


@functools.cache
def node_cases() -> tuple[NodeCase, ...]:
    """All of them, in the package's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference implementation overflows on purpose in places
        from onnx.backend.test.case.node import collect_testcases

        return tuple(
            NodeCase(case.name, case.model, tuple(inputs), tuple(outputs), case.rtol, case.atol)
            for case in collect_testcases(None)
            for inputs, outputs in case.data_sets
        )


def to_torch(value: Any) -> Any:
    """A node test's input as the torch graph takes it."""
    if isinstance(value, list):
        return [to_torch(v) for v in value]
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    if value is None:
        return None
    array = np.asarray(value)
    dtype = host_dtype(array)
    if dtype.is_floating_point:
        return torch.from_numpy(array.astype(np.float64 if dtype == torch.float64 else np.float32))
    return torch.from_numpy(np.array(array, dtype=torch.empty(0, dtype=dtype).numpy().dtype))


def run(case: NodeCase) -> tuple[LoweredModel, Any]:
    """Lower the model and run it; the outputs as a tuple."""
    lowered = lower(case.model)
    by_name = dict(zip((i.name for i in case.model.graph.input), map(to_torch, case.inputs), strict=True))
    result = lowered.module(*(by_name[name] for name in lowered.inputs))
    return lowered, result if isinstance(result, tuple) else (result,)


def check(case: NodeCase) -> None:
    """Raise unless lowering answers what the test expects, in value and shape."""
    _, results = run(case)
    compare(case, results)


def compare(case: NodeCase, results: Sequence[Any]) -> None:
    """Raise unless these are the outputs that the test expects, in value and shape."""
    for info, found, expected in zip(case.model.graph.output, results, case.outputs, strict=True):
        _compare(info.name, found, expected, case)


def _compare(name: str, found: Any, expected: Any, case: NodeCase) -> None:
    if isinstance(expected, list):
        assert len(found) == len(expected), name
        for f, e in zip(found, expected, strict=True):
            _compare(name, f, e, case)
        return
    if expected is None:
        assert found is None, name
        return
    expected = numpy_helper.to_array(expected) if isinstance(expected, onnx.TensorProto) else np.asarray(expected)
    actual = found.detach().numpy()
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape} instead of {expected.shape}"
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(actual.astype(expected.dtype), expected, err_msg=name)
        return
    # Floats are computed in the working type and rounded to the declared one at the end.
    with np.errstate(over="ignore"):
        actual = actual.astype(expected.dtype)
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    # The reference rounds every intermediate value of a 16-bit computation, lowering none: allow two units.
    rtol = max(case.rtol, _TWO_UNITS.get(expected.dtype.name, 0.0))
    # Sums round relative to what was summed, so what cancels to 0 is compared on the scale of the tensor.
    finite = np.abs(expected.astype(wide))
    atol = max(case.atol, OPERATION_32 * float(finite[np.isfinite(finite)].max(initial=0.0)))
    np.testing.assert_allclose(actual.astype(wide), expected.astype(wide), rtol, atol, err_msg=name)
