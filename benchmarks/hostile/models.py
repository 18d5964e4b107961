"""ONNX files that lead to other files, and graphs without an end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from of_tests import module_of_tests
from onnx import TensorProto, helper

from hostile.case import READ, REFUSED, Canary, Case, Make, fifo, link
from hostile.graph_makers import node, of_nodes, written_to

containers = module_of_tests("hostile_containers")
graphs = module_of_tests("hostile_graphs")
supervised = module_of_tests("supervised")

_INFO = ("info",)


def cases() -> list[Case]:
    """All of them."""
    return [*_external(), *_structure()]


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
        Case(kind, "an .onnx that is a link to a secret", link("model.onnx", "secret"), ("info", "diff"), REFUSED),
        Case(kind, "an .onnx that is a FIFO", fifo("model.onnx"), ("info", "scan"), REFUSED),
    ]


def _outside_in_a_branch() -> onnx.ModelProto:
    outside = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../secret")
    branch = helper.make_graph([helper.make_node("Constant", [], ["b"], value=outside)], "b", [], [])
    return graphs.model([helper.make_node("If", ["c"], ["logits"], then_branch=branch, else_branch=branch)])


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
        Case(kind, "an If of an If, 25 deep", written_to(_branches), ("info", "convert"), READ),
        Case(kind, "an If of another shape from batch 2 on", written_to(_by_batch), _INFO, READ),
        Case(
            kind,
            "a graph that is a circle",
            written_to(of_nodes([node("Add", "image b", "a"), node("Relu", "a", "b"), node("Flatten", "b", "logits")])),
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
    inner = helper.make_graph([node("Flatten", "image", "o0")], "g", [], [value("o0", 1, None)])
    for i in range(1, 25):
        branching = helper.make_node(
            "If",
            ["yes"],
            [f"o{i}"],
            then_branch=inner,
            else_branch=helper.make_graph([node("Flatten", "image", f"e{i}")], "e", [], [value(f"e{i}", 1, None)]),
        )
        inner = helper.make_graph([branching], "g", [], [value(f"o{i}", 1, None)])
    last = helper.make_node("If", ["yes"], ["logits"], then_branch=inner, else_branch=inner)
    return graphs.model([last], [graphs.const("yes", True, np.bool_)])


def _by_batch() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    one = helper.make_graph([node("Flatten", "image", "a")], "one", [], [value("a", 1, None)])
    many = helper.make_graph([node("Expand", "image huge", "b")], "many", [], [value("b", 1, None)])
    nodes = [node("Shape", "image", "s"), node("Gather", "s zero", "n"), node("Equal", "n one", "single")]
    nodes.append(helper.make_node("If", ["single"], ["logits"], then_branch=one, else_branch=many))
    return graphs.model(
        nodes, [graphs.const("zero", 0), graphs.const("one", 1), graphs.const("huge", [1 << 20, 1, 1 << 10, 1 << 10])]
    )
