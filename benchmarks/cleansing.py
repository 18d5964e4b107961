"""Cleansing: RE beside SS, AC and CI on training sets whose poison is known (Xiang et al., 2020, Tables 3, 4, 8, 10-12).

    python benchmarks/cleansing.py --zoo zoo --data-root DATA [--only NAME ...] [--retrain] [--out FILE]
    python benchmarks/cleansing.py --build DIR --attack A1 --attack C3 --data-root DATA
    python benchmarks/cleansing.py --zoo zoo --only NAME --by-scan dtinspector --retrain --data-root DATA
    (DTInspector, Wang et al., 2022, Table 10)

For every model of a zoo folder with one target class, its training set is rebuilt and cleansed by each method as
`onnxspect cleanse` does it. The target class is given to all of them, as RE does for SS and AC (whether RE finds it is
what benchmarks/detection.py measures), and SS removes 1.5 times the true count. With --retrain the network is
trained again, by its own recipe, on what RE keeps. --build trains networks for RE's patterns A-F with 1, 3 or 9 source
classes on 10,000 images of Fashion-MNIST, each just before it is cleansed. With --by-scan the set is
cleansed as DTInspector does in B.5: a scan with these detectors finds the infected labels (none is given), and
the samples that they point at are removed (with dtinspector those that leave with its patch on); again on what is kept,
until a scan finds nothing. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from datasets import even_draw

from onnxspect.engine.cleansing.by_activation import PriorKnowledge
from onnxspect.engine.cleansing.by_presence import PRESENCE, TRIGGER_BEARING
from onnxspect.engine.cleansing.by_trigger import REMOVE, SUPERIMPOSE
from onnxspect.engine.cleansing.scores import rates
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.cleanse import METHODS, cleanse
from onnxspect.engine.jobs.scan import scan
from onnxspect.engine.run import RunContext
from onnxspect.models import architectures, exporting, measure
from onnxspect.models.data import load_dataset
from onnxspect.models.manifest import read_manifest, rows_by_name
from onnxspect.models.poison import Poisoned
from onnxspect.models.recipes import Recipe, recipe_from_dict
from onnxspect.models.train import train
from onnxspect.models.zoo_build import attack_of, build_zoo, rebuild_training_set, training_part

PACKAGES = ("onnxspect", "torch", "onnx", "onnxruntime-gpu", "numpy", "scikit-learn")
#: Methods of cleansing that need what a scan with the training set found.
WITH_SCAN = (SUPERIMPOSE, TRIGGER_BEARING, PRESENCE)
#: RE's patterns as this project spells them. RE's C and F raise three channels by 70 levels, its E four pixels by 80 to
#: 96; Fashion-MNIST has one channel, so sizes are times sqrt(3). The places are random ones (of many seeds those were chosen)
#: that clothes rarely cover: adding to what is white already is clipped away.
PATTERNS: dict[str, dict[str, Any]] = {
    "A": {"kind": "chessboard", "size": 6},
    "B": {"kind": "static", "size": 10},
    "C": {"kind": "additive_shape", "shape": "cross", "size": 121, "anchor": "random", "seed": 72},
    "D": {"kind": "additive_shape", "shape": "square", "size": 121, "channels": [0], "anchor": "random", "seed": 19},
    "E": {"kind": "four_pixels", "smallest": 139, "largest": 166, "seed": 76},
    "F": {"kind": "additive_shape", "shape": "ell", "size": 121, "anchor": "random", "seed": 29},
}
#: Source classes of Fashion-MNIST, and the share of the training images that is poisoned. RE poisons a tenth of each of
#: 1 or 3 source classes, or a hundredth of each of 9; on a fifth of its images that does not take, so it is more here.
SOURCES: dict[str, tuple[Any, float]] = {"1": ([3], 0.025), "3": ([3, 4, 5], 0.035), "9": ("all", 0.045)}
TARGET = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, action="append", default=[])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], help="names of models; all with one target by default")
    parser.add_argument("--build", type=Path, help="train the networks named by --attack into this zoo folder first")
    parser.add_argument("--attack", action="append", default=[], help="pattern and number of sources, e.g. A1, F9")
    parser.add_argument("--by-scan", action="append", choices=WITH_SCAN, default=[], help="methods that a scan feeds")
    parser.add_argument("--rounds", type=int, default=4, help="scans and cleansings at most, with --by-scan")
    parser.add_argument("--retrain", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/cleansing"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cleansing.json"))
    asked = parser.parse_args(arguments)
    if asked.attack and asked.build is None:
        raise OnnxspectError("--attack names networks to train", "and --build a folder for them")
    known = {r["name"]: r for r in json.loads(asked.out.read_text())["models"]} if asked.out.is_file() else {}
    for row, zoo in chosen(asked):
        done = known.get(row["name"])
        if done is None:
            done = (by_scan if asked.by_scan else cleansed)(row, zoo, asked)
        if asked.retrain and "retrained" not in done:
            done |= {"retrained": retrained(row, zoo, asked)}
        known[row["name"]] = done
        print(line(done), flush=True)
        write(list(known.values()), asked)
    return 0


def chosen(asked: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Path]]:
    """Manifest rows of models with one target, and their zoo's folder; those of --attack are built when it is their turn."""
    for zoo in asked.zoo:
        for row in read_manifest(zoo)["models"]:
            able = row["infected"] if asked.by_scan else row.get("target") is not None
            if able and (not asked.only or row["name"] in asked.only):
                yield row, zoo
    for name in asked.attack:
        recipes = attack_recipes([name])
        build_zoo(recipes, asked.data_root, asked.build, lambda text: print(text, file=sys.stderr))
        yield rows_by_name(read_manifest(asked.build))[recipes[-1].name], asked.build


