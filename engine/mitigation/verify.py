"""Proof of a patch, measured on the written file in onnxruntime and never on a torch copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from scipy import stats

from onnxspect.converters.compare import Difference, compare
from onnxspect.converters.onnx_file import OnnxFile
from onnxspect.converters.oracle import Oracle
from onnxspect.converters.writeback import PROVENANCE
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.samples import Samples
from onnxspect.engine.subject import InputSpec, open_file

#: Applies a trigger to pixels ``(n, channels, height, width)`` in [0, 1].
Stamp = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Goals:
    """What a patched file must reach.

    Attributes:
        success: the most that any trigger may still succeed (ASR).
        accuracy_lost: the most clean accuracy that may be lost, as a share (0.01 is one point).
        errors: standard errors of the measurement by which either may miss its goal. 0 takes the measured figures as they
            are; a patch is judged on few samples before it is written, and there one-sided 95 % (1.645) is fair.
    """

    success: float = 0.02
    accuracy_lost: float = 0.01
    errors: float = 0.0


@dataclass(frozen=True)
class TriggerEffect:
    """Success of one trigger before and after: share of n samples of other classes sent to `target`."""

    name: str
    target: int
    before: float
    after: float
    samples: int


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
        for t in self.triggers:
            error = (t.after * (1 - t.after) / t.samples) ** 0.5
            if t.after > self.goals.success + max(0.5 / t.samples, self.goals.errors * error):
                missed.append(
                    f"trigger {t.name} still sends {t.after:.1%} to class {t.target} (at most {self.goals.success:.1%})"
                )
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
            "checker": self.checker or "pass",
            "changed_initializers": [{"name": n, "relative_change": r} for n, r in self.changed],
            "other_differences": list(self.differences),
            "goals": vars(self.goals),
            "measured_in": "onnxruntime",
        }


def verify(
    patched: Path,
    original: Path,
    samples: Samples,
    spec: InputSpec,
    triggers: Mapping[str, tuple[int, Stamp]],
    goals: Goals | None = None,
    device: str = "cpu",
) -> Verification:
    """Measure a patched file against its original in onnxruntime.

    Args:
        patched, original: the files.
        samples: clean samples, best those that neither the search nor the patch has seen.
        spec: how pixels are fed to both.
        triggers: name -> (target class, how it is stamped).
        goals: what must hold.
        device: "cpu" or "cuda".

    Raises:
        OnnxspectError: a file does not open, or the two differ in inputs or outputs.
    """
    before, after = open_file(original), open_file(patched)
    differences = compare(before.proto, after.proto)
    interface = [d.text for d in differences if d.kind == "interface"]
    if interface:
        raise OnnxspectError(f"{patched}: not a patch of {original}: {interface[0]}")
    old, new = _Classifier(before, spec, device), _Classifier(after, spec, device)
    clean_old, clean_new = old(samples.images), new(samples.images)
    right_old, right_new = int((clean_old == samples.labels).sum()), int((clean_new == samples.labels).sum())
    effects = []
    for name, (target, apply) in triggers.items():
        rows = np.flatnonzero(samples.labels != target)
        if not len(rows):
            raise OnnxspectError(f"no samples of any class but {target} to measure trigger {name} on")
        stamped = apply(samples.images[rows])
        if stamped.shape != samples.images[rows].shape:
            raise OnnxspectError(f"trigger {name} does not fit images of shape {samples.shape}")
        hit_old, hit_new = (float((c(stamped) == target).mean()) for c in (old, new))
        effects.append(TriggerEffect(name, target, hit_old, hit_new, len(rows)))
    n = len(samples)
    return Verification(
        accuracy_before=right_old / n,
        accuracy_after=right_new / n,
        interval_before=_wilson(right_old, n),
        interval_after=_wilson(right_new, n),
        lost_error=_paired_error(clean_old == samples.labels, clean_new == samples.labels),
        agreement=float((clean_old == clean_new).mean()),
        triggers=tuple(effects),
        checker=_checker(after),
        differences=tuple(d.text for d in differences if not _expected(d)),
        changed=tuple((d.name, d.relative) for d in differences if d.kind == "tensor"),
        goals=goals or Goals(),
        samples=n,
    )


class _Classifier:
    """Pixels to predicted classes, by onnxruntime, through the file's own class-score output."""

    def __init__(self, file: OnnxFile, spec: InputSpec, device: str) -> None:
        self._oracle = Oracle(file.path, device)
        self._spec = spec
        self._input = next(iter(self._oracle.inputs))
        self._output = _score_output(self._oracle, file)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        encoded = self._spec.encode(torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))).numpy()
        scores = self._oracle.map(self._input, encoded, self._output)
        return scores.reshape(len(scores), -1).argmax(1)


def _score_output(oracle: Oracle, file: OnnxFile) -> str:
    """The output that holds one score a class: the first floating-point tensor among the outputs."""
    for name, (_, kind) in oracle.outputs.items():
        if kind in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            return name
    raise OnnxspectError(f"{file.path}: no output holds class scores", "export it with its probabilities or logits")


def _expected(difference: Difference) -> bool:
    return difference.kind == "tensor" or (difference.kind == "metadata" and difference.name.startswith(PROVENANCE))


def _checker(file: OnnxFile) -> str:
    try:
        onnx.checker.check_model(file.proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        return (str(error).splitlines() or ["refused"])[0]
    return ""


def _paired_error(a: np.ndarray, b: np.ndarray) -> float:
    """Standard error of mean(a) - mean(b) over the same samples."""
    return float(np.std(a.astype(float) - b.astype(float), ddof=1) / np.sqrt(len(a))) if len(a) > 1 else 0.0


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    interval = stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)
