"""Hostile ONNX files, kind by kind: operators that crash or grow, graphs that amplify, data that leads elsewhere, endless structure."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hostile_case import ESCAPE, FORGED, READ, REFUSED, Canary, Case, Make
from of_tests import module_of_tests
from onnx import TensorProto, helper

containers = module_of_tests("hostile_containers")
graphs = module_of_tests("hostile_graphs")
supervised = module_of_tests("supervised")

_INFO = ("info",)
_OPENED = ("info", "scan", "patch", "verify", "diff", "cleanse", "certify", "convert")


def cases() -> list[Case]:
    """All of them."""
    return [*_operators(), *_amplification(), *_external(), *_structure()]


def written_to(make: Callable[[], onnx.ModelProto | bytes], name: str = "model.onnx") -> Make:
    """Into a file of that name."""

    def written(folder: Path, _: Canary) -> Path:
        made = make()
        (folder / name).write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        return folder / name

    return written


def _of(
    nodes: list[onnx.NodeProto], constants: dict[str, Any] | None = None, **more: Any
) -> Callable[[], onnx.ModelProto]:
    """A model of these nodes, from `image` to `logits`."""
    made = [
        graphs.const(name, *value) if isinstance(value, tuple) else graphs.const(name, value)
        for name, value in (constants or {}).items()
    ]
    return lambda: graphs.model(nodes, made, **more)


def _node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


# -- operators ---------------------------------------------------------------------------------------------------------------


def _smallest_by(kind: str) -> Callable[[], onnx.ModelProto]:
    """The smallest integer by -1, at every batch size: the processor answers with a signal."""
    return _of(
        [
            _node("Flatten", "image", "flat"),
            _node(kind, "smallest less", "quotient"),
            _node("Cast", "quotient", "real", to=TensorProto.FLOAT),
            _node("Mul", "real nothing", "extra"),
            _node("Add", "flat extra", "logits"),
        ],
        {"smallest": [np.iinfo(np.int64).min], "less": [-1], "nothing": (0.0, np.float32)},
    )


def _operators() -> list[Case]:
    kind = "operators that crash or grow"
    image_to = functools.partial(_node, "Flatten", "image")
    return [
        Case(
            kind,
            "divides the smallest integer by -1 from batch 2 on",
            written_to(supervised.crashing),
            _OPENED,
            READ,
            {"diff": frozenset({1})},
        ),
        Case(
            kind,
            "a GiB more for every further image",
            written_to(supervised.filling),
            _OPENED,
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
                _of(
                    [
                        image_to("flat"),
                        _node("Div", "n zero", "q"),
                        _node("Cast", "q", "r", to=1),
                        _node("Add", "flat r", "logits"),
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
            written_to(_of([image_to("flat"), _node("Gather", "flat far", "logits", axis=1)], {"far": [1 << 40]})),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "Reshape to sizes that do not fit",
            written_to(_of([_node("Reshape", "image s", "logits")], {"s": [-1, 1 << 60]})),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "Conv with a group of 0",
            written_to(
                _of(
                    [_node("Conv", "image w", "c", group=0), _node("Flatten", "c", "logits")],
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
                _of(
                    [
                        _node("MaxPool", "image", "c", kernel_shape=[2, 2], strides=[0, 0]),
                        _node("Flatten", "c", "logits"),
                    ]
                )
            ),
            _INFO,
            READ,
        ),
        Case(
            kind,
            "an operator of a library of one's own",
            written_to(_of([_node("Trojan", "image", "logits", domain="local.corp")])),
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
    body.node[-1].CopyFrom(_node("Or", "keep keep", "go"))
    return graphs.model(nodes)


# -- amplification -----------------------------------------------------------------------------------------------------------


def _amplification() -> list[Case]:
    kind = "graphs that amplify"
    flat = _node("Flatten", "image", "logits")
    million = [
        _node("Flatten", "image", "flat"),
        _node("Slice", "flat zero one axis", "first"),
        _node("Expand", "first wide", "logits"),
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
                _of(million, {"zero": [0], "one": [1], "axis": [1], "wide": [1, 1_000_000]}, out=("N", 1_000_000))
            ),
            ("info", "scan"),
            READ,
        ),
        Case(kind, "an image of 10^9 by 10^9", written_to(_of([flat], shape=("N", 1, 10**9, 10**9))), _INFO, REFUSED),
        Case(
            kind,
            "an image of 30,000 by 30,000",
            written_to(
                _of(
                    [_node("GlobalAveragePool", "image", "p"), _node("Flatten", "p", "logits")],
                    shape=("N", 3, 30_000, 30_000),
                )
            ),
            ("info", "scan"),
            READ,
        ),
        Case(kind, "a batch of 2^40", written_to(_of([flat], shape=(1 << 40, 1, 4, 4))), _INFO, REFUSED),
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
                _of(
                    [
                        _node("ConvTranspose", "image w", "b", strides=[100_000, 100_000]),
                        _node("ReduceSum", "b", "logits"),
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
                _of(
                    [
                        _node("MatMul", "a b", "c"),
                        _node("ReduceSum", "c", "s"),
                        _node("Flatten", "image", "flat"),
                        _node("Add", "flat s", "logits"),
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
                _of(
                    [
                        _node("OneHot", "i d v", "h"),
                        _node("ReduceSum", "h", "s"),
                        _node("Flatten", "image", "flat"),
                        _node("Add", "flat s", "logits"),
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
    nodes = [_node("Relu", f"v{i}" if i else "image", f"v{i + 1}") for i in range(length)]
    return graphs.model([*nodes, _node("Flatten", f"v{length}", "logits")])


def _claims() -> onnx.ModelProto:
    made = graphs.classifier()
    made.graph.initializer[0].dims[0] = 10**12
    return made


def _sparse() -> onnx.ModelProto:
    made = graphs.model([_node("Flatten", "image", "flat"), _node("Add", "flat w", "logits")])
    sparse = made.graph.sparse_initializer.add(dims=[1 << 20, 1 << 20])
    sparse.values.CopyFrom(graphs.const("w", [1.0], np.float32))
    sparse.indices.CopyFrom(graphs.const("", [0]))
    return made


def _long_name() -> onnx.ModelProto:
    made = graphs.classifier()
    made.graph.node[1].name = ESCAPE + "\n" + FORGED + "\n" + "x" * 2_000_000
    made.metadata_props.add(key="names", value="{0: '" + ESCAPE + "\n" + FORGED + "'}")
    return made


# -- external data -----------------------------------------------------------------------------------------------------------


def _external() -> list[Case]:
    kind = "external data"

    def at(
        location: str, before: Callable[[Path, Canary], object] = lambda _folder, _canary: None, **entries: int | str
    ) -> Make:
        def make(folder: Path, canary: Canary) -> Path:
            before(folder, canary)
            there = location.replace("{secret}", str(canary.folder / "secret")).replace(
                "{up}", os.path.relpath(canary.folder / "secret", folder)
            )
            made: Path = graphs.external(folder, there, **entries)
            return made

        return make

    def linked(f: Path, c: Canary) -> None:
        (f / "w.bin").symlink_to(c.folder / "secret")

    def hard(f: Path, c: Canary) -> None:
        os.link(c.folder / "secret", f / "w.bin")

    def through(f: Path, c: Canary) -> None:
        (f / "sub").symlink_to(c.folder, target_is_directory=True)

    return [
        Case(kind, "an absolute path", at("{secret}"), ("info", "convert"), REFUSED),
        Case(kind, "up and out", at("{up}"), ("info", "diff"), REFUSED),
        Case(kind, "a symbolic link", at("w.bin", linked), ("info", "convert", "diff"), REFUSED),
        Case(kind, "a hard link", at("w.bin", hard), _INFO, REFUSED),
        Case(kind, "a folder that is a link", at("sub/secret", through), _INFO, REFUSED),
        Case(kind, "a FIFO", at("w.bin", lambda f, _: os.mkfifo(f / "w.bin")), ("info", "diff"), REFUSED),
        Case(
            kind, "an endless device", at("w.bin", lambda f, _: (f / "w.bin").symlink_to("/dev/zero")), _INFO, REFUSED
        ),
        Case(kind, "the environment of the process", at("/proc/self/environ"), _INFO, REFUSED),
        Case(
            kind,
            "an address in memory",
            at("*/_ORT_MEM_ADDR_/*", offset=4096, length=192),
            ("info", "convert"),
            REFUSED,
        ),
        Case(
            kind,
            "more than there is",
            at("w.bin", lambda f, _: (f / "w.bin").write_bytes(bytes(192)), offset=1 << 62),
            _INFO,
            REFUSED,
        ),
        Case(kind, "the file itself", at("m.onnx", length=192), _INFO, READ),
        Case(kind, "in the branch of an If", written_to(_outside_in_a_branch), _INFO, REFUSED),
        Case(kind, "an .onnx that is a link to a secret", _as_a_link, ("info", "diff"), REFUSED),
        Case(kind, "an .onnx that is a FIFO", _as_a_fifo, ("info", "scan"), REFUSED),
    ]


def _outside_in_a_branch() -> onnx.ModelProto:
    outside = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../secret")
    branch = helper.make_graph([helper.make_node("Constant", [], ["b"], value=outside)], "b", [], [])
    return graphs.model([helper.make_node("If", ["c"], ["logits"], then_branch=branch, else_branch=branch)])


def _as_a_link(folder: Path, canary: Canary) -> Path:
    (folder / "model.onnx").symlink_to(canary.folder / "secret")
    return folder / "model.onnx"


def _as_a_fifo(folder: Path, _: Canary) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


# -- functions and branches --------------------------------------------------------------------------------------------------


def _structure() -> list[Case]:
    kind = "functions, branches, loops"
    return [
        Case(
            kind,
            "2^50 nodes once its functions are expanded",
            written_to(graphs.nested_functions),
            ("info", "diff", "convert"),
            REFUSED,
            {"diff": READ | {1}},
        ),
        Case(
            kind,
            "functions that call each other",
            written_to(graphs.recursive_function),
            ("info", "diff"),
            REFUSED,
        ),
        Case(kind, "a loop without an end", written_to(lambda: graphs.model(graphs.loop(None))), _INFO, REFUSED),
        Case(kind, "a loop of 10^9 steps", written_to(lambda: graphs.model(graphs.loop(10**9))), _INFO, REFUSED),
        Case(kind, "an If of an If, 60 deep", written_to(_branches), ("info", "convert"), READ),
        Case(kind, "an If of another shape from batch 2 on", written_to(_by_batch), _INFO, READ),
        Case(
            kind,
            "a graph that is a circle",
            written_to(_of([_node("Add", "image b", "a"), _node("Relu", "a", "b"), _node("Flatten", "b", "logits")])),
            ("info", "diff"),
            READ | {1},
        ),
        Case(
            kind,
            "a file that is cut in half",
            written_to(lambda: graphs.classifier().SerializeToString()[:150]),
            ("info", "convert", "diff"),
            REFUSED,
        ),
        Case(kind, "no model at all", written_to(lambda: b"not a model at all"), ("info", "convert"), REFUSED),
    ]


def _branches() -> onnx.ModelProto:
    """Each branch holds the next one twice, in name only: the same image is passed through."""
    value = helper.make_tensor_value_info
    inner = helper.make_graph([_node("Flatten", "image", "o0")], "g", [], [value("o0", 1, None)])
    for i in range(1, 60):
        node = helper.make_node(
            "If",
            ["yes"],
            [f"o{i}"],
            then_branch=inner,
            else_branch=helper.make_graph([_node("Flatten", "image", f"e{i}")], "e", [], [value(f"e{i}", 1, None)]),
        )
        inner = helper.make_graph([node], "g", [], [value(f"o{i}", 1, None)])
    last = helper.make_node("If", ["yes"], ["logits"], then_branch=inner, else_branch=inner)
    return graphs.model([last], [graphs.const("yes", True, np.bool_)])


def _by_batch() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    one = helper.make_graph([_node("Flatten", "image", "a")], "one", [], [value("a", 1, None)])
    many = helper.make_graph([_node("Expand", "image huge", "b")], "many", [], [value("b", 1, None)])
    nodes = [_node("Shape", "image", "s"), _node("Gather", "s zero", "n"), _node("Equal", "n one", "single")]
    nodes.append(helper.make_node("If", ["single"], ["logits"], then_branch=one, else_branch=many))
    return graphs.model(
        nodes, [graphs.const("zero", 0), graphs.const("one", 1), graphs.const("huge", [1 << 20, 1, 1 << 10, 1 << 10])]
    )
