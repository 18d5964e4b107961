"""Ways of a nonlinear node that no image takes: a value may be awake on clean images, and hide what only another way of its node shows.

``Max(h, K (t - 8.9))`` is `h` on every clean image; where `h` is taken off again further on, nothing that the graph computes is asleep,
and still a trigger makes it something else. So does a channel of a wide layer that is dead, or one side of an Abs. What all of these
have in common: on every image the node is *linear* in an operand (its derivative is the same number), though it need not be.

1. The derivative of every nonlinear node is taken by channel (or by element, of few), on clean, shifted and mixed images. Channels
   whose derivative is always the same have ways that were never taken.
2. What another way would do: the operand moves by several times its own spread, and what the value then differs by from the linear
   continuation is the rest that no clean image shows.
3. The rests that could move the scores most, by slopes that go through what sleeps (relaxed.py), are put onto the value, everything else
   staying. A finding brings most clean images to one class, and twice as many as channels beside it do that are awake and
   are moved as far: dead channels of ordinary layers weigh what their neighbours weigh.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from onnxspect.converters.lowering.bounds import Interval, all_bounds
from onnxspect.converters.lowering.channels import (
    CHOOSING,
    ELEMENTWISE,
    FEW,
    by_channel,
    by_element,
    channels_of,
    derivative,
    looked_at,
    only,
    operand_of,
    rest_of,
    value_of,
)
from onnxspect.converters.lowering.forcing import Forced, Led, led
from onnxspect.converters.lowering.never import never_taken
from onnxspect.converters.lowering.observation import operator_of, producer
from onnxspect.converters.lowering.place import Place
from onnxspect.converters.lowering.program import Program, unchanged
from onnxspect.converters.lowering.relaxed import Relaxed

#: The operand is moved by so many times its own spread, up and down.
_REACH = 3.0
#: Derivatives are the same where they differ by less than this share of the largest.
_SAME = 1e-4
#: Ways that are tried: of a node, and in all; awake channels that they are compared with.
_OF_NODE, _IN_ALL, _CONTROLS = 2, 24, 5
#: What could move the scores so many times more than any awake channel needs no other comparison; awake channels so many times louder
#: than the middle one are none of the usual (two of them that cancel can be put there to hide one that is not awake).
_LOUDER, _OUTLYING = 10.0, 30.0
#: Levels at which it is tried how far an operand goes before its node leaves its way.
_LEVELS = 24
#: Images whose slopes say what could move the scores most; directions in the scores.
_LISTENED, _DIRECTIONS = 2, 3


@dataclass(frozen=True, eq=False)
class Way:
    """A way that no clean image takes.

    Attributes:
        node: the nonlinear node.
        channel: which channel of it (of its operand, where it chooses).
        led: what forcing it does.
        place: the channel of the operand, beyond which the node goes another way.
        frozen: the channel of the value, where that is the same on all images.
        reach: how far the operand was moved to force it.
    """

    node: fx.Node
    channel: int
    led: Led
    place: Place
    frozen: Place | None
    reach: float


@dataclass
class _Range:
    """Of one operand of one node, by channel: the derivative, the operand and the value, least and largest over images and positions."""

    slope: tuple[Tensor, Tensor]
    operand: tuple[Tensor, Tensor]
    value: tuple[Tensor, Tensor] | None

    def joined(self, other: _Range) -> _Range:
        value = None
        if self.value is not None and other.value is not None:
            value = _hull(self.value, other.value)
        return _Range(_hull(self.slope, other.slope), _hull(self.operand, other.operand), value)

    @property
    def one_way(self) -> Tensor:
        """Channels whose derivative is always the same though the operand moves, bool."""
        low, high = self.slope
        most = max(float(torch.maximum(low.abs(), high.abs()).max()), 1e-30)
        return ((high - low) <= _SAME * most) & (self.spread > 0)

    def silent(self, channel: int) -> bool:
        """Whether a channel of the value is the same on all images."""
        return self.value is not None and bool(self.value[0][channel] == self.value[1][channel])

    @property
    def spread(self) -> Tensor:
        return self.operand[1] - self.operand[0]


def _hull(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])


class Regimes:
    """Looks at the derivatives of nonlinear nodes while images run through the graph."""

    def __init__(self, between: Mapping[fx.Node, int]) -> None:
        self.between = between
        self.ranges: dict[tuple[fx.Node, int], _Range] = {}
        self.failed: set[fx.Node] = set()
        self.several: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        #: Nodes that were made to go another way, which led nowhere; but what follows does not run everywhere.
        self.not_run: list[fx.Node] = []

    def observe(self, node: fx.Node, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Keep the derivatives of one node."""
        if isinstance(result, (tuple, list)):
            self.several[node] = args, kwargs  # the operands of its results, which are nodes of their own
        if node in self.failed or node not in self.between or not isinstance(result, Tensor):
            return result
        if operator_of(node) not in ELEMENTWISE and operator_of(node) not in CHOOSING:
            return result
        if not result.is_floating_point():
            return result
        args, kwargs = self.several.get(producer(node), (args, kwargs))
        for position, operand in enumerate(args):
            if not _moves(node, position, operand, self.between):
                continue
            try:
                slope = derivative(node, position, args, kwargs)
                seen = _Range(
                    by_channel(node, slope),
                    by_channel(node, operand),
                    by_channel(node, result) if result.shape == operand.shape else None,
                )
            except (RuntimeError, TypeError, IndexError):
                self.failed.add(node)
                return result
            known = self.ranges.get((node, position))
            if known is not None and known.slope[0].shape != seen.slope[0].shape:
                self.failed.add(node)
            else:
                self.ranges[node, position] = seen if known is None else known.joined(seen)
        return result

    def ways(
        self, program: Program, logits: fx.Node, clean: Sequence[Tensor], ends: tuple[Tensor, Tensor] | None = None
    ) -> list[Way]:
        """Ways that no image takes and that lead to a class, in the graph's order.

        Args:
            program: of the graph.
            logits: its class scores.
            clean: batches, those first that are answered differently.
            ends: the least and the largest input, where ways that no such input takes (never.py) are to be left out.
        """
        tries = self.tries(program, logits, clean, ends)
        forcing = led(program, logits, tries, clean)
        self.not_run = [tries[t].node for t in forcing.not_run]
        found: dict[tuple[fx.Node, int], Way] = {}
        forcing = led(program, logits, tries, clean)
        self.not_run = [tries[t].node for t in forcing.not_run]
        for index, effect in forcing.led.items():
            node, (position, channel, sign) = tries[index].node, tries[index].note
            known = found.get((node, channel))
            if known is None or known.led.share < effect.share:
                env = program.run(clean[0], unchanged, keep=True)
                known_range = self.ranges[node, position]
                places = _place(node, position, channel, sign, known_range, env)
                reach = _REACH * float(known_range.spread[channel])
                found[node, channel] = Way(node, channel, effect, *places, reach)
        return sorted(found.values(), key=lambda w: self.between[w.node])

    def tries(
        self, program: Program, logits: fx.Node, clean: Sequence[Tensor], ends: tuple[Tensor, Tensor] | None = None
    ) -> list[Forced]:
        """What is forced (see `ways`), that which could move the scores most first; noted: operand, channel, which way."""
        likely = {(n, p): r for (n, p), r in self.ranges.items() if n not in self.failed and bool(r.one_way.any())}
        if not likely:
            return []
        bounds = all_bounds(program, [operand_of(n, p) for n, p in likely], *ends) if ends is not None else {}
        ranked = _ranked(program, logits, self.between, likely, clean[:_LISTENED], bounds)
        return [t for _, t in ranked[:_IN_ALL]]


