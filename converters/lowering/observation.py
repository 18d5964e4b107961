"""What is seen of every value of a graph while images run through it: how far it moves, and which of it stays the same."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.program import Program

#: A value is asleep where it moves by less than this share of what it could do.
ASLEEP = 1e-3
#: ... on this share of the clean images, and on half of the shifted and mixed ones.
MOST = 0.9
#: Operands are moved by so many times their own spread over the images.
REACH = 3.0
#: Units are looked at in values of so many elements.
_UNITS = 1 << 16
#: Decisions that fall the same way on more than this share of the clean images count as asleep.
RARE = 0.95
#: Spreads below this share of a value's magnitude are rounding: so many steps of its type.
_ROUNDING = 8.0
_TINY = 1e-12
#: Scores tell images apart where they move by at least this share of how far they lie from each other.
_TELLS = 0.25
#: ... and where no class is the answer to a larger share than this.
_ONE = 0.95
#: Values of more elements are sampled; what does not move there is looked at once more, whole.
_MANY = 1 << 14


@dataclass
class Seen:
    """What was seen of each value between image and scores: how far it moves from image to image.

    Attributes:
        between: the nodes.
        logits: the last of them.
        answers: to the clean batches: each one's first image's class.
        scores: the class scores of these.
        first: the value on the first image; a sample of one of many elements.
        distances: largest distance of any element (of the sample) from the first image's, by image; clean ones and altered ones.
        whole: the same over all elements, of values of many that do not move in the sample.
        magnitude: largest magnitude on the first image.
        shapes: on the first image.
        on_clean, everywhere: of values of not too many elements: the least and the largest that each was, on clean images and on all.
        often: of decisions: how many clean images each element is true on.
        could: of values that sleep: how far they move where what they are made of is woken (trial.py).
        joint: of values that wake only where several of their operands do: those of them that sleep.
    """

    between: Mapping[fx.Node, int]
    logits: fx.Node
    altered: bool = False
    answers: list[int] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
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
    could: dict[fx.Node, float] = field(default_factory=dict)
    joint: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)

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
                    self.whole[node][self.altered].append(distance(result, firsts[node]))
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
            self.distances[node][self.altered].append(distance(some, self.first[node]) if same else math.inf)
        if result.is_floating_point() and result.numel() <= _UNITS:
            for ranges in (self.everywhere,) if self.altered else (self.everywhere, self.on_clean):
                low, high = ranges.get(node, (result, result))
                if low.shape == result.shape:
                    ranges[node] = torch.minimum(low, result), torch.maximum(high, result)
        if node is self.logits and not self.altered:
            self.answers.append(int(answers_of(result)[0]))
            self.scores.append(result[0].reshape(-1).double())
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

    @property
    def tells_apart(self) -> bool:
        """Whether the scores tell clean images apart: those of the classes that are answered move from image to image about as far as
        they lie from each other. Of a network with random weights they do not, and whatever is forced changes its answers."""
        rows = torch.stack(self.scores)
        answered = sorted(set(self.answers))
        if len(answered) < 2 or max(map(self.answers.count, answered)) > _ONE * len(self.answers):
            return False
        if rows.shape[1] == 1:
            return True
        some = rows[:, answered]
        return bool(some.std(0).mean() >= _TELLS * some.std(1).mean())

    def spread(self, node: fx.Node) -> float:
        """How far most images move a value; 0 where that is rounding, or where nothing is known.

        Where most do not move it at all (a corner is dark on nearly all pictures), how far any does: a trigger lights that very corner.
        """
        if node not in self.distances:
            return 0.0
        clean, altered = self.distances[node]
        moved = _quantile([*clean, *altered], MOST)
        if moved <= self.rounding[node]:
            moved = max((d for d in (*clean, *altered) if math.isfinite(d)), default=0.0)
        return moved if moved > self.rounding[node] else 0.0

    def reach(self, node: fx.Node) -> float:
        """How far the operands of a value are moved when it is tried alone."""
        return REACH * max((self.spread(n) for n in producer(node).all_input_nodes), default=0.0)

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


def span(ranges: tuple[Tensor, Tensor]) -> Tensor:
    return ranges[1] - ranges[0]


def answers_of(scores: Tensor) -> Tensor:
    """Classes ``(n,)``; one number an image is the score of a second class, beside a first that has 0."""
    rows = scores.reshape(scores.shape[0], -1)
    return (rows[:, 0] > 0).long() if rows.shape[1] == 1 else rows.argmax(1)


def producer(node: fx.Node) -> fx.Node:
    """What computes a value: of one of several results of an operator, that operator."""
    return node.args[0] if node.target is operator.getitem else node  # type: ignore[return-value]


def operator_of(node: fx.Node) -> str:
    return str(node.meta.get("onnx", {}).get("operator", ""))


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


def distance(a: Tensor, b: Tensor) -> float:
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
