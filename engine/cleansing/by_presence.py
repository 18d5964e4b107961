"""Cleansing by presence: which samples of a class carry what its training set has and clean samples have not.

Eq. 12 of RE (Xiang et al., 2020) and B.5 of DTInspector (Wang et al., 2022) test how a sample is classified once its
trigger is off, or destroyed. A sample that was poisoned with its right label (CL, SIG) stays in its class, and some
triggers cannot be destroyed without destroying the picture (a reflection). With the training difference
(detectors/training_difference.py) a sample can be tested for the trigger directly, by the matched filter of
detectors/trigger_bearing.py. A class whose scores do not fall into two groups is left alone.

What a search found without the training set can be tested for in the same way. It is the smallest trigger that works,
though, and not the attacker's: samples count as trigger-bearing only where their scores lie far from the rest and they
are not most of the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxspect.engine.cleansing.scores import Scores
from onnxspect.engine.detectors.training_difference import NAME
from onnxspect.engine.detectors.trigger_bearing import RIDGES, centred, divided, matched_filters, some_of, spectrum
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.activations import TrainingSet

PRESENCE, TRIGGER_BEARING = NAME, "trigger-bearing"
#: Names that methods had before; they are still understood.
FORMER_NAMES = {"carriers": TRIGGER_BEARING}
#: A searched trigger divides a class where the two normal laws lie so many deviations apart and the trigger-bearing
#: samples are no more than this share of it. History: docs/decisions.md.
APART, MOST_BEARING = 4.0, 0.5
#: Samples from which the natural variation of images is estimated, at most.
MOST = 2000
#: A class with fewer samples is not divided.
FEWEST = 20


def by_presence(differences: Mapping[int, np.ndarray], training: TrainingSet, seed: int, run: RunContext) -> Scores:
    """Judge the samples of every class by whether they carry its difference.

    Args:
        differences: class -> d_z ``(channels, height, width)``.
        training: the suspect set; read in batches.
        seed: of the mixtures' start.
        run: draws the samples that S is taken of.
    """
    score, removed = np.full(len(training.labels), np.nan), np.zeros(len(training.labels), bool)
    scored, notes = _scored(list(differences.items()), training, seed, run)
    for one in scored:
        score[one.rows], removed[one.rows] = one.score, one.above
        if not one.above.any():
            notes.append(f"class {one.label}: no sample stands out by carrying its difference; nothing is removed")
    return Scores(PRESENCE, score, removed, {one.label: one.facts(one.above) for one in scored}, tuple(notes))


def by_found(found: Sequence[tuple[int, np.ndarray]], training: TrainingSet, seed: int, run: RunContext) -> Scores:
    """Judge the samples of named classes by whether they carry a trigger that a search found, any of those to the class.

    Args:
        found: (class, what the trigger changes in a sample ``(channels, height, width)``).
        training, seed, run: as for `by_presence`.
    """
    score, removed = np.full(len(training.labels), np.nan), np.zeros(len(training.labels), bool)
    scored, notes = _scored(found, training, seed, run)
    best: dict[int, _Scored] = {}
    for one in scored:
        if one.label not in best or one.separation > best[one.label].separation:
            best[one.label] = one
        if one.separation >= APART and one.above.sum() <= MOST_BEARING * len(one.rows):
            removed[one.rows] |= one.above
    for z, one in best.items():
        score[one.rows] = one.score
        if not removed[one.rows].any():
            notes.append(f"class {z}: no sample clearly carries what the search found; nothing is removed")
    classes = {z: one.facts(removed[one.rows]) for z, one in best.items()}
    return Scores(TRIGGER_BEARING, score, removed, classes, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Scored:
    """A class scored by one difference.

    Attributes:
        label: the class.
        rows: its samples ``(n,)``.
        score: of each, above 0 where it carries the difference.
        above: which do, where the class falls into two groups; else none.
        separation: of the two laws, in deviations.
    """

    label: int
    rows: np.ndarray
    score: np.ndarray
    above: np.ndarray
    separation: float

    def facts(self, removed: np.ndarray) -> dict[str, float]:
        """For the report."""
        return {"looked_at": len(self.rows), "removed": int(removed.sum()), "separation": self.separation}


def _scored(
    differences: Sequence[tuple[int, np.ndarray]], training: TrainingSet, seed: int, run: RunContext
) -> tuple[list[_Scored], list[str]]:
    """Each class for each of its differences, in one pass over the training set; and a note on what was not scored."""
    labels = training.labels
    notes: list[str] = []
    filters: list[tuple[int, np.ndarray]] = []
    unsuspected = np.flatnonzero(~np.isin(labels, [z for z, _ in differences]))
    others = _natural(training, unsuspected, run) if len(np.unique(labels[unsuspected])) > 1 else None
    known = None if others is None else spectrum(others)
    for z, d in differences:
        if (labels == z).sum() < FEWEST:
            notes.append(f"class {z} has fewer than {FEWEST} samples: not divided")
            continue
        natural = _natural(training, np.flatnonzero(labels != z), run) if others is None else others
        filters.append((z, matched_filters(d, natural, known)))
    scores = [np.full((len(RIDGES), int((labels == z).sum())), np.nan) for z, _ in filters]
    done = [0] * len(filters)
    for start, images in training.batches():
        for i, (z, w) in enumerate(filters):
            own = images[labels[start : start + len(images)] == z].reshape(-1, w.shape[1])
            scores[i][:, done[i] : done[i] + len(own)] = w @ own.T
            done[i] += len(own)
    found = []
    for (z, _), each in zip(filters, scores, strict=True):
        best, division = divided(each, seed)
        rows, above = np.flatnonzero(labels == z), division.above(each[best])
        found.append(_Scored(z, rows, each[best] - division.threshold, above, round(division.separation, 2)))
    return found, notes


def _natural(training: TrainingSet, rows: np.ndarray, run: RunContext) -> np.ndarray:
    """Some of the rows, less their classes' means ``(n, pixels)`` float64."""
    rng = run.numpy_generator("cleanse", "natural")
    samples = training.take(some_of(rows, MOST, int(np.prod(training.shape)), rng))
    return centred(samples.images, samples.labels)
