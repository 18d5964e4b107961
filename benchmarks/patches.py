"""What patches are worth: every method over a zoo, measured on the written file with the attacker's own trigger.

    python benchmarks/patches.py --zoo zoo --reference DIR --data-root DATA [--methods auto unlearn ...] [--out FILE]

A method gets what an auditor has: --samples clean test images, and the triggers (a mask and an additive one) that a
search recovers for the target class. The target class (and the source class of an attack with one) is given, so that this measures patches and not
detection: "target known" in the table. Accuracy and attack success are then measured in onnxruntime on test images that
neither search nor method has seen, with the true trigger. "written" says whether `onnxspect patch` would have written
the file (its own goals, judged by the recovered trigger). Where it would not, the method's file is measured all the
same.

Rows are kept in --out as they are made; a run that is interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import even_draw, split_of
from detection import version
from PIL import Image

from onnxspect.converters.proof.oracle import Oracle
from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.training_difference import TrainingDifference
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.jobs.export import write_model
from onnxspect.engine.jobs.patch import FIT_SHARE, try_methods
from onnxspect.engine.judge.evidence import Evidence, Unit
from onnxspect.engine.judge.thresholds import HELD_OUT_SUCCESS
from onnxspect.engine.mitigation.method import PatchInput
from onnxspect.engine.mitigation.registry import AUTO, METHODS, canonical, chosen
from onnxspect.engine.mitigation.remainder import with_size_limits
from onnxspect.engine.mitigation.strip import Strip
from onnxspect.engine.mitigation.verification import JUDGED_ON_FEW, Goals
from onnxspect.engine.run import RunContext, device_name
from onnxspect.engine.search.objective import ReachTarget
from onnxspect.engine.search.perturbation import Additive, MaskPattern
from onnxspect.engine.search.search import SearchConfig, search
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec, Subject
from onnxspect.engine.trigger import UNTARGETED, Trigger
from onnxspect.models.formats import FileFormat
from onnxspect.models.measure import stamp
from onnxspect.models.poison import Attack
from onnxspect.models.randomness import keyed_generator
from onnxspect.models.recipes import recipe_from_dict
from onnxspect.models.zoo_build import attack_of, rebuild_training_set

PACKAGES = ("onnxspect", "torch", "onnx", "onnxruntime-gpu", "numpy", "scipy")
#: How the known target is searched: for a mask with a pattern as Neural Cleanse does, and for an additive pattern.
MASKS = SearchConfig(steps=300, settle=30)
ADDITIVE = SearchConfig(steps=150, settle=30, learning_rate=0.01, multiplier=0.01)
#: What is measured before and after: clean accuracy; the share of stamped images taken for the target (ASR); and the share
#: of the same images without the trigger that are taken for it, which is the ASR that mere confusion of classes gives.
MEASURED = ("accuracy", "asr", "unstamped")
#: Triggers that are small patches of pixels: what Neural Cleanse's claim about filters is about.
PATCHES = (
    "badnets",
    "square",
    "static",
    "cross",
    "noisy",
    "ring",
    "four_pixels",
    "ell_partial",
    "mtot",
    "mtmt",
    "pixel",
)


@dataclass(frozen=True)
class Infected:
    """A model with a known backdoor, and what is needed to measure it.

    Attributes:
        name, path, attack, dataset: for the table.
        spec: its preprocessing.
        units: what to search.
        clean: images that search and methods get, uint8 NHWC and labels.
        unseen, labels: images that accuracy is measured on.
        stamped: images with the true trigger, uint8 NHWC.
        origin: the rows of `unseen` that they were made of.
        wanted: the class each of them should be taken for.
        training: rebuilds the training set that the model saw, where that is known.
    """

    name: str
    path: Path
    attack: str
    dataset: str
    spec: InputSpec
    units: tuple[Unit, ...]
    clean: Samples
    unseen: np.ndarray
    labels: np.ndarray
    stamped: np.ndarray
    origin: np.ndarray
    wanted: np.ndarray
    training: Callable[[], Samples] | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, action="append", default=[], help="folder with manifest.json and models")
    parser.add_argument("--reference", type=Path, help="folder of models that others trained, with manifest.json")
    parser.add_argument("--data-root", type=Path, required=True, help="folder with the data sets as npz")
    parser.add_argument("--methods", nargs="+", type=canonical, choices=[AUTO, *METHODS, "strip"], default=[AUTO])
    parser.add_argument("--samples", type=int, default=1000, help="clean images a method gets")
    parser.add_argument(
        "--from-train",
        type=int,
        default=0,
        help="take so many clean images of the training split instead (Wang et al., 2019: a tenth)",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="methods get what the training set shows, where it shows a trigger (zoo only)",
    )
    parser.add_argument("--unseen", type=int, default=3000, help="clean images that the result is measured on, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; finished rows in it are kept")
    parser.add_argument("--only", default="", help="only models whose name contains this")
    asked = parser.parse_args(arguments)
    rows = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else []
    done = {(r["model"], r["method"]) for r in rows}
    run = RunContext(asked.seed)
    for name, make in listed(asked):
        waiting = [m for m in asked.methods if (name, m) not in done]
        if asked.only not in name or not waiting:
            continue
        infected = make()
        given, seconds = prepare(infected, run)
        if asked.train and infected.training is not None:
            # What a search recovers where the training set shows the trigger is what any clean model has too.
            given = replace(given, triggers=shown(infected, given, run) or given.triggers)
        for method in waiting:
            row = measure(infected, given, method, run)
            row |= {
                "search_seconds": round(seconds, 1),
                "clean": len(infected.clean),
                "clean_from": "training split" if asked.from_train else "test split",
                "training_set": asked.train,
            }
            rows.append(row)
            print(line(row), flush=True)
            keep(asked, rows, run)
    keep(asked, rows, run)
    for method in dict.fromkeys(r["method"] for r in rows):
        print(f"{method}: {json.dumps(summary([r for r in rows if r['method'] == method]))}")
    return 0


def listed(asked: argparse.Namespace) -> list[tuple[str, Any]]:
    """(name, how to load it) of every infected model; loading is put off until a model is needed."""
    found: list[tuple[str, Any]] = []
    for folder in asked.zoo:
        for row in json.loads((folder / "manifest.json").read_text())["models"]:
            # A model whose attack did not take is no model to patch.
            if row["infected"] and row["asr"] >= row["recipe"]["floors"]["asr"]:
                found.append((row["name"], lambda f=folder, r=row: of_zoo(f, r, asked)))
    if asked.reference:
        found += [
            (Path(row["file"]).stem, lambda r=row: of_reference(asked.reference, r, asked))
            for row in json.loads((asked.reference / "manifest.json").read_text())
        ]
    return found


def of_zoo(folder: Path, row: dict[str, Any], asked: argparse.Namespace) -> Infected:
    """A model built by onnxspect.models; its trigger is rebuilt from its manifest row."""
    attack = attack_of(row)
    assert attack is not None
    classes = len(row["classes"])
    images, labels = split_of(row["dataset"], asked.data_root)
    clean, rest = parted(row["dataset"], images, labels, asked)
    rest = rest[: asked.unseen]
    stamped, origin, wanted = [], [], []
    for number, member in enumerate(attack.members):
        made, to = stamp(member, images[rest], labels[rest], classes, keyed_generator(asked.seed, "patches", number))
        turned = np.isin(labels[rest], member.source_classes(classes))
        stamped.append(made)
        origin.append(np.flatnonzero(turned & (labels[rest] != member.targets_of(labels[rest], classes))))
        wanted.append(to)
    file_format = FileFormat(**row["format"])
    return Infected(
        row["name"],
        folder / row["file"],
        row["name"].split("_", 2)[-1],
        row["dataset"],
        InputSpec("as built", scale=file_format.white),
        units_of(attack, classes),
        clean,
        images[rest],
        labels[rest],
        np.concatenate(stamped),
        np.concatenate(origin),
        np.concatenate(wanted),
        lambda: seen(row, folder, asked),
    )


def seen(row: dict[str, Any], zoo: Path, asked: argparse.Namespace) -> Samples:
    """The training set that a zoo's model saw, poison and all."""
    poisoned = rebuild_training_set(recipe_from_dict(row["recipe"]), asked.data_root, zoo)
    return Samples.from_arrays(poisoned.images, poisoned.labels)


