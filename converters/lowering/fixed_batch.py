"""Running a model that is made for one batch size at any other.

A file made for a fixed batch writes it into Reshape targets and constants. Lowering reads it from the input instead
where it can infer what is meant (knowledge.py); whether the inference is right is tested here, on random images. Where
it is not, the graph is kept as the file has it, and images are fed in groups of the file's own size: all groups at once by
torch.func.vmap, or, where an operator has no batching rule, one after the other. Either way every image gets exactly
the answer that the file gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

#: Largest difference, relative to the largest magnitude, between two ways of computing the same in float32.
_TOLERANCE = 1e-4
_META = "onnxspect_groups"
_Module = TypeVar("_Module", bound=fx.GraphModule)


class GroupedGraphModule(fx.GraphModule):
    """An fx.GraphModule over one group of images that takes any number of them.

    Its one input and its outputs are batches where their first axis, at one group, is as long as a group; where it is
    not (sequence before batch), they have an axis of groups before their own axes as soon as there is more than one.

    The facts are kept in `meta`, which deep copies preserve: rows (the size of a group), vectorized (by vmap), and
    input (the shape of the input at one group).
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the graph, for any number of images."""
        rows, vectorized, own = self.meta[_META]
        forward: Callable[..., Any] = self.forward
        if kwargs or len(args) != 1 or _is_one_group(args[0], rows, own):
            return forward(*args, **kwargs)
        groups = _grouped(args[0], rows, own)
        if vectorized:
            result = torch.func.vmap(forward)(groups)
        else:
            result = _stacked([forward(group) for group in groups])
        count = args[0].shape[0] if own[0] == rows else groups.shape[0] * rows
        if isinstance(result, tuple):
            return tuple(_ungrouped(r, rows, count) for r in result)
        return _ungrouped(result, rows, count)


def _is_one_group(x: Tensor, rows: int, own: Sequence[int]) -> bool:
    return x.ndim == len(own) and (own[0] != rows or x.shape[0] == rows)


def _grouped(x: Tensor, rows: int, own: Sequence[int]) -> Tensor:
    """``(groups, rows, ...)``; the last group is filled up with its last image."""
    if x.ndim > len(own):
        return x
    missing = -x.shape[0] % rows
    if missing:
        x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
    return x.reshape(-1, rows, *x.shape[1:])


def _stacked(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], tuple):
        return tuple(torch.stack(p) for p in zip(*parts, strict=True))
    return torch.stack(list(parts))


def _ungrouped(y: Tensor, rows: int, count: int) -> Tensor:
    return y.flatten(0, 1)[:count] if y.ndim > 1 and y.shape[1] == rows else y


def graph_module(root: nn.Module, graph: fx.Graph, class_name: str, input_shape: Sequence[int] = ()) -> fx.GraphModule:
    """An fx.GraphModule in evaluation mode that shares root's tensors, and its way of grouping images if it has one.

    Args:
        input_shape: of the new graph's input at one group, where that is not the root's own input.
    """
    if not isinstance(root, GroupedGraphModule):
        return _without_report(fx.GraphModule(root, graph, class_name=class_name).eval(), nn.Module)
    rows, vectorized, own = root.meta[_META]
    return _grouped_module(root, graph, class_name, rows, vectorized, input_shape or own)


def _grouped_module(
    root: nn.Module, graph: fx.Graph, class_name: str, rows: int, vectorized: bool, own: Sequence[int]
) -> GroupedGraphModule:
    module = GroupedGraphModule(root, graph, class_name=class_name).eval()
    module.meta[_META] = (rows, vectorized, tuple(own))
    return _without_report(module, GroupedGraphModule)


def _without_report(module: _Module, base: type[nn.Module]) -> _Module:
    """Call the module as `base` does: fx's own way prints a page to stderr where an operator raises."""
    type(module).__call__ = base.__call__  # type: ignore[method-assign]  # a class of this one module's own
    return module


def group_size(module: nn.Module) -> int:
    """How many images one run of a graph takes: 1, or what a file made for a fixed batch takes at once."""
    return int(module.meta[_META][0]) if isinstance(module, GroupedGraphModule) else 1


def in_groups(module: fx.GraphModule, own: Sequence[int], like: Tensor) -> fx.GraphModule:
    """The same graph, fed in groups: by vmap where that works and agrees, else one group after the other.

    Args:
        module: computes one group.
        own: shape of its input at one group.
        like: of the type and device that it takes.
    """
    loop = _grouped_module(module, module.graph, type(module).__name__, own[0], False, own)
    fast = _grouped_module(module, module.graph, type(module).__name__, own[0], True, own)
    return fast if _agree(fast, loop, _images(own, like)) else loop


def frees_batch(module: fx.GraphModule, own: Sequence[int], like: Tensor) -> bool:
    """Whether a graph answers for several groups of images what it answers for each by itself."""
    loop = _grouped_module(module, module.graph, type(module).__name__, own[0], False, own)
    return _agree(module, loop, _images(own, like))


def _images(own: Sequence[int], like: Tensor) -> Tensor:
    """Three images where a group is one, else two groups."""
    generator = torch.Generator().manual_seed(0)
    shape = (3 if own[0] == 1 else 2 * own[0], *own[1:])
    if like.is_floating_point():
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(like)
    return torch.randint(0, 2 if like.dtype == torch.bool else 128, shape, generator=generator).to(like)


def _agree(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        try:
            first, second = a(x), b(x)
        except Exception:  # whatever does not run does not agree
            return False
    firsts = first if isinstance(first, tuple) else (first,)
    seconds = second if isinstance(second, tuple) else (second,)
    return all(_close(p, q) for p, q in zip(firsts, seconds, strict=True))


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    scale = float(b.abs().nan_to_num(0.0, 0.0, 0.0).max()) if b.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=_TOLERANCE * scale + 1e-7, equal_nan=True))
