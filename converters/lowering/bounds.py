"""Interval bounds: between which numbers a value lies, whatever the image is (interval arithmetic; Moore, 1966).

From the least and the largest pixel on, every node is computed on intervals: what is monotone at both ends, what is linear by the middle
and the radius under the magnitudes of its weights, comparisons as true, false, or either. Bounds are widened by rounding at every step.
A node of any other kind ends them: nothing is said of what is made from it.

Bounds grow loose with depth, for they know nothing of how values hang together. Of a comparison near the image they are a proof. Verdicts rest
on that: so what might not rise after all (a negative slope, a place or a size by the image, a whole number that could leave its type, a test for
zero) has no bounds either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.program import Program, leading_to, operands

#: Rounding of one step, as a share of the magnitude; of types of fewer digits, so many of their own steps.
_ROUNDING, _STEPS = 1e-5, 8.0
#: Whole numbers up to this magnitude are added and multiplied in 64 bits without leaving them, as many as a tensor has.
_WHOLE = 1 << 20


@dataclass(frozen=True, eq=False)
class Interval:
    """Element by element, the least and the most that a value can be; truth values as 0 and 1."""

    low: Tensor
    high: Tensor

    @property
    def settled(self) -> Tensor:
        """Elements that can be one thing only, bool."""
        return self.low == self.high


def bounds(program: Program, end: fx.Node, low: Tensor, high: Tensor) -> Interval | None:
    """The bounds of a value; None where some node on the way has none.

    Args:
        program: of the graph.
        end: the value.
        low, high: the least and the largest input, as the model takes it.
    """
    return all_bounds(program, [end], low, high).get(end)


def all_bounds(program: Program, ends: Collection[fx.Node], low: Tensor, high: Tensor) -> dict[fx.Node, Interval]:
    """The bounds of several values, of those that have any (see `bounds`)."""
    wanted: set[fx.Node] = set().union(*(leading_to(e) for e in ends))
    env: dict[fx.Node, Any] = dict(program.constants)
    found: dict[fx.Node, Interval] = {}
    for node in program.placeholders:
        env[node] = Interval(low, high)
    with torch.no_grad():
        for node in program.steps:
            if node in wanted and all(i in env for i in node.all_input_nodes):
                args, kwargs = operands(node, env)
                try:
                    interval = _step(node.target, args, kwargs)
                except Exception:  # shapes or types that the rule does not know
                    interval = None
                if interval is not None:
                    env[node] = interval
                if node in ends and isinstance(interval, Interval):
                    found[node] = interval
            for source in program.spent.get(node, ()):
                env.pop(source, None)
    return found


def _step(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if not _holds_interval([*args, *kwargs.values()]):
        return target(*args, **kwargs)
    name = getattr(target, "__name__", "")
    if name in _MOVING and _holds_interval([*args[1:], *kwargs.values()]):
        return None
    if name in _SLOPED and not all(isinstance(v, (int, float)) and v >= 0 for v in [*args[1:2], *kwargs.values()]):
        return None
    if name in _CAST and not _fits(args[0], args[1]):
        return None
    if name in _COUNTING and not all(map(_small, _intervals([*args, *kwargs.values()]))):
        return None
    if name in _RISING:
        low, high = (target(*_ends(args, which), **_ends(kwargs, which)) for which in ("low", "high"))
        return _widened(low, high)
    rule = _RULES.get(name)
    return None if rule is None else rule(target, *args, **kwargs)


def _intervals(value: Any) -> list[Interval]:
    if isinstance(value, (list, tuple)):
        return [i for v in value for i in _intervals(v)]
    return [value] if isinstance(value, Interval) else []


def _small(x: Interval) -> bool:
    """Whether arithmetic of a value is that of real numbers, about: floating point, or far from the ends of 64 bits."""
    if x.low.is_floating_point():
        return True
    return x.low.dtype == torch.int64 and bool((torch.maximum(x.low.abs(), x.high.abs()) < _WHOLE).all())


def _fits(x: Any, dtype: Any) -> bool:
    """Whether a cast of a value rises: it stays within the type."""
    if not isinstance(x, Interval) or not isinstance(dtype, torch.dtype):
        return False
    if dtype == torch.bool or dtype.is_floating_point:
        return dtype == x.low.dtype or dtype.is_floating_point
    span = torch.iinfo(dtype)
    return bool((x.low.double() > span.min).all() and (x.high.double() < span.max).all())


def _holds_interval(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_interval(v) for v in value)
    return isinstance(value, Interval)


def _ends(value: Any, which: str) -> Any:
    if isinstance(value, Interval):
        return getattr(value, which)
    if isinstance(value, Mapping):
        return {k: _ends(v, which) for k, v in value.items()}
    return type(value)(_ends(v, which) for v in value) if isinstance(value, (list, tuple)) else value


def _widened(low: Any, high: Any) -> Any:
    if isinstance(low, (list, tuple)):
        return [_widened(a, b) for a, b in zip(low, high, strict=True)]
    if not isinstance(low, Tensor):
        return None
    if not low.is_floating_point():
        return Interval(torch.minimum(low, high), torch.maximum(low, high))
    slack = _rounding(low) * torch.maximum(low.abs(), high.abs())
    return Interval(low - slack, high + slack)


def _rounding(x: Tensor) -> float:
    return max(_ROUNDING, _STEPS * torch.finfo(x.dtype).eps)


def _both(value: Any) -> tuple[Any, Any]:
    return (value.low, value.high) if isinstance(value, Interval) else (value, value)


def _sub(_: Any, a: Any, b: Any) -> Any:
    (a0, a1), (b0, b1) = _both(a), _both(b)
    return _widened(a0 - b1, a1 - b0)


def _mul(_: Any, a: Any, b: Any) -> Any:
    (a0, a1), (b0, b1) = _both(a), _both(b)
    products = torch.stack(torch.broadcast_tensors(*(torch.as_tensor(x * y) for x in (a0, a1) for y in (b0, b1))))
    return _widened(products.amin(0), products.amax(0))


def _div(_: Any, a: Any, b: Any) -> Any:
    if isinstance(b, Interval) or bool((torch.as_tensor(b) == 0).any()):
        return None
    if isinstance(a, Interval) and not a.low.is_floating_point():  # whole numbers are rounded towards zero
        return None
    return _mul(_, a, 1.0 / b)


def _neg(_: Any, a: Interval) -> Any:
    return Interval(-a.high, -a.low)


def _abs(_: Any, a: Interval) -> Any:
    low, high = a.low.abs(), a.high.abs()
    crosses = (a.low <= 0) & (a.high >= 0)
    return Interval(torch.where(crosses, torch.zeros_like(low), torch.minimum(low, high)), torch.maximum(low, high))


def _linear(target: Any, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Any:
    """Convolution and the like: the middle through the weights, the radius through their magnitudes."""
    if not isinstance(x, Interval) or isinstance(weight, Interval) or isinstance(bias, Interval):
        return None
    middle, radius = (x.low + x.high) / 2, (x.high - x.low) / 2
    centre, spread = target(middle, weight, bias, *rest), target(radius, weight.abs(), None, *rest)
    # The sum of magnitudes bounds what rounding of a long sum can do.
    slack = _rounding(middle) * target(middle.abs() + radius, weight.abs(), None, *rest)
    return Interval(centre - spread - slack, centre + spread + slack)


def _matmul(target: Any, a: Any, b: Any) -> Any:
    if not isinstance(a, Interval) or isinstance(b, Interval):
        return None
    return _linear(lambda x, w, _: target(x, w), a, b)


def _gemm(target: Any, a: Any, b: Any, c: Any, *rest: Any) -> Any:
    return _linear(lambda x, w, bias: target(x, w, bias, *rest), a, b, c)


def _greater(_: Any, a: Any, b: Any, strictly: bool = True) -> Interval:
    (a0, a1), (b0, b1) = _both(a), _both(b)
    sure, never = (a0 > b1, a1 <= b0) if strictly else (a0 >= b1, a1 < b0)  # of what is no number neither
    return Interval(torch.as_tensor(sure), ~torch.as_tensor(never))


def _equal(_: Any, a: Any, b: Any) -> Interval:
    (a0, a1), (b0, b1) = (tuple(map(torch.as_tensor, _both(x))) for x in (a, b))
    return Interval((a0 == a1) & (b0 == b1) & (a0 == b0), ~((a0 > b1) | (b0 > a1)))


def _where(target: Any, condition: Any, a: Any, b: Any) -> Any:
    (a0, a1), (b0, b1) = _both(a), _both(b)
    if not isinstance(condition, Interval):
        return Interval(target(condition, a0, b0), target(condition, a1, b1))
    low, high = (
        torch.where(condition.settled, target(condition.low, x, y), f(torch.as_tensor(x), torch.as_tensor(y)))
        for f, x, y in ((torch.minimum, a0, b0), (torch.maximum, a1, b1))
    )
    return Interval(low, high)


#: Of what rises the part that moves elements, or sums and compares neighbours: the first operand alone is a value.
_MOVING = frozenset(
    [
        "reshape",
        "reshape_rows",
        "flatten",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "cat",
        "slice_axes",
        "gather_one",
        "gather",
        "split",
        "split_equally",
        "getitem",
        "expand",
        "tile",
        "pad",
        "amin",
        "amax",
        "reduce_min",
        "reduce_max",
        "reduce_sum",
        "reduce_mean",
        "mean",
        "sum",
        "max_pool2d",
        "avg_pool2d",
        "max_pool",
        "average_pool",
    ]
)
#: Functions that rise with every operand, those that move elements included.
_RISING = _MOVING | frozenset(
    [
        "add",
        "average",
        "total",
        "clamp",
        "hardtanh",
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "sigmoid",
        "hardsigmoid",
        "tanh",
        "softplus",
        "exp",
        "floor",
        "ceil",
        "round",
        "sign",
        "greatest",
        "least",
        "minimum",
        "maximum",
        "logical_and",
        "logical_or",
        "in_own_type",
        "to_type",
        "to_working",
        "global_average_pool",
        "global_max_pool",
    ]
)
#: ... those that rise where their first number is not negative; casts; those that count, which whole numbers must be small for.
_SLOPED, _CAST = frozenset(("leaky_relu", "elu")), frozenset(("to_type",))
_COUNTING = frozenset(
    [
        "add",
        "sub",
        "mul",
        "total",
        "average",
        "sum",
        "mean",
        "reduce_sum",
        "reduce_mean",
        "neg",
        "abs",
        "matmul",
        "gemm",
    ]
)
_RULES: Mapping[str, Callable[..., Any]] = {
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "abs": _abs,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), _linear),
    "convolution": _linear,
    "matmul": _matmul,
    "gemm": _gemm,
    "gt": _greater,
    "ge": lambda _, a, b: _greater(_, a, b, strictly=False),
    "lt": lambda _, a, b: _greater(_, b, a),
    "le": lambda _, a, b: _greater(_, b, a, strictly=False),
    "eq": _equal,
    "logical_not": lambda _, a: Interval(~a.high, ~a.low),
    "where": _where,
}
