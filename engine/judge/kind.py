"""What kind of backdoor the evidence suggests: a reading of the triggers that were recovered, not a measurement.

A recovered trigger is the smallest that works and not the attacker's own, so only coarse traits are informative:
whether it sits in one place or is spread over the image, whether it is a faint pattern or replaces pixels, whether it
works from all classes or from one, and whether *only* perturbations that differ from image to image found it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxspect.engine.judge.evidence import Evidence, UnitEvidence, foremost
from onnxspect.engine.judge.measurement import Search
from onnxspect.engine.trigger import DISPLACEMENT

#: What is not in the weights at all.
GRAPH_LOGIC = "a part of the graph that nothing but the trigger wakes (graph logic)"
#: Pixels that are moved.
WARP = "a warp, which moves pixels and leaves their values alone"
#: A change is called local where this share of its energy lies in a box of at most `LOCAL_AREA` of the image.
ENERGY, LOCAL_AREA = 0.8, 0.16
#: An additive pattern with a root mean square below this (of pixels in [0, 1]) is called faint: 12 of 255 levels.
FAINT = 0.047


def suggest_kind(target: int, evidence: Sequence[Evidence], agreeing: Sequence[str]) -> str:
    """In words, for a class that the verdict has named; "" where the evidence says nothing of its kind.

    Args:
        target: the class.
        evidence: of all detectors that ran.
        agreeing: names of the detectors that find the class suspicious.
    """
    if any(e.traits.tested and e.detector in agreeing for e in evidence):
        return GRAPH_LOGIC
    by_name = {e.detector: e for e in evidence if e.detector in agreeing}
    shared = any(_all_to_all(target, e) for e in by_name.values())
    changes = [
        (by_name[name].traits, unit, change)
        for name in agreeing
        if name in by_name
        for unit in _of(by_name[name], target, shared)[:1]
        for change in [strength(unit)]
        if change is not None
    ]
    if not changes:
        return ""
    common = [c for c in changes if not c[0].sample_wise]
    if not common:
        return "a change that differs from image to image, or a blend too strong for one pattern"
    _, unit, change = common[0]
    moves = DISPLACEMENT in unit.trigger
    words = [WARP] if moves else ["a local patch" if _local_area(change) <= LOCAL_AREA else _spread(unit, change)]
    if shared:
        words.append("that leads each class to another one (all-to-all)")
    elif unit.unit.source is not None:
        words.append(f"from class {unit.unit.source}")
    return " ".join(words)


def _all_to_all(target: int, evidence: Evidence) -> bool:
    """Whether one trigger, shared by all classes, leads to this class and to several others."""
    targets = {u.unit.target for u in evidence.units if u.unit.shared}
    return target in targets and len(targets) > 2


def _of(evidence: Evidence, target: int, shared: bool) -> list[UnitEvidence]:
    """Units that lead to the class, the most suspicious first."""
    own = [u for u in evidence.units if u.unit.target == target and u.found and u.unit.shared == shared]
    return foremost(own, evidence.statistic, Search.FULL)


def strength(unit: UnitEvidence) -> np.ndarray | None:
    """How strongly each place of the image is changed, or how far it is moved, ``(height, width)``; None where pixels are not changed."""
    if "mask" in unit.trigger:
        return np.asarray(unit.trigger["mask"], np.float64).max(0)
    if DISPLACEMENT in unit.trigger:
        return np.asarray(np.linalg.norm(np.asarray(unit.trigger[DISPLACEMENT], np.float64), axis=0))
    if "delta" in unit.trigger and np.ndim(unit.trigger["delta"]) == 3:
        return np.asarray(np.abs(np.asarray(unit.trigger["delta"], np.float64)).max(0))
    return None


def _local_area(change: np.ndarray) -> float:
    """Area of the `strongest_box`, as a share of the image."""
    top, left, bottom, right = strongest_box(change)
    return float((bottom - top) * (right - left) / change.size)


def strongest_box(change: np.ndarray) -> tuple[int, int, int, int]:
    """The box around the strongest places that hold `ENERGY` of the energy of a change ``(height, width)``.

    Returns:
        its first row and column, and those behind its last; the whole image where nothing is changed.
    """
    energy = change**2
    if energy.sum() <= 0:
        return 0, 0, *change.shape
    order = np.argsort(energy, axis=None)[::-1]
    enough = int(np.searchsorted(np.cumsum(energy.ravel()[order]), ENERGY * energy.sum())) + 1
    rows, columns = np.unravel_index(order[:enough], change.shape)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def _spread(unit: UnitEvidence, change: np.ndarray) -> str:
    if "delta" in unit.trigger and np.sqrt((change**2).mean()) < FAINT:
        return "a faint pattern added to the whole image"
    return "a pattern spread over the image (a blend, several patches or a sinusoid)"
