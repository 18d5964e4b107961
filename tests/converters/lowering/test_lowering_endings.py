"""Behind what keeps the order of the classes the softmax is found, and behind what does not it is left alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from lowering_support import array, model, node
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.lowering.endings import keeps_order
from onnxspect.converters.lowering.logits import logits_of, outputs_of, score_outputs
from onnxspect.converters.lowering.lower import lower
from onnxspect.converters.lowering.other_outputs import embeddings
from onnxspect.converters.lowering.purpose import refuse_others
from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.subject.class_scores import are_probabilities, class_scores, of_output

X = array((40, 100), 9)
SOFTMAX = node("Softmax", "z", "p", axis=1)
SINGLE = [node("Gemm", "x u v", "s"), node("Sigmoid", "s", "p")]


def classifier(ending: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """Scores `z` of three classes and `w` of others, and an ending."""
    constants = {
        "a": 0.1 * array((100, 3), 1),
        "b": array((3,), 2),
        "c": 0.1 * array((100, 3), 3),
        "u": array((100, 1), 4),
    }
    constants |= {
        "v": array((1,), 5),
        "axes": np.array([1]),
        "four": np.array([-1, 3, 1, 1]),
        "order": np.array([2, 0]),
    }
    constants |= {"single": np.float32(1), "half": np.float32(0.5), "hundred": np.float32(100), "minus": np.float32(-1)}
    constants |= {
        "low": np.float32(1e-7),
        "high": np.float32(1 - 1e-7),
        "bites": np.float32(0.4),
        "two": np.array([-1, 3]),
    }
    constants |= {"prior": np.array([0.2, 0.5, 0.3], np.float32), "third": np.float32(0.3), "rest": np.float32(0.7)}
    nodes = [node("Gemm", "x a b", "z"), node("Gemm", "x c b", "w"), *ending]
    needed = model(nodes, constants, ("n", 100), outputs=outputs)
    used = {name for n in nodes for name in n.input}
    kept = [t for t in needed.graph.initializer if t.name in used]
    del needed.graph.initializer[:]
    needed.graph.initializer.extend(kept)
    return needed


OTHER = node("Softmax", "w", "q", axis=1)
#: Ending -> (its nodes, the value that is found, how).
TRANSPARENT: dict[str, tuple[list[onnx.NodeProto], str, str]] = {
    "a clip": ([SOFTMAX, node("Clip", "p low high")], "z", "before_softmax"),
    "percents": ([SOFTMAX, node("Mul", "p hundred")], "z", "before_softmax"),
    "percents, the factor first": ([SOFTMAX, node("Mul", "hundred p")], "z", "before_softmax"),
    "an offset": ([SOFTMAX, node("Sub", "p half")], "z", "before_softmax"),
    "a logarithm": ([SOFTMAX, node("Log", "p")], "z", "before_softmax"),
    "a logarithm of a clip": ([SOFTMAX, node("Clip", "p low high", "k"), node("Log", "k")], "z", "before_softmax"),
    "a root": ([SOFTMAX, node("Sqrt", "p")], "z", "before_softmax"),
    "a log softmax, scaled": ([node("LogSoftmax", "z", "p", axis=1), node("Mul", "p half")], "z", "before_softmax"),
    "a softmax of a softmax": ([SOFTMAX, node("Softmax", "p", axis=1)], "z", "before_softmax"),
    "a softmax of sigmoids": ([node("Sigmoid", "z", "p"), node("Softmax", "p", axis=1)], "z", "before_sigmoid"),
    "a choice of classes": ([SOFTMAX, node("Gather", "p order", axis=1)], "z", "before_softmax"),
    "axes of size 1, moved": (
        [node("Reshape", "z four", "r"), node("Softmax", "r", "p", axis=1), node("Transpose", "p", perm=[0, 2, 3, 1])],
        "r",
        "before_softmax",
    ),
    "sigmoids, clipped": ([node("Sigmoid", "z", "p"), node("Clip", "p low high")], "z", "before_sigmoid"),
    "one sigmoid": ([*SINGLE[:1], node("Sigmoid", "s")], "s", "before_sigmoid"),
    "one sigmoid, clipped": ([*SINGLE, node("Clip", "p low high")], "s", "before_sigmoid"),
    "a pair": ([*SINGLE, node("Sub", "single p", "r"), node("Concat", "r p", axis=1)], "s", "before_sigmoid"),
    "a pair, the other way": (
        [*SINGLE, node("Sub", "single p", "r"), node("Concat", "p r", axis=1)],
        "s",
        "before_sigmoid",
    ),
    "a clipped average of softmaxes": (
        [SOFTMAX, OTHER, node("Mean", "p q", "m"), node("Clip", "m low high")],
        "m",
        "log_of_probabilities",
    ),
    "an ensemble with weights": (
        [SOFTMAX, OTHER, node("Mul", "p third", "i"), node("Mul", "q rest", "j"), node("Add", "i j")],
        "y",
        "log_of_probabilities",
    ),
    "test-time augmentation": (
        [
            *(SOFTMAX, OTHER, node("Unsqueeze", "p axes", "i"), node("Unsqueeze", "q axes", "j")),
            *(node("Concat", "i j", "k", axis=1), node("ReduceMean", "k", axes=[1], keepdims=0)),
        ],
        "y",
        "log_of_probabilities",
    ),
    "a prior": ([SOFTMAX, node("Mul", "p prior")], "y", "log_of_probabilities"),
}
#: What does not keep the order, or not all of it: the output itself is looked at.
OPAQUE: dict[str, list[onnx.NodeProto]] = {
    "a clip above 1/classes": [SOFTMAX, node("Max", "p bites")],
    "a clip below one half": [SOFTMAX, node("Min", "p bites")],
    "the other way round": [SOFTMAX, node("Mul", "p minus")],
    "what is left of 1": [SOFTMAX, node("Sub", "single p")],
    "one sigmoid, compared at another place": [*SINGLE, node("Mul", "p half")],
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_the_scores_name_the_class_that_the_output_names(name: str) -> None:
    ending, value, how = TRANSPARENT[name]
    proto = classifier(ending)
    info = logits_of(proto)
    assert (info.value, info.how, info.output) == (value, how, "y")
    scores = class_scores(lower(proto, [value]).module(torch.from_numpy(X)), info).numpy()
    (answers,) = Oracle(proto.SerializeToString()).run({"x": X})
    of_file = of_output(answers, info)
    assert scores.shape == of_file.shape
    np.testing.assert_array_equal(scores.argmax(1), of_file.argmax(1))
    assert len(set(scores.argmax(1))) > 1


@pytest.mark.parametrize("name", OPAQUE)
def test_what_changes_the_order_is_not_looked_through(name: str) -> None:
    proto = classifier(OPAQUE[name])
    if "one sigmoid" in name:
        with pytest.raises(OnnxspectError, match="leads back to class scores"):
            logits_of(proto)
        return
    assert (logits_of(proto).value, logits_of(proto).how) == ("y", "logits")


def test_bounds_may_be_constant_nodes_of_any_form() -> None:
    low = helper.make_node("Constant", [], ["l"], value_float=1e-6)
    high = helper.make_node("Constant", [], ["h"], value=numpy_helper.from_array(np.float32(1)))
    assert logits_of(classifier([SOFTMAX, low, high, node("Clip", "p l h")])).value == "z"


def test_bounds_are_judged_by_the_number_of_classes() -> None:
    """Of ten probabilities the largest is above 0.1, so a floor of 0.05 hides no class; of a hundred it may."""
    floor = [lambda x: np.maximum(x, 0.05)]
    assert keeps_order(floor, "softmax", 10)
    assert not keeps_order(floor, "softmax", 100)
    assert not keeps_order(floor, "sigmoid", 10)
    assert keeps_order([], "softmax", None)


def test_an_embedding_before_the_scores_is_none_and_is_listed() -> None:
    nodes = [node("Gemm", "x a b", "flat"), node("Relu", "flat", "r"), node("MatMul", "r w", "logits")]
    constants = {"a": array((100, 30), 1), "b": array((30,), 2), "w": array((30, 5), 3)}
    proto = model(nodes, constants, ("n", 100), outputs=("flat", "logits"))
    assert [i.output for i in score_outputs(proto)] == ["logits", "flat"]
    assert logits_of(proto).output == "logits"
    assert [i.output for i in embeddings(proto, "logits")] == ["flat"]
    assert logits_of(proto, output="flat").value == "flat"


def test_outputs_that_are_made_of_the_same_scores_count_once() -> None:
    proto = classifier([SOFTMAX, node("Identity", "z")], ("p", "y", "w"))
    assert [(i.output, i.value) for i in score_outputs(proto)] == [("p", "z"), ("w", "w")]
    assert outputs_of(proto, logits_of(proto)) == ("p", "y")


def test_an_output_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(OnnxspectError, match="no output named logits") as caught:
        logits_of(classifier([SOFTMAX], ("p",)), output="logits")
    assert "p" in caught.value.hint


def test_one_number_is_class_scores_by_the_users_word() -> None:
    proto = classifier([node("Gemm", "x u v", "y")])
    with pytest.raises(OnnxspectError):
        logits_of(proto)
    info = logits_of(proto, output="y")
    assert info.how == "one_logit"
    scores = class_scores(torch.tensor([[2.0], [-1.0]]), info)
    np.testing.assert_array_equal(scores.numpy(), [[0, 2], [0, -1]])
    np.testing.assert_array_equal(of_output(np.array([[2.0], [-1.0]]), info).argmax(1), [1, 0])


def test_probabilities_are_told_by_their_values() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), 20)
    assert are_probabilities(p)
    assert not are_probabilities(p * 1.1)
    assert not are_probabilities(np.log(p))
    assert not are_probabilities(np.full((3, 1), 1.0))
    assert not are_probabilities(np.full((3, 4), np.nan))


IMAGE = ("n", 3, 16, 16)
CONV = node("Conv", "x k", "y", pads=[1, 1, 1, 1])
OTHERS: dict[str, tuple[list[onnx.NodeProto], tuple[int | str, ...], dict[str, np.ndarray], str]] = {
    "a segmenter": ([CONV], IMAGE, {"k": array((10, 3, 3, 3))}, "is a segmenter"),
    "an autoencoder": ([CONV], IMAGE, {"k": array((3, 3, 3, 3))}, "autoencoder"),
    "a regressor": (
        [node("Flatten", "x", "f"), node("Gemm", "f k b")],
        *(IMAGE, {"k": array((768, 1)), "b": array((1,))}, "regressor"),
    ),
    "an embedding model": (
        [node("Flatten", "x", "f"), node("MatMul", "f k", "e"), node("LpNormalization", "e", axis=1, p=2)],
        *(IMAGE, {"k": array((768, 32))}, "embedding"),
    ),
    "an embedding model, written out": (
        [
            *(node("Flatten", "x", "f"), node("MatMul", "f k", "e"), node("ReduceL2", "e", "l", axes=[1])),
            *(node("Clip", "l low _", "m"), node("Div", "e m")),
        ],
        *(IMAGE, {"k": array((768, 32)), "low": np.float32(1e-12)}, "embedding"),
    ),
    "a detector": (
        [node("Flatten", "x", "f"), node("MatMul", "f k", "e"), node("Reshape", "e s")],
        *(IMAGE, {"k": array((768, 400)), "s": np.array([-1, 100, 4])}, "object detector"),
    ),
    "a table": ([node("MatMul", "x k"), node("Relu", "y", "r")][:1], ("n", 16), {"k": array((16, 3))}, "16 numbers"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_classifier_is_named(name: str) -> None:
    nodes, shape, constants, what = OTHERS[name]
    with pytest.raises(OnnxspectError, match=what) as caught:
        refuse_others(model(nodes, constants, shape))
    assert "image classifiers" in caught.value.hint


def test_a_classifier_is_none_of_these() -> None:
    for ending, *_ in TRANSPARENT.values():
        refuse_others(classifier(ending))
    refuse_others(classifier([], ("z",)))


def test_a_text_model_is_named() -> None:
    proto = model([node("Gather", "table x")], {"table": array((5, 4))}, ("n", 12), dtype=TensorProto.INT64)
    with pytest.raises(OnnxspectError, match="text or of tables"):
        refuse_others(proto)
