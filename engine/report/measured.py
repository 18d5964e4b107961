"""What a report says of the trigger to each named class beyond its numbers: its form, where it acts, on how many images it was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxspect.engine.judge.evidence import Evidence, Skipped, UnitEvidence, foremost
from onnxspect.engine.judge.kind import strength, strongest_box
from onnxspect.engine.judge.measurement import TRANSFER
from onnxspect.engine.judge.suspicion import NATURAL
from onnxspect.engine.judge.thresholds import HELD_OUT_SUCCESS
from onnxspect.engine.judge.traits import Family
from onnxspect.engine.judge.verdict import Verdict, speaks_for
from onnxspect.engine.trigger import DELTA, DISPLACEMENT, MASK

#: A pixel counts as changed where the mask, or the change itself, is at least this share of its maximum.
CHANGED = 0.1
#: Another kind of change is clearly more certain where its p-value's logarithm is so many times that of the best patch. History: docs/decisions.md.
CLEARLY = 1.25
#: Families whose trigger is one change of all images.
_OF_ONE_CHANGE = (Family.REPLACED, Family.ADDED, Family.MOVED)


def measured(evidence: Sequence[Evidence | Skipped], verdict: Verdict) -> list[dict[str, Any]]:
    """A row a named class, in the order of the verdict, as plain JSON values."""
    return [_row(k, name, unit) for k in verdict.targets for name, unit in [telling(evidence, verdict, k)]]


def telling(evidence: Sequence[Evidence | Skipped], verdict: Verdict, k: int) -> tuple[str, UnitEvidence | None]:
    """The detector that names a class most certainly, and the unit that shows its trigger best: one that can be looked at, if any.

    A patch of whole pixels that works by itself is shown before the smallest mask to the same class, since it looks like what was planted; but not
    where a change of another kind (added, moved) is clearly more certain, which may have a patch beside it.

    Args:
        evidence: of all detectors.
        verdict: that names the class.
        k: the class.
    """
    p_values = verdict.classes[k].p_values
    able = [e for e in evidence if isinstance(e, Evidence) and e.detector in p_values]
    able.sort(key=lambda e: p_values[e.detector])
    speaking = [e for e in able if speaks_for(p_values, e.detector)]
    units = [(e.detector, u) for e in speaking if e.traits.leads_to_target for u in _carrying(e, k)]
    visible = [(d, u) for d, u in units if u.in_pixels]
    patches = [(e.detector, u) for e in able if e.traits.leads_to_target for u in _carrying(e, k) if _is_patch(u)]
    if patches and _replaces(able, p_values):
        return patches[0]
    shown = next(iter(visible or units), None)
    return shown or (speaking[0].detector if speaking else "", None)


def _is_patch(unit: UnitEvidence) -> bool:
    """Whether its trigger replaces whole pixels and leaves the others, works on unseen samples, and is no feature of the class by nature."""
    mask, natural = unit.trigger.get(MASK), unit.measurement(TRANSFER)
    whole = mask is not None and bool(np.isin(mask, (0.0, 1.0)).all())
    works = (unit.held_out_success or 0.0) >= HELD_OUT_SUCCESS
    return whole and works and (natural is None or natural.value < NATURAL)


def _replaces(able: Sequence[Evidence], p_values: Mapping[str, float]) -> bool:
    """Whether no change of another kind is clearly more certain than one that replaces pixels."""
    least = dict.fromkeys((False, True), 0.0)
    for e in able:
        if e.traits.family in _OF_ONE_CHANGE:
            replaced = e.traits.family is Family.REPLACED
            least[replaced] = min(least[replaced], float(np.log10(max(p_values[e.detector], 1e-300))))
    return least[False] >= CLEARLY * least[True]


def _carrying(evidence: Evidence, k: int) -> list[UnitEvidence]:
    """Units that lead to a class, the most informative first; those that hold on unseen samples before the others."""
    own = foremost([u for u in evidence.units if u.unit.target == k and u.found], evidence.paper_statistic)
    return sorted(own, key=lambda u: (u.held_out_success or 0.0) < HELD_OUT_SUCCESS)


def _row(k: int, detector: str, unit: UnitEvidence | None) -> dict[str, Any]:
    row: dict[str, Any] = {"class": k, "detector": detector, "form": "none", "source": None, "shared": False}
    row |= {"held_out": 0, "held_out_success": None, "on_references": None, "size": None, "box": None, "changed": None}
    if unit is None:
        return row
    row |= {"source": unit.unit.source, "shared": unit.unit.shared, "form": "inner", "held_out": unit.held_out}
    row["held_out_success"] = unit.held_out_success
    on_references = unit.measurement(TRANSFER)
    row["on_references"] = None if on_references is None else on_references.value
    change = strength(unit)
    if change is not None:
        row["form"] = next(form for form in (MASK, DISPLACEMENT, DELTA) if form in unit.trigger)
        row["size"] = list(change.shape)
        top, left, bottom, right = strongest_box(change)
        row["box"] = {"top": top, "left": left, "height": bottom - top, "width": right - left}
        row["changed"] = round(float((change >= CHANGED * max(float(change.max()), 1e-12)).mean()), 4)
    return row


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What changed between two images ``(channels, height, width)``, on middle grey and stretched so that it can be seen."""
    change = after - before
    return np.asarray(0.5 + 0.5 * change / max(float(np.abs(change).max()), 1e-9))
