"""What ships with the package and comes from kept evidence of the tuning half: the bank of scores (engine/judge/bank.json).

    python benchmarks/derive.py [--check]

The clean models' scores are those of the null models, before any bank; how suspicions are weighed (engine/judge/suspicion.py) and the
likelihood ratios are fitted to clean and infected ones, where there are enough. No model of the judging half is read into it.
--check says whether the file that is there is what this derives, and 1 where it is not. Models with too few samples for a verdict are
left out: a scan has no p-value for them. Scans are in it once more for each detector of LATER that they had: as they were before it joined.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from kept import FOLDER, Kept, everything
from replay import judged

from onnxspect.engine.detectors import warp, window
from onnxspect.engine.judge.calibration import FEWEST, FEWEST_OF_EACH, FILE, Bank, LikelihoodRatio, Scored
from onnxspect.engine.judge.difficulty import Difficulty
from onnxspect.engine.judge.evidence import Evidence, Skipped, detectors_of
from onnxspect.engine.judge.suspicion import FEW, Shift, Weights, eases, fitted
from onnxspect.engine.subject.sample_size import LEAST
from onnxspect.models.bank import families

#: Detectors that joined the presets after checkpoints of strangers had been scanned, in the order in which they did: those scans are ranked among
#: scans without them.
LATER = (warp.NAME, window.NAME)
#: Decimals that are kept.
DIGITS = 4
BANK = Path(__file__).parents[1] / "engine" / "judge" / FILE


def main(arguments: Sequence[str] | None = None) -> int:
    """Derive, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args(arguments)
    kept = everything(asked.evidence)
    if not kept:
        parser.error(f"no kept evidence in {asked.evidence}")
    text = as_text(bank(kept))
    if asked.check:
        same = BANK.is_file() and BANK.read_text() == text
        print(f"{BANK.name}: {'as derived' if same else 'NOT what is derived'}")
        return int(not same)
    BANK.write_text(text)
    print(f"{BANK.name}: {len(json.loads(text)['clean'])} clean models")
    return 0


@dataclass(frozen=True)
class Observed:
    """What the bank takes from one scanned model.

    Attributes:
        family: of the bank's recipes, or its board, for what is in none.
        infected: the truth.
        targets: which classes a backdoor leads to ``(class,)``.
        log10_p: of the null models, by class.
        eases, transfers: by view (engine/judge/suspicion.py).
        detectors: that may name a class.
        samples: clean ones.
        difficulty: of its task (engine/judge/difficulty.py).
        earlier: it is a scan as it was before a detector of LATER joined.
    """

    family: str
    infected: bool
    targets: np.ndarray
    log10_p: np.ndarray
    eases: Mapping[str, np.ndarray]
    transfers: Mapping[str, np.ndarray]
    detectors: tuple[str, ...]
    samples: int
    difficulty: float | None
    earlier: bool = False

    @classmethod
    def of(cls, kept: Kept, known: Sequence[str], earlier: bool = False) -> Observed:
        """Of a kept scan; `known` are the names of the bank's families."""
        classes, compared = kept.archive.classes, [e for e in kept.archive.evidence if not _tested(e)]
        searched = replace(kept, archive=replace(kept.archive, evidence=tuple(compared)))
        own = [name for name in known if str(kept.model["name"]).startswith(f"{name}_")]
        return cls(
            max(own, key=len, default=kept.board),
            bool(kept.model["infected"]),
            np.isin(np.arange(classes), kept.model["targets"] if kept.model["infected"] else []),
            np.array([c.log10_p for c in judged(searched).classes]),
            *eases(kept.archive.evidence, classes),
            detectors_of(kept.archive.evidence),
            kept.archive.samples,
            None if (difficulty := kept.archive.difficulty) is None else round(difficulty, DIGITS),
            earlier,
        )

    @property
    def few(self) -> bool:
        """Whether it has few classes."""
        return len(self.log10_p) < FEW

    def scored(self, weights: Weights | None) -> Scored:
        """As the bank has it; rounded, so that the file does not depend on the last bit of a machine."""
        suspicions = -self.log10_p if weights is None else weights.suspicions(self.log10_p, self.eases, self.transfers)
        score = max(0.0, float(-self.log10_p.min()))
        numbers = (round(v, DIGITS) for v in (score, float(suspicions.max())))
        return Scored(len(self.log10_p), self.detectors, self.samples, *numbers, self.difficulty)


def _earlier(kept: Kept) -> list[Kept]:
    """What a scan would have left before each detector of LATER had joined, of those that it had."""
    had = kept.archive.evidence
    before = [tuple(e for e in had if e.detector not in LATER[i:]) for i in range(len(LATER))]
    shorter = {len(rest): rest for rest in before if len(rest) < len(had)}  # of the same length they are the same
    return [replace(kept, archive=replace(kept.archive, evidence=rest)) for rest in shorter.values()]


def _tested(evidence: Evidence | Skipped) -> bool:
    """Whether it brings a test of its own, which no bank ranks."""
    return isinstance(evidence, Evidence) and evidence.traits.tested


