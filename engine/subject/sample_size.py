"""How many clean samples a verdict takes, and which classes lack them: counted before anything is searched.

A search that leads other classes' images to class t sees half of the clean samples of these classes, and its trigger is then tried
on the other half. So what counts is how many samples there are in all, how many are of *other* classes than t, and how many of
these are held out. With too few the comparison of classes misleads both ways: references learn nothing from them, a trigger fits its few
images and no others, an easy class of a clean model stands out, and an infected one goes unseen.

The least number is measured: `benchmarks/derive_sample_size.py` scans the shipped pair, which are twins but for a backdoor, with
n samples of each of their ten classes, and takes the least n from which on the power is 0.9 (infected, the right class and no
other) and the clean twin is not accused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxspect.engine.judge.thresholds import FEWEST_HELD_OUT
from onnxspect.engine.subject.samples import Samples

#: Samples a class, of ten classes, that tell the shipped pair apart: "least" in benchmarks/results/sample_size.json, which has one
#: seed: its exact intervals, in the file, do not yet exclude that it takes more.
LEAST_OF_TEN = 10
#: So many samples a verdict takes in all.
LEAST = 10 * LEAST_OF_TEN
#: So many of them are to be of other classes than the one that a search leads to: where one class has most of the samples, the
#: others' few are all that its search sees. More than the number with which the shipped pair is not distinguished (nine fives).
LEAST_OF_OTHERS = LEAST // 2
#: Classes that are listed by name before the rest is counted.
LISTED = 12


@dataclass(frozen=True)
class SampleCounts:
    """How many clean samples there are, by class.

    Attributes:
        search_samples: those that searches see ``(class,)``.
        held_out: those that they do not ``(class,)``.
        names: of the classes, by index; possibly empty.
    """

    search_samples: tuple[int, ...]
    held_out: tuple[int, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, search_samples: Samples, held_out: Samples, classes: int) -> SampleCounts:
        """Of two parts of one set of samples, for a model of so many classes."""
        first, second = (np.bincount(part.labels, minlength=classes)[:classes] for part in (search_samples, held_out))
        return cls(tuple(first.tolist()), tuple(second.tolist()), search_samples.names)

    @property
    def classes(self) -> int:
        """Classes of the model."""
        return len(self.search_samples)

    @property
    def of_class(self) -> tuple[int, ...]:
        """All samples ``(class,)``."""
        return tuple(a + b for a, b in zip(self.search_samples, self.held_out, strict=True))

    @property
    def without(self) -> tuple[int, ...]:
        """The classes that have none."""
        return tuple(k for k, n in enumerate(self.of_class) if n == 0)

    def listed(self, chosen: Sequence[int]) -> str:
        """Some classes in words: "class 3 (coat)", "classes 1, 2 and 40 more"."""
        words = [f"{k} ({self.names[k]})" if self._named(k) else str(k) for k in chosen[:LISTED]]
        more = f" and {len(chosen) - LISTED} more" if len(chosen) > LISTED else ""
        return ("class " if len(chosen) == 1 else "classes ") + ", ".join(words) + more

    def _named(self, k: int) -> bool:
        return k < len(self.names) and self.names[k] != str(k)


def enough_of_each(classes: int) -> int:
    """So many samples of each of a model's classes would do for a verdict; at least two, one of them to be held out.

    Args:
        classes: of the model, at least 2.
    """
    return max(2, -(-LEAST // classes))


def shortfalls(counts: SampleCounts) -> tuple[str, ...]:
    """What a verdict lacks, in sentences; nothing where there is enough.

    Args:
        counts: the samples, as they are divided.
    """
    if counts.classes < 2:
        return (f"{counts.classes} classes are too few: there is no other one to lead images from",)
    lacking = []
    if sum(counts.of_class) < LEAST:
        lacking.append(f"{sum(counts.of_class)} clean samples are too few for a verdict (at least {LEAST})")
    others = [sum(counts.of_class) - n for n in counts.of_class]
    few = [t for t, n in enumerate(others) if n < LEAST_OF_OTHERS]
    if few and not lacking:
        lacking.append(
            f"too few clean samples of other classes: {_range(others, few)} to lead to {_each(counts, few)} "
            f"(at least {LEAST_OF_OTHERS})"
        )
    unseen = [sum(counts.held_out) - n for n in counts.held_out]
    unconfirmed = [t for t, n in enumerate(unseen) if n < FEWEST_HELD_OUT]
    if unconfirmed:
        lacking.append(
            f"too few are left to confirm a trigger on: {_range(unseen, unconfirmed)} that no search sees, for "
            f"{_each(counts, unconfirmed)} (at least {FEWEST_HELD_OUT})"
        )
    return tuple(lacking)


def advice(counts: SampleCounts) -> str:
    """How many samples of which classes would do; "" where no number would."""
    if counts.classes < 2:
        return ""
    n = enough_of_each(counts.classes)
    short = [k for k, have in enumerate(counts.of_class) if have < n]
    some = [k for k in short if counts.of_class[k]]
    have = []
    if some:
        have.append(f"{counts.listed(some)} {'has' if len(some) == 1 else 'have'} {_range(counts.of_class, some)}")
    if counts.without:
        have.append(f"{counts.listed(counts.without)} {'has' if len(counts.without) == 1 else 'have'} none")
    return f"give at least {n} clean samples of each of the {counts.classes} classes: " + ", ".join(have)


def _range(values: Sequence[int], chosen: Sequence[int]) -> str:
    """The values of some classes: "3", or "0 to 3"."""
    low, high = min(values[k] for k in chosen), max(values[k] for k in chosen)
    return str(low) if low == high else f"{low} to {high}"


def _each(counts: SampleCounts, chosen: Sequence[int]) -> str:
    return "any class" if len(chosen) == counts.classes else counts.listed(chosen)
