"""A finished scan, read back from its run folder: what patches and cleansings start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxspect.converters.text import printable
from onnxspect.engine.errors import MachineError, OnnxspectError
from onnxspect.engine.judge.earlier import traits_of
from onnxspect.engine.judge.evidence import UnitEvidence
from onnxspect.engine.judge.traits import Traits
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.class_scores import ModelView
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import DELTA, DISPLACEMENT, MASK, PATTERN, bounds, shapes

#: By how much a kept trigger may leave its range: what float32 adds up to.
_ROUNDING = 1e-3


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
            ran = {d["name"]: d for d in report["detectors"] if d["status"] == "ran"}
            units = {name: ledger.evidence(name) for name in ran}
        try:
            traits = {name: traits_of(d) for name, d in ran.items()}
            spec = InputSpec.described(report["preprocessing"]["chosen"])
        except (KeyError, TypeError, ValueError, OnnxspectError) as error:
            raise _damaged(folder, f"its preprocessing or detectors: {printable(str(error), 200)}") from error
        for name, found in units.items():
            for unit in found:
                _check(unit, report["model"], folder, name)
        return cls(spec, report, units, traits)

    def view(self, model: Any) -> Any:
        """The model, at the output that the scan looked at and with the inputs that it bound, where the user names none."""
        known = self.report["model"].get("view")
        if known is None or isinstance(model, ModelView):
            return model
        return ModelView(model, known["output"], tuple(sorted(known["bind"].items())))

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes that it names."""
        return tuple(self.report["targets"])

    def check(self, subject: Subject, folder: Path) -> None:
        """Refuse a run that belongs to another model, or that says otherwise than the model of what it takes.

        Raises:
            OnnxspectError: it does, or there is no ONNX file behind the subject.
        """
        if subject.origin.file.sha256 != self.report["model"]["sha256"]:
            raise OnnxspectError(
                f"{folder}: the run belongs to another model ({printable(self.report['model']['path'], 200)})",
                "scan this model first, and take that run",
            )
        model = self.report["model"]
        if model["classes"] != subject.classes or tuple(model["input"]["shape"]) != tuple(subject.image_shape):
            raise _damaged(folder, "it says of another number of classes, or size of images, than the model has")
        if any(len(values) not in (1, subject.image_shape[0]) for values in (self.spec.mean, self.spec.std)):
            raise _damaged(folder, "its preprocessing is of another number of channels")


def _damaged(folder: Path, why: str) -> MachineError:
    return MachineError(f"{folder}: the run is damaged: {why}", "scan again into another --out")


def _check(unit: UnitEvidence, model: Mapping[str, Any], folder: Path, detector: str) -> None:
    """Refuse a unit that is no trigger on the model's images: of another class, another shape, or out of range.

    Raises:
        MachineError: naming it.
    """
    where = f"{printable(detector)} {printable(unit.unit.key)}"
    if unit.unit.target >= model["classes"] or (unit.unit.source or 0) >= model["classes"]:
        raise _damaged(folder, f"{where} is of a class that the model does not have")
    if not unit.in_pixels:
        return
    channels, height, width = model["input"]["shape"]
    for name in {MASK, PATTERN, DELTA, DISPLACEMENT, "difference"} & set(unit.trigger):
        array = unit.trigger[name]
        if (
            array.shape not in shapes(name, (channels, height, width))
            or array.dtype.kind != "f"
            or not np.isfinite(array).all()
        ):
            raise MachineError(
                f"{folder}: the {name} of {where} is not of the model's images ({array.dtype}, {array.shape})",
                "what perturbs an inner value cannot be taken up; scan again into another --out",
            )
        low, high = bounds(name, (height, width))
        if array.size and not low - _ROUNDING <= array.min() <= array.max() <= high + _ROUNDING:
            raise _damaged(folder, f"the {name} of {where} has values outside [{low:g}, {high:g}]")
