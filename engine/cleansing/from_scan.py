"""The triggers of a finished scan, as far as a cleansing needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxspect.engine.cleansing.by_presence import PRESENCE, TRIGGER_BEARING
from onnxspect.engine.cleansing.by_trigger import REMOVE, SUPERIMPOSE, Found
from onnxspect.engine.cleansing.estimation import Choose, as_found
from onnxspect.engine.judge.evidence import UnitEvidence
from onnxspect.engine.judge.verdict import speaks_for
from onnxspect.engine.subject.finished_scan import FinishedScan
from onnxspect.engine.trigger import DISPLACEMENT


def triggers(
    scan: FinishedScan, targets: Sequence[int], choose: Choose | None, usual: Callable[[int], np.ndarray]
) -> dict[str, list[Found]]:
    """For every target its DTInspector patch, what its training samples have that clean ones have not, what each search found
    that a sample may carry, and the one of its additive patterns that fits the training set; of the last none, where nothing
    is there to choose.

    Args:
        scan: the scan.
        targets: classes.
        choose: among additive patterns.
        usual: the mean of the training samples that are *not* labelled to a class ``(channels, height, width)``.
    """
    found: dict[str, list[Found]] = {REMOVE: [], SUPERIMPOSE: [], TRIGGER_BEARING: [], PRESENCE: []}
    searched = [name for name in scan.units if name not in (SUPERIMPOSE, PRESENCE)]
    for target in targets:
        patches = [u for u in _to(scan, SUPERIMPOSE, target) if {"mask", "pattern"} <= set(u.trigger)]
        found[SUPERIMPOSE] += [as_found(u) for u in patches[:1]]
        found[PRESENCE] += [
            replace(as_found(u), strength=1.0, difference=np.asarray(u.trigger["difference"]))
            for u in _to(scan, PRESENCE, target)
        ]
        units = [u for name in searched for u in _to(scan, name, target)]
        # What a warp changes is another thing in every image: no sample carries it as such.
        leading = [u for u in units if u.in_pixels and not u.unit.shared and DISPLACEMENT not in u.trigger]
        if leading:
            mean = usual(target)
            found[TRIGGER_BEARING] += [_carried(u, mean) for u in leading]
        additive = [as_found(u) for u in units if np.abs(u.trigger.get("delta", 0)).max() > 0]
        if additive and choose is not None:
            found[REMOVE].append(choose(additive))
    if choose is not None and not found[REMOVE]:  # no additive pattern: what a mask covers can be taken off too
        for target in targets:
            masked = [u for name in searched for u in _to(scan, name, target) if "mask" in u.trigger]
            if masked:
                found[REMOVE].append(as_found(min(masked, key=lambda u: float(u.trigger["mask"].sum()))))
    return found


def _to(scan: FinishedScan, detector: str, target: int) -> list[UnitEvidence]:
    """What a detector found to a class, where that is evidence: another class's patch destroys the class, not a trigger."""
    if detector not in scan.units or not speaks_for(scan.report["classes"][target]["p_values"], detector):
        return []
    return [u for u in scan.units[detector] if u.unit.target == target and u.found]


def _carried(unit: UnitEvidence, usual: np.ndarray) -> Found:
    """A trigger with what it changes in a usual image."""
    found = as_found(unit)
    return replace(found, difference=found.trigger.changed_in(usual))
