"""What a report says of the trigger to each named class beyond its numbers: its form, where it acts, on how many images it was tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxspect.engine.judge.evidence import Evidence, Skipped, UnitEvidence, foremost
from onnxspect.engine.judge.kind import strength, strongest_box
from onnxspect.engine.judge.measurement import TRANSFER
from onnxspect.engine.judge.thresholds import HELD_OUT_SUCCESS
from onnxspect.engine.judge.verdict import Verdict, speaks_for
from onnxspect.engine.trigger import DELTA, DISPLACEMENT, MASK

#: A pixel counts as changed where the mask, or the change itself, is at least this share of its maximum.
CHANGED = 0.1


def measured(evidence: Sequence[Evidence | Skipped], verdict: Verdict) -> list[dict[str, Any]]:
    """A row a named class, in the order of the verdict, as plain JSON values."""
    return [_row(k, name, unit) for k in verdict.targets for name, unit in [telling(evidence, verdict, k)]]


def telling(evidence: Sequence[Evidence | Skipped], verdict: Verdict, k: int) -> tuple[str, UnitEvidence | None]:
    """The detector that names a class most certainly, and the unit that shows its trigger best: one that can be looked at, if any.

    Args:
        evidence: of all detectors.
        verdict: that names the class.
        k: the class.
    """
    p_values = verdict.classes[k].p_values
    speaking = [
        e for e in evidence if isinstance(e, Evidence) and e.detector in p_values and speaks_for(p_values, e.detector)
    ]
    speaking.sort(key=lambda e: p_values[e.detector])
    units = [(e.detector, u) for e in speaking if e.traits.leads_to_target for u in _carrying(e, k)]
    visible = [(d, u) for d, u in units if u.in_pixels]
    shown = next(iter([(d, u) for d, u in visible if _is_patch(u)] or visible or units), None)
    return shown or (speaking[0].detector if speaking else "", None)


def _is_patch(unit: UnitEvidence) -> bool:
    """Whether its trigger replaces whole pixels and nothing else, and works on unseen samples: then it looks like what was planted."""
    mask = unit.trigger.get(MASK)
    whole = mask is not None and bool(np.isin(mask, (0.0, 1.0)).all())
    return whole and (unit.held_out_success or 0.0) >= HELD_OUT_SUCCESS


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
