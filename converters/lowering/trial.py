"""The trial of one node alone: which of the values that are asleep could be awake."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.moves import BITS, DISTANT, FAR, NEAR, OWN, SLIGHTLY, SLOPES, moved_value
from onnxspect.converters.lowering.observation import ASLEEP, Seen, distance, operator_of, producer, span
from onnxspect.converters.lowering.program import Program

#: A sleeping unit could do so many times more to the scores than the units beside it do.
LOUDER = 10.0
#: Random directions in the scores that the gradients of units are taken of.
_DIRECTIONS = 2
#: Images whose gradients tell what units do to the scores: what a ReLU behind stops on one passes on another.
LISTENED = 2
#: Steps between a comparison and the operand of the Where that it belongs to, in an activation that is written out.
_HOPS = 6
#: What answers a small move by this share of what it answers to a large one has a slope.
_SLOPE = 0.1
#: Nodes that only move elements to other places, perhaps in a value of the same shape.
_MOVING = frozenset(("Transpose", "Reshape", "Slice", "Split", "Gather", "ReverseSequence", "MatMul", "Gemm", "Conv"))
#: Not tried: a zero point is zero for whatever is not negative.
_UNTRIED = frozenset(("DynamicQuantizeLinear",))
#: Tests for what is no number: not tried where they only mend what they test, nor is what is made of that alone.
_NO_NUMBER = frozenset(("IsNaN", "IsInf"))


class Tried:
    """Finds the suspects: values that are asleep, and could be awake.

    Attributes:
        suspects: node -> its elements that are asleep, bool in its shape.
        units: node -> (elements that are asleep, how far each could be moved), of values with others that are awake.
    """

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.suspects: dict[fx.Node, Tensor] = {}
        self.units: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        self.no_number: set[fx.Node] = set()
        self.several: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def observe(self, node: fx.Node, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Try one node alone."""
        seen = self.seen
        if isinstance(result, (tuple, list)):
            self.several[node] = args, kwargs  # the operands of its results, which are nodes of their own
        operator = operator_of(node)
        if node not in seen.first or node.op == "placeholder" or operator in _UNTRIED:
            return result
        if operator in _NO_NUMBER and _mends(node, seen):
            self.no_number.add(node)
            return result
        if all(n in self.no_number for n in node.all_input_nodes if n in seen.between):
            self.no_number.add(node)
            return result
        reach = seen.reach(node)
        if not reach:
            # All that it is made of sleeps as well: of two decisions that must both be true, turning one alone does nothing.
            if node in seen.often and any(n in seen.could for n in producer(node).all_input_nodes):
                self._suspect(node, seen.rare(node), 1.0)
            else:
                self._together(node, result, self.several.get(producer(node), (args, kwargs)))
            return result
        given = self.several.get(producer(node), (args, kwargs))
        if node in seen.often:
            rare = seen.rare(node)
            if rare.any() and not _writes_activation(node, seen):
                self._suspect(node, rare, 1.0)
            return result
        if seen.asleep(node, reach):
            little, near, far = (
                _farthest(result, self._moved(node, result, given, ways)) for ways in (BITS, NEAR, DISTANT)
            )
            could = max(near, far / FAR**2)  # a square or a product of two does so much more by itself
            sloping = little / SLIGHTLY > _SLOPE * max(near, far / FAR)
            if not sloping and could > 10 * seen.rounding[node] and seen.asleep(node, min(could, reach)):
                self._suspect(node, torch.ones_like(result, dtype=torch.bool), could)
                return result
            if self._together(node, result, given):
                return result
        self._units(node, result, given, reach)
        return result

    def _suspect(self, node: fx.Node, asleep: Tensor, could: float) -> None:
        self.suspects[node] = asleep
        if asleep.all():
            self.seen.could[node] = could

    def _together(self, node: fx.Node, result: Tensor, given: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
        """Try a value with its sleeping operands woken, each alone and all together; whether it is tried further on.

        Of a product of two ReLUs that both sleep neither does anything alone. So is a value woken that is made of several which
        sleep, or that moves only where what is awake beside one moves as well. How far it moves is kept, for whatever is made of it.
        """
        seen = self.seen
        sources = tuple(n for n in producer(node).all_input_nodes if n in seen.could)
        if not sources:
            return False
        ways = (*NEAR, *DISTANT)
        alone = max(_farthest(result, self._moved(node, result, given, ways, sources, only=s)) for s in sources)
        together = _farthest(result, self._moved(node, result, given, ways, sources))
        could = max(alone, together)
        if could <= 10 * seen.rounding[node] or not seen.asleep(node, could):
            return False
        seen.could[node] = could
        if alone > 10 * seen.rounding[node] and len(sources) == 1:
            return False  # woken where its operand is
        seen.joint[node] = sources
        self.suspects[node] = torch.ones_like(result, dtype=torch.bool)
        return True

    def _moved(
        self,
        node: fx.Node,
        result: Tensor,
        given: tuple[tuple[Any, ...], dict[str, Any]],
        ways: Sequence[str],
        woken: Collection[fx.Node] = (),
        only: fx.Node | None = None,
    ) -> list[Tensor]:
        """What the value could be."""
        args, kwargs = given
        moved = [moved_value(node, args, kwargs, self.seen, how, woken, only) for how in ways]
        return [m for m in moved if isinstance(m, Tensor) and m.shape == result.shape]

    def _units(
        self, node: fx.Node, result: Tensor, given: tuple[tuple[Any, ...], dict[str, Any]], reach: float
    ) -> None:
        """Keep the elements that are asleep beside others that are awake, with how far they could be moved."""
        seen = self.seen
        if node not in seen.on_clean or operator_of(node) in _MOVING:
            return
        # Element by element: what an element could do follows from how far the very elements move that it is made from.
        spans, sources = span(seen.on_clean[node]), [n for n in node.all_input_nodes if n in seen.everywhere]
        if spans.shape != result.shape or not any(seen.shapes[n] == result.shape for n in sources):
            return
        if not (spans <= ASLEEP * reach).any():
            return
        moved = self._moved(node, result, given, OWN)
        if not moved:
            return
        could = _change(moved, result)
        slope = _change(self._moved(node, result, given, SLOPES), result) / SLIGHTLY
        asleep = (spans <= ASLEEP * could) & (could > seen.rounding[node]) & (slope <= _SLOPE * could)
        if asleep.any() and not asleep.all():
            self.units[node] = asleep, could

    def listen(self, influence: Mapping[fx.Node, Tensor]) -> None:
        """Suspect the units that could do far more to the scores than what is awake beside them does, and no others."""
        for node, (asleep, could) in self.units.items():
            if node in influence:
                strength = influence[node]
                beside = float((strength * span(self.seen.on_clean[node]))[~asleep].max())
                loud = asleep & (strength * could > LOUDER * beside)
                self.suspects.pop(node, None)
                if loud.any():
                    self.suspects[node] = loud


def _farthest(result: Tensor, moved: Sequence[Tensor]) -> float:
    return max((distance(m, result) for m in moved), default=0.0)


def _change(moved: Sequence[Tensor], result: Tensor) -> Tensor:
    """How far each element moves, at most."""
    return torch.stack([(m - result).abs().nan_to_num(0.0) for m in moved]).amax(0)


def influence(program: Program, logits: fx.Node, tried: Tried, images: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
    """How strongly the scores of images hang on each element of a value with sleeping units: the norm of the gradient, about.

    The mean square of the gradient along random directions of signs is its squared norm over the classes.
    """
    if not tried.units:
        return {}
    generator = torch.Generator().manual_seed(0)
    squares: dict[fx.Node, Tensor] = {}
    for batch in images:
        values: dict[fx.Node, Tensor] = {}

        def observe(node: fx.Node, result: Any, *_: Any, values: dict[fx.Node, Tensor] = values) -> Any:
            if isinstance(result, Tensor) and result.is_floating_point() and (node in tried.units or node is logits):
                if not result.requires_grad:  # nothing before it is asked for
                    result = result.detach().requires_grad_(True)
                values[node] = result
            return result

        with torch.enable_grad():
            program.run(batch, observe)
            scores, nodes = values.get(logits), [n for n in values if n in tried.units]
            if scores is None or not nodes:
                continue
            for _ in range(_DIRECTIONS):
                signs = torch.randint(0, 2, scores.shape, generator=generator).to(scores) * 2 - 1
                gradients = torch.autograd.grad(
                    (scores * signs).sum(), [values[n] for n in nodes], retain_graph=True, allow_unused=True
                )
                for node, gradient in zip(nodes, gradients, strict=True):
                    if gradient is not None and node in squares and squares[node].shape != gradient.shape:
                        continue
                    if gradient is not None:
                        squares[node] = squares.get(node, 0.0) + gradient.nan_to_num(0.0).square()
    return {n: (s / (_DIRECTIONS * len(images))).sqrt() for n, s in squares.items()}


def _writes_activation(node: fx.Node, seen: Seen) -> bool:
    """Whether a comparison only chooses, element by element, between functions of what it compares."""
    compared = set()
    for source in node.all_input_nodes:
        compared |= _near(source, _HOPS)
    size = seen.shapes[node]
    for user in node.users:
        if user.target is not torch.where or user.args[0] is not node or seen.shapes.get(user) != size:
            return False
        branches = [a for a in user.args[1:] if isinstance(a, fx.Node)]
        if not any(compared & _near(b, _HOPS) for b in branches):
            return False
    return True


def _mends(node: fx.Node, seen: Seen) -> bool:
    """Whether a test only replaces, element by element, what it tests; perhaps the other way round."""
    tested = set().union(*(_near(source, _HOPS) for source in node.all_input_nodes))
    waiting = [node]
    while waiting:
        at = waiting.pop()
        waiting += [u for u in at.users if operator_of(u) == "Not"]
        for user in (u for u in at.users if operator_of(u) != "Not"):
            chooses = user.target is torch.where and user.args[0] is at and seen.shapes.get(user) == seen.shapes[node]
            if not chooses or not any(isinstance(a, fx.Node) and a in tested for a in user.args[1:]):
                return False
    return True


def _near(node: fx.Node, hops: int) -> set[fx.Node]:
    """Values that have an operator of their own, so many steps back at most, weights apart."""
    found, edge = {node}, {node}
    for _ in range(hops):
        edge = {s for n in edge for s in n.all_input_nodes} - found
        found |= edge
    return {n for n in found if n.op == "call_function"}
