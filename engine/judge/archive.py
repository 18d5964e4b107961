"""Evidence as one JSON document (docs/evidence.schema.json): kept beside a run, and taken through `decide` again at any time.

It has all that a verdict depends on and no array: not the triggers, so that what a trigger looks like (`ClassFinding.kind`) cannot be
said from it, and no weights. A model of ten classes takes a few kilobytes, compressed.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence, Skipped, Unit, UnitEvidence, View
from onnxspect.engine.judge.measurement import Measurement
from onnxspect.engine.judge.traits import Traits

SCHEMA = "onnxspect-evidence/1"
#: An archive that unpacks to more bytes than this is no evidence of one model.
LARGEST = 256 * 2**20
_OF_UNIT = ("found", "converged", "steps", "search_success", "held_out_success", "held_out", "seconds")


@dataclass(frozen=True)
class Archive:
    """What `decide` is given.

    Attributes:
        evidence: of every detector that was asked for.
        classes: number of classes of the subject.
        hidden: what hides parts of the model from the searches, in sentences.
        too_few: what the clean samples lack, in sentences.
        samples: how many clean samples the searches and the held-out validation had together; 0 where that was not kept.
        subject_error: share of clean samples that the subject answers wrongly; None where that was not kept.
        reference_error: the reference networks' mean share, of samples that they were not trained on; None without references.
    """

    evidence: tuple[Evidence | Skipped, ...]
    classes: int
    hidden: tuple[str, ...] = ()
    too_few: tuple[str, ...] = ()
    samples: int = 0
    subject_error: float | None = None
    reference_error: float | None = None

    @property
    def difficulty(self) -> float | None:
        """Of the task (difficulty.py): the larger of the two errors; None where not even the subject's is known."""
        if self.subject_error is None:
            return None
        return max(self.subject_error, self.reference_error or 0.0)

    def describe(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "schema": SCHEMA,
            "classes": self.classes,
            "samples": self.samples,
            "subject_error": self.subject_error,
            "reference_error": self.reference_error,
            "hidden": list(self.hidden),
            "too_few": list(self.too_few),
            "detectors": [_detector(e) for e in self.evidence],
        }

    @classmethod
    def described(cls, document: Mapping[str, Any]) -> Archive:
        """What `describe` wrote.

        Raises:
            OnnxspectError: the document is not of this schema.
        """
        if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
            raise OnnxspectError("this is no evidence that onnxspect kept", f'its "schema" should be {SCHEMA}')
        try:
            return cls(
                tuple(map(_evidence, document["detectors"])),
                int(document["classes"]),
                tuple(map(str, document["hidden"])),
                tuple(map(str, document["too_few"])),
                int(document["samples"]),
                *(None if (e := document.get(k)) is None else float(e) for k in ("subject_error", "reference_error")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OnnxspectError(f"evidence of {SCHEMA} that does not keep to it: {error!r}", "scan again") from error


def write_compressed(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON document, compressed: the same bytes for the same document."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False, sort_keys=True)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as file:
        file.write(text.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def read_compressed(path: Path) -> Any:
    """The document that `write_compressed` wrote.

    Raises:
        OnnxspectError: it cannot be read, or is none.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        return json.loads(data)
    except (OSError, EOFError, ValueError) as error:
        raise OnnxspectError(f"{path}: cannot be read as compressed JSON ({error})") from error


def _detector(found: Evidence | Skipped) -> dict[str, Any]:
    if isinstance(found, Skipped):
        return {"name": found.detector, "skipped": found.reason}
    return {
        "name": found.detector,
        "settings": {k: str(v) for k, v in found.settings.items()},
        "statistic": found.statistic,
        "paper_statistic": found.paper_statistic,
        "tail": found.tail,
        "traits": found.traits.describe(),
        "silence": found.silence,
        "views": [v.describe() for v in found.views],
        "units": [_unit(u) for u in found.units],
    }


def _unit(unit: UnitEvidence) -> dict[str, Any]:
    row: dict[str, Any] = {"target": unit.unit.target}
    row |= {} if unit.unit.source is None else {"source": unit.unit.source}
    row |= {"tap": unit.unit.tap} if unit.unit.tap else {}
    row |= {"shared": True} if unit.unit.shared else {}
    row |= {"start": unit.unit.start} if unit.unit.start else {}
    row |= {name: getattr(unit, name) for name in _OF_UNIT}
    return row | {"measurements": [m.describe() for m in unit.measurements]}


def _evidence(row: Mapping[str, Any]) -> Evidence | Skipped:
    if "skipped" in row:
        return Skipped(str(row["name"]), str(row["skipped"]))
    return Evidence(
        str(row["name"]),
        dict(row["settings"]),
        str(row["statistic"]),
        str(row["paper_statistic"]),
        str(row["tail"]),
        tuple(map(_unit_of, row["units"])),
        tuple(map(View.described, row["views"])),
        Traits.described(row["traits"]),
        row.get("silence"),
    )


def _unit_of(row: Mapping[str, Any]) -> UnitEvidence:
    source = row.get("source")
    held_out = row["held_out_success"]
    return UnitEvidence(
        Unit(
            int(row["target"]),
            None if source is None else int(source),
            str(row.get("tap", "")),
            "shared" in row,
            int(row.get("start", 0)),
        ),
        tuple(map(Measurement.described, row["measurements"])),
        bool(row["found"]),
        bool(row["converged"]),
        int(row["steps"]),
        float(row["search_success"]),
        None if held_out is None else float(held_out),
        int(row["held_out"]),
        {},
        float(row["seconds"]),
    )
