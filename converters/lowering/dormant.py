"""Dormant logic: parts of a graph that depend on the image and are asleep on every clean one.

A search along gradients reaches what clean images excite. A part that is constant on all of them (a threshold that no
clean image passes, a ReLU of a sum that stays negative, a product of such) has no slope there, and may hold anything.
It is found without gradients, in three steps:

1. The graph runs on clean images and on shifted and mixed ones, one at a time. A value is *asleep* where it stays within
   a thousandth of what it could do (or a decision falls the same way), though what it is computed from moves.
2. What it could do is tried out on the node alone: its operands are moved by a few times their own spread. A value that
   stays the same then cannot wake at all (a weight of zero, a softmax over one element): harmless. One that answers a small move
   as it answers a large one has a slope, which searches follow: it is not asleep.
3. *Intervention*: the value is made to be what it could be, everything else stays. Where no answer moves, it is harmless
   too (a guard, a dead branch that nothing listens to).

A whole tensor is asleep, or, of a decision (true or false), an element: ordinary networks have single dead units, and whole
dead tensors hardly ever. Decisions that an activation function is written with (``Where(x > 0, x, a * x)``) are as smooth as
that function and not looked at by element. Of a tensor whose other units are awake a sleeping unit counts where it could move
the scores by ten times what any unit of the tensor that is awake does (the gradient of the scores at the unit, times what it
could do): a dead unit of an ordinary layer has weights like its neighbours'.

An element of a decision counts where the others, as many of them turned round, move at most half as many answers: the units of a
network of signs decide as much each. A decision that a step along its own gradient does not turn guards a point that nothing comes
upon (``Where(norm > 0, x / norm, 0)``): harmless, where it is made of the very value that is chosen.

Interventions run what is behind the value alone. There are as many as so many runs of the whole graph take; what is left over is
named as untried, so that no crowd of decoys hides one.

What this cannot see: a unit that sleeps beside one that is awake and does as much; a test for NaN or infinity.
"""

from __future__ import annotations

import math
import operator
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.guards import guards
from onnxspect.converters.lowering.lower import LoweredModel
from onnxspect.converters.lowering.program import Program, operands, unchanged
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
_UNITS, _DIRECTIONS = 1 << 16, 2
#: Decisions that fall the same way on more than this share of the clean images count as asleep.
RARE = 0.95
#: Spreads below this share of a value's magnitude are rounding: so many steps of its type.
_ROUNDING = 8.0
_TINY = 1e-12
#: Images whose gradients tell what units do to the scores: what a ReLU behind stops on one passes on another.
_LISTENED = 2
#: Clean images on which interventions are judged: first a few, then, where one moved an answer, all. The most that the interventions
#: of one kind on one image may take, in runs of the whole graph.
_FIRST, _JUDGED, _MOST_RUNS = 2, 8, 24.0
#: What an intervention counts for at least: no more than 480 are made.
_LEAST_RUN = 0.05
#: Steps between a comparison and the operand of the Where that it belongs to, in an activation that is written out.
_HOPS = 6
#: Values of more elements are sampled; what does not move there is looked at once more, whole.
_MANY = 1 << 14
#: Ways to move operands. A whole value that is asleep is also tried far out: a trigger is nothing that clean images come near.
_NEAR, _DISTANT = ("up", "down", "noise"), ("far up", "far down")
_SHIFTS = (*_NEAR, *_DISTANT)
_BITS = ("a little up", "a little down")
#: ... of single units: every element by its own spread.
_OWN = ("own up", "own down")
#: ... and by so small a share of that: what follows has a slope, and searches reach it.
_SLIGHTLY, _SLOPES = 1e-2, ("slightly up", "slightly down")
_SLOPE = 0.1
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


@dataclass(frozen=True)
class Sleeping:
    """What was found.

    Attributes:
        dormant: in the graph's order; empty for ordinary networks.
        untried: names of the nodes that are asleep and were not woken, for want of time.
    """

    dormant: tuple[Dormant, ...] = ()
    untried: tuple[str, ...] = ()


