"""Where the logits are: behind every ending that a classifier can have, recognised by the nodes and proved by their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from lowering_support import array, model, node
from onnx import TensorProto, helper
from tolerances import OPERATION_32, SUM_32

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.logits import LogitsInfo, logits_of
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.other_outputs import switch_of
from onnxspect.converters.proof.oracle import Oracle

ML = "ai.onnx.ml"
X = array((6, 4), 9)


def classifier(ending: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("y",), opset: int = 13) -> onnx.ModelProto:
    """Scores `z` of three classes, and an ending."""
    constants = {"w": array((4, 3), 1), "b": array((3,), 2), "axes": np.array([1]), "k": np.array([1])}
    constants |= {"s": np.float32(0.02), "zero": np.uint8(128), "shape": np.array([-1, 3, 1, 1])}
    nodes = [node("Gemm", "x w b", "z", name="head"), *ending]
    return model(nodes, constants, outputs=outputs, opset=opset, domains=[ML])


def ml(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), domain=ML, **attributes)


SOFTMAX = node("Softmax", "z", "p", axis=1)
WRITTEN_OUT = [node("Exp", "z", "e"), node("ReduceSum", "e axes", "t"), node("Div", "e t", "p")]
AVERAGE = [SOFTMAX, node("Softmax", "z", "q", axis=1), node("Mean", "p q")]

#: Ending -> (its nodes, outputs, where the logits are, how, names of what was taken off).
ENDINGS: dict[str, tuple[list[onnx.NodeProto], tuple[str, ...], str, str, tuple[str, ...]]] = {
    "none": ([], ("z",), "z", "logits", ()),
    "softmax": ([SOFTMAX], ("p",), "z", "before_softmax", ("p",)),
    "log softmax": ([node("LogSoftmax", "z", axis=-1)], ("y",), "z", "before_softmax", ("y",)),
    "softmax without an axis": ([node("Softmax", "z")], ("y",), "z", "before_softmax", ("y",)),
    "sigmoid": ([node("Sigmoid", "z")], ("y",), "z", "before_sigmoid", ("y",)),
    "softmax written out": (WRITTEN_OUT, ("p",), "z", "before_softmax", ("e", "t", "p")),
    "exponential of log softmax": (
        *([node("LogSoftmax", "z", "l", axis=1), node("Exp", "l")], ("y",), "z", "before_softmax", ("l", "y")),
    ),
    "identity behind": ([SOFTMAX, node("Identity", "p")], ("y",), "z", "before_softmax", ("p", "y")),
    "labels": ([node("ArgMax", "z", axis=1, keepdims=0)], ("y",), "z", "logits", ("y",)),
    "labels of probabilities": (*([SOFTMAX, node("ArgMax", "p", axis=1)], ("y",), "z", "before_softmax", ("p", "y")),),
    "the best class": ([SOFTMAX, node("TopK", "p k", "v i", axis=1)], ("i",), "z", "before_softmax", ("p", "v")),
    "a dictionary": (
        [SOFTMAX, ml("ZipMap", "p", "y", classlabels_int64s=[5, 6, 7])],
        *(("y",), "z", "before_softmax", ("p", "y")),
    ),
    "labels first, then a dictionary": (
        [
            SOFTMAX,
            node("ArgMax", "p", "a", axis=1, keepdims=0),
            ml("LabelEncoder", "a", "label", keys_int64s=[0, 1, 2], values_int64s=[5, 6, 7]),
            ml("ZipMap", "p", "y", classlabels_int64s=[5, 6, 7]),
        ],
        *(("label", "y"), "z", "before_softmax", ("p", "a", "label")),
    ),
    "quantised": (
        [node("QuantizeLinear", "z s zero", "q"), node("DequantizeLinear", "q s zero")],
        *(("y",), "y", "logits", ()),
    ),
    "an average of softmaxes": (AVERAGE, ("y",), "y", "log_of_probabilities", ()),
    "axes of size 1": (
        *([node("Reshape", "z shape", "r"), node("Softmax", "r", axis=1)], ("y",), "r", "before_softmax", ("y",)),
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_logits_are_found_behind(name: str) -> None:
    ending, outputs, value, how, removed = ENDINGS[name]
    assert logits_of(classifier(ending, outputs)) == LogitsInfo(value, how, removed, outputs[0])


INVERSES = {
    "logits": lambda z: z,
    "before_softmax": lambda z: torch.softmax(z, 1),
    "before_sigmoid": torch.sigmoid,
    "log_of_probabilities": lambda z: z,
}


@pytest.mark.parametrize("name", [n for n, (_, outputs, *_) in ENDINGS.items() if outputs in (("p",), ("y",), ("z",))])
def test_the_output_is_what_was_reported_of_the_value_that_was_found(name: str) -> None:
    """Labels and dictionaries are made of it too: the class that they name is where it is largest."""
    ending, outputs, *_ = ENDINGS[name]
    proto = classifier(ending, outputs)
    info = logits_of(proto)
    lowered = lower(proto, [info.value])
    found = INVERSES[info.how](lowered.module(torch.from_numpy(X))).numpy()
    (answer,) = Oracle(proto.SerializeToString()).run({"x": X})
    if isinstance(answer, list):
        assert [max(d, key=d.get) for d in answer] == [5 + c for c in found.argmax(1)]
    elif answer.dtype == np.int64:
        np.testing.assert_array_equal(answer.reshape(-1), found.argmax(1))
    else:
        expected = np.exp(answer) if name == "log softmax" else answer
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=SUM_32, atol=OPERATION_32)


def test_what_the_logits_do_not_need_is_not_lowered() -> None:
    """ai.onnx.ml behind the logits is cut off; the same operator before them is refused by name."""
    proto = classifier(*ENDINGS["a dictionary"][:2])
    lowered = lower(proto, [logits_of(proto).value])
    assert set(lowered.values) == {"x", "z"}
    with pytest.raises(OnnxspectError, match=r"ai\.onnx\.ml:ZipMap"):
        lower(proto)


def test_names_of_nodes_are_given_where_they_have_one() -> None:
    proto = classifier([node("Softmax", "z", "p", axis=1, name="probabilities")], ("p",))
    assert logits_of(proto).removed == ("probabilities",)


@pytest.mark.parametrize("opset", [11, 13])
def test_a_softmax_over_something_else_is_part_of_the_network(opset: int) -> None:
    """Attention at the end: over the last axis of three."""
    proto = model(
        [node("Softmax", "x", "a", axis=2), node("ReduceMean", "a", axes=[2], keepdims=0)], {}, ("n", 3, 4), opset
    )
    assert logits_of(proto) == LogitsInfo("y", "logits", (), "y")


def test_division_by_another_sum_is_no_softmax() -> None:
    ending = [node("Exp", "z", "e"), node("ReduceSum", "z axes", "t"), node("Div", "e t")]
    assert logits_of(classifier(ending)) == LogitsInfo("y", "logits", (), "y")


def test_a_linear_classifier_answers_scores_and_labels() -> None:
    coefficients = array((3, 4), 1).reshape(-1).tolist()
    settings: dict[str, Any] = {"coefficients": coefficients, "intercepts": [0.0] * 3, "classlabels_ints": [0, 1, 2]}
    labels = ml("LinearClassifier", "x", "label scores", post_transform="SOFTMAX", **settings)
    proto = model([labels], outputs=("label", "scores"), domains=[ML])
    assert logits_of(proto) == LogitsInfo("scores", "log_of_probabilities", (), "label")
    scores = ml("LinearClassifier", "x", "label scores", post_transform="NONE", **settings)
    assert logits_of(model([scores], outputs=("scores",), domains=[ML])) == LogitsInfo("scores", "logits", (), "scores")


def test_an_output_without_scores_is_refused() -> None:
    nodes = [node("Cast", "x", "c", to=TensorProto.INT64), node("ReduceSum", "c", "y", keepdims=0)]
    with pytest.raises(OnnxspectError, match=r"no output \(y\) leads back to class scores") as caught:
        logits_of(model(nodes, opset=13))
    assert caught.value.hint


def test_a_chain_without_end_is_left() -> None:
    """A thousand copies behind the logits: looked through only so far, and the value that was reached is taken."""
    nodes = [node("Identity", f"v{i}" if i else "x", f"v{i + 1}") for i in range(1000)]
    assert logits_of(model(nodes, outputs=("v1000",))).value == "v1000"


@pytest.mark.parametrize(
    ("ending", "switch"),
    [
        ([node("Greater", "z zero", "c"), node("Where", "c z b", name="gate")], "gate"),
        ([node("Greater", "z zero", "c"), node("Where", "c z b", "g"), node("Identity", "g")], "g"),
        # A condition that no image changes hides nothing; nor does a comparison before the last weights.
        ([node("Greater", "b zero", "c"), node("Where", "c z b", name="mask")], ""),
        ([node("Greater", "z zero", "c"), node("Where", "c z b", "g"), node("Add", "g b")], ""),
        ([node("Identity", "z")], ""),
    ],
    ids=["switch", "behind a copy", "constant", "before a sum", "none"],
)
def test_a_switch_in_front_of_the_scores_is_seen(ending: list[onnx.NodeProto], switch: str) -> None:
    constants = {"w": array((4, 3), 1), "b": array((3,), 2), "zero": np.float32(0.0)}
    proto = model([node("Gemm", "x w b", "z"), *ending], constants, outputs=("y",), opset=13)
    assert switch_of(proto, "y") == switch