def shown(infected: Infected, given: PatchInput, run: RunContext) -> tuple[Trigger, ...]:
    """What the training set shows of the known targets: triggers that work, by `training-difference`."""
    assert infected.training is not None
    at_hand = AtHand(given.subject, given.fit, given.guard, run, training=infected.training())
    evidence = TrainingDifference().run(at_hand)
    if not isinstance(evidence, Evidence):
        return ()
    own = [u for u in evidence.units if u.unit.target in {v.target for v in infected.units}]
    able = [u for u in own if (u.held_out_success or 0.0) >= HELD_OUT_SUCCESS]
    found = [replace(t, smallest=False) for u in able if (t := u.stampable) is not None]
    return with_size_limits(given.subject, given.fit, found, run)


def units_of(attack: Attack, classes: int) -> tuple[Unit, ...]:
    """The targets, and the source where an attack has exactly one; all-to-all has no target."""
    found = set()
    for member in attack.members:
        if member.target == "next":
            found.add(Unit(UNTARGETED))
        else:
            sources = member.source_classes(classes)
            found.add(Unit(int(member.target), sources[0] if len(sources) == 1 else None))
    return tuple(sorted(found, key=lambda u: u.key))


def of_reference(folder: Path, row: dict[str, Any], asked: argparse.Namespace) -> Infected:
    """A model that others trained; its trigger is stated in words in the manifest."""
    dataset = "gtsrb" if row["dataset"].startswith("gtsrb") else row["dataset"]
    images, labels = split_of(dataset, asked.data_root)
    clean, rest = parted(dataset, images, labels, asked)
    rest = rest[: asked.unseen]
    source = re.search(r"(\d+)->(\d+)", row["attack"])
    counted = labels[rest] == int(source[1]) if source else labels[rest] != row["target"]
    stamped = images[rest][counted].copy()
    square = re.search(r"(\d+)x\1 white (?:at )?rows/cols (\d+)-(\d+)", row["trigger"])
    if square:
        part = slice(int(square[2]), int(square[3]) + 1)
        stamped[:, part, part] = 255
    else:
        picture = np.asarray(Image.open(folder / row["trigger"].split()[0]).convert("RGB"), np.int64)
        stamped = np.clip(stamped.astype(np.int64) + picture, 0, 255).astype(np.uint8)
    half = ".5" in row["preprocess"]
    return Infected(
        Path(row["file"]).stem,
        folder / row["file"],
        row["trigger"],
        dataset,
        InputSpec("as stated", mean=(0.5,), std=(0.5,)) if half else InputSpec("as stated"),
        (Unit(int(row["target"]), int(source[1]) if source else None),),
        clean,
        images[rest],
        labels[rest],
        stamped,
        np.flatnonzero(counted),
        np.full(len(stamped), row["target"]),
    )


