"""Attention and what belongs to it (ONNX operator documentation, opsets 23 to 28)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.registry import lowering


def _heads(x: Tensor, count: int | None) -> Tensor:
    """``(batch, sequence, heads * size)`` as ``(batch, heads, sequence, size)``; that form stays."""
    if x.ndim == 4 or count is None:
        return x
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _allowed(
    q: Tensor, total: int, past: int, lengths: Tensor | None, causal: bool, left: int, right: int
) -> Tensor | None:
    """Which keys a query may look at by position alone, broadcastable to ``(batch, heads, queries, keys)``."""
    queries = q.shape[2]
    keys = torch.arange(total, device=q.device)
    offset = torch.full((1,), past, device=q.device)
    if lengths is not None:
        lengths = lengths.to(q.device, torch.int64).reshape(-1)
        offset = lengths - queries if past == 0 else offset
    position = offset.reshape(-1, 1, 1, 1) + torch.arange(queries, device=q.device).reshape(1, 1, -1, 1)
    allowed = None if lengths is None else keys < lengths.reshape(-1, 1, 1, 1)
    for applies, seen in (
        (causal, keys <= position),
        (left >= 0, keys >= position - left),
        (right >= 0, keys <= position + right),
    ):
        if applies:
            allowed = seen if allowed is None else allowed & seen
    return allowed


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    past_k: Tensor | None,
    past_v: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    q_heads: int | None,
    kv_heads: int | None,
    scale: float | None,
    softcap: float,
    left: int,
    right: int,
    scores_after: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(answer, keys, values, scores): scaled dot-product attention with grouped heads.

    Args:
        q, k, v: ``(batch, heads, sequence, size)``, or ``(batch, sequence, heads * size)`` with the numbers of heads.
        mask: of booleans (may look) or to be added to the scores; its last axis may be shorter than the keys.
        past_k, past_v: keys and values that come before k and v.
        lengths: how many keys of each sample count, ``(batch,)``.
        left, right: how far a query may look; -1 for any.
        scores_after: which stage's scores are asked for (0 product, 1 softcap, 2 mask, 3 softmax); None for none.
    """
    packed = q.ndim == 3
    q, k, v = _heads(q, q_heads), _heads(k, kv_heads), _heads(v, kv_heads)
    past = 0
    if past_k is not None and past_v is not None:
        past = past_k.shape[2]
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    factor = scale if scale else q.shape[-1] ** -0.5
    group = q.shape[1] // k.shape[1]
    keys, values = (k, v) if group == 1 else (k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
    allowed = _allowed(q, k.shape[2], past, lengths, causal, left, right)
    if mask is not None and mask.shape[-1] < k.shape[2]:
        missing = k.shape[2] - mask.shape[-1]
        mask = F.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else float("-inf"))
    plain = scores_after is None and not softcap and allowed is None and (mask is None or mask.dtype != torch.bool)
    if plain:
        answer, scores = F.scaled_dot_product_attention(q, keys, values, mask, 0.0, False, scale=factor), None
    else:
        answer, scores = _explicit(q, keys, values, mask, allowed, factor, softcap, scores_after)
    if packed:
        answer = answer.transpose(1, 2).flatten(2)
    return answer, k, v, scores


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    factor: float,
    softcap: float,
    scores_after: int | None,
) -> tuple[Tensor, Tensor]:
    root = factor**0.5
    stages = [(q * root) @ (k * root).transpose(-1, -2)]
    scores = softcap * torch.tanh(stages[0] / softcap) if softcap else stages[0]
    stages.append(scores)
    if mask is not None and mask.dtype == torch.bool:
        allowed = mask if allowed is None else allowed & mask
    elif mask is not None:
        scores = scores + mask
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    stages.append(scores)
    # A query that may look at nothing answers 0, not NaN.
    nothing = (scores == float("-inf")).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
    stages.append(weights)
    return weights @ v, stages[scores_after or 0]


