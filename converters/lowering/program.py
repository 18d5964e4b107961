"""Running a torch graph over and over, with every value seen."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

#: (node, its value, the operands that it was computed from) -> the value that stands for it from there on.
Look = Callable[[fx.Node, Any, tuple[Any, ...], dict[str, Any]], Any]


def unchanged(_: fx.Node, result: Any, *__: Any) -> Any:
    """A look that only looks."""
    return result


class Program:
    """A graph, run over and over: every value can be seen (and replaced), with the operands that it was computed from.

    What fx.Interpreter does besides takes as long as a small network.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.constants: dict[fx.Node, Any] = {}
        self.placeholders: list[fx.Node] = []
        self.steps: list[fx.Node] = []
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self.constants[node] = operator.attrgetter(str(node.target))(module)
            elif node.op == "placeholder":
                self.placeholders.append(node)
            elif node.op == "call_function":
                self.steps.append(node)
        last = {source: node for node in self.steps for source in node.all_input_nodes}
        self.spent: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            self.spent.setdefault(node, []).append(source)

    def run(self, batch: Tensor, look: Look, keep: bool = False, until: fx.Node | None = None) -> dict[fx.Node, Any]:
        """The values by node, of all nodes where they are kept, else of those that are still to be read."""
        env = dict(self.constants)
        for node in self.placeholders:
            env[node] = look(node, batch, (), {})
        for node in self.steps:
            args, kwargs = operands(node, env)
            env[node] = look(node, node.target(*args, **kwargs), args, kwargs)  # type: ignore[operator]
            if not keep:
                for source in self.spent.get(node, ()):
                    del env[source]
            if node is until:
                break
        return env

    def behind(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read a value, directly or not, in order."""
        changed, found = {node}, []
        for step in self.steps:
            if step not in changed and any(i in changed for i in step.all_input_nodes):
                changed.add(step)
                found.append(step)
        return found


def leading_to(end: fx.Node) -> set[fx.Node]:
    """A node and all that it is computed from, directly or not."""
    found, edge = {end}, [end]
    while edge:
        sources = [s for s in edge.pop().all_input_nodes if s not in found]
        found.update(sources)
        edge += sources
    return found


def operands(node: fx.Node, env: Mapping[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a node is computed from."""
    args: Any = fx.map_arg(node.args, env.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, env.__getitem__) if node.kwargs else {}
    return args, kwargs
