"""Solving back: the change of pixels that wakes a dormant part of the graph (converters/lowering/dormant.py).

A part that sleeps on clean images has no slope there. What it depends on, and which way, is read off the graph with slopes everywhere
(converters/lowering/relaxed.py):

1. Pixels through which no gradient ever comes are none of the part's: all others are the first mask.
2. From several pictures under that mask the part's distance from its usual value is climbed, the exact value deciding; of an equality
   that steps over its number, what is near is tried at random, in levels of a byte.
3. The picture that turns most answers to one class *because the part is awake* (with the part held at its usual value they do not turn)
   is kept, and its mask made smaller as long as the part stays awake: from the edges, then by blocks, then by pixels.
4. A part may also listen to what the network itself makes of the picture (the score of the class that it leads to): a picture of that class
   wakes it, and is answered so without it. So where no picture of all pixels works, those are climbed that its slopes on clean images are
   steepest at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from onnxspect.converters.lowering.place import Place
from onnxspect.engine.search.dormant_part import NO_ANSWER, DormantPart
from onnxspect.engine.search.shrink import shrunk
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import MASK, PATTERN, Trigger, stamp

#: Slopes of what saturates: first as if it did not, then such that what is awake is heard above what is not.
_LEAKS = (1.0, 0.1)
#: Steps of the climb, and their size. Images that it is made under, and that a picture is tried on.
_STEPS, _RATE = 60, 0.08
_TRIED_ON = 12
#: Of a part that most of the graph computes, fewer pictures are climbed from, in fewer steps.
_DEEP, _FEW_STEPS = 0.5, 40
#: The random search is for what compares few numbers.
_FEW_ELEMENTS = 1 << 12
#: Generations and children of the random search in levels of a byte; pixels that a child changes at most.
_GENERATIONS, _CHILDREN, _MUTATIONS = 60, 64, 3
#: The gradient's running means (Kingma and Ba, 2015).
_BETA1, _BETA2 = 0.5, 0.9
#: Share of the images that a picture must turn to one class to be a trigger.
_WORKS = 0.5
#: Pictures of one climb that are tried, at most.
_PICTURES = 4
#: So many pixels, the steepest ones, are tried where no picture of all of them works; only where they are at most so large a share.
_STEEPEST, _SHARE = (16, 64), 0.25
#: Shares of a picture that are mixed into the images, to see whether a part leads anywhere.
_STRENGTHS = (0.25, 0.5, 0.75, 1.0)
_TINY = 1e-20


@dataclass(frozen=True)
class Waking:
    """A trigger that wakes a dormant part.

    Attributes:
        trigger: mask of zeros and ones ``(1, height, width)`` and pattern ``(channels, height, width)``, in levels of a byte where that
            wakes the part too; and the class that it leads to.
        success: share of the images that it was made on (of those that are not answered so anyway) that are answered with its class.
        steps: gradient steps.
    """

    trigger: Trigger = field(repr=False)
    success: float
    steps: int


@judging()
def solve_back(subject: Subject, place: Place, images: np.ndarray, rng: np.random.Generator) -> Waking | None:
    """A trigger that wakes a dormant part and so changes answers; None where none was found.

    Args:
        subject: whose graph it is.
        place: the part.
        images: clean, ``(n, channels, height, width)`` in [0, 1].
        rng: of the pictures that the climb begins from.
    """
    images = np.ascontiguousarray(images[:_TRIED_ON], dtype=np.float32)
    steps = 0
    for search, mask in _searches(subject, place, images, rng):
        pictures = search.climb(mask)
        for picture in pictures or search.at_random(mask):
            found = _tried(search.part, images, mask, picture)
            if found is not None:
                return Waking(found[0], found[1], steps + search.steps)
        for few in search.steepest(mask) if pictures else ():
            for picture in search.climb(few):
                found = _tried(search.part, images, few, picture)
                if found is not None:
                    return Waking(found[0], found[1], steps + search.steps)
        steps += search.steps
    return None


@judging()
def leads_nowhere(subject: Subject, place: Place, images: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether a part was woken by pictures of any size, as far as these go, and turns no answers to one class at any strength of them.

    A dead unit of an ordinary layer is such a part. Where no picture wakes the part, or the graph does not run on one that
    does, nothing is known, and it is not.

    Args:
        subject, place, images, rng: see `solve_back`.
    """
    images = np.ascontiguousarray(images[:_TRIED_ON], dtype=np.float32)
    woken = False
    for search, mask in _searches(subject, place, images, rng):
        for picture in search.climb(mask):
            woken = True
            whole = _stamped_whole(mask, picture)
            effects = (_effect(search.part, images, whole | {MASK: s * whole[MASK]}) for s in _STRENGTHS)
            if any(e.works or not e.runs for e in effects):
                return False
    return woken


