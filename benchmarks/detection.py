"""The scoreboard: detectors over a zoo. Prints a table, writes JSON with versions, seed, hardware and date.

    python benchmarks/detection.py --zoo zoo --data-root DATA [--reference DIR] [--preset quick] [--out FILE]

Every model is scanned as `onnxspect scan` does it, with --samples clean test images of its data set. Reported are: true
positives, right target, false alarms on clean models, ROC area (of -log10 p), seconds and gradient steps per model; all
by attack kind and by network too. With --board each
model's evidence is kept (kept.py), to be judged again by replay.py. A run that is interrupted goes on where it stopped: finished scans are in --runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import kept
import numpy as np
from boards import grouped, line, summary
from datasets import even_draw, split_of

from onnxspect.engine.detectors.registry import PRESETS
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext, choose_device, device_name
from onnxspect.engine.subject.subject import InputSpec
from onnxspect.models.recipes import recipe_from_dict
from onnxspect.models.zoo_build import rebuild_training_set

PACKAGES = ("onnxspect", "torch", "onnx", "onnxruntime-gpu", "numpy", "scipy")


def add_subjects(parser: argparse.ArgumentParser) -> None:
    """Options of which models are measured, on which data, and how hard."""
    parser.add_argument("--zoo", type=Path, action="append", default=[], help="folder with manifest.json and models")
    parser.add_argument("--reference", type=Path, help="folder of models that others trained, with manifest.json")
    parser.add_argument("--data-root", type=Path, required=True, help="folder with the data sets as npz")
    parser.add_argument("--preset", choices=list(PRESETS), default="standard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")


def asked_subjects(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The models that these options name."""
    subjects = [s for folder in asked.zoo for s in zoo_subjects(folder)]
    return subjects + (reference_subjects(asked.reference) if asked.reference else [])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scoreboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subjects(parser)
    parser.add_argument("--detector", action="append", default=[], help="only these detectors; the preset's by default")
    parser.add_argument("--train", action="store_true", help="also give each scan the model's own training set")
    parser.add_argument("--samples", type=int, default=1000, help="clean images a scan gets")
    parser.add_argument("--runs", type=Path, default=Path("runs/scoreboard"), help="where the scans are kept")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--board", help="keep each model's evidence under this name, for replay.py")
    parser.add_argument("--half", choices=["tuning", "judging"], default="tuning", help="of the bank, of what is kept")
    parser.add_argument("--only", action="append", default=[], help="only models whose name contains this or another")
    asked = parser.parse_args(arguments)
    subjects = asked_subjects(asked)
    subjects = [s for s in subjects if not asked.only or any(part in s["name"] for part in asked.only)]
    if not subjects:
        parser.error("no models: give --zoo or --reference")
    run = RunContext(asked.seed, choose_device(asked.device))
    rows = []
    for subject in subjects:
        rows.append(measure(subject, asked, run))
        print(line(rows[-1]), flush=True)
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(
            ["benchmarks/detection.py", f"--preset {asked.preset}", f"--samples {asked.samples}"]
            + ["--train"] * asked.train
        ),
        "preset": asked.preset,
        "samples": asked.samples,
        "seed": asked.seed,
        "device": device_name(run.device),
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: version(p) for p in PACKAGES},
        "summary": summary(rows),
        "by_attack": grouped(rows, lambda r: str(r["attack"])),
        "by_network": grouped(rows, lambda r: str(r["network"])),
        "models": rows,
    }
    print(json.dumps(result["summary"], indent=2))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def zoo_subjects(folder: Path) -> list[dict[str, Any]]:
    """The models of a zoo built by onnxspect.models."""
    rows = json.loads((folder / "manifest.json").read_text())["models"]
    return [
        {
            "name": row["name"],
            "path": folder / row["file"],
            "dataset": row["dataset"],
            "network": row["architecture"],
            "infected": bool(row["infected"]),
            "targets": _targets(row),
            "attack": _attack_kind(row),
            "asr": row["asr"],
            "spec": None,
            "recipe": row["recipe"],
        }
        for row in rows
    ]


def _targets(row: dict[str, Any]) -> list[int]:
    """Every class that the attack leads to."""
    return [int(t) for t in row["targets"]] if row["infected"] else []


