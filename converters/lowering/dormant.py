"""Dormant logic: parts of a graph that depend on the image and are asleep on every clean one.

A search along gradients reaches what clean images excite. A part that is constant on all of them (a threshold that no
clean image passes, a ReLU of a sum that stays negative, a product of such) has no slope there, and may hold anything.
It is found without gradients, in three steps:

1. The graph runs on clean images and on shifted and mixed ones, one at a time. A value is *asleep* where it stays within
   a thousandth of what it could do (or a decision falls the same way), though what it is computed from moves.
2. What it could do is tried out on the node alone: its operands are moved by a few times their own spread. A value that
   stays the same then cannot wake at all (a weight of zero, a softmax over one element): harmless.
3. *Intervention*: the value is made to be what it could be, everything else stays. Where no answer moves, it is harmless
   too (a guard, a dead branch that nothing listens to).

A whole tensor is asleep, or, of a decision (true or false), an element: ordinary networks have single dead units, and whole
dead tensors hardly ever. Decisions that an activation function is written with (``Where(x > 0, x, a * x)``) are as smooth as
that function and not looked at by element. Of a tensor whose other units are awake a sleeping unit counts where it could move
the scores by ten times what any unit of the tensor that is awake does (the gradient of the scores at the unit, times what it
could do): a dead unit of an ordinary layer has weights like its neighbours'.

What this cannot see: a unit that sleeps beside one that is awake and does as much; a test for NaN or infinity.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.lower import LoweredModel
from onnxspect.converters.lowering.taps import first_names, lying_between, results

#: A value is asleep where it moves by less than this share of what it could do.
ASLEEP = 1e-3
#: ... on this share of the clean images, and on half of the shifted and mixed ones.
MOST = 0.9
#: Operands are moved by so many times their own spread over the images.
REACH = 3.0
#: A sleeping unit could do so many times more to the scores than the units beside it do.
LOUDER = 10.0
#: Units are looked at in values of so many elements; random directions in the scores that their gradients are taken of.
_UNITS, _DIRECTIONS = 1 << 16, 4
#: Decisions that fall the same way on more than this share of the clean images count as asleep.
RARE = 0.95
#: Spreads below this share of a value's magnitude are rounding.
_ROUNDING = 1e-6
_TINY = 1e-12
#: Clean images on which interventions are judged, and the most that are tried.
_JUDGED, _MOST_TRIED = 8, 24
#: Steps between a comparison and the operand of the Where that it belongs to, in an activation that is written out.
_HOPS = 6
#: Values of more elements are sampled to see that they move; that one does not is seen on all of them.
_MANY = 1 << 14
#: Ways to move operands. A whole value that is asleep is also tried far out: a trigger is nothing that clean images come near.
_NEAR = ("up", "down", "noise")
_SHIFTS = (*_NEAR, "far up", "far down")
_FAR = 30.0


@dataclass(frozen=True)
class Dormant:
    """A part of the graph that sleeps on every clean image and can change the answers.

    Attributes:
        node: name of its ONNX node (or of the node's first output, where it has no name).
        operator: of that node.
        kind: "decision" (true or false), "value", or "units" (of a value whose other elements are awake).
        moved: share of clean images whose answer changes when it is woken.
        leads_to: the class that most of these change to.
    """

    node: str
    operator: str
    kind: str
    moved: float
    leads_to: int


def dormant(
    model: onnx.ModelProto, lowered: LoweredModel, clean: Sequence[Tensor], altered: Sequence[Tensor]
) -> tuple[Dormant, ...]:
    """Find the dormant parts between the image and the class scores.

    Args:
        model: the file that was lowered (for the names of its nodes).
        lowered: its torch graph, whose first output is the class scores.
        clean: batches as the model takes them, each of one image (or one group, of a file made for a fixed batch); at least two.
        altered: the same of images that were shifted and mixed.

    Returns:
        in the graph's order; empty for ordinary networks.
    """
    module, logits = lowered.module, results(lowered)[0]
    between = lying_between(module.graph, logits)
    seen = _Seen(between)
    with torch.no_grad():
        for i, batch in enumerate([*clean, *altered]):
            seen.altered = i >= len(clean)
            _Walk(module, seen.look).run(batch)
        tried = _Tried(seen, _influence(module, logits, seen, clean[0]))
        _Walk(module, tried.look).run(clean[0])
        found = []
        for node in [n for n in between if n in tried.suspects][:_MOST_TRIED]:
            effect = _woken(module, logits, node, seen, clean[:_JUDGED], tried.suspects[node])
            if effect is not None:
                name, kind = _named(node, lowered, model)
                what = "decision" if node in seen.often else "value" if tried.suspects[node].all() else "units"
                found.append(Dormant(name, kind, what, *effect))
    return tuple(found)


def decisions(model: onnx.ModelProto, lowered: LoweredModel) -> tuple[str, ...]:
    """Names of the nodes between image and class scores that answer true or false, or choose, by the image's data."""
    between = lying_between(lowered.module.graph, results(lowered)[0])
    found = (_named(n, lowered, model) for n in between if n.op != "placeholder")
    return tuple(dict.fromkeys(name for name, kind in found if kind in _DECIDING))


_DECIDING = frozenset(
    ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "ArgMax", "ArgMin", "TopK", "NonZero", "OneHot")
    + ("Sign", "IsNaN", "IsInf", "Hardmax")
)

