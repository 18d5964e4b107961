"""What a recovered trigger does where no search saw it: on clean samples that were held out, and on clean networks.

A trigger that works on the samples of the search alone is overfitted. One that works on networks that never met the attacker as well is a
natural feature of its class: a planted one leads the model's images and hardly any of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxspect.engine.judge.evidence import Unit, UnitEvidence
from onnxspect.engine.judge.measurement import TRANSFER, Measurement
from onnxspect.engine.judge.thresholds import HELD_OUT_SUCCESS
from onnxspect.engine.search.search import UnitResult
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Trigger


def concerned(unit: Unit, held_out: Samples, most: int) -> np.ndarray:
    """Rows of the samples that a unit's trigger is tried on ``(n,)``: its source class, or all classes but its target; at most `most`."""
    wanted = held_out.labels != unit.target if unit.source is None else held_out.labels == unit.source
    return np.flatnonzero(wanted)[:most]


def held_out_validation(
    subject: Subject, result: UnitResult, held_out: Samples, statistic: str, most: int = 500
) -> UnitEvidence:
    """A finished unit as evidence, its trigger measured on clean samples that the search never saw.

    There is no statistic where no trigger was needed: that is confusion, and its size is no property of the class.
    """
    unit = result.unit
    rows = concerned(unit, held_out, most)
    success = None
    if len(rows) and result.found:
        success = share_led(subject, Trigger.kept(unit.target, result.trigger, unit.source), held_out.images[rows])
    size = (Measurement(statistic, result.cost),) if result.found and not result.unneeded else ()
    return as_found(result, size, held_out_success=success, held_out=len(rows))


def as_found(result: UnitResult, measurements: tuple[Measurement, ...], **different: Any) -> UnitEvidence:
    """A finished unit as evidence, as the search left it and not validated; `different` are fields that a detector knows better."""
    left = UnitEvidence(
        unit=result.unit,
        measurements=measurements,
        found=result.found,
        converged=result.converged,
        steps=result.steps,
        search_success=result.success,
        held_out_success=None,
        held_out=0,
        trigger=result.trigger,
        seconds=result.seconds,
    )
    return replace(left, **different)


def transferred(unit: UnitEvidence, references: Sequence[Subject], held_out: Samples, most: int = 500) -> UnitEvidence:
    """The unit with what its trigger does on reference networks: `TRANSFER`, the mean share of the same unseen images that it leads there.

    Units without a trigger, or without images to try it on, stay as they are.
    """
    rows = concerned(unit.unit, held_out, most)
    if not (len(rows) and references and unit.found and unit.trigger):
        return unit
    trigger = Trigger.kept(unit.unit.target, unit.trigger, unit.unit.source)
    shares = tuple(share_led(network, trigger, held_out.images[rows]) for network in references)
    return replace(
        unit, measurements=(*unit.measurements, Measurement(TRANSFER, float(np.mean(shares)), baselines=shares))
    )


def preferred(unit: UnitEvidence, statistic: str) -> tuple[bool, float]:
    """The order of several triggers to one class: one that works on unseen images before one that does not, then the smallest."""
    return (unit.held_out_success or 0.0) < HELD_OUT_SUCCESS, unit.value(statistic)


def share_led(subject: Subject, trigger: Trigger, images: np.ndarray) -> float:
    """The share of images ``(n, channels, height, width)`` that a trigger leads to its target."""
    return float((subject.predict(trigger.apply(images)).argmax(1) == trigger.target).mean())
