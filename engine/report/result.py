"""What a scan gives to Python: the report as values, and the arrays of its run folder, read when they are asked for.

The JSON document (docs/report.schema.json) stays the truth; everything here is read from it or from the run's ledger.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.earlier import traits_of
from onnxspect.engine.judge.evidence import UnitEvidence
from onnxspect.engine.mitigation.recovered import carried, trigger_to
from onnxspect.engine.report import as_html, as_text
from onnxspect.engine.store import Ledger
from onnxspect.engine.trigger import Trigger

#: Columns of the report as text, where nothing says how wide the reader's window is.
WIDTH = 120


@dataclass(frozen=True)
class ClassReport:
    """What a scan says of one class.

    Attributes:
        index: the class.
        name: its name, or its index as text.
        p_value: corrected for the number of classes and for everything that was looked at.
        p_values: by detector, before the correction for several detectors.
        statistic: by detector, the one that its paper judges; None where nothing was found.
        held_out_success: by detector, the share of clean samples, that the search never saw, which its trigger leads here.
        kind: what its trigger suggests of the backdoor, in words; "" for classes that are not named.
        named: whether the verdict names it as a backdoor's target.
    """

    index: int
    name: str
    p_value: float
    p_values: Mapping[str, float]
    statistic: Mapping[str, float | None]
    held_out_success: Mapping[str, float | None]
    kind: str
    named: bool
    _report: Report = field(repr=False, compare=False)

    @property
    def trigger(self) -> Trigger | None:
        """The trigger to this class of the detector that finds it most suspicious; None where no detector found one.

        Its `mask` is ``(1, height, width)`` and its `pattern` ``(channels, height, width)``, both float32 in [0, 1]; or its
        `delta` is ``(channels, height, width)`` in [-1, 1]; `masked` says which. `apply` puts it on images.

        Raises:
            OnnxspectError: the run folder is no longer there.
        """
        return next(iter(self.triggers.values()), None)

    @cached_property
    def triggers(self) -> Mapping[str, Trigger]:
        """The triggers to this class by detector, those of the most suspicious detector first.

        Raises:
            OnnxspectError: the run folder is no longer there.
        """
        found = {}
        for detector in self._report.document["detectors"]:
            name = detector["name"]
            if detector["status"] != "ran" or not (traits := traits_of(detector)).leads_to_target:
                continue
            trigger = trigger_to(carried(traits, self._report.evidence(name)), self.index, detector["statistic"])
            if trigger is not None:
                found[name] = trigger
        return {name: found[name] for name in sorted(found, key=lambda n: self.p_values[n])}


@dataclass(frozen=True, repr=False)
class Report:
    """A finished scan.

    It pickles; what it reads from the run folder later is read from wherever the folder then is.

    Attributes:
        document: the JSON document, see docs/report.schema.json.
        folder: the run folder: ledger, report.json and pictures.
        resumed: units that an earlier run had finished.
    """

    document: dict[str, Any] = field(repr=False)
    folder: Path
    resumed: int = 0

    @classmethod
    def open(cls, folder: str | Path) -> Report:
        """The report of the finished scan in a run folder.

        Raises:
            OnnxspectError: there is none.
        """
        with Ledger(Path(folder)) as ledger:
            return cls(ledger.report(), Path(folder))

    @property
    def report(self) -> dict[str, Any]:
        """The JSON document."""
        return self.document

    def to_dict(self) -> dict[str, Any]:
        """The JSON document, as a copy of one's own."""
        return copy.deepcopy(self.document)

    @property
    def verdict(self) -> str:
        """ "clean", "backdoored" or "inconclusive"."""
        return str(self.document["verdict"])

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes that a backdoor leads to, most certain first."""
        return tuple(self.document["targets"])

    @property
    def p_value(self) -> float:
        """Of the most suspicious class."""
        return float(self.document["p_value"])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is, in sentences."""
        return tuple(self.document["reasons"])

    @property
    def limits(self) -> tuple[str, ...]:
        """What was not checked, in sentences."""
        return tuple(self.document["limits"])

    @cached_property
    def classes(self) -> tuple[ClassReport, ...]:
        """One row a class, in their order."""
        return tuple(
            ClassReport(
                row["index"],
                row["name"],
                row["p_value"],
                row["p_values"],
                row["statistic"],
                row["held_out_success"],
                row["kind"],
                row["index"] in self.targets,
                self,
            )
            for row in self.document["classes"]
        )

    def evidence(self, detector: str) -> Sequence[UnitEvidence]:
        """All that a detector found, one row a unit, with statistics and trigger arrays, read from the run folder.

        Raises:
            OnnxspectError: the detector did not run, or the run folder is no longer there.
        """
        ran = [d["name"] for d in self.document["detectors"] if d["status"] == "ran"]
        if detector not in ran:
            raise OnnxspectError(f"{detector!r} did not run", f"one of {', '.join(ran) or 'none'}")
        if detector not in self._read:
            with Ledger(self.folder) as ledger:
                self._read[detector] = ledger.evidence(detector)
        return self._read[detector]

    @cached_property
    def _read(self) -> dict[str, Sequence[UnitEvidence]]:
        """What was read from the run folder so far, by detector."""
        return {}

    def __repr__(self) -> str:
        return f"Report(verdict={self.verdict!r}, targets={self.targets}, p_value={self.p_value:.2g}, folder={str(self.folder)!r})"

    def show(self) -> None:
        """Print it as a table."""
        Console(highlight=False).print(as_text.render(self.document))

    def text(self, width: int = WIDTH) -> str:
        """The table as plain text."""
        written = io.StringIO()
        console = Console(file=written, width=width, highlight=False, color_system=None, force_jupyter=False)
        console.print(as_text.render(self.document))
        return written.getvalue()

    def html(self) -> str:
        """One self-contained page: no script, no outside resource, pictures inside."""
        return as_html.render(self.document, self.folder)

    def _repr_html_(self) -> str:
        """For notebooks: the page, in a frame of its own, so that neither's style reaches the other."""
        page = self.html().replace("&", "&amp;").replace('"', "&quot;")
        return f'<iframe srcdoc="{page}" sandbox="" style="width:100%;height:40em;border:0"></iframe>'

    def __getstate__(self) -> dict[str, Any]:
        return {"document": self.document, "folder": self.folder, "resumed": self.resumed}


def folder_of(run: str | Path | Report) -> Path:
    """The run folder of a report, or the folder itself."""
    return run.folder if isinstance(run, Report) else Path(run)
