"""RNN, GRU and LSTM (ONNX operator documentation, whose equations are quoted at each cell).

Where a node asks for what torch's own kernels compute (default activations, no peepholes, clipping or sequence
lengths), they are used, with the gates put in torch's order; else the recurrence is run step by step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxspect.converters.lowering.builder import NodeView, Unsupported, to_device
from onnxspect.converters.lowering.ops.creation import constant_of_shape
from onnxspect.converters.lowering.ops.shape import slice_axes
from onnxspect.converters.lowering.registry import lowering

#: Activations by name; alpha and beta as the operator documents their defaults (None where it has none).
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor, Any, Any], Tensor], float | None, float | None]] = {
    "relu": (lambda x, _a, _b: F.relu(x), None, None),
    "tanh": (lambda x, _a, _b: torch.tanh(x), None, None),
    "sigmoid": (lambda x, _a, _b: torch.sigmoid(x), None, None),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, _b: F.leaky_relu(x, a), 0.01, None),
    "thresholdedrelu": (lambda x, a, _b: torch.where(x > a, x, torch.zeros_like(x)), 1.0, None),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0, 1), 0.2, 0.5),
    "elu": (lambda x, a, _b: F.elu(x, a), 1.0, None),
    "softsign": (lambda x, _a, _b: F.softsign(x), None, None),
    "softplus": (lambda x, _a, _b: torch.logaddexp(x, torch.zeros_like(x)), None, None),
}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
#: For each of torch's gates, where ONNX has it: GRU is reset, update, new there and z r h here; LSTM i f g o and i o f c.
_TORCH_ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}

Activation = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class _Step:
    """What one direction's cell needs besides its state."""

    recurrence: Tensor
    recurrence_bias: Tensor
    peepholes: tuple[Tensor, Tensor, Tensor] | None
    functions: tuple[Callable[[Tensor], Tensor], ...]
    linear_before_reset: bool
    couple: bool


def _activation(kind: Activation, clip: float | None) -> Callable[[Tensor], Tensor]:
    function, alpha, beta = _ACTIVATIONS[kind[0].lower()]
    a = alpha if kind[1] is None else kind[1]
    b = beta if kind[2] is None else kind[2]
    if clip is None:
        return lambda x: function(x, a, b)
    bound = clip
    return lambda x: function(x.clamp(-bound, bound), a, b)


def _rnn_cell(x: Tensor, h: Tensor, c: Tensor, step: _Step) -> tuple[Tensor, Tensor]:
    """Ht = f(Xt*(Wi^T) + Ht-1*(Ri^T) + Wbi + Rbi); x holds the terms of Xt and Wb already."""
    return step.functions[0](x + h @ step.recurrence.t() + step.recurrence_bias), c


def _gru_cell(x: Tensor, h: Tensor, c: Tensor, step: _Step) -> tuple[Tensor, Tensor]:
    """zt = f(...), rt = f(...), ht = g(... + (rt (.) Ht-1)*(Rh^T) + Rbh + Wbh), Ht = (1 - zt) (.) ht + zt (.) Ht-1;
    with linear_before_reset ht = g(... + rt (.) (Ht-1*(Rh^T) + Rbh) + Wbh)."""
    f, g = step.functions
    n = h.shape[1]
    xz, xr, xh = x.split(n, 1)
    rz, rr, rh = step.recurrence.split(n, 0)
    bz, br, bh = step.recurrence_bias.split(n, 0)
    z = f(xz + h @ rz.t() + bz)
    r = f(xr + h @ rr.t() + br)
    inner = r * (h @ rh.t() + bh) if step.linear_before_reset else (r * h) @ rh.t() + bh
    return (1 - z) * g(xh + inner) + z * h, c


def _lstm_cell(x: Tensor, h: Tensor, c: Tensor, step: _Step) -> tuple[Tensor, Tensor]:
    """it, ft = f(... + P (.) Ct-1 ...), ct = g(...), Ct = ft (.) Ct-1 + it (.) ct, ot = f(... + Po (.) Ct ...),
    Ht = ot (.) h(Ct); with input_forget ft = 1 - it."""
    f, g, last = step.functions
    i, o, forget, cell = (x + h @ step.recurrence.t() + step.recurrence_bias).chunk(4, 1)
    if step.peepholes is not None:
        i, forget = i + step.peepholes[0] * c, forget + step.peepholes[2] * c
    i = f(i)
    forget = 1 - i if step.couple else f(forget)
    c = forget * c + i * g(cell)
    o = f(o + step.peepholes[1] * c) if step.peepholes is not None else f(o)
    return o * last(c), c


