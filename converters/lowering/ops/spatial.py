"""Operators that rearrange or sample images: DepthToSpace, GridSample, Col2Im, ... (ONNX operator documentation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView, Unsupported
from onnxspect.converters.lowering.ops.convolution import spatial_attributes
from onnxspect.converters.lowering.ops.shape import to_ints
from onnxspect.converters.lowering.registry import lowering


def depth_to_space(x: Tensor, block: int, column_first: bool) -> Tensor:
    """Channels ``(n, c * block^2, h, w)`` to pixels ``(n, c, h * block, w * block)``."""
    n, _, h, w = x.shape
    if column_first:
        return x.reshape(n, -1, block, block, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, -1, h * block, w * block)
    return x.reshape(n, block, block, -1, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block, w * block)


@lowering("DepthToSpace", 1, 11, 13, 28)
def depth_to_space_(node: NodeView) -> Any:
    mode = node.attr("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise Unsupported(f"mode {mode!r}")
    return node.call(depth_to_space, node.input(0), int(node.attr("blocksize", 1)), mode == "CRD")


def space_to_depth(x: Tensor, block: int, channel_first: bool) -> Tensor:
    """Pixels ``(n, c, h * block, w * block)`` to channels ``(n, c * block^2, h, w)``."""
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 1, 3, 5, 2, 4) if channel_first else (0, 3, 5, 1, 2, 4)
    return split.permute(*order).reshape(n, c * block * block, h // block, w // block)


@lowering("SpaceToDepth", 1, 13, 28)
def space_to_depth_(node: NodeView) -> Any:
    mode = node.attr("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise Unsupported(f"mode {mode!r}")
    return node.call(space_to_depth, node.input(0), int(node.attr("blocksize", 1)), mode == "CRD")


_SAMPLING = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}
_BORDER = {"zeros": "zeros", "border": "border", "reflection": "reflection"}


@lowering("GridSample", 16, 20, 22)
def grid_sample(node: NodeView) -> Any:
    mode, padding = node.attr("mode", "bilinear"), node.attr("padding_mode", "zeros")
    if mode not in _SAMPLING or padding not in _BORDER:
        raise Unsupported(f"mode {mode!r}, padding_mode {padding!r}")
    corners = bool(node.attr("align_corners", 0))
    return node.call(F.grid_sample, node.input(0), node.input(1), _SAMPLING[mode], padding, corners)


def affine_grid(theta: Tensor, size: Any, corners: bool) -> Tensor:
    """Positions of an image's pixels after an affine map."""
    return F.affine_grid(theta, to_ints(size), corners)


@lowering("AffineGrid", 20, data=(0,))
def affine_grid_(node: NodeView) -> Any:
    return node.call(affine_grid, node.input(0), node.ints(1), bool(node.attr("align_corners", 0)))