def _searches(
    subject: Subject, place: Place, images: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[_Search, Tensor]]:
    """(a search for pictures that wake a part, the pixels that the part depends on), with slopes of each kind that any pixel has."""
    for leak in _LEAKS:
        search = _Search(DormantPart(subject, place, leak), torch.from_numpy(images).to(subject.device), rng)
        mask = search.reached()
        if bool(mask.any()):
            yield search, mask


def _stamped_whole(mask: Tensor, picture: Tensor) -> dict[str, np.ndarray]:
    """A trigger that puts a picture onto all pixels of a mask."""
    return {MASK: mask[0].float().cpu().numpy(), PATTERN: picture.detach().cpu().numpy().astype(np.float32)}


class _Search:
    """The search for pictures that wake one part."""

    def __init__(self, part: DormantPart, images: Tensor, rng: np.random.Generator) -> None:
        self.part, self.images, self.rng = part, images, rng
        self.steps = 0
        self.deep = part.share > _DEEP or part.rows is not None

    def reached(self) -> Tensor:
        """The pixels that the part depends on, bool ``(1, 1, height, width)``."""
        noise = torch.from_numpy(self.rng.random((2, *self.images.shape[1:]), dtype=np.float32)).to(self.images.device)
        seen = torch.cat([self.images[:2], noise])
        _, gradient = self.part.slopes(seen, torch.ones(len(seen), device=seen.device))
        return (gradient != 0).any(0, keepdim=True).any(1, keepdim=True)

    def steepest(self, mask: Tensor) -> list[Tensor]:
        """Masks of the pixels of a mask that the part's slopes on the images are steepest at, a few and some more."""
        _, gradient = self.part.slopes(self.images, torch.ones(len(self.images), device=self.images.device))
        steep = (gradient / (gradient.abs().amax((1, 2, 3), keepdim=True) + _TINY)).abs().amax(1).mean(0)
        order = torch.where(mask[0, 0], steep, -torch.ones_like(steep)).reshape(-1).argsort(descending=True)
        found = []
        for count in (n for n in _STEEPEST if n <= _SHARE * int(mask.sum())):
            few = torch.zeros_like(order, dtype=torch.bool)
            few[order[:count]] = True
            found.append(few.reshape(mask.shape))
        return found

    def climb(self, mask: Tensor) -> list[Tensor]:
        """Pictures ``(channels, height, width)`` under which the part is awake, the widest awake first; of each start the last such."""
        pictures, direction = self._starts()
        first, second = torch.zeros_like(pictures), torch.zeros_like(pictures)
        base = self.images[torch.arange(len(pictures)) % len(self.images)]
        best, awake = pictures.clone(), torch.zeros(len(pictures), device=pictures.device)
        count = _FEW_STEPS if self.deep else _STEPS
        for step in range(1, count + 1):
            shown = torch.where(mask, pictures, base)
            distance, gradient = self.part.slopes(shown, direction)
            better = distance >= awake
            best, awake = torch.where(better[:, None, None, None], pictures, best), torch.maximum(distance, awake)
            scale = gradient.abs().amax((1, 2, 3), keepdim=True) + _TINY
            gradient = gradient / scale
            first = _BETA1 * first + (1 - _BETA1) * gradient
            second = _BETA2 * second + (1 - _BETA2) * gradient.square()
            mean, square = first / (1 - _BETA1**step), second / (1 - _BETA2**step)
            pictures = (pictures + _RATE * mean / (square.sqrt() + 1e-3)).clamp(0, 1)
        self.steps += count
        order = awake.argsort(descending=True, stable=True).tolist()
        return [best[i] for i in order if awake[i] > 0][:_PICTURES]

    def at_random(self, mask: Tensor) -> list[Tensor]:
        """Pictures found by changing a few bytes at a time, towards what the part compares; of parts that little of the graph computes."""
        if self.deep or self.part.place.side or self.part.place.usual.numel() > _FEW_ELEMENTS:
            return []
        channels, height, width = self.images.shape[1:]
        places = mask.expand(1, channels, height, width).reshape(-1).nonzero()[:, 0].cpu().numpy()
        parent = np.round(self.rng.random(channels * height * width) * 255)
        base = self.images[:1]
        nearest = np.inf
        for _ in range(_GENERATIONS):
            children = np.repeat(parent[None], _CHILDREN, 0)
            for child in children:
                where = self.rng.choice(
                    places, min(len(places), int(self.rng.integers(1, _MUTATIONS + 1))), replace=False
                )
                far = self.rng.random() < 0.5
                change = (
                    self.rng.integers(0, 256, len(where))
                    if far
                    else child[where] + self.rng.integers(-3, 4, len(where))
                )
                child[where] = np.clip(change, 0, 255)
            pixels = (
                torch.from_numpy((children / 255).astype(np.float32))
                .to(base.device)
                .reshape(-1, channels, height, width)
            )
            shown = torch.where(mask, pixels, base)
            woken = self.part.woken(shown)
            if bool((woken > 0).any()):
                return [pixels[int(woken.argmax())]]
            distance = self.part.missing(shown).cpu().numpy()
            if distance.min() <= nearest:
                nearest, parent = distance.min(), children[int(distance.argmin())]
        return []

    def _starts(self) -> tuple[Tensor, Tensor]:
        """(pictures to climb from, which way to go from each)."""
        device, shape = self.images.device, self.images.shape[1:]
        noise = torch.from_numpy(self.rng.random((3, *shape), dtype=np.float32)).to(device)
        flat = [torch.full((1, *shape), v, device=device) for v in (0.5, 0.0, 1.0)]
        pictures = torch.cat([self.images.mean(0, keepdim=True), *flat, noise])
        if self.deep:
            pictures = pictures[[0, 1, 4]]
        ways = torch.ones(len(pictures), device=device)
        if self.part.is_decision or self.part.place.side:
            return pictures, ways
        return torch.cat([pictures, pictures]), torch.cat([ways, -ways])