#: Nodes that only move elements to other places, perhaps in a value of the same shape.
_MOVING = frozenset(("Transpose", "Reshape", "Slice", "Split", "Gather", "ReverseSequence", "MatMul", "Gemm", "Conv"))
#: Not tried: a zero point is zero for whatever is not negative; what is no number is no image's.
_UNTRIED = frozenset(("DynamicQuantizeLinear", "IsNaN", "IsInf"))

_Look = Callable[[fx.Node, Any, tuple[Any, ...], dict[str, Any]], Any]


class _Walk(fx.Interpreter):
    """Runs a graph, and lets `look` see (and replace) every value, with the operands that it was computed from."""

    def __init__(self, module: fx.GraphModule, look: _Look) -> None:
        super().__init__(module)
        self.look = look

    def run_node(self, n: fx.Node) -> Any:
        """As fx.Interpreter."""
        result = super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self.look(n, result, args, kwargs)


@dataclass
class _Seen:
    """What was seen of each value between image and scores: how far it moves from image to image.

    Attributes:
        between: the nodes.
        distances: largest distance of any element from the first image's, by image; clean ones and altered ones.
        magnitude: largest magnitude on the first image.
        on_clean, everywhere: of values of not too many elements: the least and the largest that each was, on clean images and on all.
        often: of decisions: how many clean images each element is true on.
    """

    between: Mapping[fx.Node, int]
    altered: bool = False
    first: dict[fx.Node, Tensor] = field(default_factory=dict)
    distances: dict[fx.Node, tuple[list[float], list[float]]] = field(default_factory=dict)
    magnitude: dict[fx.Node, float] = field(default_factory=dict)
    on_clean: dict[fx.Node, tuple[Tensor, Tensor]] = field(default_factory=dict)
    everywhere: dict[fx.Node, tuple[Tensor, Tensor]] = field(default_factory=dict)
    often: dict[fx.Node, Tensor] = field(default_factory=dict)
    images: dict[fx.Node, int] = field(default_factory=dict)

    def look(self, node: fx.Node, result: Any, *_: Any) -> Any:
        """Keep what is to be known of one value."""
        if node not in self.between or not isinstance(result, Tensor):
            return result
        if node not in self.first:
            self.first[node] = result
            self.distances[node] = ([], [])
            self.magnitude[node] = _largest(result)
        else:
            self.distances[node][self.altered].append(_distance(result, self.first[node], 0.01 * self.magnitude[node]))
        if result.is_floating_point() and result.numel() <= _UNITS:
            for ranges in (self.everywhere,) if self.altered else (self.everywhere, self.on_clean):
                low, high = ranges.get(node, (result, result))
                if low.shape == result.shape:
                    ranges[node] = torch.minimum(low, result), torch.maximum(high, result)
        if result.dtype == torch.bool and not self.altered:
            before = self.often.get(node)
            if before is None or before.shape == result.shape:
                self.often[node] = result.long() if before is None else before + result
                self.images[node] = self.images.get(node, 0) + 1
        return result

    def spread(self, node: fx.Node) -> float:
        """How far most images move a value; 0 where that is rounding, or where nothing is known."""
        if node not in self.distances:
            return 0.0
        clean, altered = self.distances[node]
        moved = _quantile([*clean, *altered], MOST)
        return moved if moved > max(_TINY, _ROUNDING * self.magnitude[node]) else 0.0

    def asleep(self, node: fx.Node, could: float) -> bool:
        """Whether a value hardly moves on clean images, nor on half of the others, compared with what it could do."""
        clean, altered = self.distances[node]
        most = max(ASLEEP * could, 0.0)
        return _quantile(clean, MOST) <= most and _quantile(altered, 0.5) <= most

    def rare(self, node: fx.Node) -> Tensor:
        """Of a decision: the elements that fall the same way on nearly all clean images, bool in its shape."""
        n = self.images[node]
        share = self.often[node] / n
        return (share >= RARE) | (share <= 1 - RARE)


