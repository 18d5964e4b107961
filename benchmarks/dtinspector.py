"""DTInspector, the training difference and the maximum margin over a zoo: one row a model and detector, with every class's statistics.

    python benchmarks/dtinspector.py --zoo zoo --data-root DATA [--detector NAME ...] [--only TEXT ...] [--out FILE]

Each model of the zoo's manifest gets the (poisoned) training set that it saw, rebuilt pixel for pixel, and --samples clean
test images. Reported are the transfer ratios, the paper's rule, the calibrated verdict of the detector alone, and the
seconds. A row that --out already holds is not measured again; an interrupted run goes on where it stopped.

Detectors: `dtinspector` (the project's settings), `paper` (the paper's settings, with the loss that has a gradient),
`square` (the paper's settings to the letter), `training-difference`, `max-margin`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import even_draw, split_of
from detection import version

from onnxspect.engine.detectors.base import AtHand, Detector
from onnxspect.engine.detectors.dtinspector import DTInspector
from onnxspect.engine.detectors.max_margin import MaxMargin
from onnxspect.engine.detectors.training_difference import TrainingDifference
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.models.recipes import recipe_from_dict
from onnxspect.models.zoo_build import rebuild_training_set

DETECTORS: Mapping[str, Callable[[], Detector]] = {
    "dtinspector": DTInspector,
    "paper": lambda: replace(DTInspector.paper(), loss="odds"),
    "square": DTInspector.paper,
    "max-margin": MaxMargin,
    "training-difference": TrainingDifference,
}
#: What a row prints of every class, where it is not what DTInspector measures.
SHOWN = {"max-margin": ("max_margin",), "training-difference": ("success", "chance")}
PACKAGES = ("onnxspect", "torch", "onnx", "onnxruntime", "numpy", "scipy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder with manifest.json and models")
    parser.add_argument("--data-root", type=Path, required=True, help="folder with the data sets as npz")
    parser.add_argument("--detector", action="append", choices=list(DETECTORS), default=[])
    parser.add_argument("--only", action="append", default=[], help="only models with one of these names")
    parser.add_argument("--samples", type=int, default=1000, help="clean test images")
    parser.add_argument("--without-training", action="store_true", help="give no training set: what that loses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = json.loads(asked.out.read_text())["rows"] if asked.out and asked.out.is_file() else []
    rows = {(r["model"], r["detector"], r["training_set"]): r for r in known}
    run = RunContext(asked.seed)
    for entry in json.loads((asked.zoo / "manifest.json").read_text())["models"]:
        if asked.only and entry["name"] not in asked.only:
            continue
        for name in asked.detector or ["dtinspector"]:
            needs = name != "max-margin" and not asked.without_training
            if (entry["name"], name, needs) in rows:
                continue
            row = measure(entry, name, needs, asked, run)
            rows[entry["name"], name, needs] = row
            print(line(row), flush=True)
            if asked.out:
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(asked.out, (json.dumps(document(rows, asked), indent=1) + "\n").encode())
    for detector, facts in summary(list(rows.values())).items():
        print(detector, json.dumps(facts))
    return 0


def document(rows: Mapping[Any, dict[str, Any]], asked: argparse.Namespace) -> dict[str, Any]:
    """What is written: the rows, and under what they were measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": asked.seed,
        "samples": asked.samples,
        "threads": 1,
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: version(p) for p in PACKAGES},
        "settings": {n: {k: str(v) for k, v in make().settings().items()} for n, make in DETECTORS.items()},
        "summary": summary(list(rows.values())),
        "rows": list(rows.values()),
    }


