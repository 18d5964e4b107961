"""Pad and CenterCropPad (ONNX operator documentation). A negative pad crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.ops.shape import to_ints
from onnxspect.converters.lowering.registry import lowering

_MODES = ("constant", "reflect", "edge", "wrap")


def _source(size: int, start: int, end: int, mode: str) -> list[int]:
    """For each element of the padded axis, the element it repeats."""
    positions = range(-start, size + end)
    if mode == "edge":
        return [min(max(p, 0), size - 1) for p in positions]
    if mode == "wrap":
        return [p % size for p in positions]
    if size == 1:
        return [0 for _ in positions]
    period = 2 * (size - 1)
    return [size - 1 - abs(p % period - (size - 1)) for p in positions]


def pad(x: Tensor, pads: Any, value: Any, axes: Any, mode: str) -> Tensor:
    """Pad (all starts, then all ends) along `axes`, all by default."""
    amounts = to_ints(pads)
    along = [a % x.ndim for a in to_ints(axes)] if axes is not None else list(range(x.ndim))
    half = len(along)
    per_axis = {a: (amounts[i], amounts[half + i]) for i, a in enumerate(along)}
    if mode == "constant":
        flat = [n for axis in range(x.ndim - 1, -1, -1) for n in per_axis.get(axis, (0, 0))]
        return _pad_constant(x, flat, value)
    for axis, (start, end) in per_axis.items():
        if start or end:
            size = x.shape[axis]
            # Cropping happens first, so that what is repeated is what remains.
            x = x.narrow(axis, max(0, -start), size - max(0, -start) - max(0, -end))
            source = _source(x.shape[axis], max(0, start), max(0, end), mode)
            x = x.index_select(axis, torch.tensor(source, device=x.device))
    return x


def _pad_constant(x: Tensor, flat: Sequence[int], value: Any) -> Tensor:
    if isinstance(value, Tensor):
        value = value.reshape(()).item()
    if x.dtype == torch.bool:
        return F.pad(x.to(torch.uint8), list(flat), value=int(bool(value))).bool()
    return F.pad(x, list(flat), value=0 if value is None else value)


def reflect_image(x: Tensor, flat: Sequence[int]) -> Tensor:
    """Reflection of the last two axes of an image batch, by torch's own kernel."""
    return F.pad(x, list(flat), mode="reflect")


@lowering("Pad", 1, 2, 11, 13, 18, 19, 21, 23, 24, 25, data=(0,))
def pad_(node: NodeView) -> Any:
    mode = node.attr("mode", "constant")
    if mode not in _MODES:
        raise Unsupported(f"mode {mode!r}")
    value: Any
    if node.version < 11:
        pads = node.attr("pads") or node.attr("paddings")  # opset 1's name
        value, axes = float(node.attr("value", 0.0)), None
    else:
        pads, axes = node.ints(1), node.ints(3)
        given = node.constant(2)
        value = node.scalar(2) if given is None or given.size else None
    if pads is None:
        raise Unsupported("no pads")
    rank = node.rank(0)
    known = isinstance(pads, (list, tuple)) and rank is not None and axes is None and len(pads) == 2 * rank
    if known and mode == "reflect" and rank == 4:
        spatial = [pads[3], pads[7], pads[2], pads[6]]
        size = node.shape(0) or ()
        fits = all(n is not None and p < n for n, p in zip((size[3], size[3], size[2], size[2]), spatial, strict=True))
        if not any((pads[0], pads[1], pads[4], pads[5])) and min(spatial) >= 0 and fits and node.is_float(0):
            return node.call(reflect_image, node.input(0), spatial)
    return node.call(pad, node.input(0), pads, value, axes, mode)


def center_crop_pad(x: Tensor, shape: Any, axes: Sequence[int] | None) -> Tensor:
    """Crop or zero-pad the given axes around their centre."""
    wanted = to_ints(shape)
    along = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    for axis, target in zip(along, wanted, strict=True):
        size = x.shape[axis]
        if size > target:
            x = x.narrow(axis, (size - target) // 2, target)
        elif size < target:
            start = (target - size) // 2
            flat = [0, 0] * (x.ndim - 1 - axis) + [start, target - size - start]
            x = F.pad(x, flat)
    return x


@lowering("CenterCropPad", 18, data=(0,))
def center_crop_pad_(node: NodeView) -> Any:
    axes = node.attr("axes")
    return node.call(center_crop_pad, node.input(0), node.ints(1), None if axes is None else list(axes))
