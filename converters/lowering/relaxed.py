"""A graph with slopes everywhere: what steps, saturates or sleeps answers as it does, and passes a gradient on all the same.

A part that sleeps on clean images has no slope there: a comparison steps, a Relu of a negative number is flat, a minimum hears one
element, a product of zeros none. To find the picture that wakes it, its value is computed as the file has it and its gradient as if
each of these had the slope that its direction suggests (straight-through estimation; Bengio et al., 2013):

* a comparison passes the gradient on to the difference of its operands, an equality to minus their distance; a test for what is no
  number to minus its operand, one for infinity to the operand's size;
* Relu, Clip, Sigmoid and the like have at least the slope `leak`; Floor, Round, Cast and the like have that of the identity;
* a minimum or maximum (reduction, pooling), or the place of one, shares the gradient among its elements by a soft minimum;
* a product passes the gradient on also to what zeros multiply;
* Where passes it on to its condition, by what the choice would change.

Truth values and integers are floating-point numbers here, so that they carry gradients; every value is set to what the exact graph
has. Where a node does not run so (an index by data), its value is the exact one and the gradient ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from onnxspect.converters.lowering.ops.quantization import dynamic_quantize
from onnxspect.converters.lowering.program import Program, leading_to, operands, unchanged

#: Temperature of soft minima, as a share of the range of what is reduced.
_SOFT = 0.2
_TINY = 1e-12
#: A softmax has chosen where all of its elements are so near to 0 or 1.
_CHOSEN = 1e-6


class Relaxed:
    """The part of a graph up to one value, with slopes everywhere.

    Args:
        program: of the graph.
        end: the value.
        between: nodes that depend on the image's data; those of them that lead to `end` are run.
        leak: the least slope of what saturates.
        ranges_held: the range that a dynamic quantisation takes from its whole batch has no slope.
    """

    def __init__(
        self,
        program: Program,
        end: fx.Node,
        between: Mapping[fx.Node, int],
        leak: float,
        ranges_held: bool = False,
    ) -> None:
        self._program, self.end, self._mode, self._ranges_held = program, end, _Slopes(leak), ranges_held
        self._needed = leading_to(end)
        self._sloping = {n for n in self._needed if n in between}

    @property
    def steps(self) -> int:
        """How many nodes it runs."""
        return sum(n in self._needed for n in self._program.steps)

    def exact(self, batch: Tensor) -> Tensor:
        """The value as the graph has it, of a batch as the model takes it; without gradients."""
        with torch.no_grad():
            result: Tensor = self._program.run(batch, unchanged, until=self.end)[self.end]
        return result

    def run(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """(the value, floating-point, with a gradient to `batch` wherever there can be one; the exact value)."""
        env, exact = self.values(batch)
        result: Tensor = env[self.end]
        return result, exact[self.end]

    def values(self, batch: Tensor) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
        """The same of every value on the way, by node."""
        with torch.no_grad():
            exact = self._program.run(batch.detach(), unchanged, keep=True, until=self.end)
        env: dict[fx.Node, Any] = {}
        for node in self._program.placeholders:
            env[node] = batch
        with torch.enable_grad():
            for node in self._program.steps:
                if node in self._sloping:
                    env[node] = self._value(node, env, exact)
                if node is self.end:
                    break
        return env, exact

    def _value(self, node: fx.Node, env: Mapping[fx.Node, Any], exact: Mapping[fx.Node, Any]) -> Any:
        """A node's exact value, with the gradient of the relaxed one."""
        known = {n: env.get(n, exact[n]) for n in node.all_input_nodes}
        args, kwargs = operands(node, known)
        if self._ranges_held and node.target is dynamic_quantize:
            integers, scale, zero = (_as_float(v) for v in exact[node])
            return _tied(args[0] / scale, integers), scale, zero
        try:
            with self._mode:
                relaxed = node.target(*args, **kwargs)  # type: ignore[operator]
            return _tied(relaxed, exact[node])
        except Exception:  # no such function of floating-point truth values: the gradient ends here
            return _as_float(exact[node])