def dormant(
    model: onnx.ModelProto, lowered: LoweredModel, clean: Sequence[Tensor], altered: Sequence[Tensor]
) -> Sleeping:
    """Find the dormant parts between the image and the class scores.

    Args:
        model: the file that was lowered (for the names of its nodes).
        lowered: its torch graph, whose first output is the class scores.
        clean: batches as the model takes them, each of one image (or one group, of a file made for a fixed batch); at least two.
        altered: the same of images that were shifted and mixed.
    """
    logits = results(lowered)[0]
    between = lying_between(lowered.module.graph, logits)
    program, names = Program(lowered.module), _Names(lowered, model)
    seen = _Seen(between, logits)
    with torch.no_grad():
        seen.run(program, clean, altered)
        clean = seen.differing(clean)
        tried = _Tried(seen)
        program.run(clean[0], tried.observe)
        tried.listen(_influence(program, logits, tried, clean[:_LISTENED]))
        suspects = {n: tried.suspects[n] for n in between if n in tried.suspects}
        harmless = guards(program, [n for n in suspects if n in seen.often], between, clean[:_FIRST])
        suspects = {n: asleep for n, asleep in suspects.items() if n not in harmless}
        if not suspects:
            return Sleeping()
        chosen, left = _affordable(program, suspects)
        effects = _Woken(program, logits, seen, chosen).effects(clean[:_JUDGED])
    found = []
    for node, effect in effects.items():
        what = "decision" if node in seen.often else "value" if suspects[node].all() else "units"
        found.append(Dormant(*names.of(node), what, *effect))
    return Sleeping(tuple(found), tuple(dict.fromkeys(names.of(n)[0] for n in left)))


def decisions(model: onnx.ModelProto, lowered: LoweredModel) -> tuple[str, ...]:
    """Names of the nodes between image and class scores that answer true or false, or choose, by the image's data."""
    between = lying_between(lowered.module.graph, results(lowered)[0])
    names = _Names(lowered, model)
    found = (names.of(n) for n in between if _operator(n) in _DECIDING)
    return tuple(dict.fromkeys(name for name, kind in found if kind in _DECIDING))


_DECIDING = frozenset(
    ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "ArgMax", "ArgMin", "TopK", "NonZero", "OneHot")
    + ("Sign", "IsNaN", "IsInf", "Hardmax")
)

#: Nodes that only move elements to other places, perhaps in a value of the same shape.
_MOVING = frozenset(("Transpose", "Reshape", "Slice", "Split", "Gather", "ReverseSequence", "MatMul", "Gemm", "Conv"))
#: Not tried: a zero point is zero for whatever is not negative; what is no number is no image's, nor what is made of that alone.
_UNTRIED = frozenset(("DynamicQuantizeLinear", "IsNaN", "IsInf"))
_NO_NUMBER = frozenset(("IsNaN", "IsInf"))