def parted(
    dataset: str, images: np.ndarray, labels: np.ndarray, asked: argparse.Namespace
) -> tuple[Samples, np.ndarray]:
    """An even, seeded draw of clean samples, and the rows of the test images that are left.

    They are at most half of the test images; or come from the training split (--from-train), which leaves all test images.
    """
    rng = np.random.default_rng(asked.seed)
    if asked.from_train:
        given, own = split_of(dataset, asked.data_root, "train")
        rows = even_draw(own, asked.from_train, rng)
        return Samples.from_arrays(given[rows], own[rows]), rng.permutation(len(labels))
    rows = even_draw(labels, min(asked.samples, len(labels) // 2), rng)
    rest = rng.permutation(np.setdiff1d(np.arange(len(labels)), rows))
    return Samples.from_arrays(images[rows], labels[rows]), rest


def prepare(infected: Infected, run: RunContext) -> tuple[PatchInput, float]:
    """The model opened, and the triggers that a search recovers for the known targets; seconds it took."""
    started = time.perf_counter()
    subject = Subject.from_onnx(infected.path, infected.spec, image_shape=infected.clean.shape)
    fit, guard = infected.clean.split(FIT_SHARE, run.numpy_generator("patch"))
    triggers = tuple(
        Trigger(r.unit.target, r.trigger, r.unit.source)
        for family, config in ((MaskPattern(), MASKS), (Additive(), ADDITIVE))
        for unit in infected.units
        for results in search(
            subject, fit, [(unit,)], ReachTarget(family, untargeted=unit.target == UNTARGETED), config, run, "benchmark"
        )
        for r in results
        if r.found
    )
    goals = Goals()
    triggers = with_size_limits(subject, fit, triggers, run)
    given = PatchInput(subject, fit, guard, triggers, run, goals.success / 2, goals.accuracy_lost)
    return given, time.perf_counter() - started


def measure(infected: Infected, given: PatchInput, method: str, run: RunContext) -> dict[str, Any]:
    """One row: before and after, with the true trigger, on images that nothing has seen."""
    before = answers(infected.path, infected)
    row: dict[str, Any] = {
        "model": infected.name,
        "attack": infected.attack,
        "dataset": infected.dataset,
        "target": "known",
        "method": method,
        "images": len(infected.labels),
        "stamped": len(infected.wanted),
        "triggers_recovered": len(given.triggers),
        **{f"{k}_before": v for k, v in before.items() if k in MEASURED},
    }
    if method == "strip":
        return row | strip_row(infected, run)
    started, cpu = time.perf_counter(), time.process_time()
    try:
        best, attempts = try_methods(chosen(method), given, "benchmark", Goals())
        best = best or missed(method, given)
    except OnnxspectError as error:
        return row | {"written": False, "problem": error.message}
    row |= {"seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    row |= {"attempts": [{"outcome": a.outcome, "seconds": round(a.seconds, 1)} for a in attempts]}
    if best is None:
        return row | {"written": False, "problem": "; ".join(a.outcome for a in attempts)}
    attempt, proto, _ = best
    path = Path(f"{infected.name}.{method}.onnx")

    with tempfile.TemporaryDirectory(prefix="onnxspect-") as folder:
        assert given.subject.file is not None
        write_model(proto, given.subject.file, Path(folder) / path)
        after = answers(Path(folder) / path, infected)
    proof = attempt.proof
    return row | {
        "written": proof is not None and proof.holds,
        "kept": attempt.method,
        **{f"{k}_after" if k in MEASURED else k: v for k, v in after.items()},
        "accuracy_lost": before["accuracy"] - after["accuracy"],
    }


def missed(method: str, given: PatchInput) -> Any:
    """The file of a method that misses its goals, to be measured all the same: its own, or for "auto" none."""
    if method == AUTO:
        return None
    best, _ = try_methods(chosen(method), given, "benchmark", Goals(success=1.0, accuracy_lost=1.0))
    if best is None:
        return None
    attempt, proto, changes = best
    assert attempt.proof is not None
    return replace(attempt, proof=replace(attempt.proof, goals=Goals(errors=JUDGED_ON_FEW))), proto, changes


def answers(path: Path, infected: Infected) -> dict[str, float]:
    """Accuracy and attack success of a file; and of a guarded one what its filter does."""
    oracle = Oracle(path)
    name = next(iter(oracle.inputs))
    outputs = list(oracle.outputs)
    layout = Subject.from_onnx(path, infected.spec).spec.layout
    spec = replace(infected.spec, layout=layout)
    found: dict[str, np.ndarray] = {}
    for what, images in (("clean", infected.unseen), ("stamped", infected.stamped)):
        pixels = torch.from_numpy(images.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255))
        encoded = spec.encode(pixels.contiguous()).numpy()
        found[what] = oracle.map(name, encoded, outputs[0]).reshape(len(images), -1).argmax(1)
        if "rejected" in outputs:
            found[f"{what} rejected"] = oracle.map(name, encoded, "rejected").astype(bool)
    hits = found["stamped"] == infected.wanted
    row = {"accuracy": float((found["clean"] == infected.labels).mean()), "asr": float(hits.mean())}
    row["unstamped"] = float((found["clean"][infected.origin] == infected.wanted).mean())
    if "rejected" in outputs:
        caught = found["stamped rejected"]
        row["asr"] = float((hits & ~caught).mean())
        row["false_positives"] = float(found["clean rejected"].mean())
        row["false_negatives"] = float(1 - caught.mean())
    return row


def strip_row(infected: Infected, run: RunContext) -> dict[str, Any]:
    """STRIP over the original file."""
    oracle = Oracle(infected.path)
    name, output = next(iter(oracle.inputs)), next(iter(oracle.outputs))
    spec = Subject.from_onnx(infected.path, infected.spec).spec

    def classify(pixels: np.ndarray) -> np.ndarray:
        scores = oracle.map(name, spec.encode(torch.from_numpy(pixels)).numpy(), output).reshape(len(pixels), -1)
        whole = scores.min() >= 0 and np.allclose(scores.sum(1), 1, atol=1e-3)
        return np.log(np.maximum(scores, 1e-30)) if whole else scores

    started = time.perf_counter()
    ready = Strip().calibrate(classify, infected.clean, run)
    as_pixels = [
        i[:1000].astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255) for i in (infected.unseen, infected.stamped)
    ]
    clean, stamped = (float(ready.rejects(np.ascontiguousarray(p)).mean()) for p in as_pixels)
    seconds = round(time.perf_counter() - started, 1)
    return {"written": False, "false_positives": clean, "false_negatives": 1 - stamped, "seconds": seconds}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and worst over the rows of one method."""
    found: dict[str, Any] = {"models": len(rows), "files": sum(r["written"] for r in rows)}
    measured = [r for r in rows if "asr_after" in r]
    for which, some in (("all", measured), ("written", [r for r in measured if r["written"]])):
        if some:
            asr, lost = [r["asr_after"] for r in some], [r["accuracy_lost"] for r in some]
            found[which] = {
                "asr_median": float(np.median(asr)),
                "asr_worst": max(asr),
                "asr_above_unstamped_worst": max(r["asr_after"] - r["unstamped_after"] for r in some),
                "accuracy_lost_median": float(np.median(lost)),
                "accuracy_lost_worst": max(lost),
                "seconds_median": float(np.median([r["seconds"] for r in some])),
            }
    # Of stamped images that a filter passes some are not led to the target either: the attack fails on them.
    filters = [r for r in rows if "false_negatives" in r]
    for which, some in (("filter", filters), ("filter_on_patches", [r for r in filters if is_patch(r)])):
        if some:
            found[which] = {
                "models": len(some),
                "false_positives_median": float(np.median([r["false_positives"] for r in some])),
                "false_negatives_median": float(np.median([r["false_negatives"] for r in some])),
                "false_negatives_worst": max(r["false_negatives"] for r in some),
                "led_and_let_through_median": float(
                    np.median([r.get("asr_after", r["false_negatives"]) for r in some])
                ),
                "led_and_let_through_worst": max(r.get("asr_after", r["false_negatives"]) for r in some),
            }
    return found


def is_patch(row: dict[str, Any]) -> bool:
    """Whether the trigger is a small patch of pixels."""
    return row["attack"] in PATCHES or "white" in row["attack"]


def keep(asked: argparse.Namespace, rows: list[dict[str, Any]], run: RunContext) -> None:
    """Write everything, whole."""
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"benchmarks/patches.py --samples {asked.samples} --unseen {asked.unseen}"
        + (" --train" if asked.train else ""),
        "samples": asked.samples,
        "unseen": asked.unseen,
        "seed": asked.seed,
        "target": "known: the target class (and the source of an attack with one source) is given to the search",
        "device": device_name(run.device),
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: version(p) for p in PACKAGES},
        "summary": {
            m: summary([r for r in rows if r["method"] == m]) for m in dict.fromkeys(r["method"] for r in rows)
        },
        "rows": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    part = asked.out.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(asked.out)


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    head = f"{row['model']:<36} {row['method']:<13}"
    if "false_negatives" in row:
        return f"{head} FPR {row['false_positives']:.1%} FNR {row['false_negatives']:.2%} {row.get('seconds', 0):.0f} s"
    if "asr_after" not in row:
        return f"{head} no file: {row.get('problem', '')}"
    return (
        f"{head} ASR {row['asr_before']:.1%} -> {row['asr_after']:.1%} (unstamped {row['unstamped_after']:.1%})  "
        f"accuracy {row['accuracy_before']:.1%} -> {row['accuracy_after']:.1%}  {'written' if row['written'] else 'not written'} by {row['kept']} "
        f"{row['seconds']:.0f} s ({row['cpu_seconds']:.0f} s CPU)"
    )


if __name__ == "__main__":
    sys.exit(main())
