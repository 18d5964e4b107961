"""Values that nothing moves because what they are made of moves together.

``t / |t| + 1`` is zero for every negative `t`, whatever its operands do one at a time; a number multiplied with itself often enough is
zero until it is near one; a sum in floating point takes no part of what is far smaller than the rest. Such a value is tried from its
*root*: a value before it that all of it is computed from. Where the root moves by several times its spread, all that is between runs
again, and the value, which was the same on all images, is another, it could be awake; whether that leads to a class is tried on the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.forcing import Forced, Led, led
from onnxspect.converters.lowering.moves import FAR, SLIGHTLY
from onnxspect.converters.lowering.observation import MOST, REACH, Seen, distance, operator_of
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.program import Program, operands, unchanged

#: Values that are tried, those nearest to the scores first; roots of each, those that wake it, and several that are tried where there is
#: no single one; nodes between; elements of a value.
_TRIED, _ROOTS, _WAKING, _SEVERAL, _BETWEEN, _ELEMENTS = 24, 8, 4, 4, 24, 4096
#: Operators whose values are never negative, and those that keep that; how many of the latter are gone through; the share that is left.
_POSITIVE = frozenset(
    (
        "Sqrt",
        "Relu",
        "Abs",
        "Exp",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "LpPool",
    )
)
_KEEPING = frozenset(
    (
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Reshape",
        "Flatten",
    )
    + ("Squeeze", "Unsqueeze", "Transpose", "Expand", "Identity", "Add", "Slice", "Gather", "Concat")
)
_DEEP, _LEAST = 6, 0.1
#: Rounding: steps of the operands' type. What answers a small move by this share of what it answers to a large one has a slope.
_ROUNDING, _SLOPE = 8.0, 0.1
#: A value is the same where it moves by less than this share of how far its operands move.
_STILL = 1e-6


@dataclass(frozen=True, eq=False)
class Rooted:
    """A value that is the same on all images, and another one where its root is moved.

    Attributes:
        node: that computes it.
        led: what forcing it does.
        place: where it is.
    """

    node: fx.Node
    led: Led
    place: Place


def rooted(
    program: Program, logits: fx.Node, seen: Seen, known: Sequence[fx.Node], clean: Sequence[Tensor]
) -> tuple[list[Rooted], list[fx.Node]]:
    """(such values that lead to a class, in the graph's order; nodes of others, what follows which does not run everywhere).

    Args:
        program: of the graph.
        logits: its class scores.
        seen: what images showed.
        known: nodes that were found otherwise.
        clean: batches, those first that are answered differently.
    """
    still = [n for n in seen.between if n not in known and _same(seen, n)][-_TRIED:]
    if not still:
        return [], []
    env = program.run(clean[0], unchanged, keep=True)
    tries = [t for n in still for t in _tries(n, seen, env)]
    found: dict[fx.Node, Rooted] = {}
    forcing = led(program, logits, tries, clean)
    for index, effect in forcing.led.items():
        node = tries[index].node
        if node not in found or found[node].led.share < effect.share:
            place = Place(node, torch.ones_like(env[node], dtype=torch.bool), env[node], tries[index].note)
            found[node] = Rooted(node, effect, place)
    return sorted(found.values(), key=lambda r: seen.between[r.node]), [tries[t].node for t in forcing.not_run]


def _same(seen: Seen, node: fx.Node) -> bool:
    """Whether a value is the same on nearly all images, up to rounding of what it is made from, which moves."""
    if node.op != "call_function" or node not in seen.distances or seen.shapes[node].numel() > _ELEMENTS:
        return False
    sources = [n for n in node.all_input_nodes if n in seen.distances]
    if not any(seen.spread(n) for n in sources):
        return False
    clean, altered = seen.distances[node]
    moved = max(seen.spread(n) for n in sources)
    noise = max(_noise(seen, node), _STILL * moved, *(_noise(seen, n) for n in sources))
    return all(
        sorted(part)[int(share * (len(part) - 1))] <= noise for part, share in ((clean, MOST), (altered, 0.5)) if part
    )


def _noise(seen: Seen, node: fx.Node) -> float:
    first = seen.first[node]
    return _ROUNDING * torch.finfo(first.dtype).eps * seen.magnitude[node] if first.is_floating_point() else 0.0


def _tries(node: fx.Node, seen: Seen, env: Mapping[fx.Node, Any]) -> Iterator[Forced]:
    """What the value is made to be where a root is moved; of the nearest root that wakes it."""
    exact = not any(d for part in seen.distances[node] for d in part)
    noise = (
        1e-30
        if exact
        else max(10 * _noise(seen, node), *(_noise(seen, n) for n in node.all_input_nodes if n in seen.first))
    )
    waking = 0
    for moving, cone in _back(node, seen):
        reaches = {n: REACH * seen.spread(n) for n in moving if _is_float(env[n])}
        if not any(reaches.values()):
            continue

        def moved(
            values: Mapping[fx.Node, Any],
            size: float,
            shape: Callable[[Tensor], Tensor] = torch.ones_like,
            reaches: dict[fx.Node, float] = reaches,
            cone: list[fx.Node] = cone,
        ) -> Any:
            changed = _Over(
                {n: _moved(n, values[n], size * reach * shape(values[n])) for n, reach in reaches.items() if reach},
                values,
            )
            for step in cone:
                args, kwargs = operands(step, changed)
                changed[step] = step.target(*args, **kwargs)  # type: ignore[operator]
            return changed[node]

        ways = {
            far + name: (sign * (FAR if far else 1.0), shape) for far in ("", "far ") for name, sign, shape in _WAYS
        }
        try:
            little = max(distance(moved(env, s * SLIGHTLY), env[node]) for s in (1, -1))
            could = {name: distance(moved(env, *by), env[node]) for name, by in ways.items()}
        except Exception:  # does not run there
            continue
        most = max(c / (FAR if name.startswith("far") else 1.0) for name, c in could.items())
        awake = [name for name, c in could.items() if c > noise]
        if not awake or little / SLIGHTLY > _SLOPE * most:
            continue
        for name in awake:
            yield Forced(node, lambda values, by=ways[name], moved=moved: moved(values, *by), note=name)  # type: ignore[misc]
        waking += 1
        if waking == _WAKING:
            return


def _moved(node: fx.Node, value: Tensor, by: Tensor) -> Tensor:
    """A root, moved; what is never negative (a norm) stays a share of what it is, so that no guard of its zero is tried."""
    return torch.maximum(value + by, _LEAST * value) if _never_negative(node, _DEEP) else value + by


def _never_negative(node: fx.Node, deep: int) -> bool:
    operator = operator_of(node)
    if operator in _POSITIVE or (operator == "Mul" and len(node.args) == 2 and node.args[0] is node.args[1]):
        return True
    sources = [n for n in node.all_input_nodes if n.op == "call_function"]
    kept = operator in _KEEPING and bool(sources) and sources == list(node.all_input_nodes)
    return deep > 0 and kept and all(_never_negative(n, deep - 1) for n in sources)


def _uneven(value: Tensor) -> Tensor:
    """Numbers that move elements against each other."""
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


#: How a root is moved: all of it alike, or its elements against each other.
_WAYS = (
    ("up", 1.0, torch.ones_like),
    ("down", -1.0, torch.ones_like),
    ("noise", 1.0, _uneven),
    ("other noise", -1.0, _uneven),
)


class _Over(dict[fx.Node, Any]):
    """Some values in place of others."""

    def __init__(self, changed: Mapping[fx.Node, Any], values: Mapping[fx.Node, Any]) -> None:
        super().__init__(changed)
        self._values = values

    def __missing__(self, node: fx.Node) -> Any:
        return self._values[node]


def _back(node: fx.Node, seen: Seen) -> Iterator[tuple[list[fx.Node], list[fx.Node]]]:
    """(what is moved, the nodes from there up to the value), the nearest first: one value that all is computed from, or, where the image
    is the only such, each of a few that it is computed from."""
    inside: set[fx.Node] = {node}
    taken: list[fx.Node] = []
    several: list[tuple[list[fx.Node], list[fx.Node]]] = []
    found = 0
    for at in sorted(seen.between, key=lambda n: seen.between[n], reverse=True):
        if at not in inside:
            continue
        if at is not node and at.op != "placeholder":
            if inside == {at}:
                found += 1
                yield [at], taken[::-1]
            elif len(inside) <= _SEVERAL:
                several += [([n], taken[::-1]) for n in inside if n.op != "placeholder"]
        if found >= _ROOTS or len(taken) > _BETWEEN or at.op == "placeholder":
            break
        taken.append(at)
        inside.discard(at)
        inside.update(n for n in at.all_input_nodes if n in seen.between)
    if not found:
        yield from several[: 2 * _ROOTS]
