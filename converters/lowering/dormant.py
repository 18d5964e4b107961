"""Dormant logic: parts of a graph that depend on the image and are asleep on every clean one.

A search along gradients reaches what clean images excite. A part that is constant on all of them (a threshold that no
clean image passes, a ReLU of a sum that stays negative, a product of such) has no slope there, and may hold anything.
It is found without gradients, in three steps:

1. The graph runs on clean images and on shifted and mixed ones, one at a time. A value is *asleep* where it stays within
   a thousandth of what it could do (or a decision falls the same way), though what it is computed from moves.
2. What it could do is tried out on the node alone: its operands are moved by a few times their own spread. A value that
   stays the same then cannot wake at all (a weight of zero, a softmax over one element): harmless. One that answers a small move
   as it answers a large one has a slope, which searches follow: it is not asleep. Where operands sleep themselves they are moved as
   far as they could, all together: of a product of two that sleep neither does anything alone.
3. *Intervention*: the value is made to be what it could be, everything else stays. Where no answer moves, it is harmless
   too (a guard, a dead branch that nothing listens to).

A whole tensor is asleep, or, of a decision (true or false), an element: ordinary networks have single dead units, and whole
dead tensors hardly ever. Decisions that an activation function is written with (``Where(x > 0, x, a * x)``) are as smooth as
that function and not looked at by element. Of a tensor whose other units are awake a sleeping unit counts where it could move
the scores by ten times what any unit of the tensor that is awake does (the gradient of the scores at the unit, times what it
could do): a dead unit of an ordinary layer has weights like its neighbours'. And no unit counts that any of many further
clean images wakes (further.py).

An element of a decision counts where the others, as many of them turned round, move at most half as many answers: the units of a
network of signs decide as much each. A decision that a step along its own gradient does not turn guards a point that nothing comes
upon (``Where(norm > 0, x / norm, 0)``): harmless, where it is made of the very value that is chosen.

Interventions run what is behind the value alone. There are as many as so many runs of the whole graph take; what is left over is
named as untried, so that no crowd of decoys hides one. Where what is behind a value does not run with what it was made to be (an index out
of range, a shape), smaller values are tried in its place (replaced.py); where none moves an answer, the value is named too.

What this cannot see: a unit that sleeps beside one that is awake and does as much; a test for NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx
import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.disguise import Disguise
from onnxspect.converters.lowering.forcing import Led
from onnxspect.converters.lowering.further import untaken, wake_units
from onnxspect.converters.lowering.guards import guards
from onnxspect.converters.lowering.indices import Indices
from onnxspect.converters.lowering.intervention import FIRST, JUDGED, Woken, affordable
from onnxspect.converters.lowering.lower import LoweredModel
from onnxspect.converters.lowering.node_names import Names
from onnxspect.converters.lowering.observation import Seen, answers_of
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.program import Program, unchanged
from onnxspect.converters.lowering.regimes import Regimes
from onnxspect.converters.lowering.roots import rooted
from onnxspect.converters.lowering.taps import lying_between, results
from onnxspect.converters.lowering.trial import LISTENED, Tried, influence

#: How much is run to look for clean images that take a way, beyond the further ones, in runs of the whole graph.
_MOST_RUNS = 24.0


@dataclass(frozen=True)
class Dormant:
    """A part of the graph that sleeps on every clean image and can change the answers.

    Attributes:
        node: name of its ONNX node (or of the node's first output, where it has no name).
        operator: of that node.
        kind: "decision" (true or false), "value", "units" (of a value whose other elements are awake), "way" (of a nonlinear
            node: its value is awake, and goes one way only), "root" (a value that is the same whatever its operands do, but not whatever
            they are made of does), "index" (that points at some places only),
            or "disguise" (that is the same on all images but those of one class).
        moved: share of clean images whose answer changes when it is woken.
        leads_to: the class that most of these change to.
        place: where it is in the torch graph.
        frozen: of a way, where the file's value could be frozen without changing any clean answer.
    """

    node: str
    operator: str
    kind: str
    moved: float
    leads_to: int
    place: Place | None = field(default=None, repr=False, compare=False)
    frozen: Place | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Sleeping:
    """What was found.

    Attributes:
        dormant: in the graph's order; empty for ordinary networks.
        untried: names of the nodes that are asleep and were not woken, for want of time.
        not_run: names of the nodes that were forced to be what no clean image makes them, moved no answer where what follows runs, and
            were tried where it does not: what they do there is not known.
    """

    dormant: tuple[Dormant, ...] = ()
    untried: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()


def dormant(
    model: onnx.ModelProto,
    lowered: LoweredModel,
    clean: Sequence[Tensor],
    altered: Sequence[Tensor],
    further: Sequence[Tensor] = (),
    rest: Sequence[Tensor] = (),
    ends: tuple[Tensor, Tensor] | None = None,
) -> Sleeping:
    """Find the dormant parts between the image and the class scores.

    Args:
        model: the file that was lowered (for the names of its nodes).
        lowered: its torch graph, whose first output is the class scores.
        clean: batches as the model takes them, each of one image (or one group, of a file made for a fixed batch); at least two.
        altered: the same of images that were shifted and mixed.
        further: more clean ones, on which only what was found to sleep is looked at again.
        rest: more than those, on which what goes one way only is looked at for a while.
        ends: a batch of the least values that an input has, and one of the largest; None where nothing is known of them.
    """
    logits = results(lowered)[0]
    between = lying_between(lowered.module.graph, logits)
    program, names = Program(lowered.module), Names(lowered, model)
    seen = Seen(between, logits)
    with torch.no_grad():
        seen.run(program, clean, altered)
        clean = seen.differing(clean)
        tried = Tried(seen)
        program.run(clean[0], tried.observe)
        heard = influence(program, logits, tried, clean[:LISTENED])
        tried.listen(heard)
        wake_units(program, logits, tried, further)
        tried.listen(heard)
        suspects = {n: tried.suspects[n] for n in between if n in tried.suspects}
        harmless = guards(program, [n for n in suspects if n in seen.often], between, clean[:FIRST])
        suspects = {n: asleep for n, asleep in suspects.items() if n not in harmless}
        chosen, left = affordable(program, suspects)
        woken = Woken(program, logits, seen, chosen)
        effects = woken.effects(clean[:JUDGED])
        not_run = list(woken.not_run)
        more: list[tuple[fx.Node, str, Led, Place | None, Place | None]] = []
        if seen.tells_apart:
            regimes, indices, disguise = Regimes(between), Indices(between), Disguise(between)
            answers: list[int] = []
            for batch in clean:
                env = program.run(batch, disguise.observe, keep=True)
                answers.append(int(answers_of(env[logits])[0]))
            for batch in [*clean, *altered]:
                program.run(batch, lambda *given: indices.observe(given[0], regimes.observe(*given)))
            ways = untaken(program, logits, regimes.ways(program, logits, clean, ends), further)
            ways = untaken(program, logits, ways, rest, _MOST_RUNS)
            more = [(w.node, "way", w.led, w.place, w.frozen) for w in ways]
            roots, stuck = rooted(program, logits, seen, [*effects, *harmless], clean)
            more += [(r.node, "root", r.led, r.place, r.place) for r in roots]
            more += [
                (d.node, "disguise", d.led, d.place, None) for d in disguise.disguised(program, logits, answers, clean)
            ]
            more += [(p.node, "index", p.led, p.place, None) for p in indices.pointers(program, logits, clean)]
            not_run += [*regimes.not_run, *stuck, *disguise.not_run, *indices.not_run]
    found = []
    for node, effect in effects.items():
        what = "decision" if node in seen.often else "value" if suspects[node].all() else "units"
        with torch.no_grad():
            usual = program.run(clean[0], unchanged, until=node)[node]
        place = Place(node, suspects[node], usual, effect.way)
        found.append(Dormant(*names.of(node), what, effect.moved, effect.leads_to, place))
    found += [
        Dormant(*names.of(node), kind, effect.share, effect.leads_to, place, frozen)
        for node, kind, effect, place, frozen in more
        if node not in effects
    ]
    return Sleeping(tuple(found), names.once(left), names.once(not_run))