def _place(
    node: fx.Node, position: int, channel: int, sign: float, known: _Range, env: Mapping[fx.Node, Any]
) -> tuple[Place, Place | None]:
    """(the operand's channel, beyond which the node goes another way; the value's channel, where it is the same on all images)."""
    source = operand_of(node, position)
    mask = only(node, env[source], channel)
    limit = torch.where(mask, _limit(node, position, mask, sign, known, channel, env), env[source])
    slope = torch.where(mask, known.slope[1][channel].to(limit), torch.zeros_like(limit))
    place = Place(source, mask, limit, "up" if sign > 0 else "down", 1 if sign > 0 else -1, node, slope)
    frozen = Place(node, only(node, env[node], channel), env[node], place.way) if known.silent(channel) else None
    return place, frozen


def _limit(
    node: fx.Node, position: int, mask: Tensor, sign: float, known: _Range, channel: int, env: Mapping[fx.Node, Any]
) -> Tensor:
    """How far the operand's channel goes before the node leaves its way, from the farthest that an image took it, about."""
    x = env[operand_of(node, position)]
    farthest, spread = known.operand[1 if sign > 0 else 0][channel].to(x), known.spread[channel].to(x)
    level = farthest
    for part in range(1, _LEVELS + 1):
        further = farthest + sign * _REACH * spread * (part / _LEVELS)
        value, rest = rest_of(node, position, env, torch.where(mask, further - x, torch.zeros_like(x)), True)
        if bool((rest.abs() > _SAME * (1e-6 + value.abs().amax())).any()):
            break
        level = further
    return level


