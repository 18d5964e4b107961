"""How many clean samples a verdict takes: the shipped pair scanned with n samples of each class, for several n and seeds.

    python benchmarks/derive_sample_size.py --data-root DATA [--seeds 3] [--out benchmarks/results/sample_size.json]

For each n a seeded draw of the data set's test images; the infected model and its clean twin are scanned with the preset's
detectors, named, so that no minimum stops them, and judged without one. Reported are the power (infected, the right class and no
other) and the share of clean scans that are an alarm, with exact 95 % intervals; "least" is the least n from which on the power
is at least 0.9 and no clean scan is an alarm. engine/subject/sample_size.py has that number. A result file that is there goes on: what
it holds of the same preset is not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import split_of
from detection import PACKAGES, version
from scipy.stats import beta

from onnxspect.engine.detectors.base import AtHand
from onnxspect.engine.detectors.registry import PRESETS, chosen
from onnxspect.engine.jobs.scan import SEARCH_SHARE
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.judge.verdict import decide
from onnxspect.engine.run import RunContext
from onnxspect.engine.store import Ledger
from onnxspect.engine.subject.preprocessing import preflight
from onnxspect.engine.subject.reference import train_references
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.models import zoo

INFECTED, CLEAN = "fashion_mnist_badnets", "fashion_mnist_clean"
SIZES = (1, 2, 3, 5, 10, 20, 50)
POWER = 0.9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the derivation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with the data sets as npz")
    parser.add_argument("--preset", choices=list(PRESETS), default="quick")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="samples a class")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sample_size.json")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images, labels = split_of("fashion_mnist", asked.data_root)
    kept = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    rows: list[dict[str, Any]] = kept.get("scans", []) if kept.get("preset") == asked.preset else []
    for seed in range(asked.seeds):
        for n in asked.sizes:
            if any((r["samples_a_class"], r["seed"]) == (n, seed) for r in rows):
                continue
            rows += measure(draw(images, labels, n, seed), n, seed, asked.preset)
            print(json.dumps(rows[-2:]), flush=True)
            write(asked.out, asked.preset, rows)
    write(asked.out, asked.preset, rows)
    print(json.dumps(json.loads(asked.out.read_text())["by_size"], indent=1))
    return 0


def draw(images: np.ndarray, labels: np.ndarray, n: int, seed: int) -> Samples:
    """n images of every class, drawn by the seed."""
    rng = np.random.default_rng([seed, n])
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:n] for c in np.unique(labels)])
    return Samples.from_arrays(images[np.sort(rows)], labels[np.sort(rows)])


def measure(samples: Samples, n: int, seed: int, preset: str) -> list[dict[str, Any]]:
    """Both models as `onnxspect scan` looks at them, with references in common, as one row each."""
    run, rows = RunContext(seed), []
    search_samples, held_out = samples.split(SEARCH_SHARE, run.numpy_generator("split"))
    with tempfile.TemporaryDirectory(prefix="onnxspect-") as folder, Ledger(Path(folder), {"n": n}) as ledger:
        for name in (INFECTED, CLEAN):
            started = time.process_time()
            subject = preflight(Subject.from_onnx(zoo.path(name)), samples, run).subject
            references = train_references(subject, search_samples, held_out, run, Path(folder))
            at_hand = AtHand(subject, search_samples, held_out, run, None, references, ledger)
            evidence = [detector.run(at_hand) for detector in chosen(preset)]
            verdict = decide(evidence, subject.classes)
            truth = zoo.entry(name)
            rows.append(
                {
                    "model": name,
                    "samples_a_class": n,
                    "seed": seed,
                    "references": len(references),
                    "verdict": verdict.verdict,
                    "targets": list(verdict.targets),
                    "right": list(verdict.targets) == ([truth["target"]] if name == INFECTED else []),
                    "p_value": verdict.p_value,
                    "searches": {e.detector: searches(e) for e in evidence if isinstance(e, Evidence)},
                    "cpu_seconds": round(time.process_time() - started, 1),
                }
            )
    return rows


def searches(evidence: Evidence) -> dict[str, int]:
    """How many of a detector's searches reached their class, and converged."""
    units = [u for u in evidence.units if not u.unit.shared]
    return {"units": len(units), "found": sum(u.found for u in units), "converged": sum(u.converged for u in units)}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Power and false alarms for each number of samples a class."""
    rows_out = []
    for n in sorted({r["samples_a_class"] for r in rows}):
        infected, clean = ([r for r in rows if (r["samples_a_class"], r["model"]) == (n, m)] for m in (INFECTED, CLEAN))
        found, alarms = sum(r["right"] for r in infected), sum(bool(r["targets"]) for r in clean)
        rows_out.append(
            {
                "samples_a_class": n,
                "scans": len(infected),
                "power": found / len(infected),
                "power_95": interval(found, len(infected)),
                "false_alarms": alarms / len(clean),
                "false_alarms_95": interval(alarms, len(clean)),
            }
        )
    return rows_out


def interval(successes: int, n: int) -> list[float]:
    """Clopper and Pearson's exact 95 % interval of a share."""
    low = float(beta.ppf(0.025, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.ppf(0.975, successes + 1, n - successes)) if successes < n else 1.0
    return [round(low, 3), round(high, 3)]


def least(by_size: Sequence[dict[str, Any]]) -> int | None:
    """The least number from which on every number has the power and no false alarm; None where the largest has not."""
    found = None
    for row in sorted(by_size, key=lambda r: -r["samples_a_class"]):
        if row["power"] < POWER or row["false_alarms"] > 0:
            break
        found = int(row["samples_a_class"])
    return found


def write(out: Path, preset: str, rows: Sequence[dict[str, Any]]) -> None:
    """The result file, whole, after every size."""
    by_size = summary(rows)
    result = {
        "benchmark": "sample_size",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"benchmarks/derive_sample_size.py --preset {preset} --seeds {len({r['seed'] for r in rows})}",
        "preset": preset,
        "seeds": sorted({r["seed"] for r in rows}),
        "models": [INFECTED, CLEAN],
        "machine": {"python": platform.python_version(), "processor": platform.machine(), "system": platform.system()},
        "versions": {p: version(p) for p in PACKAGES},
        "wanted_power": POWER,
        "least": least(by_size),
        "by_size": by_size,
        "scans": list(rows),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
