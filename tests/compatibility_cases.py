"""Ordinary and not so ordinary model files, rebuilt small: what docs/compatibility.md is made from (docs/make_compatibility.py).

Every case is one kind of file that people have. It is opened as `scan` opens it (but for the child process, which these files
of our own do not need), and then works, torch beside onnxruntime, or is refused with the fact and the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from lowering_support import array, node
from onnx import TensorProto, helper, numpy_helper

from onnxspect.converters.errors import OnnxspectError
from onnxspect.converters.file.bound_inputs import bound
from onnxspect.converters.file.input_face import with_face
from onnxspect.converters.file.onnx_file import Limits, check_onnx
from onnxspect.engine.subject.onnx_model import open_onnx

SIDE, CLASSES, FEATURES = 12, 5, 96
F = TensorProto.FLOAT


@dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
        group: heading of its table.
        name: what it is, in words.
        build: the model.
        output, bind: what the user says of it.
    """

    group: str
    name: str
    build: Callable[[], onnx.ModelProto]
    output: str = ""
    bind: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        works: whether it was opened.
        said: which class scores were found; or why it was refused.
        hint: the next step, of a refusal.
    """

    works: bool
    said: str
    hint: str = ""


def outcome(case: Case) -> Outcome:
    """Open a case's file, compare torch with onnxruntime, and say what was found."""
    try:
        file = check_onnx(case.build().SerializeToString(), Path("model.onnx"), Limits(), "the file", external=False)
        file = with_face(bound(file, dict(case.bind)))
        opened = open_onnx(file, output=case.output, name="the file")
        subject = opened.subject((1, SIDE, SIDE))
    except OnnxspectError as error:
        return Outcome(False, error.message.removeprefix("the file: ").removeprefix("model.onnx: "), error.hint)
    how = opened.logits.how.replace("_", " ")
    others = ", ".join(o.output for o in opened.others)
    said = f"{subject.classes} classes, {opened.spec.layout}: {how}" + (f"; not looked at: {others}" if others else "")
    return Outcome(True, said)


def _constants() -> dict[str, np.ndarray]:
    return {
        "k": 0.5 * array((6, 1, 3, 3), 1),
        "kb": array((6,), 2),
        "w": 0.2 * array((216, CLASSES), 3),
        "b": array((CLASSES,), 4),
        "w2": 0.2 * array((216, CLASSES), 5),
        "u": 0.2 * array((216, 1), 6),
        "v": array((1,), 7),
        "t": array((216, 3), 8),
        "one": np.float32(1),
        "half": np.float32(0.5),
        "low": np.float32(1e-7),
        "high": np.float32(1 - 1e-7),
        "hundred": np.float32(100),
        "axis": np.array([1]),
        "best": np.array([1]),
        "order": np.array([4, 0, 2]),
        "last4": np.array([-1, 1, 1, CLASSES]),
        "first4": np.array([-1, CLASSES, 1, 1]),
        "priors": np.full(CLASSES, 0.3, np.float32),
        "limit": np.float32(0.1),
        "zero": np.array([0]),
        "flat": np.array([-1, 216]),
        "row": np.array([CLASSES]),
    }