class _Tie(torch.autograd.Function):
    """The exact value forwards, the relaxed one's gradient (NaN as zero) backwards."""

    @staticmethod
    def forward(ctx: Any, relaxed: Tensor, exact: Tensor) -> Tensor:
        """`exact`."""
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """To `relaxed` alone."""
        return torch.nan_to_num(gradients[0], 0.0, 0.0, 0.0), None


def _tied(relaxed: Any, exact: Any) -> Any:
    if isinstance(exact, (tuple, list)):
        return type(exact)(_tied(r, e) for r, e in zip(relaxed, exact, strict=True))
    if not isinstance(exact, Tensor):
        return exact
    value = _as_float(exact)
    if not isinstance(relaxed, Tensor) or not relaxed.requires_grad or relaxed.shape != value.shape:
        return value
    return _Tie.apply(relaxed.to(value.dtype), value)


def _as_float(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_as_float(v) for v in value)
    return value.float() if isinstance(value, Tensor) and not value.is_floating_point() else value


def _through(exact: Tensor, slope: Tensor) -> Tensor:
    """`exact`, with the gradient of `slope`."""
    return exact.detach() + (slope - slope.detach())


class _Slopes(TorchFunctionMode):
    """Functions of torch, replaced by others of the same value that have slopes."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak = leak

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The replacement where there is one and something is to be differentiated, else the function itself."""
        kwargs = kwargs or {}
        rule = _RULES.get(getattr(func, "__name__", ""))
        if rule is not None and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            found = rule(self, func, *args, **kwargs)
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs)


def _greater(_: _Slopes, func: Any, a: Any, b: Any) -> Tensor:
    return _through(_detached(func, a, b).float(), a - b)


def _less(_: _Slopes, func: Any, a: Any, b: Any) -> Tensor:
    return _through(_detached(func, a, b).float(), b - a)


def _equal(_: _Slopes, func: Any, a: Any, b: Any) -> Tensor:
    return _through(_detached(func, a, b).float(), -torch.abs(a - b))


def _unequal(_: _Slopes, func: Any, a: Any, b: Any) -> Tensor:
    return _through(_detached(func, a, b).float(), torch.abs(a - b))


def _no_number(_: _Slopes, func: Any, x: Tensor) -> Tensor:
    """A root or a logarithm is no number where what it is taken of goes down through zero, and it goes down before."""
    return _through(_detached(func, x).float(), -x)


def _infinite(_: _Slopes, func: Any, x: Tensor) -> Tensor:
    return _through(_detached(func, x).float(), torch.abs(x))


def _not(_: _Slopes, __: Any, a: Tensor) -> Tensor:
    return 1 - a


def _and(_: _Slopes, func: Any, a: Tensor, b: Tensor) -> Tensor:
    return _through(_detached(func, a, b).float(), torch.add(a, b))


def _xor(_: _Slopes, __: Any, a: Tensor, b: Tensor) -> Tensor:
    low, high = a.detach().bool(), b.detach().bool()
    return _through((low ^ high).float(), torch.where(high, -a, a) + torch.where(low, -b, b))


def _choose(mode: _Slopes, __: Any, condition: Tensor, a: Any = None, b: Any = None) -> Any:
    """The chosen one, and what the choice would change; where both are the same, small slopes of all three, as if the other were larger."""
    if a is None or b is None:
        return NotImplemented
    first = condition.detach().bool()
    chosen = torch.where(first, a, b)
    if not condition.requires_grad:
        return chosen
    change = torch.nan_to_num(_constant(a) - _constant(b), 0.0, 0.0, 0.0)
    other = torch.where(first, -mode.leak, mode.leak)
    y = chosen + (condition - condition.detach()) * torch.where(change == 0, other, change)
    for value, passed_over in ((a, ~first), (b, first)):
        if isinstance(value, Tensor) and value.requires_grad:
            y = y + mode.leak * (value - value.detach()) * (passed_over & (change == 0))
    return y


