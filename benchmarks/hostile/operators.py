"""Hostile operators, and graphs that take far more than they are."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
from of_tests import module_of_tests
from onnx import TensorProto

from hostile.case import ESCAPE, FORGED, OPENED, READ, REFUSED, Case
from hostile.graph_makers import node, of_nodes, written_to

containers = module_of_tests("hostile_containers")
graphs = module_of_tests("hostile_graphs")
supervised = module_of_tests("supervised")

_INFO = ("info",)


def cases() -> list[Case]:
    """All of them."""
    return [*_operators(), *_amplification()]


# -- operators ---------------------------------------------------------------------------------------------------------------


def _smallest_by(kind: str) -> Callable[[], onnx.ModelProto]:
    """The smallest integer by -1, at every batch size: the processor answers with a signal."""
    return of_nodes(
        [
            node("Flatten", "image", "flat"),
            node(kind, "smallest less", "quotient"),
            node("Cast", "quotient", "real", to=TensorProto.FLOAT),
            node("Mul", "real nothing", "extra"),
            node("Add", "flat extra", "logits"),
        ],
        {"smallest": [np.iinfo(np.int64).min], "less": [-1], "nothing": (0.0, np.float32)},
    )


def _operators() -> list[Case]:
    kind = "operators that crash or grow"
    image_to = functools.partial(node, "Flatten", "image")
    return [
        Case(
            kind,
            "divides the smallest integer by -1 from batch 2 on",
            written_to(supervised.crashing),
            OPENED,
            READ,
            {"diff": frozenset({1})},
        ),
        Case(
            kind,
            "a GiB more for every further image",
            written_to(supervised.filling),
            OPENED,
            READ,
            {"diff": frozenset({1})},
        ),
        Case(
            kind,
            "Div of the smallest integer by -1",
            written_to(_smallest_by("Div")),
            ("info", "scan"),
            READ,
        ),
        Case(kind, "Mod of the smallest integer by -1", written_to(_smallest_by("Mod")), _INFO, READ),
        Case(
            kind,
            "Div of integers by 0",
            written_to(
                of_nodes(
                    [
                        image_to("flat"),
                        node("Div", "n zero", "q"),
                        node("Cast", "q", "r", to=1),
                        node("Add", "flat r", "logits"),
                    ],
                    {"n": [1], "zero": [0]},
                )
            ),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "Gather beyond the end",
            written_to(of_nodes([image_to("flat"), node("Gather", "flat far", "logits", axis=1)], {"far": [1 << 40]})),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "Reshape to sizes that do not fit",
            written_to(of_nodes([node("Reshape", "image s", "logits")], {"s": [-1, 1 << 60]})),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "Conv with a group of 0",
            written_to(
                of_nodes(
                    [node("Conv", "image w", "c", group=0), node("Flatten", "c", "logits")],
                    {"w": (np.ones((3, 1, 3, 3)), np.float32)},
                )
            ),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "pooling with strides of 0",
            written_to(
                of_nodes(
                    [
                        node("MaxPool", "image", "c", kernel_shape=[2, 2], strides=[0, 0]),
                        node("Flatten", "c", "logits"),
                    ]
                )
            ),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "an operator of a library of one's own",
            written_to(of_nodes([node("Trojan", "image", "logits", domain="local.corp")])),
            ("info", "convert"),
            REFUSED,
        ),
        Case(kind, "weights that are NaN", written_to(_nan), _INFO, READ),
        Case(kind, "an endless while", written_to(_endless), _INFO, READ),
    ]


def _nan() -> onnx.ModelProto:
    made = graphs.classifier()
    made.graph.initializer[0].raw_data = np.full((16, 3), np.nan, np.float32).tobytes()
    return made


def _endless() -> onnx.ModelProto:
    """A Loop whose condition is computed, and stays true."""
    nodes = graphs.loop(2**62, condition="computed")
    body = nodes[-1].attribute[0].g
    body.node[-1].CopyFrom(node("Or", "keep keep", "go"))
    return graphs.model(nodes)


# -- amplification -----------------------------------------------------------------------------------------------------------


def _amplification() -> list[Case]:
    kind = "graphs that amplify"
    flat = node("Flatten", "image", "logits")
    million = [
        node("Flatten", "image", "flat"),
        node("Slice", "flat zero one axis", "first"),
        node("Expand", "first wide", "logits"),
    ]
    return [
        *(
            Case(kind, f"{name} to terabytes", written_to(functools.partial(graphs.bomb, name)), _INFO, REFUSED)
            for name in graphs.BOMBS
        ),
        Case(
            kind,
            "Expand to terabytes, scanned",
            written_to(functools.partial(graphs.bomb, "Expand")),
            ("scan", "convert"),
            REFUSED,
        ),
        Case(
            kind,
            "a million classes",
            written_to(
                of_nodes(million, {"zero": [0], "one": [1], "axis": [1], "wide": [1, 1_000_000]}, out=("N", 1_000_000))
            ),
            ("info", "scan"),
            READ,
        ),
        Case(
            kind, "an image of 10^9 by 10^9", written_to(of_nodes([flat], shape=("N", 1, 10**9, 10**9))), _INFO, REFUSED
        ),
        Case(
            kind,
            "an image of 30,000 by 30,000",
            written_to(
                of_nodes(
                    [node("GlobalAveragePool", "image", "p"), node("Flatten", "p", "logits")],
                    shape=("N", 3, 30_000, 30_000),
                )
            ),
            ("info", "scan"),
            READ,
        ),
        Case(kind, "a batch of 2^40", written_to(of_nodes([flat], shape=(1 << 40, 1, 4, 4))), _INFO, REFUSED),
        Case(
            kind,
            "a million empty nodes",
            written_to(lambda: graphs.field(7, graphs.field(1, b"") * 1_000_000)),
            ("info", "diff"),
            REFUSED,
        ),
        Case(
            kind,
            "a million empty tensors",
            written_to(lambda: graphs.field(7, graphs.field(5, b"") * 1_000_000)),
            _INFO,
            REFUSED,
        ),
        Case(kind, "200,000 nodes in a row", written_to(lambda: _row(200_000)), _INFO, READ),
        Case(kind, "graphs nested 3,000 deep", written_to(graphs.deep), ("info", "diff", "convert"), REFUSED),
        Case(kind, "a tensor that claims 10^12 numbers", written_to(_claims), ("info", "diff"), REFUSED),
        Case(kind, "a sparse tensor of 10^12 numbers", written_to(_sparse), _INFO, READ),
        Case(
            kind,
            "a transposed convolution with strides of 10^5",
            written_to(
                of_nodes(
                    [
                        node("ConvTranspose", "image w", "b", strides=[100_000, 100_000]),
                        node("ReduceSum", "b", "logits"),
                    ],
                    {"w": (np.ones((1, 1, 1, 1)), np.float32)},
                )
            ),
            _INFO,
            REFUSED,
        ),
        Case(
            kind,
            "an outer product of 10^5 by 10^5",
            written_to(
                of_nodes(
                    [
                        node("MatMul", "a b", "c"),
                        node("ReduceSum", "c", "s"),
                        node("Flatten", "image", "flat"),
                        node("Add", "flat s", "logits"),
                    ],
                    {"a": (np.zeros((100_000, 1)), np.float32), "b": (np.zeros((1, 100_000)), np.float32)},
                )
            ),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "one-hot vectors of 2^31",
            written_to(
                of_nodes(
                    [
                        node("OneHot", "i d v", "h"),
                        node("ReduceSum", "h", "s"),
                        node("Flatten", "image", "flat"),
                        node("Add", "flat s", "logits"),
                    ],
                    {"i": [1, 2, 3], "d": 1 << 31, "v": ([0, 1], np.float32)},
                )
            ),
            _INFO,
            READ,
        ),
        Case(kind, "a name of two megabytes", written_to(_long_name), ("info", "diff"), READ, {"diff": frozenset({1})}),
    ]


def _row(length: int) -> onnx.ModelProto:
    nodes = [node("Relu", f"v{i}" if i else "image", f"v{i + 1}") for i in range(length)]
    return graphs.model([*nodes, node("Flatten", f"v{length}", "logits")])


def _claims() -> onnx.ModelProto:
    made = graphs.classifier()
    made.graph.initializer[0].dims[0] = 10**12
    return made


def _sparse() -> onnx.ModelProto:
    made = graphs.model([node("Flatten", "image", "flat"), node("Add", "flat w", "logits")])
    sparse = made.graph.sparse_initializer.add(dims=[1 << 20, 1 << 20])
    sparse.values.CopyFrom(graphs.const("w", [1.0], np.float32))
    sparse.indices.CopyFrom(graphs.const("", [0]))
    return made


def _long_name() -> onnx.ModelProto:
    made = graphs.classifier()
    made.graph.node[1].name = ESCAPE + "\n" + FORGED + "\n" + "x" * 2_000_000
    made.metadata_props.add(key="names", value="{0: '" + ESCAPE + "\n" + FORGED + "'}")
    return made