def model(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str | onnx.ValueInfoProto] = ("y",),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    image: Sequence[int | str] | None = ("n", 1, SIDE, SIDE),
    kind: int = F,
    opset: int = 17,
    more: Mapping[str, np.ndarray] | None = None,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model of these nodes from `x` on; of the constants those that they use."""
    used = {i for n in nodes for i in n.input}
    constants = {k: v for k, v in {**_constants(), **(more or {})}.items() if k in used}
    given = [] if image is None else [helper.make_tensor_value_info("x", kind, list(image))]
    declared = [onnx.ValueInfoProto(name=o) if isinstance(o, str) else o for o in outputs]
    tensors = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [*given, *inputs], declared, tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def trunk(source: str = "x") -> list[onnx.NodeProto]:
    """From an image (n, 1, 12, 12) to 216 features `f`."""
    return [
        *(node("Conv", f"{source} k kb", "c", pads=[1, 1, 1, 1]), node("Relu", "c", "r")),
        *(node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]), node("Flatten", "p", "f")),
    ]


def classifier(ending: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("y",), **options: object) -> onnx.ModelProto:
    """Features, scores `z`, and an ending."""
    return model([*trunk(), node("Gemm", "f w b", "z"), *ending], outputs, **options)  # type: ignore[arg-type]


SOFTMAX, SECOND = node("Softmax", "z", "q", axis=1), [node("Gemm", "f w2 b", "z2"), node("Softmax", "z2", "q2", axis=1)]
SINGLE = [node("Gemm", "f u v", "s"), node("Sigmoid", "s", "q")]
_ML = "ai.onnx.ml"

ENDINGS: dict[str, Callable[[], onnx.ModelProto]] = {
    "scores": lambda: classifier([], ("z",)),
    "softmax": lambda: classifier([node("Softmax", "z", axis=1)]),
    "softmax over the last axis": lambda: classifier([node("Softmax", "z", axis=-1)]),
    "log softmax": lambda: classifier([node("LogSoftmax", "z", axis=1)]),
    "logarithm of a softmax": lambda: classifier([SOFTMAX, node("Log", "q")]),
    "softmax written out": lambda: classifier(
        [node("Exp", "z", "e"), node("ReduceSum", "e axis", "t0"), node("Div", "e t0")]
    ),
    "softmax written out, shifted by the maximum": lambda: classifier(
        [
            *(node("ReduceMax", "z", "m", axes=[1]), node("Sub", "z m", "d"), node("Exp", "d", "e")),
            *(node("ReduceSum", "e axis", "t0"), node("Div", "e t0")),
        ]
    ),
    "softmax behind a clip (Keras, ONNX of scikit-learn)": lambda: classifier([SOFTMAX, node("Clip", "q low high")]),
    "softmax in percents": lambda: classifier([SOFTMAX, node("Mul", "q hundred")]),
    "softmax of a softmax (a mistake that many make)": lambda: classifier([SOFTMAX, node("Softmax", "q", axis=1)]),
    "softmax times a prior": lambda: classifier([SOFTMAX, node("Mul", "q priors")]),
    "softmax, some classes of it": lambda: classifier([SOFTMAX, node("Gather", "q order", axis=1)]),
    "softmax, clipped where it counts": lambda: classifier([SOFTMAX, node("Min", "q limit")]),
    "a sigmoid for each class": lambda: classifier([node("Sigmoid", "z")]),
    "one sigmoid (Keras' default for two classes)": lambda: classifier([SINGLE[0], node("Sigmoid", "s")]),
    "one sigmoid, clipped": lambda: classifier([*SINGLE, node("Clip", "q low high")]),
    "one sigmoid as two classes": lambda: classifier(
        [*SINGLE, node("Sub", "one q", "o"), node("Concat", "o q", axis=1)]
    ),
    "scores of shape (n, 1, 1, classes)": lambda: classifier(
        [node("Reshape", "z last4", "g"), node("Softmax", "g", axis=-1)]
    ),
    "scores of shape (n, classes, 1, 1)": lambda: classifier(
        [node("Reshape", "z first4", "g"), node("Softmax", "g", axis=1)]
    ),
    "labels": lambda: classifier([node("ArgMax", "z", axis=1)]),
    "labels of a softmax": lambda: classifier([SOFTMAX, node("ArgMax", "q", axis=1, keepdims=0)]),
    "the best class and its probability": lambda: classifier(
        [SOFTMAX, node("TopK", "q best", "v0 i0", axis=1)], ("v0", "i0")
    ),
    "a dictionary of probabilities": lambda: classifier(
        [SOFTMAX, helper.make_node("ZipMap", ["q"], ["y"], domain=_ML, classlabels_int64s=list(range(CLASSES)))],
        domains=[_ML],
    ),
    "an ensemble: average of softmaxes": lambda: classifier([SOFTMAX, *SECOND, node("Mean", "q q2")]),
    "an ensemble: average of scores": lambda: classifier([SECOND[0], node("Mean", "z z2")]),
    "test-time augmentation: average over stacked softmaxes": lambda: classifier(
        [
            *(SOFTMAX, *SECOND, node("Unsqueeze", "q axis", "q3"), node("Unsqueeze", "q2 axis", "q4")),
            *(node("Concat", "q3 q4", "a0", axis=1), node("ReduceMean", "a0", axes=[1], keepdims=0)),
        ]
    ),
    "scores divided by a temperature": lambda: classifier([node("Div", "z half")]),
}

OUTPUTS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "an embedding, then the scores": (lambda: classifier([], ("f", "z")), ""),
    "the scores, then an embedding": (lambda: classifier([], ("z", "f")), ""),
    "labels and probabilities": (lambda: classifier([SOFTMAX, node("ArgMax", "q", "l", axis=1)], ("l", "q")), ""),
    "two heads": (lambda: classifier([node("MatMul", "f t", "t0")], ("z", "t0")), ""),
    "two heads, the second named by --output": (lambda: classifier([node("MatMul", "f t", "t0")], ("z", "t0")), "t0"),
    "an output that is not there": (lambda: classifier([], ("z",)), "logits"),
    "one number without a sigmoid": (lambda: classifier([node("Gemm", "f u v", "y")]), ""),
    "one number, named as scores by --output": (lambda: classifier([node("Gemm", "f u v", "y")]), "y"),
}


def _value(name: str, shape: Sequence[int | str], kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _no_shape() -> onnx.ModelProto:
    made = classifier([], ("z",))
    made.graph.input[0].type.tensor_type.ClearField("shape")
    return made


def _unbatched(image: Sequence[int], nodes: Sequence[onnx.NodeProto], **more: np.ndarray) -> onnx.ModelProto:
    return model(nodes, [_value("y", [CLASSES])], image=image, more=more)


def _flag(name: str, shape: Sequence[int] = ()) -> onnx.ModelProto:
    return classifier([node("Mul", f"z {name}")], inputs=[_value(name, shape)])


def _if_on_batch() -> onnx.ModelProto:
    branches = [
        helper.make_graph([node("Identity", "z", f"{n}z")], n, [], [_value(f"{n}z", ["n", CLASSES])])
        for n in ("a", "b")
    ]
    return classifier(
        [
            *(
                node("Shape", "x", "sh"),
                node("Gather", "sh zero", "first"),
                node("Equal", "first best", "eq"),
                node("Squeeze", "eq", "single"),
            ),
            helper.make_node("If", ["single"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        ]
    )


INPUTS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[tuple[str, float], ...]]] = {
    "NCHW, any batch": (lambda: classifier([], ("z",)), ()),
    "a batch of 1": (lambda: classifier([], ("z",), image=(1, 1, SIDE, SIDE)), ()),
    "a batch of 8": (lambda: classifier([], ("z",), image=(8, 1, SIDE, SIDE)), ()),
    "a batch of 32, written into a Reshape": (
        lambda: model(
            [*trunk()[:3], node("Reshape", "p fixed", "f"), node("Gemm", "f w b", "z")],
            *(("z",), (), (32, 1, SIDE, SIDE)),
            more={"fixed": np.array([32, 216])},
        ),
        (),
    ),
    "NHWC": (
        lambda: model(
            [node("Transpose", "x", "first", perm=[0, 3, 1, 2]), *trunk("first"), node("Gemm", "f w b", "z")],
            *(("z",), (), ("n", SIDE, SIDE, 1)),
        ),
        (),
    ),
    "grey without a channel axis": (
        lambda: model(
            [node("Unsqueeze", "x axis", "first"), *trunk("first"), node("Gemm", "f w b", "z")],
            *(("z",), (), ("n", SIDE, SIDE)),
        ),
        (),
    ),
    "flat rows": (
        lambda: model(
            [node("Gemm", "x wide b", "z")], ("z",), image=("n", SIDE * SIDE), more={"wide": array((144, CLASSES))}
        ),
        (),
    ),
    "any height and width": (
        lambda: model(
            [*trunk()[:3], node("GlobalAveragePool", "p", "g"), node("Flatten", "g", "f"), node("Gemm", "f w6 b", "z")],
            *(("z",), (), ("n", 1, "h", "w")),
            more={"w6": array((6, CLASSES))},
        ),
        (),
    ),
    "no shape at all": (_no_shape, ()),
    "one image (channels, height, width) without a batch axis": (
        lambda: _unbatched(
            (3, SIDE, SIDE),
            [node("Reshape", "x one_row", "f"), node("MatMul", "f w3", "z"), node("Reshape", "z row")],
            one_row=np.array([1, 3 * SIDE * SIDE]),
            w3=0.1 * array((3 * SIDE * SIDE, CLASSES)),
        ),
        (),
    ),
    "one image (height, width) without a batch axis": (
        lambda: _unbatched(
            (SIDE, SIDE),
            [node("Reshape", "x one_row", "f"), node("MatMul", "f w1", "z"), node("Reshape", "z row")],
            one_row=np.array([1, SIDE * SIDE]),
            w1=0.1 * array((SIDE * SIDE, CLASSES)),
        ),
        (),
    ),
    "float64": (
        lambda: model(
            [node("Flatten", "x", "f"), node("MatMul", "f wd", "z")],
            *(("z",), (), ("n", 1, SIDE, SIDE), TensorProto.DOUBLE),
            more={"wd": array((144, CLASSES), 1, np.float64)},
        ),
        (),
    ),
    "float16": (
        lambda: model(
            [node("Flatten", "x", "f"), node("MatMul", "f wh", "z")],
            *(("z",), (), ("n", 1, SIDE, SIDE), TensorProto.FLOAT16),
            more={"wh": array((144, CLASSES), 1, np.float16)},
        ),
        (),
    ),
    "keep_prob beside the image": (lambda: _flag("keep_prob"), ()),
    "learning_phase beside the image": (
        lambda: classifier(
            [node("Sub", "one learning_phase", "u0"), node("Mul", "z u0")], inputs=[_value("learning_phase", [])]
        ),
        (),
    ),
    "another number beside the image": (lambda: _flag("temperature"), ()),
    "another number beside the image, bound": (lambda: _flag("temperature"), (("temperature", 0.5),)),
    "a second image": (
        lambda: classifier(
            [node("Flatten", "x2", "f2"), node("MatMul", "f2 wide", "z3"), node("Add", "z z3")],
            inputs=[_value("x2", ["n", 1, SIDE, SIDE])],
            more={"wide": array((144, CLASSES))},
        ),
        (),
    ),
    "a decision by the batch size": (_if_on_batch, ()),
    "an ImageDecoder in front": (
        lambda: model(
            [
                *(
                    helper.make_node("ImageDecoder", ["x"], ["pixels"], pixel_format="Grayscale"),
                    node("Cast", "pixels", "fl", to=F),
                ),
                *(node("Reshape", "fl last", "first"), *trunk("first"), node("Gemm", "f w b", "z")),
            ],
            *(("z",), (), ("bytes",), TensorProto.UINT8, 20),
            more={"last": np.array([1, 1, SIDE, SIDE])},
        ),
        (),
    ),
}

WIDE = ("n", 3, 16, 16)
OTHERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "a segmenter": lambda: model(
        [node("Conv", "x ks", pads=[1, 1, 1, 1])], image=WIDE, more={"ks": array((10, 3, 3, 3))}
    ),
    "an autoencoder": lambda: model(
        [node("Conv", "x ks", pads=[1, 1, 1, 1])], image=WIDE, more={"ks": array((3, 3, 3, 3))}
    ),
    "super-resolution": lambda: model(
        [node("ConvTranspose", "x ks", strides=[2, 2])], image=WIDE, more={"ks": array((3, 3, 2, 2))}
    ),
    "a detector (a row for every box)": lambda: model(
        [node("Flatten", "x", "f"), node("MatMul", "f ks", "e"), node("Reshape", "e rows")],
        *(("y",), (), WIDE),
        more={"ks": array((768, 850)), "rows": np.array([-1, 10, 85])},
    ),
    "an embedding model": lambda: model(
        [node("Flatten", "x", "f"), node("MatMul", "f ks", "e"), node("LpNormalization", "e", axis=1, p=2)],
        *(("y",), (), WIDE),
        more={"ks": array((768, 64))},
    ),
    "a regressor": lambda: model(
        [node("Flatten", "x", "f"), node("Gemm", "f ks v")], image=WIDE, more={"ks": array((768, 1))}
    ),
    "a model of tables": lambda: model([node("MatMul", "x ks")], image=("n", 16), more={"ks": array((16, 3))}),
    "a model of text": lambda: model(
        [node("Gather", "ks x", "e"), node("ReduceMean", "e", axes=[1], keepdims=0)],
        *(("y",), (), ("n", 12), TensorProto.INT64),
        more={"ks": array((50, 4))},
    ),
}


def _spoilt(spoil: Callable[[onnx.ModelProto], object]) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        made = classifier([], ("z",))
        spoil(made)
        return made

    return build


TWO_READINGS: dict[str, Callable[[], onnx.ModelProto]] = {
    "a tensor with raw_data and float_data": _spoilt(lambda m: m.graph.initializer[1].float_data.extend([0.0] * 6)),
    "an initializer twice": _spoilt(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
    "an initializer that a node computes": _spoilt(
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.ones((1, 216), np.float32), "f"))
    ),
    "a value that two nodes compute": _spoilt(lambda m: m.graph.node.append(node("Identity", "f", "z"))),
    "an attribute twice": _spoilt(lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0])),
}

CASES: tuple[Case, ...] = (
    *(Case("What the output is", n, b) for n, b in ENDINGS.items()),
    *(Case("Several outputs", n, b, o) for n, (b, o) in OUTPUTS.items()),
    *(Case("What goes in", n, b, "", given) for n, (b, given) in INPUTS.items()),
    *(Case("No image classifier", n, b) for n, b in OTHERS.items()),
    *(Case("One file, two readings", n, b) for n, b in TWO_READINGS.items()),
)
