"""A finished run folder without a search: a whole report of the tiny four-class world, and one trigger a class."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
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


def changed(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets one value in a report."""

    def change(report: dict[str, Any]) -> None:
        place: Any = report
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


MALFORMED: dict[str, tuple[Any, ...]] = {
    "a verdict of one's own": ("verdict", "fine"),
    "a list for a verdict": ("verdict", ["clean"]),
    "a target beyond the classes": ("targets", [9]),
    "a negative target": ("targets", [-1]),
    "a text for a target": ("targets", ["2"]),
    "a yes for a target": ("targets", [True]),
    "backdoored without a target": ("targets", []),
    "no classes": ("classes", None),
    "a class of another number": ("classes", 1, "index", 3),
    "a name that is a number": ("classes", 0, "name", 7),
    "a p-value beyond one": ("classes", 0, "p_value", 1.5),
    "a p-value that is a text": ("p_value", "0.01"),
    "statistics that are a list": ("classes", 0, "statistic", [1.0]),
    "a statistic that is a text": ("classes", 0, "statistic", DETECTOR, "[red]"),
    "a detector without a budget": ("detectors", 0, "budget", None),
    "a detector of another status": ("detectors", 0, "status", "fell over"),
    "settings that are a text": ("detectors", 0, "settings", "x"),
    "a path that is an object": ("model", "path", {"a": 1}),
    "a digest of the model that is markup": ("model", "sha256", "[link=file:///etc/passwd]x[/link]"),
    "an image without sides": ("model", "input", "shape", [1, 0, 8]),
    "a scale of nought": ("preprocessing", "chosen", "scale", 0),
    "a thousand means": ("preprocessing", "chosen", "mean", [0.0] * 1000),
    "reasons that are no list": ("reasons", "none"),
    "seconds before nought": ("seconds", -1),
    "a seed of text": ("seed", "0"),
    "another document": ("schema", "onnxspect-cleansing/1"),
}


def changed_unit(change: Callable[[dict[str, Any]], None], folder: Path) -> None:
    """Changes the row of every unit."""
    db = sqlite3.connect(folder / FILE)
    rows = db.execute("SELECT detector, unit, row FROM units").fetchall()
    db.close()
    for detector, key, text in rows:
        row = json.loads(text)
        change(row)
        with_row(folder, "UPDATE units SET row = ? WHERE detector = ? AND unit = ?", json.dumps(row), detector, key)