def _attack_kind(row: dict[str, Any]) -> str:
    return "clean" if not row["infected"] else str(row["name"].split("_", 2)[-1])


def reference_subjects(folder: Path) -> list[dict[str, Any]]:
    """Models that others trained: ../shared/reference/infected and its like."""
    found = []
    for row in json.loads((folder / "manifest.json").read_text()):
        dataset = "gtsrb" if row["dataset"].startswith("gtsrb") else row["dataset"]
        found.append(
            {
                "name": Path(row["file"]).stem,
                "path": folder / row["file"],
                "dataset": dataset,
                "network": row["source"],
                "infected": True,
                "targets": [int(row["target"])],
                "attack": f"{row['attack']}: {row['trigger']}"[:50],
                "asr": row["asr"],
                "recipe": None,
                "spec": InputSpec("as stated", mean=(0.5,), std=(0.5,)) if ".5" in row["preprocess"] else None,
            }
        )
    return found


def measure(subject: dict[str, Any], asked: argparse.Namespace, run: RunContext) -> dict[str, Any]:
    """One scan as a row; an error is a row too."""
    row = {k: subject[k] for k in kept.FACTS}
    data = clean_samples(subject["dataset"], asked)
    references = asked.runs / f"references-{subject['dataset']}-{asked.preset}-{asked.samples}"
    folder = asked.runs / f"{subject['name']}-{asked.preset}-{asked.samples}"
    train = training_set(subject, asked) if asked.train else None
    try:
        report = scan(
            subject["path"],
            data,
            folder,
            asked.preset,
            asked.detector,
            subject["spec"],
            run=run,
            references=references,
            train=train,
        ).report
        if asked.board:
            kept.of_run(folder, asked.board, asked.half, row).write()
    except OnnxspectError as error:
        return row | {"verdict": "error", "found": [], "p_value": 1.0, "error": str(error)}
    return row | {
        "verdict": report["verdict"],
        "found": report["targets"],
        "p_value": report["p_value"],
        "log10_p": min(c["log10_p"] for c in report["classes"]),
        "by_detector": {d["name"]: told_by(d, report) for d in report["detectors"]},
        "most_extreme_mad_index": max(
            (v for c in report["classes"] for v in c["mad_index"].values() if v is not None), default=None
        ),
        "gradient_steps": sum(d["budget"]["gradient_steps"] for d in report["detectors"] if d["status"] == "ran"),
        "seconds": report["seconds"],
        "clean_accuracy": report["preprocessing"]["clean_accuracy"],
        "digest": report["digest"],
    }


def told_by(detector: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """One detector's most suspicious class, its p-value and what the search cost; or why it did not run."""
    if detector["status"] != "ran":
        return {"skipped": detector["reason"]}
    p_values = {c["index"]: c["p_values"][detector["name"]] for c in report["classes"]}
    most = min(p_values, key=lambda k: p_values[k])
    return {"class": most, "p_value": p_values[most], "seconds": detector["seconds"], "budget": detector["budget"]}


def training_set(subject: dict[str, Any], asked: argparse.Namespace) -> Path | None:
    """The training set that a zoo's model saw, poisoned samples and all, as an npz; None for a reference model."""
    if subject["recipe"] is None:
        return None
    out: Path = asked.runs / f"training-{subject['name']}.npz"
    if not out.is_file():
        poisoned = rebuild_training_set(recipe_from_dict(subject["recipe"]), asked.data_root, subject["path"].parent)
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out, images=poisoned.images, labels=poisoned.labels)
    return out


def clean_samples(dataset: str, asked: argparse.Namespace) -> Path:
    """An npz with an even, seeded draw of `--samples` clean test images of the data set."""
    out: Path = asked.runs / f"data-{dataset}-{asked.samples}.npz"
    if out.is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    images, labels = split_of(dataset, asked.data_root)
    chosen = even_draw(labels, asked.samples, np.random.default_rng(asked.seed))
    np.savez_compressed(out, images=images[chosen], labels=labels[chosen])
    return out


def made_with() -> dict[str, Any]:
    """Date, machine and versions, as benchmarks of whole scans write them."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: version(p) for p in PACKAGES},
    }


def version(package: str) -> str:
    """Installed version, or "-"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


if __name__ == "__main__":
    sys.exit(main())
