"""One fusion, for speed: GELU written out, x * (1 + erf(x / sqrt(2))) * 1/2, as torch's own kernel.

Exporters write it out below opset 20, as five nodes; forward and backward take three times as long that way. What lies
inside is never a cut (x itself goes around it), so no tap is lost; its values are not in `LoweredModel.values` then. A
value inside that is asked for as an output, or used elsewhere, stays, and so do the five nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx

_Constant = Callable[[fx.Node], float | None]


def fuse_gelu(graph: fx.Graph, constant: _Constant) -> dict[fx.Node, fx.Node]:
    """Replace written-out GELUs in place.

    Args:
        graph: changed in place; what is no longer used stays for dead code elimination.
        constant: the number that a node holds, or None.

    Returns:
        last node of each written-out GELU -> the node that took its place.
    """
    replaced: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if not _calls(node, torch.mul) or node in replaced:
            continue
        x = _gelu_input(node, constant)
        if x is None:
            continue
        with graph.inserting_after(node):
            fused = graph.call_function(F.gelu, (x,))
        fused.meta = dict(node.meta)
        node.replace_all_uses_with(fused)
        replaced[node] = fused
    return replaced


def _calls(node: object, function: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is function


def _factors(node: fx.Node) -> list[fx.Node]:
    """The factors of a product of products; inner products count only if nothing else uses them."""
    found: list[fx.Node] = []
    for factor in node.all_input_nodes if len(node.all_input_nodes) == 2 else []:
        inner = _calls(factor, torch.mul) and len(factor.users) == 1 and len(factor.all_input_nodes) == 2
        found += factor.all_input_nodes if inner else [factor]
    return found


def _gelu_input(node: fx.Node, constant: _Constant) -> fx.Node | None:
    """x where `node` is x * (1 + erf(x / sqrt(2))) * 1/2 in some order."""
    factors = _factors(node)
    if len(factors) != 3 or not any(_is(constant(f), 0.5) for f in factors):
        return None
    rest = [f for f in factors if not _is(constant(f), 0.5)]
    if len(rest) != 2:
        return None
    for x, gate in (rest, rest[::-1]):
        if _erf_input(gate, constant) is x:
            return x
    return None


def _erf_input(gate: fx.Node, constant: _Constant) -> fx.Node | None:
    """x where `gate` is 1 + erf(x / sqrt(2))."""
    if not _calls(gate, torch.add) or len(gate.users) != 1:
        return None
    erf = next((n for n in gate.all_input_nodes if _calls(n, torch.erf)), None)
    one = next((n for n in gate.all_input_nodes if _is(constant(n), 1.0)), None)
    if erf is None or one is None or len(erf.users) != 1:
        return None
    scaled = erf.all_input_nodes[0]
    if len(scaled.users) != 1 or len(scaled.all_input_nodes) != 2:
        return None
    first, second = scaled.all_input_nodes
    if _calls(scaled, torch.div) and _is(constant(second), math.sqrt(2)):
        return first
    if _calls(scaled, torch.mul):
        for x, factor in ((first, second), (second, first)):
            if _is(constant(factor), math.sqrt(0.5)):
                return x
    return None


def _is(value: float | None, wanted: float) -> bool:
    # Constants of the file are rounded to float32, or to float16 where it is stored so.
    return value is not None and math.isclose(value, wanted, rel_tol=1e-3)
