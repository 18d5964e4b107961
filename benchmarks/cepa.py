"""CEPA over a zoo: each statistic's view of the target, at each tap, on infected and clean models.

    python benchmarks/cepa.py --zoo zoo --data-root DIR [--reference DIR] [--preset standard] [--form consensus|paper]
        [--pairs] [--taps DEPTH ...] [--images N] [--steps N] [--only NAME ...] --out FILE

Every model is given --samples clean test images of its data set, half of them to search on; reference networks are
trained on that half, once for each data set. Reported are for each (statistic, tap, relative to the references or
not): Student's t and the corrected p-value of the target among the classes (null_model.leave_one_out), the same of
the most extreme class, and over all models the area under the ROC curve of the least p-value; the carried mu's
success; seconds. A run that is interrupted goes on where it stopped: rows that --out holds under the same settings
are kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from detection import PACKAGES, add_subjects, asked_subjects, clean_samples, version
from sklearn.metrics import roc_auc_score

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.cepa import PRESETS, Cepa
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.judge.null_model import leave_one_out
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext, choose_device, device_name
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.reference import train_references
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject

#: Statistic -> its suspicious side.
STATISTICS = {"delta_norm": "low", "sigma_ratio": "low", "mu_norm": "low"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subjects(parser)
    parser.add_argument("--form", choices=["consensus", "paper"], default="consensus")
    parser.add_argument("--pairs", action="store_true", help="a unit for each pair of classes")
    parser.add_argument("--taps", type=float, nargs="*", help="depths in [0, 1], in place of the preset's")
    parser.add_argument("--images", type=int, help="images a unit is searched on, in place of the preset's")
    parser.add_argument("--steps", type=int, help="steps of a search, in place of the preset's")
    parser.add_argument("--samples", type=int, default=1000, help="clean images a model is given")
    parser.add_argument("--runs", type=Path, default=Path("runs/cepa"), help="where data and reference units are kept")
    parser.add_argument("--only", nargs="*", default=[], help="these models only, in this order")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    asked = parser.parse_args(arguments)
    subjects = asked_subjects(asked)
    if asked.only:
        subjects = sorted((s for s in subjects if s["name"] in asked.only), key=lambda s: asked.only.index(s["name"]))
    if not subjects:
        parser.error("no models: give --zoo or --reference")
    run = RunContext(asked.seed, choose_device(asked.device))
    detector = Cepa.paper() if asked.form == "paper" else PRESETS[asked.preset]
    search = replace(
        detector.search, samples=asked.images or detector.search.samples, steps=asked.steps or detector.search.steps
    )
    taps = tuple(asked.taps) if asked.taps else detector.taps
    detector = replace(detector, search=search, pairs=asked.pairs, taps=taps)
    settings = {k: str(v) for k, v in detector.settings().items()} | {"samples": asked.samples, "seed": asked.seed}
    rows = _known(asked.out, settings)
    for subject in subjects:
        if subject["name"] not in {r["name"] for r in rows}:
            rows.append(measure(subject, detector, asked, run))
            _write(asked, settings, run, rows)
        print(line(next(r for r in rows if r["name"] == subject["name"])), flush=True)
    _write(asked, settings, run, rows)
    print(json.dumps(summary(rows), indent=2))
    return 0


def _known(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not out.is_file():
        return []
    kept = json.loads(out.read_text())
    return list(kept["models"]) if kept["settings"] == settings else []


def _write(asked: argparse.Namespace, settings: dict[str, Any], run: RunContext, rows: list[dict[str, Any]]) -> None:
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["benchmarks/cepa.py", *_options(asked)]),
        "settings": settings,
        "device": device_name(run.device),
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: version(p) for p in PACKAGES},
        "summary": summary(rows),
        "models": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


def _options(asked: argparse.Namespace) -> list[str]:
    """The arguments that the numbers depend on."""
    taps = [f"--taps {' '.join(map(str, asked.taps))}"] if asked.taps else []
    words = [*taps, f"--preset {asked.preset}", f"--form {asked.form}", *(["--pairs"] if asked.pairs else [])]
    return words + [
        f"--{n} {v}" for n in ("images", "steps", "samples", "seed") if (v := getattr(asked, n)) is not None
    ]


def measure(subject: dict[str, Any], detector: Cepa, asked: argparse.Namespace, run: RunContext) -> dict[str, Any]:
    """One model as a row; an error is a row too."""
    row = {k: subject[k] for k in ("name", "dataset", "network", "infected", "targets", "attack", "asr")}
    try:
        samples = Samples.load(clean_samples(subject["dataset"], asked))
        checked = preflight(
            Subject.from_onnx(subject["path"], subject["spec"], run.device, samples.shape),
            samples,
            run,
            subject["spec"],
        )
        search_samples, held_out = samples.split(0.5, run.numpy_generator("split"))
        references = _references(checked.subject, search_samples, held_out, subject["dataset"], run)
        kind = "-".join(t.replace("--", "").replace(" ", "-") for t in _options(asked))
        folder = asked.runs / f"references-{subject['dataset']}-{kind}"
        fingerprint = {"seed": run.seed, "settings": {k: str(v) for k, v in detector.settings().items()}}
        with Ledger(folder, fingerprint) as ledger:
            at_hand = AtHand(checked.subject, search_samples, held_out, run, None, references, ledger)
            started, processor = time.perf_counter(), time.process_time()
            evidence = detector.run(at_hand)
            seconds, processor = time.perf_counter() - started, time.process_time() - processor
    except OnnxspectError as error:
        return row | {"error": str(error)}
    if not isinstance(evidence, Evidence):
        return row | {"error": evidence.reason}
    verdict = decide([evidence], checked.subject.classes)
    return row | {
        "verdict": verdict.verdict,
        "found": list(verdict.targets),
        "p_value": verdict.p_value,
        "seconds": seconds,
        "seconds_searching": evidence.seconds,
        "processor_seconds": processor,
        "gradient_steps": evidence.steps,
        "references": len(references),
        "views": views(evidence, row["targets"]),
        "units": [
            {
                "target": u.unit.target,
                "source": u.unit.source,
                "tap": u.unit.tap,
                "steps": u.steps,
                "held_out_success": u.held_out_success,
                **{k: round(v, 5) for k, v in u.statistics.items()},
                **{f"reference_{m.statistic}": round(m.reference, 5) for m in u.measurements if m.reference},
            }
            for u in evidence.units
        ],
    }


_TRAINED: dict[str, list[Subject]] = {}


def _references(
    subject: Subject, search_samples: Samples, held_out: Samples, dataset: str, run: RunContext
) -> list[Subject]:
    """The data set's reference networks: they depend on its images alone, so one training serves all its models."""
    if dataset not in _TRAINED:
        _TRAINED[dataset] = train_references(subject, search_samples, held_out, run)
    return _TRAINED[dataset]