def column_to_image(
    x: Tensor,
    image: Any,
    block: Any,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
) -> Tensor:
    """Sum of sliding blocks ``(n, c * block, blocks)`` at their places in an image ``(n, c, ...)`` of any rank."""
    size, kernel = to_ints(image), to_ints(block)
    n = len(size)
    strides, dilations, pads = strides or [1] * n, dilations or [1] * n, pads or [0] * (2 * n)
    padded = [size[i] + pads[i] + pads[n + i] for i in range(n)]
    counts = [(padded[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(n)]
    # Where each element of each block lies in the flattened padded image.
    place = torch.zeros((), dtype=torch.int64, device=x.device)
    for i in range(n):
        inside = torch.arange(kernel[i], device=x.device) * dilations[i]
        corner = torch.arange(counts[i], device=x.device) * strides[i]
        along = (inside.unsqueeze(1) + corner).reshape([kernel[i], counts[i]])
        shape = [1] * (2 * n)
        shape[i], shape[n + i] = kernel[i], counts[i]
        place = place * padded[i] + along.reshape(shape)
    samples = x.shape[0]
    values = x.reshape(samples, -1, place.numel())
    canvas = x.new_zeros(samples, values.shape[1], int(torch.Size(padded).numel()))
    flat = canvas.index_add(2, place.reshape(-1), values)
    whole = flat.reshape(samples, -1, *padded)
    for i in range(n):
        whole = whole.narrow(2 + i, pads[i], size[i])
    return whole


@lowering("Col2Im", 18, data=(0,))
def column_to_image_(node: NodeView) -> Any:
    extras = (node.attr(name) for name in ("strides", "dilations", "pads"))
    return node.call(column_to_image, node.input(0), node.ints(1), node.ints(2), *extras)


def max_unpool(
    x: Tensor, indices: Tensor, shape: Any, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]
) -> Tensor:
    """Each value put back where MaxPool found it, zeros elsewhere; indices count through the flattened tensor."""
    n = len(kernel)
    natural = [
        (x.shape[2 + i] - 1) * strides[i] - pads[i] - pads[n + i] + kernel[i] for i in range(n)
    ]  # the size that the indices refer to
    flat = x.new_zeros(int(torch.Size([*x.shape[:2], *natural]).numel()))
    out = flat.scatter(0, indices.reshape(-1).to(torch.int64), x.reshape(-1)).reshape(*x.shape[:2], *natural)
    if shape is None:
        return out
    target = to_ints(shape)[2:]
    return F.pad(out, [p for i in range(n - 1, -1, -1) for p in (0, target[i] - natural[i])])


@lowering("MaxUnpool", 9, 11, 22, data=(0, 1))
def max_unpool_(node: NodeView) -> Any:
    kernel = list(node.attr("kernel_shape") or [])
    strides, _, pads, _ = spatial_attributes(node, len(kernel))
    return node.call(max_unpool, node.input(0), node.input(1), node.ints(2), kernel, strides, pads)


def deformable_convolution(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    group: int,
    offset_groups: int,
) -> Tensor:
    """Convolution whose kernel elements read at shifted places (Dai et al., 2017, Eq. 2; Zhu et al., 2019, Eq. 1).

    Args:
        x: ``(n, c, h, w)``.
        weight: ``(out, c / group, kh, kw)``.
        offset: ``(n, offset_groups * kh * kw * 2, oh, ow)``, each pair (down, right).
        mask: ``(n, offset_groups * kh * kw, oh, ow)``, a factor for each element read.
    """
    n, c, h, w = x.shape
    kh, kw = weight.shape[2:]
    oh, ow = offset.shape[2:]
    k = kh * kw
    shifts = offset.reshape(n * offset_groups, k, 2, oh, ow)
    down = torch.arange(kh, device=x.device).repeat_interleave(kw).reshape(k, 1, 1) * dilations[0] - pads[0]
    right = torch.arange(kw, device=x.device).repeat(kh).reshape(k, 1, 1) * dilations[1] - pads[1]
    y_at = shifts[:, :, 0] + down + (torch.arange(oh, device=x.device) * strides[0]).reshape(1, oh, 1)
    x_at = shifts[:, :, 1] + right + (torch.arange(ow, device=x.device) * strides[1]).reshape(1, 1, ow)
    # grid_sample wants positions in [-1, 1] from edge to edge.
    grid = torch.stack([(2 * x_at + 1) / w - 1, (2 * y_at + 1) / h - 1], -1).reshape(-1, k * oh, ow, 2)
    images = x.reshape(n * offset_groups, c // offset_groups, h, w)
    read = F.grid_sample(images, grid, "bilinear", "zeros", False).reshape(n, offset_groups, -1, k, oh, ow)
    if mask is not None:
        read = read * mask.reshape(n, offset_groups, 1, k, oh, ow)
    columns = read.reshape(n, group, c // group * k, oh * ow)
    kernel = weight.reshape(group, weight.shape[0] // group, -1)
    out = torch.matmul(kernel, columns).reshape(n, weight.shape[0], oh, ow)
    return out if bias is None else out + bias.reshape(-1, 1, 1)


@lowering("DeformConv", 19, 22)
def deformable_convolution_(node: NodeView) -> Any:
    if node.rank(1) not in (None, 4):
        raise Unsupported("other than two spatial axes")
    strides, dilations, pads, _ = spatial_attributes(node, 2)
    groups = int(node.attr("group", 1)), int(node.attr("offset_group", 1))
    return node.call(deformable_convolution, *(node.input(i) for i in range(5)), strides, dilations, pads, *groups)
