"""Kept evidence: one compressed file a model under benchmarks/evidence/BOARD/, which replay.py takes through `decide` again.

A file holds what the model is (name, data set, network, attack, true targets), which half of the bank it belongs to, what was said of
it when it was scanned, and the evidence (docs/evidence.schema.json). No weights and no images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import EVIDENCE
from onnxspect.engine.judge.archive import Archive, read_compressed, write_compressed
from onnxspect.engine.store import Ledger

SCHEMA = "onnxspect-kept/1"
FOLDER = Path(__file__).parent / "evidence"
#: What of a benchmark's row says what the model is.
FACTS = ("name", "dataset", "network", "infected", "targets", "attack", "asr")
#: Which half of the bank what is by others, or older than the bank, belongs to: decided before anything was measured.
HALVES = {"shipped": "tuning", "zoo": "tuning", "reference": "judging", "wild": "judging"}


@dataclass(frozen=True)
class Kept:
    """One model's evidence, and what is known of it.

    Attributes:
        board: the table that it belongs to.
        half: "tuning" or "judging".
        model: FACTS of it, and the number of classes.
        recorded: what the scan said: verdict, targets, log10_p by class, as a bank of then had calibrated them; the null models' score, before any
            bank; and the version that said so.
        archive: the evidence.
    """

    board: str
    half: str
    model: Mapping[str, Any]
    recorded: Mapping[str, Any]
    archive: Archive

    def write(self, folder: Path = FOLDER) -> Path:
        """Keep it, under its board and name."""
        path = folder / self.board / f"{self.model['name']}.json.gz"
        document = {
            "schema": SCHEMA,
            "board": self.board,
            "half": self.half,
            "model": dict(self.model),
            "recorded": dict(self.recorded),
            "evidence": self.archive.describe(),
        }
        write_compressed(path, document)
        return path

    @classmethod
    def read(cls, path: Path) -> Kept:
        """One that `write` wrote.

        Raises:
            OnnxspectError: the file is none.
        """
        document = read_compressed(path)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise OnnxspectError(f"{path}: no kept evidence of {SCHEMA}")
        return cls(
            document["board"],
            document["half"],
            document["model"],
            document["recorded"],
            Archive.described(document["evidence"]),
        )


def everything(folder: Path = FOLDER) -> list[Kept]:
    """All that is kept under a folder, by path."""
    return [Kept.read(path) for path in sorted(folder.rglob("*.json.gz"))]


def of_run(run: Path, board: str, half: str, model: Mapping[str, Any]) -> Kept:
    """The evidence of a finished scan.

    Raises:
        OnnxspectError: no finished run there, or one of a version that kept no evidence.
    """
    with Ledger(run) as ledger:
        report, text = ledger.report(), ledger.fact(EVIDENCE)
    if text is None:
        raise OnnxspectError(f"{run}: an earlier version scanned it, which kept no evidence", "scan again")
    archive = Archive.described(json.loads(text))
    facts = {k: model.get(k) for k in FACTS} | {"classes": archive.classes, "sha256": report["model"]["sha256"]}
    return Kept(board, half, facts, recorded(report), archive)


def recorded(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a report said, as it is compared with what is said now."""
    return {
        "tool": report["tool"]["version"],
        "verdict": report["verdict"],
        "targets": list(report["targets"]),
        "log10_p": [c["log10_p"] for c in report["classes"]],
        "score": None if report.get("calibration") is None else report["calibration"]["score"],
        "preset": report["preset"],
    }