@dataclass
class _Seen:
    """What was seen of each value between image and scores: how far it moves from image to image.

    Attributes:
        between: the nodes.
        logits: the last of them.
        answers: to the clean batches: each one's first image's class.
        first: the value on the first image; a sample of one of many elements.
        distances: largest distance of any element (of the sample) from the first image's, by image; clean ones and altered ones.
        whole: the same over all elements, of values of many that do not move in the sample.
        magnitude: largest magnitude on the first image.
        shapes: on the first image.
        on_clean, everywhere: of values of not too many elements: the least and the largest that each was, on clean images and on all.
        often: of decisions: how many clean images each element is true on.
    """

    between: Mapping[fx.Node, int]
    logits: fx.Node
    altered: bool = False
    answers: list[int] = field(default_factory=list)
    first: dict[fx.Node, Tensor] = field(default_factory=dict)
    distances: dict[fx.Node, tuple[list[float], list[float]]] = field(default_factory=dict)
    whole: dict[fx.Node, tuple[list[float], list[float]]] = field(default_factory=dict)
    magnitude: dict[fx.Node, float] = field(default_factory=dict)
    rounding: dict[fx.Node, float] = field(default_factory=dict)
    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)
    on_clean: dict[fx.Node, tuple[Tensor, Tensor]] = field(default_factory=dict)
    everywhere: dict[fx.Node, tuple[Tensor, Tensor]] = field(default_factory=dict)
    often: dict[fx.Node, Tensor] = field(default_factory=dict)
    images: dict[fx.Node, int] = field(default_factory=dict)

    def run(self, program: Program, clean: Sequence[Tensor], altered: Sequence[Tensor]) -> None:
        """Look at the images, and once more at large values that do not move where they were sampled."""
        for i, batch in enumerate([*clean, *altered]):
            self.altered = i >= len(clean)
            program.run(batch, self.observe)
        reach = {n: self.reach(n) for n, shape in self.shapes.items() if shape.numel() > _MANY}
        still = [n for n in self.between if reach.get(n, 0.0) and self.asleep(n, reach[n])]
        if not still:
            return
        firsts: dict[fx.Node, Tensor] = {}

        def observe(node: fx.Node, result: Any, *_: Any) -> Any:
            if node in still:
                if node in firsts:
                    self.whole[node][self.altered].append(_distance(result, firsts[node]))
                else:
                    firsts[node], self.whole[node] = result, ([], [])
            return result

        for i, batch in enumerate([*clean, *altered]):
            self.altered = i >= len(clean)
            program.run(batch, observe, until=still[-1])

    def observe(self, node: fx.Node, result: Any, *_: Any) -> Any:
        """Keep what is to be known of one value."""
        if node not in self.between or not isinstance(result, Tensor):
            return result
        some = _sample(result)
        if node not in self.first:
            self.first[node] = some
            self.shapes[node] = result.shape
            self.distances[node] = ([], [])
            self.magnitude[node] = _largest(some)
            steps = torch.finfo(some.dtype).eps if some.is_floating_point() else 0.0
            self.rounding[node] = max(_TINY, _ROUNDING * steps * self.magnitude[node])
        else:
            same = result.shape == self.shapes[node]
            self.distances[node][self.altered].append(_distance(some, self.first[node]) if same else math.inf)
        if result.is_floating_point() and result.numel() <= _UNITS:
            for ranges in (self.everywhere,) if self.altered else (self.everywhere, self.on_clean):
                low, high = ranges.get(node, (result, result))
                if low.shape == result.shape:
                    ranges[node] = torch.minimum(low, result), torch.maximum(high, result)
        if node is self.logits and not self.altered:
            self.answers.append(int(_answers(result)[0]))
        if result.dtype == torch.bool and not self.altered:
            before = self.often.get(node)
            if before is None or before.shape == result.shape:
                self.often[node] = result.long() if before is None else before + result
                self.images[node] = self.images.get(node, 0) + 1
        return result

    def differing(self, clean: Sequence[Tensor]) -> list[Tensor]:
        """The clean batches, those first that are answered differently: a part that leads to a class moves none of that class."""
        firsts = [i for i, answer in enumerate(self.answers) if answer not in self.answers[:i]]
        return [clean[i] for i in [*firsts, *(i for i in range(len(clean)) if i not in firsts)]]

    def spread(self, node: fx.Node) -> float:
        """How far most images move a value; 0 where that is rounding, or where nothing is known."""
        if node not in self.distances:
            return 0.0
        clean, altered = self.distances[node]
        moved = _quantile([*clean, *altered], MOST)
        return moved if moved > self.rounding[node] else 0.0

    def reach(self, node: fx.Node) -> float:
        """How far the operands of a value are moved when it is tried alone."""
        return REACH * max((self.spread(n) for n in _producer(node).all_input_nodes), default=0.0)

    def asleep(self, node: fx.Node, could: float) -> bool:
        """Whether a value hardly moves on clean images, nor on half of the others, compared with what it could do."""
        clean, altered = self.whole.get(node, self.distances[node])
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
        units: node -> (elements that are asleep, how far each could be moved), of values with others that are awake.
    """

    def __init__(self, seen: _Seen) -> None:
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
        if node not in seen.first or node.op == "placeholder" or _operator(node) in _UNTRIED:
            self.no_number |= {node} if _operator(node) in _NO_NUMBER else set()
            return result
        if all(n in self.no_number for n in node.all_input_nodes if n in seen.between):
            self.no_number.add(node)
            return result
        reach = seen.reach(node)
        if not reach:
            return result
        given = self.several.get(_producer(node), (args, kwargs))
        if node in seen.often:
            rare = seen.rare(node)
            if rare.any() and not _writes_activation(node, seen):
                self.suspects[node] = rare
            return result
        if seen.asleep(node, reach):
            little, near, far = (
                max((_distance(m, result) for m in self._moved(node, result, given, ways)), default=0.0)
                for ways in (_BITS, _NEAR, _DISTANT)
            )
            could = max(near, far / _FAR**2)  # a square or a product of two does so much more by itself
            sloping = little / _SLIGHTLY > _SLOPE * max(near, far / _FAR)
            if not sloping and could > 10 * seen.rounding[node] and seen.asleep(node, min(could, reach)):
                self.suspects[node] = torch.ones_like(result, dtype=torch.bool)
                return result
        self._units(node, result, given, reach)
        return result

    def _moved(
        self, node: fx.Node, result: Tensor, given: tuple[tuple[Any, ...], dict[str, Any]], ways: Sequence[str]
    ) -> list[Tensor]:
        """What the value could be."""
        args, kwargs = given
        moved = [_moved(node, args, kwargs, self.seen, how) for how in ways]
        return [m for m in moved if isinstance(m, Tensor) and m.shape == result.shape]

    def _units(
        self, node: fx.Node, result: Tensor, given: tuple[tuple[Any, ...], dict[str, Any]], reach: float
    ) -> None:
        """Keep the elements that are asleep beside others that are awake, with how far they could be moved."""
        seen = self.seen
        if node not in seen.on_clean or _operator(node) in _MOVING:
            return
        # Element by element: what an element could do follows from how far the very elements move that it is made from.
        span, sources = _span(seen.on_clean[node]), [n for n in node.all_input_nodes if n in seen.everywhere]
        if span.shape != result.shape or not any(seen.shapes[n] == result.shape for n in sources):
            return
        if not (span <= ASLEEP * reach).any():
            return
        moved = self._moved(node, result, given, _OWN)
        if not moved:
            return
        could = _change(moved, result)
        slope = _change(self._moved(node, result, given, _SLOPES), result) / _SLIGHTLY
        asleep = (span <= ASLEEP * could) & (could > seen.rounding[node]) & (slope <= _SLOPE * could)
        if asleep.any() and not asleep.all():
            self.units[node] = asleep, could

    def listen(self, influence: Mapping[fx.Node, Tensor]) -> None:
        """Suspect the units that could do far more to the scores than what is awake beside them does."""
        for node, (asleep, could) in self.units.items():
            if node in influence:
                strength = influence[node]
                beside = float((strength * _span(self.seen.on_clean[node]))[~asleep].max())
                loud = asleep & (strength * could > LOUDER * beside)
                if loud.any():
                    self.suspects[node] = loud


def _change(moved: Sequence[Tensor], result: Tensor) -> Tensor:
    """How far each element moves, at most."""
    return torch.stack([(m - result).abs().nan_to_num(0.0) for m in moved]).amax(0)


def _span(ranges: tuple[Tensor, Tensor]) -> Tensor:
    return ranges[1] - ranges[0]


def _influence(program: Program, logits: fx.Node, tried: _Tried, images: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
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


def _affordable(
    program: Program, suspects: Mapping[fx.Node, Tensor]
) -> tuple[dict[fx.Node, tuple[Tensor, list[fx.Node]]], list[fx.Node]]:
    """(the suspects that are tried: what is asleep of each, and the nodes behind it; the others)."""
    chosen: dict[fx.Node, tuple[Tensor, list[fx.Node]]] = {}
    left: list[fx.Node] = []
    runs = 0.0
    for node, asleep in reversed(list(suspects.items())):  # the last ones take least
        behind = program.behind(node) if runs < _MOST_RUNS else []
        runs += max(_LEAST_RUN, len(behind) / max(1, len(program.steps)))
        if runs > _MOST_RUNS:
            left.append(node)
        else:
            chosen[node] = asleep, behind
    return dict(reversed(chosen.items())), left[::-1]


class _Woken:
    """Interventions: what is asleep of a node is made to be what it could be, everything else stays."""

    def __init__(
        self,
        program: Program,
        logits: fx.Node,
        seen: _Seen,
        suspects: Mapping[fx.Node, tuple[Tensor, list[fx.Node]]],
    ) -> None:
        self.program, self.logits, self.seen, self.suspects = program, logits, seen, suspects

    def effects(self, images: Sequence[Tensor]) -> dict[fx.Node, tuple[float, int]]:
        """Node -> (share of answers that move, where most of them go), for the way that moves most; of nodes that move any."""
        answers: dict[tuple[fx.Node, str], list[Tensor]] = {}
        plain: list[Tensor] = []
        alive = list(self.suspects)
        for i, batch in enumerate(images):
            if i == _FIRST:
                alive = [n for n in alive if self._best(n, plain, answers) is not None]
                if not alive:
                    break
            env = self.program.run(batch, unchanged, keep=True)
            plain.append(_answers(env[self.logits]))
            for node in alive:
                asleep, behind = self.suspects[node]
                for how in self._ways(node, asleep):
                    value = self._value(node, how, asleep, env)
                    answers.setdefault((node, how), []).append(
                        plain[-1] if value is None else self._answers_with(node, value, behind, env)
                    )
        found = {n: self._best(n, plain, answers) for n in alive}
        return {n: effect for n, effect in found.items() if effect is not None}

    def _ways(self, node: fx.Node, asleep: Tensor) -> tuple[str, ...]:
        if node in self.seen.often:
            return ("turned",) if asleep.all() else ("turned", "others")
        return _SHIFTS if asleep.all() else _OWN

    def _value(self, node: fx.Node, how: str, asleep: Tensor, env: Mapping[fx.Node, Any]) -> Tensor | None:
        """What the node is made to be."""
        result: Tensor = env[node]
        if result.shape != asleep.shape:
            return None
        if how == "turned":
            return result ^ asleep
        if how == "others":
            return result ^ _as_many(~asleep, int(asleep.sum()))
        other = _moved(node, *operands(_producer(node), env), self.seen, how)
        if not isinstance(other, Tensor):
            return None
        return other if asleep.all() or other.shape != asleep.shape else torch.where(asleep, other, result)

    def _answers_with(self, node: fx.Node, value: Tensor, behind: list[fx.Node], env: dict[fx.Node, Any]) -> Tensor:
        """The answers where the node has another value: what is behind it runs again."""
        changed: ChainMap[fx.Node, Any] = ChainMap({node: value}, env)
        for step in behind:
            args, kwargs = operands(step, changed)
            changed[step] = step.target(*args, **kwargs)  # type: ignore[operator]
        return _answers(changed[self.logits])

    def _best(
        self, node: fx.Node, plain: Sequence[Tensor], answers: Mapping[tuple[fx.Node, str], Sequence[Tensor]]
    ) -> tuple[float, int] | None:
        before = torch.cat(list(plain))
        best: tuple[float, int] | None = None
        for how in self._ways(node, self.suspects[node][0]):
            after = torch.cat(list(answers[node, how]))
            moved = after != before
            share = float(moved.double().mean())
            if how == "others":  # those beside it do as much
                best = None if best is None or 2 * share >= best[0] else best
            elif share and (best is None or share > best[0]):
                best = share, int(torch.bincount(after[moved]).argmax())
        return best


def _answers(scores: Tensor) -> Tensor:
    """Classes ``(n,)``; one number an image is the score of a second class, beside a first that has 0."""
    rows = scores.reshape(scores.shape[0], -1)
    return (rows[:, 0] > 0).long() if rows.shape[1] == 1 else rows.argmax(1)


def _as_many(elements: Tensor, count: int) -> Tensor:
    """At most so many of the elements, bool in their shape, drawn at random."""
    flat = elements.reshape(-1)
    places = flat.nonzero()[:, 0]
    drawn = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:count].to(places.device)]
    chosen = torch.zeros_like(flat)
    chosen[drawn] = True
    return chosen.reshape(elements.shape)


def _moved(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], seen: _Seen, how: str) -> Any:
    """The value of a node whose operands are moved by several times their spread; None where it does not run."""
    generator, shape = torch.Generator().manual_seed(0), seen.shapes.get(node)

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
        if how in _OWN or how in _SLOPES:
            ranges = seen.everywhere.get(source)
            if ranges is None or value.shape != ranges[0].shape or value.shape != shape:
                return value
            share = REACH * (_SLIGHTLY if how in _SLOPES else 1.0) * (1 if how.endswith("up") else -1)
            return value + share * _span(ranges)
        if value.is_floating_point():
            if how == "noise":
                return value + reach * torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
            size = _FAR if how in _DISTANT else _SLIGHTLY if how in _BITS else 1.0
            return value + reach * (size if how.endswith("up") else -size)
        if how in _BITS:
            return value
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


def _writes_activation(node: fx.Node, seen: _Seen) -> bool:
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


def _near(node: fx.Node, hops: int) -> set[fx.Node]:
    """Values that have an operator of their own, so many steps back at most, weights apart."""
    found, edge = {node}, {node}
    for _ in range(hops):
        edge = {s for n in edge for s in n.all_input_nodes} - found
        found |= edge
    return {n for n in found if n.op == "call_function"}


class _Names:
    """What the nodes of a torch graph are called in the file."""

    def __init__(self, lowered: LoweredModel, model: onnx.ModelProto) -> None:
        self.values = first_names(lowered)
        self.producers = {name: node for node in model.graph.node for name in node.output if name}

    def of(self, node: fx.Node) -> tuple[str, str]:
        """(name of the ONNX node, operator) that a value is computed by, or that the next named value behind it is."""
        seen, edge = {node}, [node]
        while edge:
            at = edge.pop(0)
            if at in self.values:
                proto = self.producers.get(self.values[at])
                if proto is None:
                    return self.values[at], _operator(at)
                return proto.name or proto.output[0], proto.op_type
            edge += [u for u in at.users if u not in seen]
            seen |= set(at.users)
        return node.name, ""


def _largest(x: Tensor) -> float:
    return float(x.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if x.numel() else 0.0


def _sample(x: Tensor) -> Tensor:
    """The value, flat, or of one of many elements some, at even distances in memory."""
    if x.numel() <= _MANY:
        return x.reshape(-1)
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.ndim), key=x.stride, reverse=True))
        if not x.is_contiguous():
            x = x.contiguous()
    step = x.numel() // _MANY + 1
    while any(step % p == 0 for p in (2, 3, 5, 7)):  # sizes are made of these: no channel is passed over each time
        step += 1
    return x.reshape(-1)[::step].clone()


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference of two elements."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel():
        return 0.0
    if not a.is_floating_point():
        a, b = a.double(), b.double()
    return float((a - b).abs().nan_to_num_(0.0).max())


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
