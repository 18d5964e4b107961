"""Fusions, for speed: what exporters write out in several nodes and torch computes in one.

    GELU            x * (1 + erf(x / sqrt 2)) / 2                                  below opset 20
    GELU by tanh    x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2            below opset 20
    SiLU            x * sigmoid(x)                                                 below opset 24 (Swish)
    hard swish      x * hardsigmoid(x)                                             below opset 14
    Mish            x * tanh(softplus(x))                                          below opset 18
    roll            concat(x[k:], x[:k])                                           always; Swin's windows are moved so

What lies inside is never a cut (x itself goes around it, and the two pieces of a roll go around each other), so no tap is
lost; its values are not in `LoweredModel.values` then. A value inside that is asked for as an output, or used elsewhere,
stays, and so do the nodes. The first two take three times as long written out, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxspect.converters.lowering.ops.activation import softplus
from onnxspect.converters.lowering.ops.elementwise import divide
from onnxspect.converters.lowering.ops.shape import slice_axes

_Constant = Callable[[fx.Node], float | None]
#: A function to call in a node's place: itself, its arguments, its keyword arguments.
_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def fuse(graph: fx.Graph, constant: _Constant) -> dict[fx.Node, fx.Node]:
    """Replace what is written out, in place.

    Args:
        graph: changed in place; what is no longer used stays for dead code elimination.
        constant: the number that a node holds, or None.

    Returns:
        last node of each thing that was written out -> the node that took its place.
    """
    replaced: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        found = _fused(node, constant)
        if found is None:
            continue
        function, args, kwargs = found
        with graph.inserting_after(node):
            fused = graph.call_function(function, args, kwargs)
        fused.meta = dict(node.meta)
        node.replace_all_uses_with(fused)
        replaced[node] = fused
    return replaced


def rotate(x: Tensor, k: int, axis: int) -> Tensor:
    """concat(x[k:], x[:k]) along `axis`; a k beyond the axis is cut to it, as the bounds of a slice are."""
    size = x.shape[axis]
    return torch.roll(x, -max(-size, min(size, k)), axis)


def _fused(node: fx.Node, constant: _Constant) -> _Call | None:
    if _calls(node, torch.cat):
        return _roll(node)
    if not _calls(node, torch.mul):
        return None
    return _gated(node) or _gelu(node, constant)


def _calls(node: object, *functions: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in functions


def _only(node: object, *functions: object) -> bool:
    """Whether a node calls one of these, and a single other node uses what it computes."""
    return _calls(node, *functions) and len(node.users) == 1  # type: ignore[attr-defined]


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors of a binary operation."""
    a, b = (*node.args, None, None)[:2]
    return (a, b) if isinstance(a, fx.Node) and isinstance(b, fx.Node) and not node.kwargs else None


def _either_way(node: fx.Node) -> tuple[tuple[fx.Node, fx.Node], ...]:
    """The two tensors of a commutative operation, in both orders."""
    found = _operands(node)
    return (found, found[::-1]) if found else ()


def _argument(node: fx.Node) -> object:
    """The tensor of a function of one, called without settings."""
    return node.args[0] if len(node.args) == 1 and not node.kwargs else None


def _gated(node: fx.Node) -> _Call | None:
    """x * gate(x), for the gates that torch has a kernel with."""
    for x, gate in _either_way(node):
        if _only(gate, torch.sigmoid) and _argument(gate) is x:
            return F.silu, (x,), {}
        if _only(gate, F.hardsigmoid) and _argument(gate) is x:
            return F.hardswish, (x,), {}
        if _only(gate, torch.tanh):
            inner = _argument(gate)
            if isinstance(inner, fx.Node) and _only(inner, softplus) and _argument(inner) is x:
                return F.mish, (x,), {}
    return None


def _gelu(node: fx.Node, constant: _Constant) -> _Call | None:
    """x * (1 + erf or tanh of something) * 1/2, the factors in some order."""
    factors = _factors(node)
    rest = [f for f in factors if not _is(constant(f), 0.5)]
    if len(factors) != 3 or len(rest) != 2:
        return None
    for x, gate in (rest, rest[::-1]):
        bend = _one_plus(gate, constant)
        if bend is None:
            continue
        inner = _argument(bend)
        if _calls(bend, torch.erf) and _scaled(inner, math.sqrt(0.5), constant) is x:
            return F.gelu, (x,), {}
        if _calls(bend, torch.tanh) and _cubic(_scaled(inner, math.sqrt(2 / math.pi), constant), constant) is x:
            return F.gelu, (x,), {"approximate": "tanh"}
    return None


def _factors(node: fx.Node) -> list[fx.Node]:
    """The factors of a product of products; an inner product counts only if nothing else uses it."""
    found: list[fx.Node] = []
    for factor in _operands(node) or ():
        inner = _operands(factor) if _only(factor, torch.mul) else None
        found += inner or (factor,)
    return found


def _one_plus(gate: fx.Node, constant: _Constant) -> fx.Node | None:
    """b where `gate` is 1 + b."""
    if not _only(gate, torch.add):
        return None
    return next(
        (b for one, b in _either_way(gate) if _is(constant(one), 1.0) and _only(b, torch.erf, torch.tanh)), None
    )


def _scaled(node: object, factor: float, constant: _Constant) -> fx.Node | None:
    """x where `node` is factor * x, or x divided by the reciprocal."""
    if not isinstance(node, fx.Node):
        return None
    if _only(node, torch.mul):
        return next((x for x, f in _either_way(node) if _is(constant(f), factor)), None)
    operands = _operands(node) if _only(node, torch.div, divide) else None
    return operands[0] if operands and _is(constant(operands[1]), 1 / factor) else None


def _cubic(node: fx.Node | None, constant: _Constant) -> fx.Node | None:
    """x where `node` is x + 0.044715 x^3."""
    if node is None or not _only(node, torch.add):
        return None
    for x, term in _either_way(node):
        cube = _scaled(term, 0.044715, constant)
        if cube is not None and _is_cube(cube, x):
            return x
    return None


def _is_cube(node: fx.Node, x: fx.Node) -> bool:
    if _only(node, torch.pow):
        return node.args == (x, 3.0)
    if not _only(node, torch.mul):
        return False
    return any(a is x and _only(b, torch.mul) and _operands(b) == (x, x) for a, b in _either_way(node))


def _roll(node: fx.Node) -> _Call | None:
    """concat(x[k:], x[:k]) along the axis that is cut."""
    parts, axis = (*node.args, None, None)[:2]
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(_only(p, slice_axes) for p in parts):
        return None
    (x, start, _, *first), (y, zero, end, *second) = (p.args for p in parts)  # type: ignore[union-attr]
    if x is not y or start != end or zero != (0,) or first != [(axis,), None] or second != first:
        return None
    far = parts[0].args[2]  # type: ignore[union-attr]
    if not (isinstance(far, tuple) and isinstance(start, tuple) and isinstance(x, fx.Node) and isinstance(axis, int)):
        return None
    shape = x.meta.get("onnx", {}).get("shape")
    size = shape[axis] if shape is not None else None
    if not isinstance(far[0], int) or (far[0] < _FAR and far[0] != size):
        return None
    return rotate, (x, start[0], axis), {}


#: Ends of slices from here on mean the end of the axis: exporters write the largest int32 or int64.
_FAR = (1 << 31) - 1


def _is(value: float | None, wanted: float) -> bool:
    # Constants of the file are rounded to float32, or to float16 where it is stored so.
    return value is not None and math.isclose(value, wanted, rel_tol=1e-3)
