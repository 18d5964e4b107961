"""One trigger for all classes, wherever it leads: how all-to-all backdoors are found.

An all-to-all attack (BadNets, Gu et al., 2017: class s goes to s + 1) makes *every* class a target, by one trigger. A
search for each target finds nothing (no trigger leads all classes to one), and where all pairs (s, s + 1) are easy,
none of them stands out. But one trigger that takes images out of whatever class they are in needs no target: it is
searched for with the loss -log(1 - p_own), once a model, and where it leads is read off afterwards. On a clean model
that is a universal perturbation, as large as those to one class are; on an infected one it is the attacker's trigger,
for all-to-one attacks too.

Its cost is one value a model. It is judged against the K values of the targeted searches (`Search.SHARED`), all of them
relative to clean references where there are any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxspect.engine.detectors.base import AtHand, present_classes, search_with_references
from onnxspect.engine.judge.evidence import Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.search.objective import ReachTarget
from onnxspect.engine.search.search import SearchConfig
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import UNTARGETED, stamp

#: A class is led to another one where more than this share of its images arrive there.
TOGETHER = 0.5
#: At most so many images are searched on, and at least two of every class up to there.
MOST_IMAGES = 256
#: The shared trigger is one hypothesis beside the K classes: its weight in the multiplicity correction.
WEIGHT = 0.1


@dataclass(frozen=True)
class Destination:
    """Where a trigger leads the images of one class.

    Attributes:
        target: the class that most of them arrive at.
        share: of the class's images, in (TOGETHER, 1].
        images: how many were tested.
    """

    target: int
    share: float
    images: int


def shared_trigger(
    name: str,
    at_hand: AtHand,
    objective: ReachTarget,
    config: SearchConfig,
    statistic: str,
    drawn_as: str,
    held_out: int,
) -> list[UnitEvidence]:
    """Search for one trigger that takes every class to another one; one row for each class that it does take somewhere.

    All rows share trigger and cost, and are marked as shared. There are none where
    nothing was found, or where the images of no class arrive together; nor is it searched for where half of the classes
    have no samples.

    Args:
        name: of the detector.
        at_hand: what there is.
        objective: as for targeted searches.
        config: how hard; more images are taken where there are many classes.
        statistic: that a cost is.
        drawn_as: the name that randomness is drawn under.
        held_out: where it leads is measured on at most so many unseen samples; without any, on those of the search.
    """
    if 2 * len(present_classes(at_hand.search_samples)) <= at_hand.subject.classes:
        return []
    images = min(max(config.samples, 2 * at_hand.subject.classes), MOST_IMAGES)
    found = search_with_references(
        f"{name} untargeted",
        at_hand,
        [Unit(UNTARGETED)],
        replace(objective, untargeted=True),
        replace(config, samples=images),
        replace(config, samples=max(1, images // 2)),
        statistic,
        Search.SHARED,
        0,
        drawn_as,
    )[0]
    if not found.found:
        return []
    unseen = at_hand.held_out if len(at_hand.held_out) else at_hand.search_samples
    map_ = leads_to(at_hand.subject, found.trigger, unseen.take(np.arange(min(len(unseen), held_out or len(unseen)))))
    rows: list[UnitEvidence] = []
    for source, there in sorted(map_.items()):
        if there.target not in at_hand.targets:
            continue
        measured = there.share if len(at_hand.held_out) else None
        unit = Unit(there.target, source, shared=True)
        row = replace(found, unit=unit, held_out_success=measured, held_out=there.images if measured is not None else 0)
        rows.append(row if not rows else replace(row, steps=0, seconds=0.0))  # the search was one
    return rows


def leads_to(subject: Subject, trigger: Mapping[str, np.ndarray], samples: Samples) -> dict[int, Destination]:
    """Where a trigger leads each class whose images go together; only the main destination of an all-to-one trigger.

    Where more than half of these classes arrive at one class, that is the attack's target, and where the target's own
    images go says nothing.

    Args:
        subject: the classifier.
        trigger: mask and pattern, or delta.
        samples: clean images of all classes; those that the subject gets wrong are left out.
    """
    if not len(samples):
        return {}
    right = np.flatnonzero(subject.predict(samples.images).argmax(1) == samples.labels)
    if not len(right):
        return {}
    labels = samples.labels[right]
    answers = subject.predict(stamp(samples.images[right], trigger)).argmax(1)
    led = {}
    for source in np.unique(labels).tolist():
        own = answers[labels == source]
        counts = np.bincount(own[own != source], minlength=subject.classes)
        target = int(counts.argmax())
        if counts[target] > TOGETHER * len(own):
            led[source] = Destination(target, float(counts[target] / len(own)), len(own))
    main, times = Counter(d.target for d in led.values()).most_common(1)[0] if led else (0, 0)
    return {s: d for s, d in led.items() if 2 * times <= len(led) or d.target == main}


def shared_view(statistic: str) -> View:
    """The view of a shared trigger's cost against those of the targeted searches."""
    return View(statistic, search=Search.SHARED, weight=WEIGHT)