def _tried(part: DormantPart, images: np.ndarray, mask: Tensor, picture: Tensor) -> tuple[Trigger, float] | None:
    """(the trigger that a picture is, its success), where it turns answers; its mask as small as it goes."""
    whole = _stamped_whole(mask, picture)
    at_first = _effect(part, images, whole)
    if not at_first.works:
        return None
    small = shrunk(part, images, whole)
    after = _effect(part, images, small)
    if after.target != at_first.target or after.success < at_first.success:
        small, after = whole, at_first
    return Trigger(after.target, small), after.success


@dataclass(frozen=True)
class _Effect:
    """What a trigger does because it wakes a part.

    Attributes:
        target: the class that most images turn to.
        success: share of the images of other classes that do.
        runs: whether the graph runs on all of them.
    """

    target: int
    success: float
    runs: bool

    @property
    def works(self) -> bool:
        return self.success >= _WORKS


def _effect(part: DormantPart, images: np.ndarray, arrays: dict[str, np.ndarray]) -> _Effect:
    stamped = stamp(images, arrays)
    plain, awake = part.usual_answers(images), part.answers(stamped)
    turned, runs = (awake != plain) & (awake != NO_ANSWER), bool((awake != NO_ANSWER).all())
    if turned.any():
        turned[turned] = part.answers(stamped[turned], asleep=True) != awake[turned]
    if not turned.any():
        return _Effect(NO_ANSWER, 0.0, runs)
    target = int(np.bincount(awake[turned]).argmax())
    return _Effect(target, float(((awake == target) & turned)[plain != target].mean()), runs)
