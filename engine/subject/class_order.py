"""Whether the data's classes are the model's in another order: a one-to-one assignment that answers far more samples, and no chance.

The best assignment of labels to answers always fits at least as well as the labels themselves. Whether it is real is asked of
samples that it was not made on: it is made on one half of the samples (of each label), tried on the other, and the other way round;
then an exact sign test compares it with the labels as they are, on the samples of which only one of the two is right.
With one sample of a class there is nothing to try it on, so nothing is said of that class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its `stats` and `optimize` take long to import: they are loaded where they are first used

from onnxspect.converters.text import printable

#: Level of the sign test. History: docs/decisions.md.
LEVEL = 1e-3
#: An order explains at least so much of the samples that it was not made on. History: docs/decisions.md.
LEAST_SHARE = 0.3
#: Classes whose names an option on the command line still lists.
_INLINE = 20
#: Moved classes that a message names.
_LISTED = 4


@dataclass(frozen=True)
class Order:
    """Another order of the classes.

    Attributes:
        answered: for every label that is there, the class that the model answers.
        share: of the samples that it was not made on, answered in this order.
        as_is: the same for the labels as they are.
    """

    answered: dict[int, int]
    share: float
    as_is: float

    def moved(self, names: Sequence[str]) -> str:
        """The first classes that are elsewhere, in words."""
        found = [(k, c) for k, c in sorted(self.answered.items()) if k != c]
        words = [f"label {_called(k, names)} is answered as {c}" for k, c in found[:_LISTED]]
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        return ", ".join(words) + more

    def option(self, names: Sequence[str], classes: int) -> str:
        """What to pass so that labels are read in this order."""
        called = {c: names[k] if k < len(names) else str(k) for k, c in self.answered.items()}
        missing = [i for i in range(classes) if i not in called]
        plain = all("," not in n and n == printable(n) for n in called.values())
        if classes <= _INLINE and plain:
            listed = ",".join(called.get(i, f"class-{i}") for i in range(classes))
            return (
                f"--classes '{listed}'"
                if any(not c.isalnum() and c not in ",-_." for c in listed)
                else f"--classes {listed}"
            )
        if plain and len(called) <= _INLINE and not any("=" in n for n in called.values()):
            pairs = ",".join(f"{n}={c}" for c, n in sorted(called.items()))
            return f"--classes {pairs}" if all(c.isalnum() or c in ",-_.=" for c in pairs) else f"--classes '{pairs}'"
        some = f" ({len(missing)} of them have no sample here)" if missing else ""
        return f"--classes FILE, a file with the data's name of each of the model's {classes} classes{some}, one a line, in the model's order"


def other_order(answers: np.ndarray, labels: np.ndarray, classes: int, rng: np.random.Generator) -> Order | None:
    """The order in which the answers follow the labels far better than as they are; None where there is none.

    Args:
        answers: of the model ``(n,)``.
        labels: ``(n,)``; they may be fewer than the model's classes, and may lie outside of them.
        classes: of the model.
        rng: divides the samples.
    """
    half = np.zeros(len(labels), bool)
    for k in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == k))
        half[rows[: len(rows) // 2]] = True
    counts = np.bincount(labels)
    asked = counts[labels] >= 2
    if not asked.any():
        return None
    new = np.zeros(len(labels), bool)
    for part in (half, ~half):
        table = _assigned(answers[part & asked], labels[part & asked], classes)
        rest = ~part & asked
        new[rest] = np.array([table.get(int(k), -1) for k in labels[rest]], int) == answers[rest]
    old = (answers == labels) & asked
    won, lost = int((new & ~old).sum()), int((old & ~new).sum())
    share, as_is = float(new[asked].mean()), float(old[asked].mean())
    if won <= lost or share < LEAST_SHARE or float(scipy.stats.binom.sf(won - 1, won + lost, 0.5)) >= LEVEL:
        return None
    answered = _assigned(answers[asked], labels[asked], classes)
    if all(k == c for k, c in answered.items()):
        return None
    return Order(answered, share, as_is)


def _assigned(answers: np.ndarray, labels: np.ndarray, classes: int) -> dict[int, int]:
    """Label -> class, one to one, so that most samples are answered; labels that no answer speaks for keep their own where it is free."""
    present = np.unique(labels)
    able = np.union1d(
        np.unique(answers), present[present < classes]
    )  # of a million classes, those that anything speaks for
    table = np.zeros((len(present), len(able)))
    np.add.at(table, (np.searchsorted(present, labels), np.searchsorted(able, answers)), 1.0)
    for row, k in enumerate(present):
        if k < classes:
            table[row, np.searchsorted(able, k)] += 0.5  # of equals, the label itself
    rows, columns = scipy.optimize.linear_sum_assignment(-table)
    return {int(present[r]): int(able[c]) for r, c in zip(rows, columns, strict=True)}


def _called(label: int, names: Sequence[str]) -> str:
    return printable(names[label], 40) if label < len(names) else str(label)
