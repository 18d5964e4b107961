"""Constants that follow from committed measurements: what the code has, and what the measurements give today.

    python benchmarks/derive_constants.py

Exits with 1 where they differ; tests/benchmarks/test_derive_constants.py holds the same. What each constant does stands in docs/decisions.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxspect.engine.detectors.base import USUAL_STEPS

RESULTS = Path(__file__).resolve().parent / "results"
#: A detector whose searches are of this kind, by the keys of `USUAL_STEPS`.
KINDS = {"mask": "neural-cleanse", "added": "reverse-engineering", "cepa": "cepa"}


@dataclass(frozen=True)
class Derived:
    """One constant.

    Attributes:
        name: where it stands.
        in_code: its value.
        measured: what the committed measurements give.
    """

    name: str
    in_code: Callable[[], Any]
    measured: Callable[[], Any]


def _rows(file: str, key: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / file).read_text())[key]
    return rows


def usual_steps() -> dict[str, int]:
    """Gradient steps a unit of each kind, over all units of both boards."""
    budgets: dict[str, list[dict[str, int]]] = {kind: [] for kind in KINDS}
    for board in ("detection_quick.json", "detection_standard.json"):
        for row in _rows(board, "models"):
            for kind, detector in KINDS.items():
                if detector in row["by_detector"]:
                    budgets[kind].append(row["by_detector"][detector]["budget"])
    return {k: round(sum(b["gradient_steps"] for b in v) / sum(b["units"] for b in v)) for k, v in budgets.items()}


DERIVED = (Derived("engine/detectors/base.py: USUAL_STEPS", lambda: USUAL_STEPS, usual_steps),)


def main() -> int:
    differ = 0
    for one in DERIVED:
        in_code, measured = one.in_code(), one.measured()
        differ += in_code != measured
        print(f"{'same  ' if in_code == measured else 'DIFFER'}  {one.name}  code {in_code}  measured {measured}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
