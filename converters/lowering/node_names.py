"""What the values of a torch graph are called in the file."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from torch import fx

from onnxspect.converters.lowering.lower import LoweredModel
from onnxspect.converters.lowering.observation import operator_of
from onnxspect.converters.lowering.taps import first_names


class Names:
    """What the nodes of a torch graph are called in the file."""

    def __init__(self, lowered: LoweredModel, model: onnx.ModelProto) -> None:
        self.values = first_names(lowered)
        self.producers = {name: node for node in model.graph.node for name in node.output if name}

    def of(self, node: fx.Node) -> tuple[str, str]:
        """(name of the ONNX node, operator) that a value is computed by, or that the next named value behind it is."""
        seen, edge = {node}, [node]
        while edge:
            at = edge.pop(0)
            if at in self.values:
                proto = self.producers.get(self.values[at])
                if proto is None:
                    return self.values[at], operator_of(at)
                return proto.name or proto.output[0], proto.op_type
            edge += [u for u in at.users if u not in seen]
            seen |= set(at.users)
        return node.name, ""

    def once(self, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
        """The names of the ONNX nodes, each once."""
        return tuple(dict.fromkeys(self.of(n)[0] for n in nodes))