_CELLS = {"RNN": _rnn_cell, "GRU": _gru_cell, "LSTM": _lstm_cell}


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x ``(time, batch, ...)`` back to front, each sequence within its own length."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    own = lengths.to(x.device, torch.int64).unsqueeze(0)
    order = torch.where(steps < own, own - 1 - steps, steps)
    return x.gather(0, order.reshape(*order.shape, *[1] * (x.ndim - 2)).expand_as(x))


def _initial(state: Tensor | None, x: Tensor, directions: int, hidden: int) -> Tensor:
    """The first state ``(directions, batch, hidden)``; one written for a single sample serves every sample."""
    if state is None:
        return x.new_zeros(directions, x.shape[1], hidden)
    return state.expand(-1, x.shape[1], -1) if state.ndim == 3 and state.shape[1] == 1 else state


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} of a recurrent layer has shape {tuple(tensor.shape)}, not {shape}")


def recurrent(
    kind: str,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    direction: str,
    activations: Sequence[Activation],
    clip: float | None,
    linear_before_reset: bool,
    couple: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(all states, last state, last cell state) of a recurrent layer.

    Args:
        kind: "RNN", "GRU" or "LSTM".
        x: ``(time, batch, input)``, or ``(batch, time, input)`` with `batch_first`.
        w, r, b: ``(directions, gates * hidden, input)``, ``(directions, gates * hidden, hidden)``,
            ``(directions, 2 * gates * hidden)``.
        lengths: of the sequences, ``(batch,)``; beyond them the state stands still and the answer is 0.
        initial_h, initial_c: ``(directions, batch, hidden)``, batch first with `batch_first`.
        p: peepholes ``(directions, 3 * hidden)``, in the order i, o, f.
        activations: (name, alpha, beta) for each function of the cell, for each direction.

    Returns:
        ``(time, directions, batch, hidden)`` and twice ``(directions, batch, hidden)``, or batch first.
    """
    if batch_first:
        x = x.transpose(0, 1)
        initial_h = None if initial_h is None else initial_h.transpose(0, 1)
        initial_c = None if initial_c is None else initial_c.transpose(0, 1)
    directions, hidden = (2 if direction == "bidirectional" else 1), r.shape[-1]
    if x.ndim != 3:
        raise ValueError(f"the input of a recurrent layer has {x.ndim} axes, not 3")
    h0, c0 = _initial(initial_h, x, directions, hidden), _initial(initial_c, x, directions, hidden)
    bias = w.new_zeros(directions, 2 * w.shape[1]) if b is None else b
    rows = _GATES[kind] * hidden
    # torch's recurrent kernels read beyond their arguments where sizes disagree, so nothing else may reach them.
    _require_shape("W", w, (directions, rows, x.shape[2]))
    _require_shape("R", r, (directions, rows, hidden))
    _require_shape("B", bias, (directions, 2 * rows))
    _require_shape("initial_h", h0, (directions, x.shape[1], hidden))
    _require_shape("initial_c", c0, (directions, x.shape[1], hidden))
    native = lengths is None and p is None and clip is None and not couple
    native = native and (kind != "GRU" or linear_before_reset) and _are_torch_defaults(kind, activations)
    if native:
        mode = activations[0][0].lower()
        y, h, c = _by_torch(kind, mode, x, w, r, bias, h0, c0, direction)
    else:
        per_direction = len(activations) // directions
        parts = []
        for d in range(directions):
            functions = tuple(_activation(a, clip) for a in activations[d * per_direction : (d + 1) * per_direction])
            peepholes = None if p is None else tuple(p[d].chunk(3))
            gates = bias.shape[1] // 2
            step = _Step(r[d], bias[d, gates:], peepholes, functions, linear_before_reset, couple)  # type: ignore[arg-type]
            backwards = direction == "reverse" or d == 1
            xs = _reversed(x, lengths) if backwards else x
            states, h_last, c_last = _run(_CELLS[kind], xs @ w[d].t() + bias[d, :gates], h0[d], c0[d], step, lengths)
            parts.append((_reversed(states, lengths) if backwards else states, h_last, c_last))
        y, h, c = torch.stack([q[0] for q in parts], 1), *(torch.stack([q[i] for q in parts]) for i in (1, 2))
    if batch_first:
        return y.permute(2, 0, 1, 3), h.transpose(0, 1), c.transpose(0, 1)
    return y, h, c


def _run(
    cell: Callable[[Tensor, Tensor, Tensor, _Step], tuple[Tensor, Tensor]],
    inputs: Tensor,
    h: Tensor,
    c: Tensor,
    step: _Step,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    states = []
    for t in range(inputs.shape[0]):
        new_h, new_c = cell(inputs[t], h, c, step)
        if lengths is not None:
            going = (t < lengths.to(h.device)).unsqueeze(1)
            states.append(torch.where(going, new_h, torch.zeros_like(new_h)))
            new_h, new_c = torch.where(going, new_h, h), torch.where(going, new_c, c)
        else:
            states.append(new_h)
        h, c = new_h, new_c
    return torch.stack(states), h, c


def _are_torch_defaults(kind: str, activations: Sequence[Activation]) -> bool:
    names = [a[0].lower() for a in activations]
    if kind == "RNN":
        return names[0] in ("tanh", "relu") and set(names) == {names[0]}
    defaults = [n.lower() for n in _DEFAULTS[kind]]
    return names == defaults * (len(names) // len(defaults))


@functools.cache
def _torch_order(kind: str, device: torch.device) -> Tensor:
    return torch.tensor(_TORCH_ORDER[kind], device=device)


def _by_torch(
    kind: str, mode: str, x: Tensor, w: Tensor, r: Tensor, bias: Tensor, h0: Tensor, c0: Tensor, direction: str
) -> tuple[Tensor, Tensor, Tensor]:
    directions, hidden = r.shape[0], r.shape[2]
    order = _torch_order(kind, w.device)

    def reordered(weight: Tensor, parts: int) -> tuple[Tensor, ...]:
        gates = weight.reshape(parts, len(order), hidden, -1)
        ordered = gates.index_select(1, order) if len(order) > 1 else gates
        return ordered.reshape(parts, *weight.shape[1:]).unbind()

    ws, rs = reordered(w, directions), reordered(r, directions)
    biases = reordered(bias.reshape(2 * directions, -1), 2 * directions)
    flat = [t for d in range(directions) for t in (ws[d], rs[d], biases[2 * d], biases[2 * d + 1])]
    xs = x.flip(0) if direction == "reverse" else x
    both = direction == "bidirectional"
    h0, c0 = h0.contiguous(), c0.contiguous()
    # train=True: cuDNN keeps what the backward pass needs only then; without dropout nothing else depends on it.
    if kind == "LSTM":
        out, h, c = torch.lstm(xs, [h0, c0], flat, True, 1, 0.0, True, both, False)
    else:
        function = torch.gru if kind == "GRU" else torch.rnn_relu if mode == "relu" else torch.rnn_tanh
        out, h = function(xs, h0, flat, True, 1, 0.0, True, both, False)
        c = c0
    y = out.reshape(*out.shape[:2], directions, hidden).permute(0, 2, 1, 3)
    return (y.flip(0) if direction == "reverse" else y), h, c


def _activations(node: NodeView, directions: int) -> list[Activation]:
    names = node.attr("activations") or _DEFAULTS[node.op_type] * directions
    alphas, betas = list(node.attr("activation_alpha") or []), list(node.attr("activation_beta") or [])
    if len(names) != len(_DEFAULTS[node.op_type]) * directions:
        raise Unsupported(f"{len(names)} activations for {directions} direction(s)")
    found: list[Activation] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise Unsupported(f"activation {name!r}")
        # The lists of alphas and betas hold values for the functions that take them, in their order.
        _, alpha, beta = _ACTIVATIONS[name.lower()]
        found.append(
            (
                name,
                alphas.pop(0) if alpha is not None and alphas else None,
                betas.pop(0) if beta is not None and betas else None,
            )
        )
    return found


def _state(initial: Any) -> Any:
    """The first state, or None where it is zeros that the graph makes for the batch size, as exporters of torch do."""
    source = initial
    while isinstance(source, fx.Node) and source.target in (to_device, slice_axes):
        source = source.args[0]
    zero = isinstance(source, fx.Node) and source.target is constant_of_shape and source.args[1] == 0
    return None if zero else initial


def _recurrent(node: NodeView) -> Any:
    direction = node.attr("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Unsupported(f"direction {direction!r}")
    directions = 2 if direction == "bidirectional" else 1
    is_lstm = node.op_type == "LSTM"
    clip = node.attr("clip")
    results = node.call(
        recurrent,
        node.op_type,
        *(node.input(i) for i in range(5)),
        _state(node.input(5)),
        _state(node.input(6)) if is_lstm else None,
        node.input(7) if is_lstm else None,
        direction,
        _activations(node, directions),
        float(clip) if clip else None,
        bool(node.attr("linear_before_reset", 0)),
        bool(node.attr("input_forget", 0)),
        bool(node.attr("layout", 0)),
    )
    return tuple(node.item(results, i) if node.wants(i) else None for i in range(node.n_outputs))


lowering("RNN", 1, 7, 14, 22)(_recurrent)
lowering("GRU", 1, 3, 7, 14, 22)(_recurrent)
lowering("LSTM", 1, 7, 14, 22)(_recurrent)
