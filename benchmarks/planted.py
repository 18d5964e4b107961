"""How alike what a scan recovered is to what was planted: the judging half of the bank, from the runs that benchmarks/bank.py kept.

    python benchmarks/planted.py --bank bank/judging/FAMILY [--bank ...] --runs runs/bank --data-root DIR [--out FILE]

Of each infected model, and each of its targets that today's verdict names: the trigger that the report shows of it, put on the same 200
clean images as the planted one. Both are what they change on average: *overlap* is the intersection over union of the pixels at which
that is at least half of its maximum; *correlation* is that of the two changes over all pixels and channels. A patch that is searched for
as the smallest one often is a part of the planted patch, so an overlap of 1 is not to be had. Triggers that differ from image to image
(a warp, a mirrored picture) are compared by their average change as well, which says little of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import kept
import numpy as np
from bank import attack_of

from onnxspect.engine.judge.calibration import shipped
from onnxspect.engine.judge.evidence import Evidence, Skipped
from onnxspect.engine.judge.verdict import decide_archive
from onnxspect.engine.report.measured import telling
from onnxspect.engine.subject.finished_scan import FinishedScan
from onnxspect.models.bank import recipes
from onnxspect.models.made import load
from onnxspect.models.manifest import read_manifest
from onnxspect.models.triggers import Trigger

HALF, IMAGES = "judging", 200
#: A pixel belongs to a trigger where it changes by at least this share of the largest change.
CHANGED = 0.5
#: Kinds whose trigger covers a few pixels: an overlap is asked of these.
PATCHES = ("patch", "random_patch", "ring", "low_rate", "two_targets", "from_one_class", "tdc_patch", "tdc_evasive")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, action="append", required=True, help="folder that train_bank wrote")
    parser.add_argument("--runs", type=Path, required=True, help="where benchmarks/bank.py kept the scans")
    parser.add_argument("--data-root", type=Path, help="folder with the data sets as npz")
    parser.add_argument("--evidence", type=Path, default=kept.FOLDER)
    parser.add_argument("--board", default="bank-standard-1000")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    known = {r.name: r for r in recipes(HALF)}
    rows = []
    for folder in asked.bank:
        for model in read_manifest(folder)["models"]:
            path = asked.evidence / asked.board / f"{model['name']}.json.gz"
            run = asked.runs / asked.board / model["name"]
            recipe = known.get(model["name"])
            if recipe is None or recipe.attack is None or not path.is_file() or not run.is_dir():
                continue
            images = load(model["dataset"], asked.data_root).x_test[:IMAGES]
            planted = [(m.target, m.trigger) for m in recipe.attack.members if isinstance(m.target, int)]
            for row in compared(kept.Kept.read(path), run, images, planted):
                rows.append(
                    {"name": model["name"], "network": model["architecture"], "attack": attack_of(model), **row}
                )
                print(said(rows[-1]), flush=True)
    if not rows:
        parser.error(
            f"no infected model of the {HALF} half has both evidence in {asked.evidence} and a run in {asked.runs}"
        )
    result = {
        "command": "benchmarks/planted.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {"machine": platform.machine(), "system": platform.system()},
        "versions": {name: metadata.version(name) for name in ("onnxspect", "numpy", "torch")},
        "images": IMAGES,
        "summary": summary(rows),
        "rows": rows,
    }
    print(json.dumps(result["summary"], indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def compared(
    one: kept.Kept, run: Path, images: np.ndarray, planted: Sequence[tuple[int, Trigger]]
) -> list[dict[str, Any]]:
    """A row a planted target: whether the verdict names it, and how alike the trigger that is shown is to the planted one."""
    units, a = dict(FinishedScan.read(run).units), one.archive
    for added in sorted(run.parent.glob(f"{run.name}+*")):  # benchmarks/bank.py --add
        units |= FinishedScan.read(added).units
    with_triggers: list[Evidence | Skipped] = [
        replace(e, units=tuple(units[e.detector])) if isinstance(e, Evidence) else e for e in a.evidence
    ]
    verdict = decide_archive(a, shipped())
    rows = []
    for target, trigger in planted:
        row: dict[str, Any] = {"target": target, "named": target in verdict.targets, "detector": None}
        row |= {"overlap": None, "correlation": None}
        detector, unit = telling(with_triggers, verdict, target) if row["named"] else ("", None)
        if unit is not None and unit.stampable is not None:
            pixels = np.moveaxis(images.astype(np.float32) / 255, -1, 1)
            stamped = np.moveaxis(trigger.apply(images, np.random.default_rng(0)).astype(np.float32) / 255, -1, 1)
            row |= {"detector": detector} | alike(unit.stampable.apply(pixels) - pixels, stamped - pixels)
        rows.append(row)
    return rows


def alike(found: np.ndarray, planted: np.ndarray) -> dict[str, float]:
    """Overlap and correlation of two changes of the same images ``(n, channels, height, width)``."""
    regions = [_region(change) for change in (found, planted)]
    a, b = found.mean(0).ravel(), planted.mean(0).ravel()
    together = float(np.logical_and(*regions).sum() / max(1, np.logical_or(*regions).sum()))
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {"overlap": round(together, 3), "correlation": round(float(a @ b) / scale, 3) if scale else 0.0}


def _region(change: np.ndarray) -> np.ndarray:
    """Where a change of images acts ``(height, width)``."""
    size = np.abs(change).mean(0).max(0)
    return np.asarray(size >= CHANGED * size.max()) if size.max() > 0 else np.zeros(size.shape, bool)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of named targets with a trigger to look at, by kind: medians, and the share of patches with an overlap of at least a half."""
    shown = [r for r in rows if r["overlap"] is not None]
    patches = [r["overlap"] for r in shown if r["attack"] in PATCHES]
    several = [r for r in rows if sum(o["name"] == r["name"] for o in rows) > 1]
    return {
        "targets": len(rows),
        "named": sum(r["named"] for r in rows),
        "shown": len(shown),
        "patches": len(patches),
        "patches_overlapping": sum(o >= CHANGED for o in patches),
        "targets_of_several": len(several),
        "named_of_several": sum(r["named"] for r in several),
        "by_attack": {
            kind: {
                "shown": len(of),
                "overlap": float(np.median([r["overlap"] for r in of])),
                "correlation": float(np.median([r["correlation"] for r in of])),
            }
            for kind in sorted({r["attack"] for r in shown})
            for of in [[r for r in shown if r["attack"] == kind]]
        },
    }


def said(row: dict[str, Any]) -> str:
    """A row for people."""
    if row["overlap"] is None:
        return f"{row['name']:40} -> {row['target']}: {'no picture' if row['named'] else 'not named'}"
    return (
        f"{row['name']:40} -> {row['target']}: {row['detector']:20} overlap {row['overlap']:.2f} "
        f"correlation {row['correlation']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
