"""All kept evidence through `decide` again: what the statistics of this commit say of every model that was ever scanned.

    python benchmarks/replay.py [--evidence benchmarks/evidence] [--half tuning|judging] [--bank] [--out FILE]

Nothing is searched and no model is opened: it takes seconds. Printed are the boards (by half, and of each by board, attack, network, classes
and samples a class), every model whose verdict is another than the one that was recorded when it was scanned, and how good the probabilities are
(cross-entropy and Brier score, where the bank suffices for any). Tables that are published come from the judging half alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from boards import grouped, interval, line, summary
from kept import FOLDER, Kept, everything
from scipy import special

from onnxspect.engine.detectors import attractor
from onnxspect.engine.judge.calibration import PRIOR, Bank, shipped
from onnxspect.engine.judge.evidence import Evidence
from onnxspect.engine.judge.thresholds import ALPHA
from onnxspect.engine.judge.verdict import Verdict, decide_archive

#: Levels at which the share of clean models with a smaller p-value is counted.
LEVELS = (0.01, 0.02, 0.05, 0.1)
#: Steps of the number of classes by which areas and attacks are shown apart.
SIZES = {"2 to 9": (2, 9), "10 to 99": (10, 99), "100 and more": (100, 1 << 30)}
#: How the rows are grouped.
GROUPS = {
    "board": lambda r: r["board"],
    "attack": lambda r: str(r["attack"]),
    "network": lambda r: str(r["network"]),
    "classes": lambda r: f"{r['classes']:4d}",
    "samples a class": lambda r: f"{round(r['samples'] / r['classes']):4d}",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, default=FOLDER)
    parser.add_argument("--half", choices=["tuning", "judging"], help="of the bank; both by default")
    parser.add_argument("--bank", action="store_true", help="calibrate by the shipped bank, as a scan does")
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    kept = [k for k in everything(asked.evidence) if asked.half in (None, k.half)]
    if not kept:
        parser.error(f"no kept evidence in {asked.evidence}")
    rows = [row(k, shipped() if asked.bank else None) for k in kept]
    again = on_fewer_samples(rows)
    whole = [r for r in rows if key_of(r) not in again]
    plain = [row(k) for k, r in zip(kept, rows, strict=True) if key_of(r) not in again] if asked.bank else []
    result = {
        "command": "benchmarks/replay.py" + " --bank" * asked.bank,
        "halves": by_half(whole),
        "without_the_bank": by_half(plain),
        "by_samples": by_samples(rows, again),
        "changed": [r["name"] for r in rows if r["verdict"] != r["recorded"]["verdict"]],
        "models": rows,
    }
    for one in rows:
        print(f"{one['half']:8} {one['board']:10} {line(one)}")
        if one["verdict"] != one["recorded"]["verdict"] or one["found"] != one["recorded"]["targets"]:
            print(
                f"         recorded: {one['recorded']['verdict']} {one['recorded']['targets']} by {one['recorded']['tool']}"
            )
    for half, counts in result["halves"].items():
        print(f"\n{half}: {json.dumps(counts['all'])}")
        print(f"  level: {json.dumps(counts['level'])}  probabilities: {json.dumps(counts['probabilities'])}")
        for name in GROUPS:
            for group, of in counts[name].items():
                print(
                    f"  {name:16} {group:44} found {of['found_with_right_target']}/{of['infected']} "
                    f"false alarms {of['false_alarms']}/{of['clean']} (paper's rule {of['found_by_the_paper_rule']}/{of['infected']}, "
                    f"{of['false_alarms_of_the_paper_rule']}/{of['clean']}) inconclusive {of['inconclusive']}"
                )
    for samples, of in result["by_samples"].items():
        print(f"  of {samples} samples: {json.dumps(of)}")
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def judged(kept: Kept, bank: Bank | None = None) -> Verdict:
    """What this commit says of a kept model."""
    evidence = kept.archive.evidence
    today = (_of_today(e) if isinstance(e, Evidence) and e.detector == attractor.NAME else e for e in evidence)
    return decide_archive(replace(kept.archive, evidence=tuple(today)), bank)


def _of_today(evidence: Evidence) -> Evidence:
    """With the usual spacings of this commit: they are kept beside what was measured, and are no measurement of the model."""
    views = (replace(v, spacing=attractor.usual(v.statistic)) for v in evidence.views)
    return replace(evidence, views=tuple(views))


def row(kept: Kept, bank: Bank | None = None) -> dict[str, Any]:
    """The same as a row of a board."""
    verdict = judged(kept, bank)
    ran = [e for e in kept.archive.evidence if isinstance(e, Evidence)]
    indices = [v for c in verdict.classes for v in c.mad_index.values() if v is not None]
    return {
        **kept.model,
        "board": kept.board,
        "half": kept.half,
        "samples": kept.archive.samples,
        "verdict": verdict.verdict,
        "found": list(verdict.targets),
        "p_value": verdict.p_value,
        "log10_p": min((c.log10_p for c in verdict.classes), default=0.0),
        "score": verdict.score,
        "p_backdoored": verdict.calibration.p_backdoored if verdict.calibration else None,
        "most_extreme_mad_index": max(indices, default=None),
        "gradient_steps": sum(e.steps for e in ran),
        "recorded": dict(kept.recorded),
    }


def key_of(one: dict[str, Any]) -> tuple[str, str]:
    """What tells a row from any other: a model may stand on several boards."""
    return one["board"], one["name"]


def on_fewer_samples(rows: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Keys of the scans of a model that was scanned by the same preset on more samples too: they are no further models."""
    most: dict[tuple[str, str], int] = {}
    for r in rows:
        most[_scanned(r)] = max(most.get(_scanned(r), 0), r["samples"])
    return {key_of(r) for r in rows if r["samples"] < most[_scanned(r)]}