def continued(place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What the node behind a place answers where it goes on as on clean images, however far the operand is.

    Args:
        place: of an operand that stays on one side of something.
        args, kwargs: of the operator that reads it.
    """
    node = place.through
    assert node is not None
    assert place.slope is not None
    position = next(i for i, a in enumerate(producer(node).args) if a is place.node)
    x: Tensor = args[position]
    held = place.held(x)
    result = value_of(node, (*args[:position], held, *args[position + 1 :]), kwargs)
    beyond = (x - held) * place.slope
    return result + beyond if result.shape == x.shape else result


def _moves(node: fx.Node, position: int, operand: Any, between: Mapping[fx.Node, int]) -> bool:
    """Whether an operand is a floating-point value that depends on the image."""
    maker = producer(node)
    if not isinstance(operand, Tensor) or not operand.is_floating_point() or position >= len(maker.args):
        return False
    source = maker.args[position]
    return isinstance(source, fx.Node) and source in between and operand.ndim >= 2


def _ranked(
    program: Program,
    logits: fx.Node,
    between: Mapping[fx.Node, int],
    likely: Mapping[tuple[fx.Node, int], _Range],
    images: Sequence[Tensor],
    bounds: Mapping[fx.Node, Interval],
) -> list[tuple[float, Forced]]:
    """What is tried, that which could move the scores most first."""
    relaxed = Relaxed(program, logits, between, 1.0)
    nodes = list(dict.fromkeys(n for n, _ in likely))
    slopes, exact = _influence(relaxed, nodes, images)
    ranked = []
    for (node, position), known in likely.items():
        if node not in slopes:
            continue
        candidates = known.one_way.nonzero()[:, 0].tolist()
        source = operand_of(node, position)
        look = functools.partial(looked_at, node, position, exact)
        never = never_taken(node, source, between, exact[source], look, bounds)
        scored = _scores(node, position, known, exact, slopes[node], candidates, never=never)
        scored.sort(key=lambda s: -s[0])
        # Of dead channels, and of others, some each: what always listens is often louder, and hides none.
        dead = [c for c in scored if known.silent(c[1])][:_OF_NODE]
        scored = dead + [c for c in scored if not known.silent(c[1])][:_OF_NODE]
        awake = _awake_beside(node, position, known, exact, slopes[node])
        loudest = awake[0][0] if awake else 0.0
        singles = [False]
        if slopes[node].ndim == 4 and not by_element(node, exact[operand_of(node, position)]):
            singles.append(True)
        for single in singles:
            # The same for all of them, so that they are run once.
            beside = tuple(_maker(node, position, known, c, s, single, False, slopes[node]) for _, c, s in awake)
            for score, channel, sign in scored:
                make = _maker(node, position, known, channel, sign, single, True, slopes[node])
                controls = beside if score <= _LOUDER * loudest else ()
                ranked.append((score, Forced(node, make, controls, (position, channel, sign))))
    ranked.sort(key=lambda s: -s[0])
    return ranked


def _awake_beside(
    node: fx.Node, position: int, known: _Range, env: Mapping[fx.Node, Any], slope: Tensor
) -> list[tuple[float, int, float]]:
    """The awake channels that could move the scores most, but for those that are far louder than most."""
    awake = (~known.one_way & (known.spread > 0)).nonzero()[:, 0].tolist()
    scored = sorted(_scores(node, position, known, env, slope, awake, False), key=lambda s: -s[0])
    if not scored:
        return []
    usual = _OUTLYING * scored[len(scored) // 2][0]
    return [s for s in scored if s[0] <= usual][:_CONTROLS]


def _scores(
    node: fx.Node,
    position: int,
    known: _Range,
    env: Mapping[fx.Node, Any],
    slope: Tensor,
    channels: Sequence[int],
    straight: bool = True,
    never: Mapping[float, Tensor] | None = None,
) -> list[tuple[float, int, float]]:
    """(how far the scores could move, channel, which way) of each channel; but for elements that never go that way."""
    x = env[operand_of(node, position)]
    found = []
    with torch.no_grad():
        value_shape = slope.shape
        if value_shape == x.shape and operator_of(node) in ELEMENTWISE:
            step = _REACH * _spread_over(node, x, known)
            for sign in (1.0, -1.0):
                _, rest = rest_of(node, position, env, sign * step, straight)
                heard = (rest.nan_to_num(0.0) * slope).abs()
                each = channels_of(node, heard.masked_fill(never[sign], 0.0) if never else heard).amax(1)
                found += [(float(each[c]), c, sign) for c in channels]
        else:
            for c in channels[:FEW]:
                step = _REACH * _spread_over(node, x, known) * only(node, x, c)
                for sign in (1.0, -1.0):
                    _, rest = rest_of(node, position, env, sign * step, straight)
                    found.append((float((rest.nan_to_num(0.0) * slope).abs().amax()), c, sign))
    best: dict[int, tuple[float, int, float]] = {}
    for item in found:
        if item[0] > 0 and (item[1] not in best or best[item[1]][0] < item[0]):
            best[item[1]] = item
    return list(best.values())


def _spread_over(node: fx.Node, x: Tensor, known: _Range) -> Tensor:
    """The spread of each element's channel, in the operand's shape."""
    spread = known.spread.to(x)
    if by_element(node, x):
        return spread.reshape(1, *x.shape[1:]).expand_as(x)
    axis = x.ndim - 1 if x.ndim == 3 else 1
    return spread.reshape([-1 if i == axis else 1 for i in range(x.ndim)]).expand_as(x)


def _maker(
    node: fx.Node, position: int, known: _Range, channel: int, sign: float, single: bool, straight: bool, slope: Tensor
) -> Any:
    """What the node is made to be: its value and the rest of one channel, at all positions or at the one that is heard most."""

    def make(env: Mapping[fx.Node, Any]) -> Tensor | None:
        x = env[operand_of(node, position)]
        mask = only(node, x, channel)
        if single:
            heard = torch.where(mask, slope.abs(), torch.zeros_like(slope)) if slope.shape == mask.shape else None
            if heard is None:
                return None
            flat = torch.zeros(heard[:1].numel(), dtype=torch.bool, device=heard.device)
            flat[heard.amax(0).reshape(-1).argmax()] = True
            mask = mask & flat.reshape(1, *heard.shape[1:])
        value, rest = rest_of(node, position, env, sign * _REACH * _spread_over(node, x, known) * mask, straight)
        return value + rest.nan_to_num(0.0)

    return make


def _influence(
    relaxed: Relaxed, nodes: Sequence[fx.Node], images: Sequence[Tensor]
) -> tuple[dict[fx.Node, Tensor], dict[fx.Node, Any]]:
    """(how strongly the scores hang on each element of a value, with slopes through what sleeps; the values of the first image)."""
    generator = torch.Generator().manual_seed(0)
    total: dict[fx.Node, Tensor] = {}
    first: dict[fx.Node, Any] = {}
    for batch in images:
        env, exact = relaxed.values(batch.detach().requires_grad_(True))
        first = first or dict(exact)
        scores = env[relaxed.end]
        wanted = [n for n in nodes if isinstance(env.get(n), Tensor) and env[n].requires_grad]
        if not wanted or not scores.requires_grad:
            continue
        for _ in range(_DIRECTIONS):
            signs = torch.randint(0, 2, scores.shape, generator=generator).to(scores) * 2 - 1
            gradients = torch.autograd.grad(
                scores, [env[n] for n in wanted], grad_outputs=signs, retain_graph=True, allow_unused=True
            )
            for node, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None and (node not in total or total[node].shape == gradient.shape):
                    total[node] = total.get(node, 0.0) + gradient.nan_to_num(0.0).square()
    return {n: t.sqrt() for n, t in total.items()}, first
