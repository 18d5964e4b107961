"""How hostile ONNX files are put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from of_tests import module_of_tests
from onnx import helper

from hostile.case import Canary, Make

containers = module_of_tests("hostile_containers")
graphs = module_of_tests("hostile_graphs")


def written_to(make: Callable[[], onnx.ModelProto | bytes], name: str = "model.onnx") -> Make:
    """Into a file of that name."""

    def written(folder: Path, _: Canary) -> Path:
        made = make()
        (folder / name).write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        return folder / name

    return written


def of_nodes(
    nodes: list[onnx.NodeProto], constants: dict[str, Any] | None = None, **more: Any
) -> Callable[[], onnx.ModelProto]:
    """A model of these nodes, from `image` to `logits`."""
    made = [
        graphs.const(name, *value) if isinstance(value, tuple) else graphs.const(name, value)
        for name, value in (constants or {}).items()
    ]
    return lambda: graphs.model(nodes, made, **more)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)