def _leaky(mode: _Slopes, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The function, with at least the slope `leak`; where none of its values has any, with slope 1."""
    if not x.is_floating_point():
        return NotImplemented
    y = func(x, *args, **kwargs)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return y
    return y + mode.leak * (x - x.detach())


def _softmax(mode: _Slopes, func: Any, x: Tensor, dim: Any = None, **kwargs: Any) -> Any:
    """The function; where it has chosen one element, with the slope `leak`."""
    y = func(x, dim, **kwargs)
    if dim is None or not isinstance(y, Tensor):
        return y
    chosen = ((y.detach() < _CHOSEN) | (y.detach() > 1 - _CHOSEN)).all(dim, keepdim=True)
    return y + mode.leak * (x - x.detach()) * chosen


def _identity(_: _Slopes, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _through(_detached(func, x, *args, **kwargs).float(), x)


def _cast(_: _Slopes, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A type that carries no gradient is that of the value alone."""
    y = _detached(func, x, *args, **kwargs)
    if y.is_floating_point():
        return func(x, *args, **kwargs)
    return _through(y.to(x.dtype), x)


def _extreme(sign: float) -> Callable[..., Any]:
    """A reduction to the least (sign -1) or largest element: the gradient goes to those near it as well."""

    def rule(_: _Slopes, func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
        if isinstance(dim, Tensor):  # elementwise, of two tensors
            return _pairwise(func, x, dim)
        if "axes" in kwargs or "axis" in kwargs:
            return NotImplemented
        if dim is not None and func.__name__ in ("max", "min"):  # values and indices
            both = func(x.detach(), dim, keepdim=keepdim)
            values = rule(_, torch.amax if sign > 0 else torch.amin, x, dim, keepdim)
            return type(both)((values, both.indices))
        dims = list(range(x.ndim)) if dim is None or dim == () else [dim] if isinstance(dim, int) else list(dim)
        exact = _detached(func, x) if dim is None else _detached(func, x, dim, keepdim=keepdim)
        still = x.detach()
        low, high = still.amin(dims, keepdim=True), still.amax(dims, keepdim=True)
        scaled = sign * (still - (high if sign > 0 else low)) / (_SOFT * (high - low) + _TINY)
        weights = torch.exp(torch.nan_to_num(scaled, 0.0, 0.0, -50.0))
        weights = weights / weights.sum(dims, keepdim=True)
        soft = (weights * x).sum(dims, keepdim=keepdim and dim is not None)
        return _through(exact, soft.reshape(exact.shape))

    return rule


def _pairwise(func: Any, a: Any, b: Any) -> Tensor:
    if not isinstance(b, Tensor) or not isinstance(a, Tensor):
        return NotImplemented
    return _through(_detached(func, a, b), 0.5 * torch.add(a, b))


def _pair(_: _Slopes, func: Any, a: Any, b: Any) -> Any:
    return _pairwise(func, a, b)


def _product(mode: _Slopes, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A reduction by product: what zeros multiply has a slope too."""
    y = func(x, *args, **kwargs)
    still = x.detach()
    lifted = torch.where(still == 0, torch.full_like(still, mode.leak), still)
    above = func(lifted, *args, **kwargs)  # no gradient: how large the product would be
    share = (x - still) / lifted
    return y + (_summed(share, args, kwargs) * above if (still == 0).any() else 0)


def _summed(x: Tensor, args: Any, kwargs: Any) -> Tensor:
    """The sum over the axes that a product is taken over."""
    return torch.sum(x, *args, **{k: v for k, v in kwargs.items() if k in ("dim", "keepdim")})


def _times(mode: _Slopes, func: Any, a: Any, b: Any) -> Any:
    """a * b; what a zero multiplies has a small slope."""
    y = func(a, b)
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.requires_grad and b.requires_grad:
        y = y + mode.leak * ((a - a.detach()) * (b.detach() == 0) + (b - b.detach()) * (a.detach() == 0))
    return y


def _max_pool(_: _Slopes, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The gradient goes to every element of the window, by a soft maximum."""
    y = _detached(func, x, *args, **kwargs)
    kernel = args[0] if args else kwargs["kernel_size"]
    sizes = [kernel] * 2 if isinstance(kernel, int) else list(kernel)
    if len(sizes) != 2 or kwargs.get("ceil_mode") or x.ndim != 4:
        return func(x, *args, **kwargs)
    stride = args[1] if len(args) > 1 else kwargs.get("stride")
    padding = args[2] if len(args) > 2 else kwargs.get("padding", 0)
    dilation = args[3] if len(args) > 3 else kwargs.get("dilation", 1)
    if dilation not in (1, (1, 1), [1, 1]):
        return func(x, *args, **kwargs)
    still = x.detach()
    scale = _SOFT * (still.amax() - still.amin()) + _TINY
    heat = torch.exp((still - still.amax()) / scale)
    mean = F.avg_pool2d(heat, sizes, stride or sizes, padding)
    soft = F.avg_pool2d(heat * x, sizes, stride or sizes, padding) / (mean + _TINY)
    return _through(y, soft) if soft.shape == y.shape else func(x, *args, **kwargs)


def _place(sign: float) -> Callable[..., Any]:
    """ArgMax or ArgMin: the place of a soft extreme."""

    def rule(_: _Slopes, func: Any, x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
        exact = _detached(func, x, dim, keepdim=keepdim)
        if dim is None:
            return exact
        still = x.detach()
        scale = _SOFT * (still.amax(dim, keepdim=True) - still.amin(dim, keepdim=True)) + _TINY
        weights = torch.softmax(sign * x / scale, dim)
        shape = [1] * x.ndim
        shape[dim] = x.shape[dim]
        places = torch.arange(x.shape[dim], dtype=x.dtype, device=x.device).reshape(shape)
        return _through(exact.to(x.dtype), (weights * places).sum(dim, keepdim=keepdim))

    return rule


def _detached(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A function's value without gradient; of truth values kept as numbers that is their own where torch wants truth values."""
    plain = [a.detach() if isinstance(a, Tensor) else a for a in args]
    try:
        result: Tensor = func(*plain, **kwargs)
    except (RuntimeError, TypeError):
        result = func(*[a.bool() if isinstance(a, Tensor) else a for a in plain], **kwargs)
    return result


def _constant(value: Any) -> Any:
    value = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
    return value.float() if value.dtype == torch.bool else value


_RULES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"), _greater),
    **dict.fromkeys(("lt", "le", "less", "less_equal", "__lt__", "__le__"), _less),
    **dict.fromkeys(("eq", "__eq__"), _equal),
    **dict.fromkeys(("ne", "__ne__", "not_equal"), _unequal),
    "isnan": _no_number,
    "isinf": _infinite,
    **dict.fromkeys(("logical_not", "__invert__", "bitwise_not"), _not),
    **dict.fromkeys(("logical_and", "logical_or", "__and__", "__or__"), _and),
    "logical_xor": _xor,
    "where": _choose,
    **dict.fromkeys(
        ("relu", "relu_", "relu6", "clamp", "clamp_min", "clamp_max", "clip", "hardtanh", "hardsigmoid", "hardswish")
        + (
            "sigmoid",
            "tanh",
            "softplus",
            "logaddexp",
            "elu",
            "celu",
            "selu",
            "gelu",
            "silu",
            "mish",
            "exp",
            "softsign",
        ),
        _leaky,
    ),
    **dict.fromkeys(("floor", "ceil", "round", "trunc", "sign"), _identity),
    **dict.fromkeys(("to", "bool", "long", "int", "float", "double"), _cast),
    "softmax": _softmax,
    "argmax": _place(1.0),
    "argmin": _place(-1.0),
    "amin": _extreme(-1.0),
    "amax": _extreme(1.0),
    "min": _extreme(-1.0),
    "max": _extreme(1.0),
    "minimum": _pair,
    "maximum": _pair,
    "prod": _product,
    **dict.fromkeys(("mul", "__mul__", "multiply"), _times),
    **dict.fromkeys(("max_pool2d", "_max_pool2d"), _max_pool),
}
