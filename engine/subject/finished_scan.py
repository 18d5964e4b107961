"""A finished scan, read back from its run folder: what patches and cleansings start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.earlier import traits_of
from onnxspect.engine.judge.evidence import UnitEvidence
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.subject import InputSpec, Subject


@dataclass(frozen=True)
class FinishedScan:
    """What the ledger of a finished scan holds.

    Attributes:
        spec: the preprocessing that the scan settled on.
        report: the scan's report.
        units: what each detector that ran found, by its name.
        traits: what each of them is.
    """

    spec: InputSpec
    report: Mapping[str, Any] = field(repr=False)
    units: Mapping[str, Sequence[UnitEvidence]] = field(repr=False)
    traits: Mapping[str, Traits] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> FinishedScan:
        """Of the run in a folder.

        Raises:
            OnnxspectError: no run there, or not finished.
        """
        with Ledger(folder) as ledger:
            report = ledger.report()
            spec = InputSpec.described(report["preprocessing"]["chosen"])
            traits = {d["name"]: traits_of(d) for d in report["detectors"] if d["status"] == "ran"}
            units = {name: ledger.evidence(name) for name in traits}
        return cls(spec, report, units, traits)

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes that it names."""
        return tuple(self.report["targets"])

    def check(self, subject: Subject, folder: Path) -> None:
        """Refuse a run that belongs to another model.

        Raises:
            OnnxspectError: it does, or there is no ONNX file behind the subject.
        """
        if subject.origin.file.sha256 != self.report["model"]["sha256"]:
            raise OnnxspectError(
                f"{folder}: the run belongs to another model ({self.report['model']['path']})",
                "scan this model first, and take that run",
            )
