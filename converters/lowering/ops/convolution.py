"""Conv and ConvTranspose (ONNX operator documentation; torch.nn.functional).

Departure from torch: ONNX pads each side by its own amount and knows auto_pad, so what torch cannot express as a
symmetric padding becomes an explicit zero padding before the convolution (or a crop after a transposed one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.registry import lowering

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def same_padding(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], lower: bool
) -> list[int]:
    """ONNX pads (all starts, then all ends) of auto_pad SAME_*: the output is ceil(size / stride) long."""
    starts, ends = [], []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        small, large = total // 2, total - total // 2
        starts.append(large if lower else small)
        ends.append(small if lower else large)
    return starts + ends


def pad_spatial(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the trailing axes of `x` by ONNX pads (all starts, then all ends)."""
    n = len(pads) // 2
    flat = [p for axis in range(n - 1, -1, -1) for p in (pads[axis], pads[axis + n])]
    return F.pad(x, flat, value=value) if any(flat) else x


def spatial_attributes(node: NodeView, rank: int) -> tuple[list[int], list[int], list[int], str]:
    """(strides, dilations, pads, auto_pad) of a convolution or pooling over `rank` spatial axes, defaults filled in."""
    strides = list(node.attr("strides") or [1] * rank)
    dilations = list(node.attr("dilations") or [1] * rank)
    pads = list(node.attr("pads") or [0] * (2 * rank))
    auto_pad = node.attr("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Unsupported(f"auto_pad {auto_pad!r}")
    if not len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        raise Unsupported("strides, dilations and pads disagree on the number of spatial axes")
    return strides, dilations, [0] * (2 * rank) if auto_pad == "VALID" else pads, auto_pad


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    pads: Sequence[int] | None,
    dilations: Sequence[int],
    group: int,
    same_lower: bool = False,
) -> Tensor:
    """Convolution with pads for each side; `pads` None means SAME_UPPER, or SAME_LOWER, for the size `x` has."""
    if pads is None:
        pads = same_padding(x.shape[2:], weight.shape[2:], strides, dilations, same_lower)
    return _CONV[weight.ndim - 2](pad_spatial(x, pads), weight, bias, strides, 0, dilations, group)


def _spatial_rank(node: NodeView, weight_input: int = 1) -> int:
    kernel = node.attr("kernel_shape")
    rank = node.rank(weight_input) or node.rank(0)
    if not kernel and rank is None:
        raise Unsupported("neither kernel_shape nor the rank of its input is known")
    found = len(kernel) if kernel else int(rank or 0) - 2
    if found not in _CONV:
        raise Unsupported(f"{found} spatial axes; 1 to 3 can be computed")
    return found


@lowering("Conv", 1, 11, 22)
def conv(node: NodeView) -> Any:
    rank = _spatial_rank(node)
    strides, dilations, pads, auto_pad = spatial_attributes(node, rank)
    group = node.attr("group", 1)
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    if auto_pad.startswith("SAME"):
        return node.call(convolution, x, weight, bias, strides, None, dilations, group, auto_pad == "SAME_LOWER")
    if pads[:rank] == pads[rank:]:
        return node.call(_CONV[rank], x, weight, bias, strides, pads[:rank], dilations, group)
    return node.call(convolution, x, weight, bias, strides, pads, dilations, group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    output_padding: Sequence[int],
    group: int,
    pads: Sequence[int] | None,
    output_shape: Sequence[int] | None,
    same_lower: bool,
) -> Tensor:
    """Transposed convolution: the full one, then each side cropped by its pad (a negative crop pads with zeros).

    `output_shape`, or `pads` None (SAME_*), fixes the output size instead, and the pads follow from it: the surplus is
    split in two halves, the odd element going to the end for SAME_UPPER and to the start otherwise.
    """
    n = weight.ndim - 2
    sizes = [
        (x.shape[2 + i] - 1) * strides[i] + (weight.shape[2 + i] - 1) * dilations[i] + 1 + output_padding[i]
        for i in range(n)
    ]
    if output_shape is not None or pads is None:
        target = output_shape if output_shape is not None else [x.shape[2 + i] * strides[i] for i in range(n)]
        # A size beyond the full one takes no negative pads: it is reached by zeros at the end if it was asked for.
        total = [max(0, sizes[i] - target[i]) for i in range(n)]
        # The operator's formula gives the larger half to the start unless auto_pad is SAME_UPPER.
        starts = [t - t // 2 if same_lower else t // 2 for t in total]
        surplus = total if output_shape is None else [sizes[i] - target[i] for i in range(n)]
        pads = starts + [t - s for t, s in zip(surplus, starts, strict=True)]
    # torch wants output_padding below stride or dilation; here it is only more zeros (plus bias) at the end.
    full = _CONV_TRANSPOSE[n](x, weight, None, strides, 0, 0, group, dilations)
    crop = [-p for p in pads[:n]] + [output_padding[i] - pads[n + i] for i in range(n)]
    out = pad_spatial(full, crop)
    return out if bias is None else out + bias.reshape(-1, *[1] * n)


@lowering("ConvTranspose", 1, 11, 22)
def conv_transpose_(node: NodeView) -> Any:
    rank = _spatial_rank(node)
    strides, dilations, pads, auto_pad = spatial_attributes(node, rank)
    output_padding = list(node.attr("output_padding") or [0] * rank)
    output_shape = node.attr("output_shape")
    output_shape = list(output_shape[-rank:]) if output_shape else None
    group = node.attr("group", 1)
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    simple = output_shape is None and not auto_pad.startswith("SAME") and pads[:rank] == pads[rank:]
    fits = all(o < max(s, d) for o, s, d in zip(output_padding, strides, dilations, strict=True))
    if simple and fits:
        return node.call(_CONV_TRANSPOSE[rank], x, weight, bias, strides, pads[:rank], output_padding, group, dilations)
    given = None if auto_pad.startswith("SAME") else pads
    lower = auto_pad != "SAME_UPPER"
    return node.call(
        conv_transpose, x, weight, bias, strides, dilations, output_padding, group, given, output_shape, lower
    )