def views(evidence: Evidence, targets: list[int]) -> list[dict[str, Any]]:
    """Each statistic at each tap: how the target stands among the units, and which unit stands out most."""
    found = []
    for tap in dict.fromkeys(u.unit.tap for u in evidence.units):
        units = [u for u in evidence.units if u.unit.tap == tap]
        for name, tail in STATISTICS.items():
            found_on = [u.measurement(name) for u in units]
            for statistic, numbers in {
                name: [None if m is None else m.value for m in found_on],
                f"relative_{name}": [None if m is None else m.relative for m in found_on],
            }.items():
                values = np.array(numbers, np.float64)  # NaN for None
                if not np.isfinite(values).any():
                    continue
                judged = leave_one_out(values, tail)
                top = int(np.nanargmax(judged.index))
                view = {"statistic": statistic, "tap": tap, "top": units[top].unit.target}
                view |= {"top_t": float(judged.index[top]), "least_log10_p": float(judged.log10_p.min())}
                own = [i for i, u in enumerate(units) if u.unit.target in targets and np.isfinite(judged.index[i])]
                if own:
                    best = max(own, key=lambda i: judged.index[i])
                    view |= {"target_t": float(judged.index[best]), "target_log10_p": float(judged.log10_p[best])}
                found.append(view)
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of the verdict by CEPA alone, and the separation by statistic and place of the tap."""
    able = [r for r in rows if "error" not in r]
    infected, clean = [r for r in able if r["infected"]], [r for r in able if not r["infected"]]
    separation: dict[str, Any] = {}
    for place in range(max((len(_taps(r)) for r in able), default=0)):
        for statistic in [s for n in STATISTICS for s in (n, f"relative_{n}")]:
            scored = [(r, v) for r in able for v in r["views"] if (_place(r, v), v["statistic"]) == (place, statistic)]
            bad = [v for r, v in scored if r["infected"]]
            good = [v for r, v in scored if not r["infected"]]
            if not bad or not good:
                continue
            # An infected model counts by its target, so that a wrong class that stands out is no merit.
            scores = [-v.get("target_log10_p", 0.0) for v in bad] + [-v["least_log10_p"] for v in good]
            separation[f"{statistic} at tap {place}"] = {
                "roc_area": float(roc_auc_score([1] * len(bad) + [0] * len(good), scores)),
                "targets_below_0.05": int(sum(v.get("target_log10_p", 0.0) < np.log10(0.05) for v in bad)),
                "clean_below_0.05": int(sum(v["least_log10_p"] < np.log10(0.05) for v in good)),
                "median_target_t": float(np.median([v.get("target_t", 0.0) for v in bad])),
            }
    return {
        "infected": len(infected),
        "found_with_right_target": sum(bool(r["found"]) and set(r["found"]) <= set(r["targets"]) for r in infected),
        "clean": len(clean),
        "false_alarms": sum(bool(r["found"]) for r in clean),
        "errors": len(rows) - len(able),
        "median_seconds": float(np.median([r["seconds"] for r in able])) if able else None,
        "median_processor_seconds": float(np.median([r["processor_seconds"] for r in able])) if able else None,
        "separation": separation,
    }


def _taps(row: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(v["tap"] for v in row["views"]))


def _place(row: dict[str, Any], view: dict[str, Any]) -> int:
    return _taps(row).index(view["tap"])


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    if "error" in row:
        return f"{row['name']:<34} error: {row['error']}"
    shown = [v for v in row["views"] if v["statistic"].endswith("delta_norm")]
    words = " ".join(
        f"[{_place(row, v)}{'r' if v['statistic'].startswith('r') else ' '} "
        f"T {v.get('target_t', float('nan')):5.1f} 1e{v.get('target_log10_p', 0):.1f} "
        f"top {v['top']}: {v['top_t']:4.1f} 1e{v['least_log10_p']:.1f}]"
        for v in shown
    )
    carried = {u["target"]: round(u["held_out_success"], 2) for u in row["units"] if u["held_out_success"] is not None}
    return f"{row['name']:<32} {row['targets']!s:<8} {row['found']!s:<6} {row['processor_seconds']:4.0f} s {words} carried {carried}"


if __name__ == "__main__":
    sys.exit(main())
