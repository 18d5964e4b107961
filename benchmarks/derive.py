"""What ships with the package and comes from kept evidence of the tuning half: the bank of scores (engine/judge/bank.json).

    python benchmarks/derive.py [--check]

The clean models' scores are those of the null models, before any bank; the likelihood ratio is fitted to clean and infected
ones, where there are enough. No model of the judging half is read into it. --check says whether the file that is there is what
this derives, and 1 where it is not. Models with too few samples for a verdict are left out: a scan has no p-value for them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kept import FOLDER, Kept, everything
from replay import judged

from onnxspect.engine.judge.calibration import FILE, Bank, LikelihoodRatio, Scored
from onnxspect.engine.judge.evidence import detectors_of
from onnxspect.engine.subject.sample_size import LEAST

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
    scored = [
        (k, Scored(k.archive.classes, detectors_of(k.archive.evidence), k.archive.samples, score(k))) for k in tuning
    ]
    clean = sorted(
        (s for k, s in scored if not k.model["infected"]), key=lambda s: (s.classes, s.detectors, s.samples, s.score)
    )
    infected = [s.score for k, s in scored if k.model["infected"]]
    ratio = LikelihoodRatio.fitted([s.score for s in clean], infected)
    content = json.dumps([[s.classes, s.detectors, s.samples, s.score] for s in clean] + sorted(infected))
    return Bank(hashlib.sha256(content.encode()).hexdigest()[:12], tuple(clean), ratio)


def score(kept: Kept) -> float:
    """-log10 of the null model's least p-value; rounded, so that the file does not depend on the last bit of a machine."""
    return round(judged(kept).score, 6)


def as_text(bank: Bank) -> str:
    """The file."""
    return json.dumps(bank.describe(), indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