def bank(kept: Sequence[Kept]) -> Bank:
    """The bank that the tuning half makes."""
    return made(observed(kept))


def observed(kept: Sequence[Kept]) -> list[Observed]:
    """What a bank takes from the tuning half: from scans as they are and as they were before."""
    names = [f.name for f in families()[0]]
    able = [k for k in kept if k.half == "tuning" and k.archive.samples >= LEAST and not k.archive.too_few]
    of_today = [Observed.of(k, names) for k in able]
    return [*of_today, *(Observed.of(earlier, names, earlier=True) for k in able for earlier in _earlier(k))]


def made(tuning: Sequence[Observed]) -> Bank:
    """The bank of what was observed.

    A model's own suspicion is made by weights that its family had no part in, as those of a scanned model are.
    """
    shifts = partial(_shifts, tuning)
    groups: dict[tuple[bool, tuple[str, ...]], list[Observed]] = {}
    for o in tuning:
        groups.setdefault((o.few, o.detectors), []).append(o)
    weights: list[Weights] = []
    known: list[tuple[Observed, Scored]] = []
    for (few, detectors), members in sorted(groups.items()):
        infected = sum(o.infected for o in members)
        enough = min(infected, len(members) - infected) >= FEWEST_OF_EACH
        scored: list[tuple[Observed, Scored]] = []
        for family in sorted({o.family for o in members}):
            others = [o for o in members if o.family != family]
            apart = _weights(others, few, detectors, shifts(detectors, family)) if enough else None
            scored += [(o, o.scored(apart)) for o in members if o.family == family]
        known += scored
        if enough:
            found = _weights(members, few, detectors, shifts(detectors))
            usual = None if few else _difficulty([s for o, s in scored if not o.infected])
            weights.append(replace(found, difficulty=usual))
    sides = {
        (infected, earlier): sorted(
            (s for o, s in known if (o.infected, o.earlier) == (infected, earlier)),
            key=lambda s: (*astuple(s)[:-1], s.difficulty or 0),
        )
        for infected in (False, True)
        for earlier in (False, True)
    }
    # Each model counts once in what P(backdoored) is fitted to.
    scores = [sorted(s.score for s in sides[infected, False]) for infected in (False, True)]
    content = json.dumps([[w.describe() for w in weights], *[[astuple(s) for s in side] for side in sides.values()]])
    found = Bank(
        hashlib.sha256(content.encode()).hexdigest()[:12],
        tuple(sides[False, False]),
        tuple(weights),
        LikelihoodRatio.fitted(*scores),
        earlier=tuple(sides[False, True]),
    )
    return replace(found, by_suspicion=tuple(_odds(found, w, known) for w in weights))


def _odds(bank: Bank, weights: Weights, known: Sequence[tuple[Observed, Scored]]) -> LikelihoodRatio | None:
    """What a suspicion says of being infected, of all models of covered kinds that the same detectors scanned, few classes or many."""
    of_these = [(o.infected, s) for o, s in known if s.detectors == weights.detectors and bank.covers(s)]
    return LikelihoodRatio.fitted(*(sorted(s.suspicion for i, s in of_these if i == side) for side in (False, True)))


def _shifts(tuning: Sequence[Observed], detectors: tuple[str, ...], without: str = "") -> dict[str, Shift]:
    """How ease varies between and within clean models that these detectors scanned, whatever their number of classes; but for one family."""
    by_family: dict[str, list[Observed]] = {}
    for o in tuning:
        if not o.infected and o.detectors == detectors and o.family != without:
            by_family.setdefault(o.family, []).append(o)
    views = sorted({v for members in by_family.values() for o in members for v in o.eases})
    found = {
        v: Shift.of([[o.eases[v] for o in members if v in o.eases] for members in by_family.values()]) for v in views
    }
    return {v: Shift(*(round(x, DIGITS) for x in vars(s).values())) for v, s in found.items() if s is not None}


def _weights(
    members: Sequence[Observed], few: bool, detectors: tuple[str, ...], shifts: Mapping[str, Shift]
) -> Weights:
    """How suspicions are made, of these models; rounded as what is scored is."""
    weights = fitted([(o.log10_p, o.eases, o.transfers, o.targets) for o in members], few, detectors, shifts)
    return replace(
        weights,
        surprise=round(weights.surprise, DIGITS),
        ease={name: round(w, DIGITS) for name, w in weights.ease.items()},
        intercept=round(weights.intercept, DIGITS),
    )


def _difficulty(clean: Sequence[Scored]) -> Difficulty | None:
    """What is usual of clean models' suspicions by their tasks' difficulty; None of too few."""
    kinds: dict[object, list[tuple[float, float]]] = {}
    for one in clean:
        if one.difficulty is not None:
            kinds.setdefault(one.kind, []).append((one.suspicion, one.difficulty))
    if sum(map(len, kinds.values())) < FEWEST:
        return None
    law = Difficulty.fitted([(of[:, 0], of[:, 1]) for of in map(np.array, kinds.values())])
    return Difficulty(*(round(x, DIGITS) for x in astuple(law)))


def as_text(bank: Bank) -> str:
    """The file."""
    return json.dumps(bank.describe(), indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
