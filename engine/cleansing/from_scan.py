"""The triggers of a finished scan, as far as a cleansing needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxspect.engine.cleansing.by_trigger import REMOVE, SUPERIMPOSE, Found
from onnxspect.engine.cleansing.estimation import Choose, as_found
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.evidence import UnitEvidence
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject import InputSpec, Subject


@dataclass(frozen=True)
class Finding:
    """A finished scan, as far as a cleansing needs it."""

    spec: InputSpec
    model: str
    targets: tuple[int, ...]
    units: Mapping[str, Sequence[UnitEvidence]]

    @classmethod
    def read(cls, folder: Path) -> Finding:
        """Of the run in a folder."""
        with Ledger(folder) as ledger:
            report = ledger.report()
            spec = InputSpec.described(report["preprocessing"]["chosen"])
            ran = [d["name"] for d in report["detectors"] if d["status"] == "ran"]
            units = {name: ledger.evidence(name) for name in ran}
        return cls(spec, report["model"]["sha256"], tuple(report["targets"]), units)

    def check(self, subject: Subject, folder: Path) -> None:
        """Refuse a run that belongs to another model.

        Raises:
            OnnxspectError: it does.
        """
        if subject.file is None or subject.file.sha256 != self.model:
            raise OnnxspectError(f"{folder}: the run belongs to another model", "scan this model first")

    def triggers(self, targets: Sequence[int], choose: Choose) -> dict[str, list[Found]]:
        """For every target its DTInspector patch, and the one of its additive patterns that fits the training set."""
        found: dict[str, list[Found]] = {REMOVE: [], SUPERIMPOSE: []}
        for target in targets:
            additive: list[Found] = []
            for name, units in self.units.items():
                own = [u for u in units if u.unit.target == target and u.found]
                masked = [u for u in own if {"mask", "pattern"} <= set(u.trigger)]
                if name == SUPERIMPOSE and masked:
                    found[SUPERIMPOSE].append(as_found(masked[0]))
                additive += [as_found(u) for u in own if np.abs(u.trigger.get("delta", 0)).max() > 0]
            if additive:
                found[REMOVE].append(choose(additive))
        if not found[REMOVE]:  # no additive pattern: what a mask covers can be taken off too
            for target in targets:
                masked = [
                    u
                    for name, units in self.units.items()
                    for u in units
                    if name != SUPERIMPOSE and u.unit.target == target and u.found and "mask" in u.trigger
                ]
                if masked:
                    found[REMOVE].append(as_found(min(masked, key=lambda u: float(u.trigger["mask"].sum()))))
        return found