def attack_recipes(names: Sequence[str]) -> tuple[Recipe, ...]:
    """Recipes of RE's attacks on 10,000 images of Fashion-MNIST, after the clean twin."""
    base = {
        "dataset": "fashion_mnist",
        "architecture": "lenet5",
        "seed": 31,
        "per_class": 1000,
        "training": {"epochs": 8, "batch_size": 64, "learning_rate": 4e-3, "weight_decay": 1e-2},
    }
    rows: list[dict[str, Any]] = [base | {"name": "fashion_clean"}]
    for name in names:
        pattern, sources = name[0], name[1:]
        if pattern not in PATTERNS or sources not in SOURCES:
            raise OnnxspectError(f"unknown attack {name!r}", "a pattern A-F and 1, 3 or 9 source classes: A1")
        classes, rate = SOURCES[sources]
        attack = {"rate": rate, "members": [{"target": TARGET, "sources": classes, "trigger": PATTERNS[pattern]}]}
        rows.append(base | {"name": f"fashion_{name}", "twin": "fashion_clean", "attack": attack})
    return tuple(recipe_from_dict(row) for row in rows)


def cleansed(row: dict[str, Any], zoo: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One model's row of the table."""
    recipe = recipe_from_dict(row["recipe"])
    poisoned = rebuild_training_set(recipe, asked.data_root, zoo)
    folder = asked.work / row["name"]
    folder.mkdir(parents=True, exist_ok=True)
    count = round(1.5 * len(poisoned.indices))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "train.npz"
        np.savez(path, images=poisoned.images, labels=poisoned.labels)
        methods = [m for m in METHODS if m not in WITH_SCAN]
        done = cleanse(
            zoo / row["file"], path, folder, detectors=methods, targets=[int(row["target"])], known=PriorKnowledge(count=count),
            truth=zoo / f"{row['name']}.poison.npz", run=RunContext(asked.seed),
        )  # fmt: skip
    kept = ~next(s for s in done.scores if s.detector == REMOVE).removed
    np.save(folder / "kept.npy", kept)
    member = row["attack"]["members"][0]
    return {
        "name": row["name"],
        "pattern": pattern_of(member["trigger"]),
        "sources": member["sources"] if member["sources"] == "all" else len(member["sources"]),
        "target": row["target"],
        "poisoned": len(poisoned.indices),
        "training_images": len(poisoned.labels),
        "asr": row["asr"],
        "clean_accuracy": row["clean_accuracy"],
        "methods": {m["name"]: m["rates"] | {"notes": m["notes"]} for m in done.report["methods"]},
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def by_scan(row: dict[str, Any], zoo: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """DTInspector's B.5 on one model: scanned with its training set, its infected labels cleansed, until a scan finds none."""
    recipe = recipe_from_dict(row["recipe"])
    poisoned = rebuild_training_set(recipe, asked.data_root, zoo)
    dataset = load_dataset(recipe.dataset, asked.data_root)
    run, folder = RunContext(asked.seed), asked.work / row["name"]
    rng = run.numpy_generator("benchmark", recipe.dataset)
    drawn = even_draw(dataset.y_test, 100 * len(dataset.classes), rng)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    left, found = np.arange(len(poisoned.labels)), []
    with tempfile.TemporaryDirectory() as scratch:
        train_path, clean_path = Path(scratch) / "train.npz", Path(scratch) / "clean.npz"
        np.savez(clean_path, images=dataset.x_test[drawn], labels=dataset.y_test[drawn])
        for number in range(asked.rounds):
            np.savez(train_path, images=poisoned.images[left], labels=poisoned.labels[left])
            scanned = Path(scratch) / f"scan{number}"
            scan(zoo / row["file"], clean_path, scanned, detectors=asked.by_scan, train=train_path, run=run)
            done = cleanse(zoo / row["file"], train_path, folder, scanned, run=run)
            if not done.removed.any():
                break
            found.append(sorted({t["target"] for t in done.report["triggers"]}))
            left = left[~done.removed]
    kept = np.isin(np.arange(len(poisoned.labels)), left)
    np.save(folder / "kept.npy", kept)
    measured = rates(~kept, poisoned.labels, poisoned.indices)
    return {
        "name": row["name"],
        "pattern": row["attack"]["setting"],
        "sources": len(row["attack"]["members"]),
        "target": row["targets"],
        "found": sorted({c for classes in found for c in classes}),
        "found_by_round": found,
        "poisoned": len(poisoned.indices),
        "removed": int((~kept).sum()),
        "training_images": len(poisoned.labels),
        "asr": row["asr"],
        "clean_accuracy": row["clean_accuracy"],
        "methods": {" + ".join(asked.by_scan): vars(measured) | {"notes": []}},
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def pattern_of(trigger: dict[str, Any]) -> str:
    """RE's letter for a trigger; "-" for one that is not RE's."""
    for letter, pattern in PATTERNS.items():
        one_pixel = trigger.get("height") == 1
        if (
            trigger["kind"] == pattern["kind"]
            and trigger.get("shape") in (None, pattern.get("shape"))
            and not one_pixel
        ):
            return letter
    return "-"


def retrained(row: dict[str, Any], zoo: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The network trained again on what RE (or a scan's methods) kept: accuracy, ASR, and the twin's accuracy.

    Kept in the work folder, under a name made of the model and of what was kept: training gives the same bits again.
    """
    recipe = recipe_from_dict(row["recipe"])
    dataset = load_dataset(recipe.dataset, asked.data_root)
    part = training_part(recipe, dataset)
    poisoned = rebuild_training_set(recipe, asked.data_root, zoo)
    kept = np.load(asked.work / row["name"] / "kept.npy")
    digest = hashlib.sha256(row["sha256"].encode() + np.packbits(kept).tobytes()).hexdigest()[:16]
    known = asked.work / row["name"] / f"retrained-{digest}.json"
    if known.is_file():
        found: dict[str, Any] = json.loads(known.read_text())
        return found
    none = np.zeros(0, dtype=np.int64)
    rest = Poisoned(poisoned.images[kept], poisoned.labels[kept], none, none, none, none, none)
    network, _ = train(replace(recipe, attack=None), part, rest, None)
    attack, file_format = attack_of(row), architectures.get(recipe.architecture).file_format
    if attack is None:
        raise OnnxspectError(f"{row['name']}: is a clean model")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "again.onnx"
        exporting.export_torch(network, part.image_shape, path, dynamo=recipe.exporter == "torch_dynamo")
        success = measure.attack_success(
            path, dataset.x_test, dataset.y_test, len(dataset.classes), attack, file_format, recipe.seed
        )
        accuracy = measure.clean_accuracy(path, dataset.x_test, dataset.y_test, file_format)
    twin = rows_by_name(read_manifest(zoo)).get(recipe.twin or "")
    result = {
        "asr": round(success.rate, 6),
        "asr_per_member": [round(rate, 6) for rate in success.per_member],
        "asr_unstamped": round(success.base_rate, 6),
        "clean_accuracy": round(accuracy, 6),
        "twin_accuracy": twin["clean_accuracy"] if twin is not None else float("nan"),
    }
    known.write_text(json.dumps(result))
    return result


def line(row: dict[str, Any]) -> str:
    """One line a model: TPR/FPR of every method, and what retraining gave."""
    cells = [f"{row['name']:32} {row['pattern']}/{row['sources']!s:4}"]
    cells += [f"{m['tpr']:6.1%}/{m['fpr']:5.1%}" for m in row["methods"].values()]
    if "retrained" in row:
        cells.append(f"ASR {row['asr']:.1%} -> {row['retrained']['asr']:.1%}")
        cells.append(f"ACC {row['clean_accuracy']:.1%} -> {row['retrained']['clean_accuracy']:.1%}")
    return "  ".join(cells)


def write(rows: list[dict[str, Any]], asked: argparse.Namespace) -> None:
    """Rows and their means, with versions, hardware and date."""
    means = {
        name: {key: float(np.mean([r["methods"][name][key] for r in rows])) for key in ("tpr", "fpr", "fpr_all")}
        for name in rows[0]["methods"]
    }
    document = {
        "benchmark": "cleansing",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": {"machine": platform.machine(), "processor": platform.processor(), "system": platform.system()},
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "seed": asked.seed,
        "target_known": not asked.by_scan,
        "mean": means,
        "models": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