def measure(
    entry: Mapping[str, Any], name: str, training: bool, asked: argparse.Namespace, run: RunContext
) -> dict[str, Any]:
    """One detector on one model."""
    recipe = recipe_from_dict(entry["recipe"])
    row: dict[str, Any] = {
        "model": entry["name"],
        "detector": name,
        "training_set": training,
        "infected": bool(entry["infected"]),
        "targets": targets(entry),
        "asr": entry["asr"],
    }
    clean = clean_samples(entry["dataset"], asked, run)
    poisoned = rebuild_training_set(recipe, asked.data_root, asked.zoo) if training else None
    suspect = Samples.from_arrays(poisoned.images, poisoned.labels) if poisoned is not None else None
    subject = preflight(Subject.from_onnx(asked.zoo / entry["file"], image_shape=clean.shape), clean, run).subject
    search_samples, held_out = clean.split(0.5, run.numpy_generator("split"))
    started, cpu = time.perf_counter(), time.process_time()
    try:
        evidence = DETECTORS[name]().run(AtHand(subject, search_samples, held_out, run, training=suspect))
    except OnnxspectError as error:
        return row | {"error": str(error)}
    row |= {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    if not isinstance(evidence, Evidence):
        return row | {"error": evidence.reason}
    # A screening detector names no class; here the verdict is taken as if it did.
    verdict = decide([replace(evidence, traits=replace(evidence.traits, convicts=True))], subject.classes)
    return row | {
        "verdict": verdict.verdict,
        "found": list(verdict.targets),
        "log10_p": min(c.log10_p for c in verdict.classes),
        "paper_found": [u.unit.target for u in evidence.units if u.statistics.get("paper_infected")]
        if name != "max-margin"
        else [u.unit.target for u in evidence.units if u.statistics.get("gamma_log10_p", 0.0) < np.log10(0.05 / 10)],
        "steps": evidence.steps,
        "classes": [
            {"class": u.unit.target, "converged": u.converged, **{k: round(v, 4) for k, v in u.statistics.items()}}
            for u in evidence.units
        ],
    }


def targets(entry: Mapping[str, Any]) -> list[int]:
    """The classes that the attack leads to; for all-to-all, all of them."""
    if not entry["infected"]:
        return []
    named = {m["target"] for m in entry["attack"]["members"]}
    return (
        sorted(int(t) for t in named) if all(isinstance(t, int) for t in named) else list(range(len(entry["classes"])))
    )


def clean_samples(dataset: str, asked: argparse.Namespace, run: RunContext) -> Samples:
    """An even, seeded draw of clean test images."""
    images, labels = split_of(dataset, asked.data_root)
    rng = run.numpy_generator("benchmark", f"{dataset}.npz")
    rows = even_draw(labels, asked.samples, rng)
    return Samples.from_arrays(images[rows], labels[rows])


def right(row: Mapping[str, Any], found: str) -> bool:
    """An infected model is found with its right target, or some of several and no wrong one; a clean one is not."""
    if not row["infected"]:
        return not row.get(found)
    return bool(row.get(found)) and set(row[found]) <= set(row["targets"])


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts by detector, by the calibrated verdict and by the paper's rule."""
    by_detector = {}
    for detector in sorted({(r["detector"], r["training_set"]) for r in rows}):
        own = [r for r in rows if (r["detector"], r["training_set"]) == detector and "error" not in r]
        infected, clean = [r for r in own if r["infected"]], [r for r in own if not r["infected"]]
        by_detector[f"{detector[0]}, {'training set' if detector[1] else 'no training set'}"] = {
            "infected": len(infected),
            "right_target": sum(right(r, "found") for r in infected),
            "right_target_by_the_paper_rule": sum(right(r, "paper_found") for r in infected),
            "clean": len(clean),
            "false_alarms": sum(not right(r, "found") for r in clean),
            "false_alarms_of_the_paper_rule": sum(not right(r, "paper_found") for r in clean),
            "missed": [r["model"] for r in infected if not right(r, "found")],
            "median_cpu_seconds": float(np.median([r["cpu_seconds"] for r in own])) if own else None,
        }
    return by_detector


def line(row: Mapping[str, Any]) -> str:
    """One row for people."""
    head = f"{row['model']:<32} {row['detector']:<12}"
    if "error" in row:
        return f"{head} {row['error']}"
    mark = "ok  " if right(row, "found") else "MISS"
    shown = SHOWN.get(row["detector"], ("transfer_ratio", "restored_success"))
    values = "; ".join(" ".join(f"{c.get(s, float('nan')):.3g}" for c in row["classes"]) for s in shown)
    return (
        f"{mark} {head} true {row['targets']!s:<10} found {row['found']!s:<8} paper {row['paper_found']!s:<8} "
        f"log10 p {row['log10_p']:.1f} {row['cpu_seconds']:.0f} s cpu ({row['seconds']:.0f} s) | {values}"
    )


if __name__ == "__main__":
    sys.exit(main())
