"""A finished run folder without a search: a whole report of the tiny four-class world, and one trigger a class."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxspect.engine.judge.evidence import Unit, UnitEvidence
from onnxspect.engine.judge.measurement import measured
from onnxspect.engine.store import FILE, Ledger
from onnxspect.engine.stored_report import digest

DETECTOR = "neural-cleanse"
VALUES = (10.0, 12.0, 0.5, 11.0)


def whole_report(sha256: str = "a" * 64, verdict: str = "backdoored", **changes: Any) -> dict[str, Any]:
    """A report of four classes that every reader takes, with its digest; `changes` are made before that."""
    targets = [2] if verdict == "backdoored" else []
    rows = [
        {
            "index": k,
            "name": f"class {k}",
            "p_value": 1e-6 if k in targets else 0.9,
            "log10_p": -6.0 if k in targets else -0.05,
            "p_values": {DETECTOR: 1e-6 if k in targets else 0.9},
            "statistic": {DETECTOR: value},
            "reference": {DETECTOR: None},
            "anomaly": {DETECTOR: 1.0},
            "mad_index": {DETECTOR: None},
            "held_out_success": {DETECTOR: 0.97},
            "kind": "",
        }
        for k, value in enumerate(VALUES)
    ]
    chosen = {"name": "0..1", "layout": "NCHW", "channel_order": "RGB", "scale": 1.0, "mean": [0.0], "std": [1.0]}
    detector = {
        "name": DETECTOR,
        "status": "ran",
        "statistic": "l1",
        "judged": "l1",
        "settings": {},
        "budget": {"units": 4, "gradient_steps": 400, "found": 4, "converged": 4},
        "evidence": "0" * 16,
        "seconds": 1.0,
    }
    report: dict[str, Any] = {
        "schema": "onnxspect-report/1",
        "tool": {"name": "onnxspect", "version": "0.1.0"},
        "model": {"path": "model.onnx", "sha256": sha256, "classes": 4, "input": {"shape": [1, 8, 8]}, "logits": None},
        "data": {"path": "clean.npz", "sha256": "b" * 64, "samples": 80},
        "preprocessing": {"chosen": chosen, "why": "fits best", "clean_accuracy": 1.0, "tried": []},
        "verdict": verdict,
        "targets": targets,
        "p_value": 1e-6 if targets else 0.9,
        "reasons": ["class 2 is reached by a far smaller change than the others" if targets else "nothing stands out"],
        "classes": rows,
        "detectors": [detector],
        "limits": ["A part was not checked."],
        "preset": "quick",
        "device": "cpu: 1 threads",
        "precision": {"search": "float32", "judge": "float32"},
        "seed": 0,
        "seconds": 1.5,
        **changes,
    }
    return report | {"digest": digest(report)}


def trigger_unit(target: int) -> UnitEvidence:
    """A 2x2 patch in the middle that leads to a class."""
    mask = np.zeros((1, 8, 8), np.float32)
    mask[0, 3:5, 3:5] = 1.0
    arrays = {"mask": mask, "pattern": np.full((1, 8, 8), 0.1 * target, np.float32)}
    return UnitEvidence(Unit(target), measured(l1=VALUES[target]), True, True, 100, 1.0, 0.97, 50, arrays, 1.0)


def finished(folder: Path, report: Mapping[str, Any] | None = None) -> Path:
    """A run folder with that report (`whole_report` by default) and a trigger to each class."""
    with Ledger(folder, {"model": "abc"}) as ledger:
        ledger.keep_evidence(DETECTOR, [trigger_unit(k) for k in range(4)])
        ledger.set_fact("report", json.dumps(whole_report() if report is None else report))
    return folder


def with_row(folder: Path, statement: str, *values: str) -> None:
    """Change the ledger as an attacker would, past everything that guards it."""
    db = sqlite3.connect(folder / FILE)
    with db:
        db.execute(statement, values)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def with_report(folder: Path, text: str) -> None:
    """Put another text in the place of the report."""
    with_row(folder, "UPDATE facts SET value = ? WHERE name = 'report'", text)
