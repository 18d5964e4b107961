"""What one method of a patch gave, and which of two results is the better one to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxspect.engine.mitigation.verification import Verification

#: Of the answers that a patch changes, the share by which accuracy falls. Of 28 students of the shipped model, measured on 6,000
#: images, it was 0.22 in the mean (0.02 to 0.38, more where more had changed).
LOST_OF_CHANGED = 0.25


@dataclass(frozen=True)
class Attempt:
    """What one method gave.

    Attributes:
        method: its name.
        proof: of its file; None where it made none.
        problem: why it made none, or "".
        left: size of the smallest trigger to the same targets that a new search found on its file, as a multiple of
            the first one's size; None where nothing was searched, infinite where nothing was found.
        withstands: none of those found is small enough to be the backdoor's; None where nothing was searched.
        facts: what the method says of itself.
        seconds: wall time.
        judged_apart: its proof is of samples that had no part in making it.
        mends: it takes the backdoor out, and does not only stand guard.
        unsearched: why there was no new search where there should have been one; "" elsewhere.
        late: a budget of time kept it from beginning, or from its end.
    """

    method: str
    proof: Verification | None
    problem: str
    left: float | None = None
    withstands: bool | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    judged_apart: bool = True
    mends: bool = True
    unsearched: str = ""
    late: bool = False

    @property
    def lost(self) -> float:
        """The clean accuracy that was most likely lost; infinite where there is no file.

        A hundred samples show a point of accuracy less well than what share of their answers has changed, of which
        LOST_OF_CHANGED is lost, give or take as much again. This is what both say together, each weighted by the inverse of
        its variance; of samples that the method itself was chosen by, the changed answers alone.
        """
        if self.proof is None:
            return float("inf")
        changed = 1 - self.proof.agreement
        expected = LOST_OF_CHANGED * changed
        if not self.judged_apart or changed == 0:
            return expected
        by_changes, by_labels = expected**-2, self.proof.samples / changed
        measured = self.proof.accuracy_before - self.proof.accuracy_after
        return (by_changes * expected + by_labels * measured) / (by_changes + by_labels)

    @property
    def worst(self) -> float:
        """Success of the trigger that still works best, on its file."""
        return max((t.after for t in self.proof.triggers), default=0.0) if self.proof else 1.0

    @property
    def stops_triggers(self) -> bool:
        """Whether the triggers' success meets its goal as measured, and the rest within the measurement's error."""
        if self.proof is None or not self.proof.holds:
            return False
        return replace(self.proof, goals=replace(self.proof.goals, accuracy_lost=1.0, errors=0.0)).holds

    @property
    def good(self) -> bool:
        """Whether there is nothing left to wish for: the goals met, and no small trigger found."""
        if self.proof is None or not self.stops_triggers or self.withstands is False:
            return False
        goal = self.proof.goals.accuracy_lost
        if not self.judged_apart and 1 - self.proof.agreement + self.worst > goal:
            return False
        return self.lost <= goal + 0.5 / self.proof.samples  # half a sample of slack, as in Verification.failures

    @property
    def rank(self) -> tuple[bool, bool, bool, bool, float]:
        """Of two that meet the goals within the measurement's error, the greater is the better one to keep.

        First the one that leaves nothing to wish for, then the one that withstands a new search, then the one that takes the
        backdoor out, then the one that stops the triggers, then the one that does less harm: accuracy most likely lost, and
        success of the trigger that still works best. Both have a file.
        """
        return self.good, self.withstands is not False, self.mends, self.stops_triggers, -self.lost - self.worst

    @property
    def outcome(self) -> str:
        """One line for people."""
        if self.proof is None:
            return f"{self.method}: {self.problem}"
        lost = self.proof.accuracy_before - self.proof.accuracy_after
        text = f"{self.method}: triggers at most {self.worst:.1%}, clean accuracy {-lost:+.1%}"
        if self.proof.rejected is not None:
            text += f", {self.proof.rejected:.1%} of clean images rejected"
        if self.withstands is False:
            text += f"; a new search still finds a trigger {self.left:.1f} times the first one's size"
        if not self.proof.holds:
            return f"{text}; misses its goals"
        if self.unsearched:
            text += f"; not searched anew: {self.unsearched}"
        if self.withstands is not False and not self.good:
            text += f"; changes {1 - self.proof.agreement:.1%} of all answers"
        return text if self.judged_apart else f"{text}; judged on the samples that it was chosen by"

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        proof = None if self.proof is None else self.proof.describe()
        left = None if self.left is None or not np.isfinite(self.left) else round(self.left, 3)
        return {
            "method": self.method,
            "outcome": self.outcome,
            "new_search_relative_size": left,
            "withstands_new_search": self.withstands,
            "facts": dict(self.facts),
            "proof": proof,
            "seconds": round(self.seconds, 1),
        }
