"""What ships with the package and comes from kept evidence of the tuning half: the bank of scores (engine/judge/bank.json).

    python benchmarks/derive.py [--check]

The clean models' scores are those of the null models, before any bank; how suspicions are weighed (engine/judge/suspicion.py) and the
likelihood ratios are fitted to clean and infected ones, where there are enough. No model of the judging half is read into it.
--check says whether the file that is there is what this derives, and 1 where it is not. Models with too few samples for a verdict are
left out: a scan has no p-value for them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
from kept import FOLDER, Kept, everything
from replay import judged

from onnxspect.engine.judge.calibration import FEWEST_OF_EACH, FILE, Bank, LikelihoodRatio, Scored
from onnxspect.engine.judge.evidence import detectors_of
from onnxspect.engine.judge.suspicion import FEW, Weights, eases, fitted
from onnxspect.engine.subject.sample_size import LEAST

#: Decimals that are kept.
DIGITS = 4
BANK = Path(__file__).parents[1] / "engine" / "judge" / FILE


def main(arguments: Sequence[str] | None = None) -> int:
    """Derive, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args(arguments)
    text = as_text(bank(everything(asked.evidence)))
    if asked.check:
        same = BANK.is_file() and BANK.read_text() == text
        print(f"{BANK.name}: {'as derived' if same else 'NOT what is derived'}")
        return int(not same)
    BANK.write_text(text)
    print(f"{BANK.name}: {len(json.loads(text)['clean'])} clean models")
    return 0


def bank(kept: Sequence[Kept]) -> Bank:
    """The bank that the tuning half makes."""
    tuning = [k for k in kept if k.half == "tuning" and k.archive.samples >= LEAST and not k.archive.too_few]
    weighing = Bank("", (), _weights(tuning))
    known = [(k, _scored(k, weighing)) for k in tuning]
    clean = sorted((s for k, s in known if not k.model["infected"]), key=astuple)
    infected = sorted((s for k, s in known if k.model["infected"]), key=astuple)
    content = json.dumps([weighing.describe(), [astuple(s) for s in clean], [astuple(s) for s in infected]])
    return Bank(
        hashlib.sha256(content.encode()).hexdigest()[:12],
        tuple(clean),
        weighing.weights,
        LikelihoodRatio.fitted([s.score for s in clean], [s.score for s in infected]),
        LikelihoodRatio.fitted([s.suspicion for s in clean], [s.suspicion for s in infected]),
    )


def _weights(tuning: Sequence[Kept]) -> tuple[Weights, ...]:
    """How suspicions are made, for each set of detectors and few or many classes with enough models of either sort."""
    groups: dict[tuple[bool, tuple[str, ...]], list[Kept]] = {}
    for k in tuning:
        groups.setdefault((k.archive.classes < FEW, detectors_of(k.archive.evidence)), []).append(k)
    found = []
    for (few, detectors), members in sorted(groups.items()):
        infected = sum(k.model["infected"] for k in members)
        if min(infected, len(members) - infected) >= FEWEST_OF_EACH:
            found.append(_rounded(fitted([_observed(k) for k in members], few, detectors)))
    return tuple(found)


def _observed(kept: Kept) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """What the weights are fitted to: log10 p of the null models, eases, and which classes are targets."""
    found = judged(kept)
    targets = np.isin(np.arange(kept.archive.classes), kept.model["targets"] if kept.model["infected"] else [])
    return (
        np.array([c.log10_p for c in found.classes]),
        eases(kept.archive.evidence, kept.archive.classes),
        targets,
    )


def _scored(kept: Kept, weighing: Bank) -> Scored:
    """Its numbers; rounded, so that the file does not depend on the last bit of a machine."""
    log10_p, of_views, _ = _observed(kept)
    return Scored(
        kept.archive.classes,
        detectors_of(kept.archive.evidence),
        kept.archive.samples,
        round(max(0.0, float(-log10_p.min())), DIGITS),
        round(float(weighing.suspicions(detectors_of(kept.archive.evidence), log10_p, of_views).max()), DIGITS),
    )


def _rounded(weights: Weights) -> Weights:
    return replace(
        weights,
        surprise=round(weights.surprise, DIGITS),
        ease={name: round(w, DIGITS) for name, w in weights.ease.items()},
        intercept=round(weights.intercept, DIGITS),
    )


def as_text(bank: Bank) -> str:
    """The file."""
    return json.dumps(bank.describe(), indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
