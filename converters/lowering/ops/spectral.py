"""Fourier transforms (ONNX operator documentation): complex numbers are a last axis of size 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxspect.converters.lowering.builder import NodeView
from onnxspect.converters.lowering.ops.shape import to_ints
from onnxspect.converters.lowering.registry import lowering


def dft(x: Tensor, length: Any, axis: Any, inverse: bool, onesided: bool) -> Tensor:
    """Discrete Fourier transform along an axis of ``(..., 1 or 2)``; padded or cut to `length`."""
    along = to_ints(axis)[0] if isinstance(axis, Tensor) else int(axis)
    along = along % x.ndim
    n = to_ints(length)[0] if isinstance(length, Tensor) else length
    if inverse and onesided:
        size = n if n is not None else 2 * (x.shape[along] - 1)
        return torch.fft.irfft(torch.complex(x[..., 0], x[..., 1]), size, along).unsqueeze(-1)
    values = torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))
    out = torch.fft.ifft(values, n, along) if inverse else torch.fft.fft(values, n, along)
    if onesided:
        out = out.narrow(along, 0, out.shape[along] // 2 + 1)
    return torch.view_as_real(out)


@lowering("DFT", 17, 20, data=(0,))
def dft_(node: NodeView) -> Any:
    flags = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    # Opset 17 has the axis as an attribute (default 1), opset 20 as an input (default the last but the complex one).
    axis = int(node.attr("axis", 1)) if node.version < 20 else node.scalar(2) if node.has(2) else -2
    return node.call(dft, node.input(0), node.scalar(1), axis, *flags)


def stft(x: Tensor, step: Any, window: Tensor | None, length: Any, onesided: bool) -> Tensor:
    """Fourier transforms ``(n, frames, bins, 2)`` of the windowed frames of a signal ``(n, samples, 1 or 2)``."""
    hop = to_ints(step)[0] if isinstance(step, Tensor) else int(step)
    size = window.shape[0] if window is not None else to_ints(length)[0] if isinstance(length, Tensor) else int(length)
    frames = x.unfold(1, size, hop)  # (n, frames, 1 or 2, size)
    frames = frames if window is None else frames * window.to(x.dtype)
    return dft(frames.transpose(2, 3), None, 2, False, onesided)


@lowering("STFT", 17, data=(0, 2))
def stft_(node: NodeView) -> Any:
    onesided = bool(node.attr("onesided", 1))
    return node.call(stft, node.input(0), node.scalar(1), node.input(2), node.scalar(3), onesided)
