"""Cleansing by presence: which samples of a class carry what its training set has and clean samples have not.

Eq. 12 of 000 and B.5 of 001 ask what becomes of a sample once its trigger is off, or spoiled. A sample that was poisoned
with its right label (CL, SIG) stays what it is, and some triggers cannot be spoiled without spoiling the picture (a
reflection). The training difference (detectors/training_difference.py) allows to ask directly whether a sample carries it, by the
matched filter of detectors/carriers.py. A class whose scores do not part is left alone.

What a search found without the training set can be asked for in the same way. It is the smallest trigger that works, though, and
not the attacker's: its samples count as found only where they lie far apart from the rest and are not most of the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxspect.engine.activations import TrainingSet
from onnxspect.engine.cleansing.scores import Scores
from onnxspect.engine.detectors.carriers import RIDGES, centred, divided, matched_filters, some_of
from onnxspect.engine.detectors.training_difference import NAME
from onnxspect.engine.run import RunContext

PRESENCE, CARRIERS = NAME, "carriers"
#: What a search found tells samples apart where the two normal laws lie so many deviations apart and no more than this share of the
#: class carries it. Over ten attacks of the zoo no clean sample in a hundred is removed so (at 3 deviations up to 8 %; one chessboard
#: was found in opposite phase, and two thirds of its class, the clean ones, "carried" it).
SURE, MOST_CARRIERS = 4.0, 0.5
#: Samples that tell how images vary by nature, at most.
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
    labels = training.labels
    score, removed = np.full(len(labels), np.nan), np.zeros(len(labels), bool)
    notes: list[str] = []
    classes: dict[int, dict[str, float]] = {}
    filters: dict[int, np.ndarray] = {}
    unsuspected = np.flatnonzero(~np.isin(labels, list(differences)))
    others = _natural(training, unsuspected, run) if len(np.unique(labels[unsuspected])) > 1 else None
    for z, d in differences.items():
        if (labels == z).sum() < FEWEST:
            notes.append(f"class {z} has fewer than {FEWEST} samples: not divided")
            continue
        natural = _natural(training, np.flatnonzero(labels != z), run) if others is None else others
        filters[z] = matched_filters(d, natural)
    scores = {z: np.full((len(RIDGES), int((labels == z).sum())), np.nan) for z in filters}
    done = dict.fromkeys(filters, 0)
    for start, images in training.batches():
        for z, w in filters.items():
            own = images[labels[start : start + len(images)] == z].reshape(-1, w.shape[1])
            scores[z][:, done[z] : done[z] + len(own)] = w @ own.T
            done[z] += len(own)
    for z, each in scores.items():
        best, division = divided(each, seed)
        rows = np.flatnonzero(labels == z)
        score[rows] = each[best] - division.threshold
        removed[rows] = division.above(each[best])
        if not removed[rows].any():
            notes.append(f"class {z}: no sample stands out by carrying its difference; nothing is removed")
        classes[z] = {
            "looked_at": len(rows),
            "removed": int(removed[rows].sum()),
            "separation": round(division.separation, 2),
        }
    return Scores(PRESENCE, score, removed, classes, tuple(notes))


def by_found(found: Sequence[tuple[int, np.ndarray]], training: TrainingSet, seed: int, run: RunContext) -> Scores:
    """Judge the samples of named classes by whether they carry a trigger that a search found, any of those to the class.

    Args:
        found: (class, what the trigger changes in a sample ``(channels, height, width)``).
        training, seed, run: as for `by_presence`.
    """
    by_class: dict[int, list[np.ndarray]] = {}
    for z, difference in found:
        by_class.setdefault(z, []).append(difference)
    score, removed = np.full(len(training.labels), np.nan), np.zeros(len(training.labels), bool)
    classes: dict[int, dict[str, float]] = {}
    for turn in range(max(map(len, by_class.values()), default=0)):
        told = by_presence({z: ds[turn] for z, ds in by_class.items() if turn < len(ds)}, training, seed, run)
        for z, facts in told.classes.items():
            rows = np.flatnonzero(training.labels == z)
            if z not in classes or facts["separation"] > classes[z]["separation"]:
                score[rows] = told.score[rows]
                classes[z] = {**facts, "removed": 0}
            if facts["separation"] >= SURE and facts["removed"] <= MOST_CARRIERS * facts["looked_at"]:
                removed[rows] |= told.removed[rows]
            classes[z]["removed"] = int(removed[rows].sum())
    alone = [z for z, facts in classes.items() if not facts["removed"]]
    notes = tuple(f"class {z}: no sample clearly carries what the search found; nothing is removed" for z in alone)
    return Scores(CARRIERS, score, removed, classes, notes)


def _natural(training: TrainingSet, rows: np.ndarray, run: RunContext) -> np.ndarray:
    """Some of the rows, less their classes' means ``(n, pixels)`` float64."""
    rng = run.numpy_generator("cleanse", "natural")
    samples = training.take(some_of(rows, MOST, int(np.prod(training.shape)), rng))
    return centred(samples.images, samples.labels)