class _Tried:
    """Finds the suspects: values that are asleep, and could be awake.

    Attributes:
        suspects: node -> its elements that are asleep, bool in its shape.
    """

    def __init__(self, seen: _Seen, influence: Mapping[fx.Node, Tensor]) -> None:
        self.seen = seen
        self.influence = influence
        self.suspects: dict[fx.Node, Tensor] = {}
        self.operands: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def look(self, node: fx.Node, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Try one node alone."""
        seen = self.seen
        self.operands[node] = args, kwargs
        if node not in seen.first or node.op == "placeholder" or _operator(node) in _UNTRIED:
            return result
        producer = _producer(node)
        reach = max((seen.spread(n) for n in producer.all_input_nodes), default=0.0) * REACH
        if not reach:
            return result
        if node in seen.often:
            rare = seen.rare(node)
            if rare.any() and not _writes_activation(node):
                self.suspects[node] = rare
            return result
        moved: list[Tensor] = []
        if seen.asleep(node, reach):
            moved = self._moved(node, result)
            could = max((_distance(m, result) for m in moved), default=0.0)
            if could > max(_TINY, 10 * _ROUNDING * seen.magnitude[node]) and seen.asleep(node, min(could, reach)):
                self.suspects[node] = torch.ones_like(result, dtype=torch.bool)
                return result
        if node in self.influence and node in seen.on_clean:
            units = self._loud(node, result, moved[: len(_NEAR)] or self._moved(node, result, _NEAR), reach)
            if units is not None and units.any():
                self.suspects[node] = units
        return result

    def _moved(self, node: fx.Node, result: Tensor, ways: Sequence[str] = _SHIFTS) -> list[Tensor]:
        """What the value could be."""
        operands = self.operands[_producer(node)]
        moved = [_moved(node, *operands, self.seen, how) for how in ways]
        return [m for m in moved if isinstance(m, Tensor) and m.shape == result.shape]

    def _span(self, node: fx.Node, ranges: Mapping[fx.Node, tuple[Tensor, Tensor]] | None = None) -> Tensor:
        low, high = (self.seen.everywhere if ranges is None else ranges)[node]
        return high - low

    def _loud(self, node: fx.Node, result: Tensor, moved: Sequence[Tensor], reach: float) -> Tensor | None:
        """Elements that are asleep and could do far more to the scores than what is awake beside them does."""
        span = self._span(node, self.seen.on_clean)
        # Element by element: what an element could do is bounded by how far the very elements move that it is made from.
        given = [n for n in node.all_input_nodes if n in self.seen.everywhere and self._span(n).shape == result.shape]
        if not moved or span.shape != result.shape or not given or _operator(node) in _MOVING:
            return None
        own = torch.stack([self._span(n) for n in given]).amax(0)
        could = torch.stack([(m - result).abs().nan_to_num(0.0) for m in moved]).amax(0).clamp_max(reach)
        could = torch.minimum(could, REACH * own)
        asleep = (span <= ASLEEP * could) & (could > max(_TINY, _ROUNDING * self.seen.magnitude[node]))
        if not asleep.any() or asleep.all():
            return None
        influence = self.influence[node]
        beside = float((influence * span)[~asleep].max())
        return asleep & (influence * could > LOUDER * beside)


def _influence(module: fx.GraphModule, logits: fx.Node, seen: _Seen, image: Tensor) -> dict[fx.Node, Tensor]:
    """How strongly the scores of an image hang on each element of each value: the norm of the gradient, about.

    The mean square of the gradient along random directions of signs is its squared norm over the classes.
    """
    values: dict[fx.Node, Tensor] = {}

    def look(node: fx.Node, result: Any, *_: Any) -> Any:
        if node not in seen.first or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        if not result.requires_grad:  # the image itself, and what is behind a decision
            result = result.detach().requires_grad_(True)
        values[node] = result
        return result

    with torch.enable_grad():
        _Walk(module, look).run(image)
        if logits not in values:
            return {}
        scores, wanted = values[logits], [n for n in values if n in seen.on_clean]
        generator = torch.Generator().manual_seed(0)
        squares = {n: torch.zeros_like(values[n], requires_grad=False) for n in wanted}
        for _ in range(_DIRECTIONS):
            signs = torch.randint(0, 2, scores.shape, generator=generator).to(scores) * 2 - 1
            gradients = torch.autograd.grad(
                (scores * signs).sum(), [values[n] for n in wanted], retain_graph=True, allow_unused=True
            )
            for node, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    squares[node] += gradient.nan_to_num(0.0).square() / _DIRECTIONS
    return {n: s.sqrt() for n, s in squares.items()}


def _woken(
    module: fx.GraphModule, logits: fx.Node, node: fx.Node, seen: _Seen, images: Sequence[Tensor], asleep: Tensor
) -> tuple[float, int] | None:
    """(share of answers that move when what is `asleep` of a node is woken, where to), the largest; None where none does."""

    def answers(how: str) -> Tensor:
        kept: list[Tensor] = []
        operands: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def look(at: fx.Node, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            operands[at] = args, kwargs
            if at is node and how:
                if node in seen.often:
                    result = result ^ asleep
                else:
                    other = _moved(node, *operands[_producer(node)], seen, how)
                    if isinstance(other, Tensor):
                        result = (
                            other if asleep.all() or other.shape != asleep.shape else torch.where(asleep, other, result)
                        )
            if at is logits:
                kept.append(result.reshape(result.shape[0], -1).argmax(1))
            return result

        for batch in images:
            _Walk(module, look).run(batch)
        return torch.cat(kept)

    plain = answers("")
    best: tuple[float, int] | None = None
    for how in _NEAR[:1] if node in seen.often else _SHIFTS if asleep.all() else _NEAR:
        other = answers(how)
        moved = other != plain
        share = float(moved.double().mean())
        if share and (best is None or share > best[0]):
            best = share, int(torch.bincount(other[moved]).argmax())
    return best


def _moved(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], seen: _Seen, how: str) -> Any:
    """The value of a node whose operands are moved by several times their spread; None where it does not run."""
    generator = torch.Generator().manual_seed(0)

    def move(source: Any, value: Any) -> Any:
        if isinstance(source, (list, tuple)):
            return type(value)(move(s, v) for s, v in zip(source, value, strict=True))
        if not isinstance(source, fx.Node) or source not in seen.first or not isinstance(value, Tensor):
            return value
        reach = REACH * seen.spread(source)
        if value.dtype == torch.bool:
            return ~value if reach else value
        if not reach:
            return value
        if value.is_floating_point():
            if how == "noise":
                return value + reach * torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
            return value + reach * {"up": 1.0, "down": -1.0, "far up": _FAR, "far down": -_FAR}[how]
        step = max(1, round(reach * (_FAR if how.startswith("far") else 1.0)))
        return value + (1 if how == "noise" else step if how.endswith("up") else -step)

    producer = _producer(node)
    try:
        moved = [move(s, a) for s, a in zip(producer.args, args, strict=True)]
        value = producer.target(*moved, **kwargs) if callable(producer.target) else None
        return value if producer is node else value[node.args[1]]  # type: ignore[index]
    except Exception:  # an index out of range, a shape: what does not run wakes nothing
        return None


def _producer(node: fx.Node) -> fx.Node:
    """What computes a value: of one of several results of an operator, that operator."""
    return node.args[0] if node.target is operator.getitem else node  # type: ignore[return-value]


def _operator(node: fx.Node) -> str:
    return str(node.meta.get("onnx", {}).get("operator", ""))


def _writes_activation(node: fx.Node) -> bool:
    """Whether a comparison only chooses, element by element, between functions of what it compares."""
    compared = set()
    for source in node.all_input_nodes:
        compared |= _near(source, _HOPS)
    size = node.meta.get("onnx", {}).get("shape")
    for user in node.users:
        if user.target is not torch.where or user.args[0] is not node:
            return False
        if user.meta.get("onnx", {}).get("shape") != size or size is None:
            return False
        branches = [a for a in user.args[1:] if isinstance(a, fx.Node)]
        if not any(compared & _near(b, _HOPS) for b in branches):
            return False
    return True


def _near(node: fx.Node, hops: int) -> set[fx.Node]:
    """Values that have an operator of their own, so many steps back at most, weights apart."""
    found, edge = {node}, {node}
    for _ in range(hops):
        edge = {s for n in edge for s in n.all_input_nodes} - found
        found |= edge
    return {n for n in found if n.op == "call_function"}


def _named(node: fx.Node, lowered: LoweredModel, model: onnx.ModelProto) -> tuple[str, str]:
    """(name of the ONNX node, operator) that a value is computed by, or that the next named value behind it is."""
    names = first_names(lowered)
    seen, edge = {node}, [node]
    while edge:
        at = edge.pop(0)
        if at in names:
            for proto in model.graph.node:
                if names[at] in proto.output:
                    return proto.name or proto.output[0], proto.op_type
            return names[at], at.meta.get("onnx", {}).get("operator", "")
        edge += [u for u in at.users if u not in seen]
        seen |= set(at.users)
    return node.name, ""


def _largest(x: Tensor) -> float:
    return float(x.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if x.numel() else 0.0


def _distance(a: Tensor, b: Tensor, floor: float = float("inf")) -> float:
    """Largest difference of two elements; of many elements a sample tells, where it tells more than `floor`."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    if a.numel() > _MANY:
        step = a.numel() // _MANY + 1
        sampled = _distance(a.reshape(-1)[::step], b.reshape(-1)[::step])
        if sampled > floor:
            return sampled
    if not a.is_floating_point():
        a, b = a.double(), b.double()
    return float((a - b).abs().nan_to_num_(0.0).max())


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