def _scanned(one: dict[str, Any]) -> tuple[str, str]:
    """The model, and by which preset; of the oldest rows the digest was not kept."""
    return one.get("sha256", one["name"]), one["recorded"].get("preset", one["board"])


def by_samples(rows: Sequence[dict[str, Any]], again: set[tuple[str, str]]) -> dict[str, Any]:
    """What comes of the same models on fewer and on more samples: those that were scanned on every number of them.

    Args:
        rows: all.
        again: of `on_fewer_samples`.
    """
    sizes = sorted({r["samples"] for r in rows if key_of(r) in again})
    sets = [{_scanned(r) for r in rows if key_of(r) in again and r["samples"] == n} for n in sizes]
    common = set.intersection(*sets) if sets else set()
    some: dict[int, list[dict[str, Any]]] = {}
    for r in rows:
        if _scanned(r) in common and r["half"] == "judging":
            some.setdefault(r["samples"], []).append(r)
    return {str(n): summary(some[n]) for n in sorted(some)}


def by_half(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The board of each half of the bank."""
    return {half: board([r for r in rows if r["half"] == half]) for half in sorted({r["half"] for r in rows})}


def board(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all rows and by group, the level on clean models, and the probabilities' scores."""
    clean: dict[str, list[float]] = {}
    for r in rows:
        if not r["infected"]:
            clean.setdefault(GROUPS["classes"](r), []).append(r["p_value"])
    sizes = by_size(rows)
    return {
        "all": summary(rows),
        "level": level([p for p_values in clean.values() for p in p_values]),
        "level_by_classes": {classes: level(clean[classes]) for classes in sorted(clean)},
        "roc_area": {name: roc_area(some) for name, some in sizes.items()},
        "attack_by_size": {name: grouped(some, GROUPS["attack"]) for name, some in sizes.items()},
        "probabilities": proper_scores(rows),
        **{name: grouped(rows, key) for name, key in GROUPS.items()},
    }


def by_size(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows by number of classes, in steps; those steps alone that have any."""
    found = {name: [r for r in rows if low <= r["classes"] <= high] for name, (low, high) in SIZES.items()}
    return {name: some for name, some in found.items() if some}


def roc_area(rows: Sequence[dict[str, Any]]) -> float | None:
    """Area under the ROC curve of the p-value: how often an infected model has a smaller one than a clean one, ties half; None without both."""
    clean, infected = (np.array([r["log10_p"] for r in rows if r["infected"] == side]) for side in (False, True))
    if not len(clean) or not len(infected):
        return None
    less = (infected[:, None] < clean).mean() + (infected[:, None] == clean).mean() / 2
    return float(less)


def level(p_values: Sequence[float]) -> dict[str, Any]:
    """Share of clean models' p-values below each level, with exact 95 % intervals; the verdict's level among them."""
    n = len(p_values)
    counts = {a: sum(p < a for p in p_values) for a in sorted({*LEVELS, ALPHA})}
    return {
        "clean": n,
        **{f"{a:g}": {"share": c / n, "interval_95": interval(c, n)} for a, c in counts.items() if n},
    }


def proper_scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Cross-entropy (nats) and Brier score of P(backdoored) over the models that have one; None where none has.

    With the prior that a scan takes by default, and with the share of infected models that the rows have: half of a board may be
    infected, where one model in ten is in the field, and the prior is not what a scan measures.
    """
    known = [(r["p_backdoored"], bool(r["infected"])) for r in rows if r["p_backdoored"] is not None]
    if not known:
        return None
    p, y = np.array([k[0] for k in known]), np.array([k[1] for k in known], float)
    share = float(np.clip(y.mean(), 1 / (len(y) + 2), 1 - 1 / (len(y) + 2)))
    return {
        "models": len(known),
        **_scores(p, y),
        "share_infected": share,
        "with_that_prior": _scores(special.expit(special.logit(p) - special.logit(PRIOR) + special.logit(share)), y),
    }


def _scores(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return {
        "cross_entropy": float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()),
        "brier": float(((p - y) ** 2).mean()),
    }


if __name__ == "__main__":
    sys.exit(main())
