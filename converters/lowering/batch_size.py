"""Whether values hang on how many images a batch has, otherwise than by having as many rows.

Sizes are computed beside the data, from the shapes of values. A size that only shapes other values has no say in what they are. One that
becomes data (``Cast(N > 15)`` times a row) does: what becomes data is computed for many sizes of the batch, without running anything
else, and named where its numbers differ though its shape does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.builder import to_device
from onnxspect.converters.lowering.ops.shape import shape_of, size_of
from onnxspect.converters.lowering.program import Program, leading_to, operands

#: Sizes that are tried.
_SIZES = (*range(1, 131), 192, 200, 255, 256, 257, 384, 500, 512, 513, 1000, 1024, 2048, 4096, 10_000)
#: Operators that take rows by number.
_BY_NUMBER = ("slice_axes", "gather", "gather_one")
#: The largest batch that is run because of such a number, or because of its size.
LARGEST = 130


@dataclass(frozen=True)
class Sized:
    """A value that hangs on how many images a batch has.

    Attributes:
        node: the first one that becomes data.
        sizes: the least size of the batch at which it is what it is at no smaller one, in increasing order; one image's is left out.
    """

    node: fx.Node
    sizes: tuple[int, ...]


def sized(program: Program, end: fx.Node, one: Mapping[fx.Node, Any], two: Mapping[fx.Node, Any]) -> Sized | None:
    """The first value that becomes data and hangs on the size of the batch, of those that lead to `end`; None for none.

    Args:
        program: of the graph.
        end: the class scores.
        one, two: the values of all nodes on one image, and on two.
    """
    needed = leading_to(end)
    computed: dict[fx.Node, list[Any]] = {}
    for node in program.steps:
        if node not in needed:
            continue
        if node.target in (shape_of, size_of):
            source = node.args[0]
            if not isinstance(source, fx.Node):
                continue
            if isinstance(one.get(source), Tensor) and isinstance(two.get(source), Tensor):
                computed[node] = [_measured(node, _shape(one[source].shape, two[source].shape, n)) for n in _SIZES]
            continue
        if not any(n in computed for n in node.all_input_nodes):
            continue
        others = {n: one[n] for n in node.all_input_nodes if n not in computed and n in one}
        if any(
            isinstance(v, Tensor) and n in needed and n not in program.constants and not _fixed(n)
            for n, v in others.items()
        ):
            continue  # sizes and data in one: looked at where the size became data
        values = []
        try:
            for i in range(len(_SIZES)):
                args, kwargs = operands(
                    node, {**others, **{n: computed[n][i] for n in node.all_input_nodes if n in computed}}
                )
                values.append(node.target(*args, **kwargs))  # type: ignore[operator]
        except Exception:  # no such batch
            continue
        computed[node] = values
        if node.target is to_device and (sizes := _news(values)):
            return Sized(node, sizes)
    return None


def large_enough(between: Mapping[fx.Node, int], program: Program) -> int:
    """How many images a batch must have for every row that is taken by its number to be there; 2 where none is."""
    most = 2
    for node in between:
        if getattr(node.target, "__name__", "") not in _BY_NUMBER or node.op != "call_function":
            continue
        for number in _numbers(node, program):
            if 0 <= number < LARGEST - 1:
                most = max(most, number + 2)
            elif -LARGEST < number < 0:
                most = max(most, 1 - number)
    return most


def _numbers(node: fx.Node, program: Program) -> list[int]:
    """Numbers of rows that a node takes along axis 0."""
    name, args = getattr(node.target, "__name__", ""), node.args
    if name == "gather_one":
        return [args[2]] if args[1] == 0 and isinstance(args[2], int) else []
    if name == "gather":
        axis, index = (args[2] if len(args) > 2 else 0), args[1]
        return _whole(index, program) if axis == 0 else []
    axes = args[3] if len(args) > 3 else None
    known = list(axes) if isinstance(axes, (list, tuple)) else _whole(axes, program) if axes is not None else [0]
    if 0 not in known:
        return []
    place = known.index(0)
    return [bounds[place] for bounds in (_whole(args[1], program), _whole(args[2], program)) if place < len(bounds)]


def _whole(value: Any, program: Program) -> list[int]:
    if isinstance(value, (list, tuple)):
        return [int(v) for v in value if isinstance(v, int)]
    if isinstance(value, fx.Node):
        held = program.constants.get(value)
        if held is None and _fixed(value):
            held = value.target(*value.args, **value.kwargs)  # type: ignore[operator]
        if isinstance(held, Tensor) and not held.is_floating_point() and held.numel() <= 64:
            return [int(v) for v in held.reshape(-1).tolist()]
    return []


def _fixed(node: fx.Node) -> bool:
    """Whether a node makes a constant."""
    return node.op == "call_function" and not node.all_input_nodes


def _measured(node: fx.Node, shape: tuple[int, ...]) -> Any:
    return node.target(torch.empty(shape, device="meta"), *node.args[1:], **node.kwargs)  # type: ignore[operator]


def _shape(one: torch.Size, two: torch.Size, images: int) -> tuple[int, ...]:
    """A value's shape at so many images."""
    if len(one) != len(two):
        return tuple(one)
    return tuple(a + (b - a) * (images - 1) for a, b in zip(one, two, strict=True))


def _news(values: list[Any]) -> tuple[int, ...]:
    """The sizes at which a value of one shape is what it was at none before; none where its shape differs."""
    if not all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values):
        return ()
    seen: list[Tensor] = []
    found = []
    for size, value in zip(_SIZES, values, strict=True):
        if not any(torch.equal(value, s) for s in seen):
            seen.append(value)
            found.append(size)
    return tuple(found[1:])
