"""Constants that follow from committed measurements: what the code has, and what the measurements give today.

    python benchmarks/derive_constants.py

Exits with 1 where they differ; tests/benchmarks/test_derive_constants.py holds the same. What each constant does stands in docs/decisions.md.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kept
import numpy as np

from onnxspect.converters.lowering.further import ONCE
from onnxspect.engine.detectors import attractor, base, warp, window
from onnxspect.engine.detectors.base import USUAL_STEPS
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.judge.null_model import beyond_references, robust_deviation
from onnxspect.engine.judge.spread import SMALL_SAMPLE
from onnxspect.engine.subject import unreached

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
    steps = {k: round(sum(b["gradient_steps"] for b in v) / sum(b["units"] for b in v)) for k, v in budgets.items()}
    return steps | {"moved": round(statistics.fmean(u.steps for e in _of_ten_classes(warp.NAME) for u in e.units))}


def usual_displacement() -> float:
    """The median over clean models of ten classes, of how far their classes' displacements lie apart beyond the references (spread.py)."""
    found = []
    for one in _of_ten_classes(warp.NAME):
        [view] = one.judged
        units = one.seen_by(view)
        values, normal = one.values(units, view.statistic, view.search), one.normal(units, view)
        rest = beyond_references(values, normal, view.tail, view.log)
        found.append(robust_deviation(rest) / SMALL_SAMPLE)
    return round(statistics.median(found), 2)


def usual_left() -> float:
    """The 0.9 quantile over clean models of ten classes, of the deviation of log(left + OFFSET) between their classes (window.py)."""
    found = [np.log(e.values(e.units, window.LEFT)).std(ddof=1) for e in _of_ten_classes(window.NAME)]
    return round(float(np.quantile(found, 0.9)), 2)


def _of_ten_classes(detector: str) -> list[Evidence]:
    """What a detector found on every clean model of ten classes of the tuning half."""
    of_ten = [
        k for k in kept.everything() if k.half == "tuning" and not k.model["infected"] and k.archive.classes == 10
    ]
    return [e for k in of_ten for e in k.archive.evidence if isinstance(e, Evidence) and e.detector == detector]


#: So many spacings between the smallest classes are judged: sets of one, two and three.
SPACINGS = 3
#: So many of the ordinary parts that further images move at all are to count as awake.
_AWAKE = 0.9
#: More images than are enough wake less than this share of the parts that they wake.
_MORE = 0.05
#: CPU seconds that a file of 100 MB may take, and the share of them for one look at further images.
_FILE_SECONDS, _FURTHER_SHARE = 5.0, 0.5


def ordinary_parts() -> list[dict[str, float]]:
    """By the number of further images, the share of what it could do that each sleeping part of an ordinary model was moved by."""
    return [r["moved"] for r in _rows("graph_tuning.json", "parts") if not r["payload"]]


def hidden_parts() -> float:
    """The most that a further image, answered alike without it, moves a part that a payload hides in."""
    return max(max(r["moved"].values()) for r in _rows("graph_tuning.json", "parts") if r["payload"])


def once() -> float | None:
    """The largest power of ten at which that many parts are awake on all further images; None where it does not lie above the payloads'."""
    most = sorted(max(m.values()) for m in ordinary_parts())
    moved = [m for m in most if m > 0]
    power = float(10.0 ** math.floor(math.log10(moved[int((1 - _AWAKE) * len(moved))])))
    return power if hidden_parts() < power else None


def further_images() -> int:
    """The fewest of the measured numbers of images by which all but a few are awake of the parts that the most of them wake."""
    counts = sorted({int(n) for m in ordinary_parts() for n in m})
    parts = [m for m in ordinary_parts() if str(counts[-1]) in m]
    awake = {n: sum(m[str(n)] > ONCE for m in parts) for n in counts}
    return next(n for n in counts if awake[n] >= (1 - _MORE) * awake[counts[-1]])


def further_runs() -> tuple[int, int, int]:
    """(nodes, images of middle size, large images) that run in the time for them, rounded down to 1, 2 or 5 times a power of ten.

    A node takes what it does in the median of the small models; an image what it does in the slowest of its size.
    """
    times = _rows("graph_tuning.json", "times")
    seconds = _FILE_SECONDS * _FURTHER_SHARE
    node = statistics.median(t["seconds"] / t["executed"] for t in times if t["size"] == "small")
    slowest = {size: max(t["seconds"] for t in times if t["size"] == size) for size in ("middle", "large")}
    return _rounded(seconds / node), _rounded(seconds / slowest["middle"]), _rounded(seconds / slowest["large"])


def usual_spacings() -> dict[str, tuple[float, ...]]:
    """By statistic, the means over clean models of the tuning half of D_1, D_2, D_3 of a search without a target (engine/judge/spacing.py)."""
    found: dict[str, list[list[float]]] = {}
    for path in sorted(kept.FOLDER.glob("*/glyphs*.json.gz")):
        one = kept.Kept.read(path)
        evidence = [e for e in one.archive.evidence if isinstance(e, Evidence) and e.detector == attractor.NAME]
        if one.half != "tuning" or one.model["infected"]:
            continue
        for statistic, units in ((s, e.units) for e in evidence for s in attractor.USUAL):
            sizes = {u.value(name) for u in units for name in (statistic, f"{attractor.BEYOND}{statistic}")}
            logs = np.log(sorted(s for s in sizes if np.isfinite(s)))
            found.setdefault(statistic, []).append((np.arange(1, len(logs)) * np.diff(logs)).tolist())
    return {
        statistic: tuple(round(statistics.fmean(s[i] for s in spacings if i < len(s)), 2) for i in range(SPACINGS))
        for statistic, spacings in found.items()
    }


def _rounded(number: float) -> int:
    power = 10 ** math.floor(math.log10(number))
    return int(max(f * power for f in (1, 2, 5) if f * power <= number))


DERIVED = (
    Derived(
        "engine/detectors/attractor.py: USUAL",
        lambda: attractor.USUAL,
        usual_spacings,
    ),
    Derived("engine/detectors/base.py: USUAL_STEPS", lambda: USUAL_STEPS, usual_steps),
    Derived("engine/detectors/base.py: _MOVED", lambda: base._MOVED, usual_displacement),
    Derived("engine/detectors/window.py: NATURE", lambda: window.NATURE, usual_left),
    Derived("converters/lowering/further.py: ONCE", lambda: ONCE, once),
    Derived("engine/subject/unreached.py: _FURTHER", lambda: unreached._FURTHER, further_images),
    Derived(
        "engine/subject/unreached.py: _NODES_RUN, _FURTHER_MIDDLE, _FURTHER_LARGE",
        lambda: (unreached._NODES_RUN, unreached._FURTHER_MIDDLE, unreached._FURTHER_LARGE),
        further_runs,
    ),
)


def main() -> int:
    differ = 0
    for one in DERIVED:
        in_code, measured = one.in_code(), one.measured()
        differ += in_code != measured
        print(f"{'same  ' if in_code == measured else 'DIFFER'}  {one.name}  code {in_code}  measured {measured}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