@lowering("Attention", 23, 24, 25)
def attention_(node: NodeView) -> Any:
    scale = node.attr("scale")
    results = node.call(
        attention,
        *(node.input(i) for i in range(7)),
        bool(node.attr("is_causal", 0)),
        node.attr("q_num_heads"),
        node.attr("kv_num_heads"),
        float(scale) if scale else None,
        float(node.attr("softcap", 0.0)),
        int(node.attr("left_window_size", -1)),
        int(node.attr("right_window_size", -1)),
        int(node.attr("qk_matmul_output_mode", 0)) if node.wants(3) else None,
    )
    return tuple(node.item(results, i) if node.wants(i) else None for i in range(node.n_outputs))


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    interleaved: bool,
    size: int,
    heads: int | None,
) -> Tensor:
    """Rotate pairs of features by an angle that grows with the position.

    Args:
        x: ``(batch, heads, sequence, size)`` or ``(batch, sequence, heads * size)``.
        cos, sin: ``(positions, size / 2)`` with `positions`, else ``(batch, sequence, size / 2)``.
        positions: ``(batch, sequence)``.
        interleaved: whether pairs are neighbours, or one of each half.
        size: how many features of a head are rotated; 0 for all.
    """
    by_head = _heads(x, heads)
    rotated = size or by_head.shape[-1]
    turn, rest = by_head[..., :rotated], by_head[..., rotated:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = (turn[..., 0::2], turn[..., 1::2]) if interleaved else turn.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    if interleaved:
        turned = torch.stack([real, imaginary], -1).reshape(turn.shape)
    else:
        turned = torch.cat([real, imaginary], -1)
    out = torch.cat([turned, rest], -1)
    return out if x.ndim == 4 else out.transpose(1, 2).reshape(x.shape)


@lowering("RotaryEmbedding", 23)
def rotary_embedding_(node: NodeView) -> Any:
    interleaved, size = bool(node.attr("interleaved", 0)), int(node.attr("rotary_embedding_dim", 0))
    return node.call(rotary_embedding, *(node.input(i) for i in range(4)), interleaved, size, node.attr("num_heads"))


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    decay: Tensor | None,
    beta: Tensor | None,
    rule: str,
    q_heads: int,
    kv_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(answers ``(batch, time, q_heads * d_v)``, last state ``(batch, kv_heads, d_k, d_v)``), token by token.

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T; o_t = scale q_t^T S_t. Rule "gated" leaves
    out beta and the correction, "delta" the decay g, "linear" both.
    """
    queries, keys, values = _heads(q, q_heads), _heads(k, kv_heads), _heads(v, kv_heads)
    batch, _, time, d_k = keys.shape
    d_v = values.shape[-1]
    factor = scale or queries.shape[-1] ** -0.5
    memory = q.new_zeros(batch, kv_heads, d_k, d_v) if state is None else state
    gates = None if decay is None or "gated" not in rule else _heads(decay, kv_heads).exp()
    rates = None if beta is None or "delta" not in rule else beta.transpose(1, 2).unsqueeze(-1)
    answers = []
    for t in range(time):
        if gates is not None:
            memory = memory * gates[:, :, t].unsqueeze(-1)
        key, value = keys[:, :, t].unsqueeze(-1), values[:, :, t].unsqueeze(-2)
        if rates is not None:
            value = (value - key.transpose(-1, -2) @ memory) * rates[:, :, t].unsqueeze(-1)
        memory = memory + key * value
        grouped = queries[:, :, t].reshape(batch, kv_heads, -1, d_k)
        answers.append((factor * grouped @ memory).reshape(batch, q_heads * d_v))
    return torch.stack(answers, 1), memory


@lowering("LinearAttention", 27)
def linear_attention_(node: NodeView) -> Any:
    rule = node.attr("update_rule", "gated_delta")
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        raise Unsupported(f"update_rule {rule!r}")
    heads = int(node.attr("q_num_heads", 1)), int(node.attr("kv_num_heads", 1))
    results = node.call(
        linear_attention, *(node.input(i) for i in range(6)), rule, *heads, float(node.attr("scale", 0.0))
    )
    return node.item(results, 0), node.item(results, 1)


def causal_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """(answer, the last k - 1 inputs) of a depthwise convolution that looks only back; ``(batch, channels, time)``."""
    back = weight.shape[-1] - 1
    before = x.new_zeros(*x.shape[:2], back) if state is None else state
    joined = torch.cat([before, x], -1)
    y = torch.conv1d(joined, weight, bias, groups=weight.shape[0])
    return (F.silu(y) if activation in ("silu", "swish") else y), joined[..., joined.shape[-1] - back :]


@lowering("CausalConvWithState", 27)
def causal_convolution_(node: NodeView) -> Any:
    activation = node.attr("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise Unsupported(f"activation {activation!r}")
    results = node.call(causal_convolution, *(node.input(i) for i in range(4)), activation)
    return node.item(results, 0), node.item(results, 1)


def swiglu(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """a * sigmoid(alpha * a) * b."""
    return a * torch.sigmoid(alpha * a) * b


@lowering("SwiGLU", 28)
def swiglu_(node: NodeView) -> Any:
    return node.call(swiglu, node.input(0), node.input(1), float(node.attr("alpha", 1.0)))


def tensor_scatter(past: Tensor, update: Tensor, start: Tensor | None, axis: int, circular: bool) -> Tensor:
    """`past` with `update` written along `axis` from a position of each sample's own."""
    axis = axis % past.ndim
    length, size = update.shape[axis], past.shape[axis]
    first = past.new_zeros(past.shape[0], dtype=torch.int64) if start is None else start.to(past.device, torch.int64)
    positions = first.unsqueeze(1) + torch.arange(length, device=past.device)
    positions = positions % size if circular else positions
    shape = [past.shape[0] if i == 0 else length if i == axis else 1 for i in range(past.ndim)]
    return past.scatter(axis, positions.reshape(shape).expand_as(update), update)


@lowering("TensorScatter", 24)
def tensor_scatter_(node: NodeView) -> Any:
    mode = node.attr("mode", "linear")
    if mode not in ("linear", "circular"):
        raise Unsupported(f"mode {mode!r}")
    axis = int(node.attr("axis", -2))
    return node.call(tensor_scatter, node.input(0), node.input(1), node.input(2), axis, mode == "circular")
