"""What the bank says of models whose family, or whose data set, it has never seen.

    python benchmarks/unseen_families.py [--out FILE]

For every family of the tuning half, and for every data set, the bank, its weights and whatever else is fitted are made again of all
others, and the models that were left out are judged by them. Networks of one family are alike, so intervals are of a bootstrap over
families. Only models are counted that the others still cover. No model of the judging half is read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from derive import Observed, made, observed
from kept import FOLDER, everything
from replay import LEVELS

from onnxspect.engine.judge.thresholds import ALPHA
from onnxspect.models.bank import families

#: Steps of the number of classes that are shown apart.
SIZES = {"2 and 3": (2, 3), "4 to 9": (4, 9), "10": (10, 10), "11 and more": (11, 1 << 30)}
DRAWS = 2000


@dataclass(frozen=True)
class Judged:
    """A model that was left out.

    Attributes:
        family, classes, infected: of it.
        p_value: of its most suspicious class, by the bank of the others.
    """

    family: str
    classes: int
    infected: bool
    p_value: float


def left_out(tuning: Sequence[Observed], group: Callable[[Observed], str]) -> list[Judged]:
    """The models of every group, judged by the bank of the others; those that it covers."""
    found = []
    for name in sorted({group(o) for o in tuning}):
        bank = made([o for o in tuning if group(o) != name])
        for o in tuning:
            if group(o) != name or o.earlier:
                continue
            weights = next((w for w in bank.weights if w.apply_to(len(o.log10_p), o.detectors)), None)
            one = o.scored(weights)
            if bank.covers(one):
                found.append(Judged(o.family, one.classes, o.infected, bank.p_value(one)))
    return found


def summary(rows: Sequence[Judged], seed: int = 0) -> dict[str, Any]:
    """Shares of clean models below each level, with 95 % intervals over families; and of infected ones below the verdict's."""
    clean, infected = ([r for r in rows if r.infected == side] for side in (False, True))
    by_family: dict[str, list[float]] = {}
    for r in clean:
        by_family.setdefault(r.family, []).append(r.p_value)
    names, rng = sorted(by_family), np.random.default_rng(seed)
    draws = rng.integers(len(names), size=(DRAWS, len(names))) if names else np.zeros((0, 0), int)
    levels = {}
    for a in sorted({*LEVELS, ALPHA}):
        counts = np.array([[sum(p < a for p in by_family[n]), len(by_family[n])] for n in names]).reshape(-1, 2)
        again = counts[draws].sum(1)
        shares = again[:, 0] / np.maximum(again[:, 1], 1)
        low, high = (float(np.quantile(shares, q)) for q in (0.025, 0.975)) if len(shares) else (0.0, 1.0)
        levels[f"{a:g}"] = {
            "share": float(np.mean([r.p_value < a for r in clean])) if clean else None,
            "interval_95": [low, high],
        }
    return {
        "clean": len(clean),
        "families": len(names),
        "levels": levels,
        "infected": len(infected),
        "below_the_verdicts_level": sum(r.p_value < ALPHA for r in infected),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, help="JSON file")
    asked = parser.parse_args(arguments)
    tuning = observed(everything(asked.evidence))
    datasets = {f.name: f.dataset.split("/")[0] for f in families()[0]}
    result: dict[str, Any] = {
        "command": "benchmarks/unseen_families.py",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    groups: dict[str, Callable[[Observed], str]] = {
        "family": lambda o: o.family,
        "data set": lambda o: datasets.get(o.family, o.family),
    }
    for by, group in groups.items():
        rows = left_out(tuning, group)
        some = {name: [r for r in rows if low <= r.classes <= high] for name, (low, high) in SIZES.items()}
        result[by] = {"all": summary(rows), **{name: summary(of) for name, of in some.items() if of}}
        for name, of in result[by].items():
            said = " ".join(f"{a} {v['share']:.3f}" for a, v in of["levels"].items() if v["share"] is not None)
            print(
                f"{by:9} {name:12} clean {of['clean']:4} {said}  infected {of['below_the_verdicts_level']} of {of['infected']}",
                flush=True,
            )
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
