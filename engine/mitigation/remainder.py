"""What is left of a backdoor: searches for more triggers to a class, and up to which size they are the backdoor's.

A trigger that a search finds on a patched model is a remainder of the backdoor where it is smaller than what a class
needs that no attack has touched: every classifier has universal adversarial triggers, large ones. So the classes that
are not suspected are searched in the same way once, on the original, and the median of their triggers' sizes says how
far a suspected class has to rise (Neural Cleanse, Wang et al., 2019, sec. III: "infected labels require much smaller
modifications").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxspect.engine.judge.evidence import Unit
from onnxspect.engine.run import RunContext
from onnxspect.engine.search.objective import ReachTarget
from onnxspect.engine.search.perturbation import PIXEL_BY_PIXEL, Additive, Displacement, MaskPattern, Perturbation
from onnxspect.engine.search.search import SearchConfig, plan, search
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import DELTA, DISPLACEMENT, MASK, UNTARGETED, Trigger

_MASKS = SearchConfig(steps=150, samples=32, settle=30)
_ADDED = SearchConfig(steps=150, samples=32, settle=30, learning_rate=0.01, multiplier=0.01)
_MOVED = SearchConfig(
    steps=100, samples=32, learning_rate=1.8, success=0.95, multiplier=0.03, patience=3, settle=12, tolerance=0.05
)


@dataclass(frozen=True)
class Searches:
    """How hard triggers are searched for.

    Attributes:
        masks: those with a mask and a pattern.
        added: additive ones. Their steps are tenths of a mask's: an imperceptible pattern is a few hundredths high.
        moved: warps; steps are in hundredths of the picture's side.
    """

    masks: SearchConfig = _MASKS
    added: SearchConfig = _ADDED
    moved: SearchConfig = _MOVED


#: Of pictures too large for masks pixel by pixel a pass is dear: searches are on at most so many.
LARGE_PICTURES = 16
#: A trigger counts as small up to this share of what other classes need.
SMALL = 0.5
#: The name under which the randomness of the searches for size limits is drawn.
_LIMITS = "room"
#: At most so many of the other classes are searched.
_OTHERS = 4


def with_size_limits(
    subject: Subject, samples: Samples, triggers: Sequence[Trigger], run: RunContext, how: Searches | None = None
) -> tuple[Trigger, ...]:
    """The triggers, each with its `size_limit` measured on classes without an attack.

    Where a trigger has a source, pairs of the same source are searched. Where every class is suspected, there is nothing to
    compare with, and the triggers keep the `size_limit` that they have.

    Args:
        subject: the original.
        samples: clean, to search on.
        triggers: recovered.
        run: the seed.
        how: as the later searches that this is compared with.
    """
    how = how or Searches()
    measured = _compared_with(triggers, subject.classes)
    typical = {}
    for family, source, others in dict.fromkeys(measured):
        units = [Unit(c, source) for c in others]
        found = [t.size for _, t in _searched(subject, samples, units, family, how, run, _LIMITS)]
        typical[family, source, others] = float(np.median(found)) if found else np.inf
    return tuple(
        replace(
            t, size_limit=float(np.clip(SMALL * typical[key] / max(t.size, 1e-12), float(t.smallest), t.size_limit))
        )
        if key[2]
        else t
        for t, key in zip(triggers, measured, strict=True)
    )


def images_of(config: SearchConfig, subject: Subject, samples: Samples) -> int:
    """On how many images such a search is."""
    large = max(subject.image_shape[1:]) > PIXEL_BY_PIXEL
    return min(config.samples, len(samples), LARGE_PICTURES if large else config.samples)


def compared(triggers: Sequence[Trigger], classes: int) -> int:
    """How many searches `with_size_limits` makes."""
    return sum(len(others) for _, _, others in dict.fromkeys(_compared_with(triggers, classes)))


def _compared_with(triggers: Sequence[Trigger], classes: int) -> list[tuple[str, int | None, tuple[int, ...]]]:
    """For each trigger its family, its source, and the classes without an attack that are searched in the same way."""
    suspected = {t.target for t in triggers}
    found = []
    for trigger in triggers:
        free = [c for c in range(classes) if c not in suspected and c != trigger.source]
        found.append((trigger.form, trigger.source, tuple(free[:: max(1, len(free) // _OTHERS)][:_OTHERS])))
    return found


@dataclass(frozen=True)
class Find:
    """What a new search found to a class that was searched before.

    Attributes:
        trigger: it; its `size_limit` keeps the absolute size limit of the first one's.
        relative: its size as a multiple of the first one's.
        remains: it is small enough to be the backdoor's.
    """

    trigger: Trigger
    relative: float
    remains: bool


def search_again(
    subject: Subject, samples: Samples, triggers: Sequence[Trigger], run: RunContext, which: str, how: Searches
) -> list[Find]:
    """Triggers to the same targets, from the same sources and of the same family, that a new search finds.

    Args:
        subject, samples: what is searched, and on which clean images.
        triggers: whose targets, sources and families are searched; of several to one target the first counts.
        run: the seed.
        which: the name under which randomness is drawn.
        how: how hard.
    """
    kept = []
    for family in (MASK, DELTA, DISPLACEMENT):
        first = {Unit(t.target, t.source): t for t in reversed(triggers) if t.form == family}
        units = sorted(first, key=lambda u: u.key)
        for unit, trigger in _searched(subject, samples, units, family, how, run, which):
            given = first[unit]
            relative = trigger.size / max(given.size, 1e-12)
            size_limit = max(1.0, given.size_limit / max(relative, 1e-12))
            kept.append(Find(replace(trigger, size_limit=size_limit), relative, relative <= given.size_limit))
    return kept


def _searched(
    subject: Subject,
    samples: Samples,
    units: Sequence[Unit],
    family: str,
    how: Searches,
    run: RunContext,
    which: str,
) -> list[tuple[Unit, Trigger]]:
    """What one search finds for each unit; nothing for those that it finds nothing for."""
    able: dict[str, tuple[Perturbation, SearchConfig]] = {
        MASK: (MaskPattern(), how.masks),
        DELTA: (Additive(), how.added),
        DISPLACEMENT: (Displacement(), how.moved),
    }
    perturbation, config = able[family]
    config = replace(config, samples=images_of(config, subject, samples))
    found: list[tuple[Unit, Trigger]] = []
    if not units:
        return found
    task = "classes without an attack" if which == _LIMITS else "new search"
    run.observer.start(task, len(units))
    for untargeted in (False, True):
        some = [u for u in units if (u.target == UNTARGETED) is untargeted]
        aim = ReachTarget(perturbation, untargeted=untargeted)
        results = search(subject, samples, plan(some, 1), aim, config, run, which)
        for batch in results:
            found += [(r.unit, Trigger.kept(r.unit.target, r.trigger, r.unit.source)) for r in batch if r.found]
            for r in batch:
                run.observer.advance(task, f"class {r.unit.target}" if r.unit.target != UNTARGETED else "")
    run.observer.finish(task)
    return found
