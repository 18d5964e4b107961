"""Resize and Upsample (ONNX operator documentation; where that is silent, what onnxruntime does).

Each axis is resampled by itself. For one axis the operator says from where in the input each output element is read,
a coordinate x; nearest takes one neighbour of x, linear 2, cubic 4, and with antialiasing as many as the stretched
kernel covers (Keys, 1981, Eq. 4, for the cubic kernel). So resampling an axis is a product
with a matrix of weights that depends on sizes alone; where torch's own kernel computes the same, it is used.

Coordinates are computed in float32, as onnxruntime does: in nearest mode a rounding error decides between pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.ops.shape import to_ints
from onnxspect.converters.lowering.registry import lowering

_COORDINATES = frozenset(
    ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
    + ("tf_half_pixel_for_nn", "tf_crop_and_resize")
)
_NEAREST = frozenset(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "legacy"))


class Resampling(NamedTuple):
    """The attributes of a Resize (a named tuple, because it is written into the graph's code).

    Attributes:
        mode: "nearest", "linear" or "cubic".
        coordinates: coordinate_transformation_mode.
        nearest: nearest_mode, or "legacy": what the operator did before it had that attribute.
        cubic_a: cubic_coeff_a.
        exclude_outside: whether neighbours outside the input count 0 (and the others correspondingly more).
        antialias: whether the kernel is stretched when shrinking.
        extrapolation: the value read outside the region of tf_crop_and_resize.
        policy: keep_aspect_ratio_policy.
    """

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float
    policy: str


def _coordinates(size: int, out: int, scale: np.float32, kind: str, roi: tuple[float, float] | None) -> np.ndarray:
    """Where in the input, in elements, each of the `out` elements is read."""
    x = np.arange(out, dtype=np.float32)
    if out == 0:
        return x
    half, one = np.float32(0.5), np.float32(1)
    if kind == "half_pixel":
        return (x + half) / scale - half
    if kind == "half_pixel_symmetric":
        adjustment = np.float32(out) / (scale * np.float32(size))
        offset = np.float32(size) / np.float32(2) * (one - adjustment)
        return offset + (x + half) / scale - half
    if kind == "pytorch_half_pixel":
        return (x + half) / scale - half if out > 1 else np.zeros(1, np.float32)
    if kind == "tf_half_pixel_for_nn":
        return (x + half) / scale
    if kind == "align_corners":
        return x * np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.zeros(1, np.float32)
    if kind == "asymmetric":
        return x / scale
    start, end = roi if roi is not None else (0.0, 1.0)
    last = np.float32(size - 1)
    if out > 1:
        return np.float32(start) * last + x * np.float32(end - start) * last / np.float32(out - 1)
    return np.full(1, half * np.float32(start + end) * last, np.float32)


def _nearest(x: np.ndarray, kind: str, shrinking: bool) -> np.ndarray:
    if kind == "legacy":
        return np.ceil(x) if shrinking else np.floor(x)
    if kind == "floor":
        return np.floor(x)
    if kind == "ceil":
        return np.ceil(x)
    return np.ceil(x - np.float32(0.5)) if kind == "round_prefer_floor" else np.floor(x + np.float32(0.5))


def _cubic_kernel(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@functools.lru_cache(maxsize=512)
def indices(size: int, out: int, scale: np.float32, how: Resampling, roi: tuple[float, float] | None) -> Tensor:
    """For nearest: the input element of each output element."""
    x = _coordinates(size, out, scale, how.coordinates, roi)
    chosen = _nearest(x, how.nearest, bool(scale < 1))
    return torch.from_numpy(np.clip(chosen, 0, size - 1).astype(np.int64))


@functools.lru_cache(maxsize=512)
def weights(size: int, out: int, scale: np.float32, how: Resampling, roi: tuple[float, float] | None) -> Tensor:
    """For linear and cubic: the matrix ``(out, size)`` in float64."""
    x = _coordinates(size, out, scale, how.coordinates, roi).astype(np.float64)
    stretch = min(1.0, float(scale)) if how.antialias else 1.0
    reach = (1.0 if how.mode == "linear" else 2.0) / stretch
    # Neighbours from the first to the last that the kernel reaches, clipped to the input afterwards.
    first = np.floor(x).astype(np.int64) - int(np.ceil(reach)) + 1
    count = 2 * int(np.ceil(reach))
    neighbours = first[:, None] + np.arange(count)[None, :]
    distance = (neighbours - x[:, None]) * stretch
    if how.mode == "linear":
        taps = np.clip(1 - np.abs(distance), 0, None)
    else:
        taps = _cubic_kernel(distance, how.cubic_a)
    inside = (neighbours >= 0) & (neighbours < size)
    if how.exclude_outside:
        taps = np.where(inside, taps, 0.0)
    if how.exclude_outside or how.antialias:
        total = taps.sum(1, keepdims=True)
        taps = taps / np.where(total == 0, 1.0, total)
    matrix = np.zeros((out, size))
    np.add.at(
        matrix, (np.repeat(np.arange(out), count), np.clip(neighbours, 0, size - 1).reshape(-1)), taps.reshape(-1)
    )
    return torch.from_numpy(matrix)


@functools.lru_cache(maxsize=512)
def outside(size: int, out: int, scale: np.float32, how: Resampling, roi: tuple[float, float] | None) -> Tensor:
    """Which output elements tf_crop_and_resize reads from outside the input."""
    x = _coordinates(size, out, scale, how.coordinates, roi)
    return torch.from_numpy((x < 0) | (x > size - 1))


def _targets(
    shape: Sequence[int], axes: Sequence[int], scales: list[float] | None, sizes: list[int] | None, policy: str
) -> list[tuple[int, np.float32]]:
    """(output size, scale) for each of the axes."""
    if scales is not None:
        return [
            (int(np.floor(np.float32(shape[a]) * np.float32(s))), np.float32(s))
            for a, s in zip(axes, scales, strict=True)
        ]
    wanted = list(sizes or [])
    if policy == "stretch":
        return [(n, np.float32(n) / np.float32(shape[a])) for a, n in zip(axes, wanted, strict=True)]
    ratios = [np.float32(n) / np.float32(shape[a]) for a, n in zip(axes, wanted, strict=True)]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [(int(np.floor(float(ratio) * shape[a] + 0.5)), ratio) for a in axes]


def _floats(value: Any) -> list[float] | None:
    """A sequence or tensor of numbers; None where it is missing or empty."""
    if value is None:
        return None
    found = [float(v) for v in (value.reshape(-1).tolist() if isinstance(value, Tensor) else value)]
    return found or None


def resize(x: Tensor, roi: Any, scales: Any, sizes: Any, axes: Sequence[int] | None, how: Resampling) -> Tensor:
    """Resample x to `sizes`, or by `scales`, along `axes` (all by default)."""
    along = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    factors = _floats(scales)
    wanted = None if factors is not None or sizes is None else to_ints(sizes)
    regions = _floats(roi) if how.coordinates == "tf_crop_and_resize" else None
    targets = _targets(x.shape, along, factors, wanted, how.policy)
    jobs: dict[int, tuple[int, np.float32, tuple[float, float] | None]] = {}
    for i, (axis, (out, scale)) in enumerate(zip(along, targets, strict=True)):
        region = None if regions is None else (regions[i], regions[len(along) + i])
        if out != x.shape[axis] or scale != 1 or region not in (None, (0.0, 1.0)):
            jobs[axis] = (out, scale, region)
    fast = _by_torch(x, jobs, how)
    if fast is not None:
        return fast
    keep_type = x.dtype
    if not x.is_floating_point() and how.mode != "nearest":
        x = x.double()
    beyond = torch.zeros((), dtype=torch.bool)
    for axis, (out, scale, region) in jobs.items():
        size = x.shape[axis]
        if how.mode == "nearest":
            x = x.index_select(axis, indices(size, out, scale, how, region).to(x.device))
        else:
            matrix = weights(size, out, scale, how, region).to(x.device, x.dtype)
            x = torch.matmul(x.movedim(axis, -1), matrix.t()).movedim(-1, axis)
        if how.coordinates == "tf_crop_and_resize":
            gone = outside(size, out, scale, how, region)
            beyond = beyond | gone.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    if how.coordinates == "tf_crop_and_resize" and bool(beyond.any()):
        x = torch.where(beyond.to(x.device), torch.full_like(x, how.extrapolation), x)
    return x.to(keep_type) if x.dtype != keep_type else x


def _by_torch(
    x: Tensor, jobs: dict[int, tuple[int, np.float32, tuple[float, float] | None]], how: Resampling
) -> Tensor | None:
    """By torch's own kernel, where that computes the same: 4-D images, linear without antialiasing."""
    if x.ndim != 4 or not set(jobs) <= {2, 3} or how.mode != "linear" or how.antialias or not x.is_floating_point():
        return None
    if how.coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners") or how.exclude_outside:
        return None
    out = [jobs[a][0] if a in jobs else x.shape[a] for a in (2, 3)]
    if 0 in out:
        return None
    corners = how.coordinates == "align_corners"
    if how.coordinates == "pytorch_half_pixel" and 1 in out:
        return None
    # torch takes the scale from the sizes; the operator from its input, where the two may differ.
    if not corners and any(np.float32(o) / np.float32(x.shape[a]) != s for a, (o, s, _) in jobs.items()):
        return None
    return F.interpolate(x, out, mode="bilinear", align_corners=corners)


def _how(node: NodeView, **defaults: str) -> Resampling:
    mode = node.attr("mode", "nearest")
    mode = {"bilinear": "linear"}.get(mode, mode)  # opset 1's name
    how = Resampling(
        mode,
        node.attr("coordinate_transformation_mode", defaults.get("coordinates", "half_pixel")),
        node.attr("nearest_mode", defaults.get("nearest", "round_prefer_floor")),
        float(node.attr("cubic_coeff_a", -0.75)),
        bool(node.attr("exclude_outside", 0)),
        bool(node.attr("antialias", 0)),
        float(node.attr("extrapolation_value", 0.0)),
        node.attr("keep_aspect_ratio_policy", "stretch"),
    )
    if mode not in ("nearest", "linear", "cubic"):
        raise Unsupported(f"mode {mode!r}")
    if how.coordinates not in _COORDINATES:
        raise Unsupported(f"coordinate_transformation_mode {how.coordinates!r}")
    if how.nearest not in _NEAREST:
        raise Unsupported(f"nearest_mode {how.nearest!r}")
    if how.policy not in ("stretch", "not_larger", "not_smaller"):
        raise Unsupported(f"keep_aspect_ratio_policy {how.policy!r}")
    return how


def _numbers(node: NodeView, i: int) -> Any:
    """Steering input `i` as a tuple of floats where it is constant, else its fx node; None where omitted or empty."""
    value = node.steer(i)
    if isinstance(value, np.ndarray):
        return tuple(float(v) for v in value.reshape(-1)) or None
    return value


@lowering("Resize", 11, 13, 18, 19, data=(0,))
def resize_(node: NodeView) -> Any:
    axes = node.attr("axes")
    axes = list(axes) if axes is not None else None
    how = _how(node)
    scales, sizes = _numbers(node, 2), node.ints(3)
    sizes = None if isinstance(sizes, tuple) and not sizes else sizes
    if scales is None and sizes is None:
        raise Unsupported("neither scales nor sizes")
    shape = node.file_shape(0)
    plain = axes is None and how.policy == "stretch" and how.coordinates != "tf_crop_and_resize"
    if isinstance(sizes, tuple) and plain and shape and shape[0] == sizes[0]:
        # The batch axis keeps its size, whatever that is; a file made for one batch size writes it into `sizes`.
        axes, sizes = list(range(1, len(sizes))), sizes[1:]
    return node.call(resize, node.input(0), _numbers(node, 1), scales, sizes, axes, how)


@lowering("Resize", 10, data=(0,))
@lowering("Upsample", 9, data=(0,))
def resize_by_scales(node: NodeView) -> Any:
    how = _how(node, coordinates="asymmetric", nearest="legacy")
    return node.call(resize, node.input(0), None, _numbers(node, 1), None, None, how)


@lowering("Upsample", 1, 7)
def upsample(node: NodeView) -> Any:
    scales = node.attr("scales")
    if scales is None:  # opset 1
        scales = [1.0, 1.0, node.attr("height_scale", 1.0), node.attr("width_scale", 1.0)]
    how = _how(node, coordinates="asymmetric", nearest="legacy")
    return node.call(resize, node.input(0), None, [float(s) for s in scales], None, None, how)
