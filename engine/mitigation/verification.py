"""What the proof of a patch says: goals, what was measured (verify.py does), and whether they are met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxspect.engine.trigger import UNTARGETED

#: Standard errors by which what is measured on a few samples may miss its goal by chance: one-sided 95 %.
JUDGED_ON_FEW = 1.645


@dataclass(frozen=True)
class Goals:
    """What a patched file must reach.

    Attributes:
        success: the most that any trigger may still succeed (ASR).
        accuracy_lost: the most clean accuracy that may be lost, as a share (0.01 is one point).
        errors: standard errors of the measurement by which either may miss its goal. 0 takes the measured figures as they
            are; a patch is judged on few samples before it is written, and there one-sided 95 % (JUDGED_ON_FEW) is fair.
        rejected: the most clean images that a guarded file may reject.
    """

    success: float = 0.02
    accuracy_lost: float = 0.01
    errors: float = 0.0
    rejected: float = 0.05


@dataclass(frozen=True)
class TriggerEffect:
    """Success of one trigger before and after: share of n samples of other classes sent to `target`.

    Attributes:
        name, target: of the trigger. Without a target (UNTARGETED), n samples that the original gets right, and the
            share of them that leave their class.
        before, after: success; an image that a guarded file rejects is not sent anywhere.
        samples: how many.
        rejected: share of the stamped images that a guarded file rejects; None for a file without a filter.
    """

    name: str
    target: int
    before: float
    after: float
    samples: int
    rejected: float | None = None

    @property
    def where(self) -> str:
        """Where it leads, in words."""
        return "out of their class" if self.target == UNTARGETED else f"to class {self.target}"


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call in onnxruntime at its default optimisation, median of alternating calls.

    Attributes:
        batch: images a call.
        before, after: of the two files.
    """

    batch: int
    before: float
    after: float


@dataclass(frozen=True)
class StripEffect:
    """What STRIP (strip.py) would do on top of the original file.

    Attributes:
        blends: forward passes an image.
        rejected: share of clean samples rejected, of those that did not set the threshold.
        missed: share of the stamped images let through, by trigger.
    """

    blends: int
    rejected: float
    missed: Mapping[str, float]


@dataclass(frozen=True)
class Rescan:
    """What a fresh scan of the patched file said.

    Attributes:
        verdict: "clean", "backdoored" or "inconclusive".
        targets: the classes it named.
        p_value: of the most suspicious class.
        reasons: in sentences.
    """

    verdict: str
    targets: tuple[int, ...]
    p_value: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What was measured.

    Attributes:
        accuracy_before, accuracy_after: clean accuracy on the samples.
        interval_before, interval_after: their 95 % Wilson intervals.
        lost_error: standard error of the difference of the two accuracies, from the samples on which just one is right.
        agreement: share of clean samples on which both files give the same class.
        triggers: one row a trigger.
        checker: what the ONNX checker says of the patched file; "" when it passes.
        differences: every difference between the two files other than the changed initializers and provenance.
        changed: names of the changed initializers with their relative l2 change.
        goals: what was asked for.
        samples: how many clean samples.
        additions: what the patch added to the graph, a line each.
        rejected: share of clean samples that a guarded file rejects; None for a file without a filter.
        suppressed: the file suppresses the target's logit in images that score as stamped (target_logit_suppression.py).
        latency: of both files; empty where it was not asked for.
        strip: what STRIP would do; None where it was not asked for.
        rescan: what a fresh scan said; None where it was not asked for.
        notes: what was changed, guessed or left out in opening the original and reading the samples, in sentences.
    """

    accuracy_before: float
    accuracy_after: float
    interval_before: tuple[float, float]
    interval_after: tuple[float, float]
    lost_error: float
    agreement: float
    triggers: tuple[TriggerEffect, ...]
    checker: str
    differences: tuple[str, ...]
    changed: tuple[tuple[str, float], ...]
    goals: Goals
    samples: int
    additions: tuple[str, ...] = ()
    rejected: float | None = None
    suppressed: bool = False
    latency: tuple[Latency, ...] = ()
    strip: StripEffect | None = None
    rescan: Rescan | None = None
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """The goals that are missed, in sentences; empty where the patch holds."""
        missed = []
        if self.checker:
            missed.append(f"the ONNX checker refuses the patched file: {self.checker}")
        lost = self.accuracy_before - self.accuracy_after
        # Half a sample of slack: 0.01 of 500 samples is 5 samples whatever the floating-point quotient says.
        slack = max(0.5 / self.samples, self.goals.errors * self.lost_error)
        if lost > self.goals.accuracy_lost + slack:
            missed.append(f"clean accuracy fell by {lost:.1%} (at most {self.goals.accuracy_lost:.1%} is allowed)")
        if self.rejected is not None:
            error = (self.rejected * (1 - self.rejected) / self.samples) ** 0.5
            # A threshold calibrated to a share is above it on half of all fresh samples: chance alone is no miss.
            if self.rejected > self.goals.rejected + max(0.5 / self.samples, JUDGED_ON_FEW * error):
                missed.append(
                    f"{self.rejected:.1%} of clean images are rejected (at most {self.goals.rejected:.1%} is allowed)"
                )
        for t in self.triggers:
            error = (t.after * (1 - t.after) / t.samples) ** 0.5
            if t.after > self.goals.success + max(0.5 / t.samples, self.goals.errors * error):
                missed.append(
                    f"trigger {t.name} still sends {t.after:.1%} {t.where} (at most {self.goals.success:.1%})"
                )
        if self.rescan is not None and self.rescan.verdict == "backdoored":
            missed.append(f"a fresh scan calls the patched file backdoored ({'; '.join(self.rescan.reasons)})")
        return tuple(missed)

    @property
    def holds(self) -> bool:
        """Whether every goal is met."""
        return not self.failures

    def describe(self) -> dict[str, Any]:
        """As `onnxspect verify --json` prints it."""
        return {
            "holds": self.holds,
            "failures": list(self.failures),
            "samples": self.samples,
            "clean_accuracy": {
                "before": self.accuracy_before,
                "before_interval": list(self.interval_before),
                "after": self.accuracy_after,
                "after_interval": list(self.interval_after),
            },
            "agreement": self.agreement,
            "triggers": [vars(t) for t in self.triggers],
            "rejected": self.rejected,
            "withheld": self.suppressed,
            "additions": list(self.additions),
            "latency_ms": [vars(entry) for entry in self.latency],
            "strip": None if self.strip is None else asdict(self.strip),
            "rescan": None if self.rescan is None else asdict(self.rescan),
            "checker": self.checker or "pass",
            "changed_initializers": [
                {"name": n, "relative_change": r if np.isfinite(r) else None} for n, r in self.changed
            ],
            "other_differences": list(self.differences),
            "goals": vars(self.goals),
            "measured_in": "onnxruntime",
            "notes": list(self.notes),
        }
