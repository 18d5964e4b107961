"""Proof of a patch, measured on the written file in onnxruntime and never on a torch copy.

A guarded file (input_filter.py) is judged as it is used: an image that it rejects is not sent to the target, and the
share of clean images that it rejects must stay under the promised false-positive rate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import scipy  # its `stats` takes a second to import: it is loaded where it is first used
import torch

from onnxspect.converters.file.bound_inputs import bound_feeds, free_inputs
from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.file.oversized import oversized
from onnxspect.converters.lowering.functions import inline_functions
from onnxspect.converters.lowering.logits import LogitsInfo, logits_of, outputs_of
from onnxspect.converters.proof.compare import Difference, compare
from onnxspect.converters.proof.oracle import Oracle, of_file, providers
from onnxspect.converters.proof.writeback import PROVENANCE
from onnxspect.converters.stages import stage
from onnxspect.engine.errors import InconclusiveError, OnnxspectError
from onnxspect.engine.mitigation.graph_edit import added_outputs, suppresses_target, without_additions
from onnxspect.engine.mitigation.strip import Strip
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.class_scores import of_output
from onnxspect.engine.subject.file_classifier import FileClassifier
from onnxspect.engine.subject.onnx_model import open_file
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec
from onnxspect.engine.trigger import UNTARGETED, Aimed

#: Standard errors by which what is measured on a few samples may miss its goal by chance: one-sided 95 %.
JUDGED_ON_FEW = 1.645
#: Images a call.
_BATCH = 128


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


@judging()
def verify(
    patched: Path,
    original: Path,
    samples: Samples,
    spec: InputSpec,
    triggers: Mapping[str, Aimed],
    goals: Goals | None = None,
    device: str = "cpu",
    timed: bool = False,
    strip: Strip | None = None,
    run: RunContext | None = None,
    opened: tuple[OnnxFile, OnnxFile] | None = None,
    logits: LogitsInfo | None = None,
) -> Verification:
    """Measure a patched file against its original in onnxruntime.

    Args:
        patched, original: the files.
        samples: clean samples, best those that neither the search nor the patch has seen.
        spec: how pixels are fed to both.
        triggers: by name; recovered ones (Trigger) or an attacker's own (KnownChange).
        goals: what must hold.
        device: "cpu" or "cuda".
        timed: measure the latency of both files too.
        strip: also say what this filter would do on top of the original.
        run: its seed, for STRIP's draws.
        opened: the original and the patched file, by who has them open already and made the second from the first.
        logits: the class scores that are looked at; the likeliest ones of the original by default.

    Raises:
        OnnxspectError: a file does not open, or the two differ in inputs or outputs (but for a filter's).
    """
    before, after = opened or (open_file(original), open_file(patched))
    stage("measuring the files in onnxruntime")
    plain, additions = without_additions(before.proto, after.proto)
    differences = compare(before.proto, plain)
    interface = [d.text for d in differences if d.kind == "interface"]
    if interface:
        raise OnnxspectError(
            f"{patched}: not a patch of {original}: {interface[0]}", "--against names the file that was patched"
        )
    filter_outputs = added_outputs(before.proto, after.proto)
    logits = logits or logits_of(inline_functions(before.proto))
    old = _Judged(before, spec, device, logits)
    new = _Judged(after, spec, device, logits, old.output, filter_outputs[1] if filter_outputs else None)
    (clean_old, _), (clean_new, refused) = old(samples.images), new(samples.images)
    right_old, right_new = int((clean_old == samples.labels).sum()), int((clean_new == samples.labels).sum())
    effects, stamped_images = [], {}
    for name, trigger in triggers.items():
        target = trigger.target
        rows = np.flatnonzero(trigger.counts_on(samples.labels, clean_old if target == UNTARGETED else None))
        if not len(rows):
            raise InconclusiveError(f"no samples of any class but {target} to measure trigger {name} on")
        stamped = trigger.apply(samples.images[rows])
        if stamped.shape != samples.images[rows].shape:
            raise OnnxspectError(
                f"trigger {name} does not fit images of shape {samples.shape}",
                "its mask and pattern are arrays (channels, height, width) of the model's size",
            )
        stamped_images[name] = stamped
        (hit_old, _), (hit_new, caught) = old(stamped), new(stamped)
        at_first, labels = trigger.leads(hit_old, samples.labels[rows]), samples.labels[rows]
        success = float((trigger.leads(hit_new, labels) & ~caught).mean())
        rejected = float(caught.mean()) if filter_outputs else None
        effects.append(TriggerEffect(name, target, float(at_first.mean()), success, len(rows), rejected))
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
        additions=additions,
        rejected=float(refused.mean()) if filter_outputs else None,
        suppressed=suppresses_target(before.proto, after.proto),
        latency=_latency(before, after, spec, samples, device) if timed else (),
        strip=_strip_effect(strip, old, samples, stamped_images, run or RunContext()) if strip else None,
    )


def _strip_effect(
    strip: Strip, model: _Judged, samples: Samples, stamped: Mapping[str, np.ndarray], run: RunContext
) -> StripEffect:
    """Calibrated on one half of the clean samples, measured on the other and on stamped images."""
    order = run.numpy_generator("strip", "measured").permutation(len(samples))
    ready = strip.calibrate(model.scores, samples.take(np.sort(order[::2])), run)
    rejected = float(ready.rejects(samples.images[np.sort(order[1::2])]).mean())
    missed = {name: float(1 - ready.rejects(images).mean()) for name, images in stamped.items()}
    return StripEffect(strip.blends, rejected, missed)


def _latency(
    before: OnnxFile, after: OnnxFile, spec: InputSpec, samples: Samples, device: str, calls: int = 30
) -> tuple[Latency, ...]:
    """Calls of both files in turn, so that what disturbs one disturbs the other."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    sessions = [ort.InferenceSession(str(f.path), options, providers=providers(device)) for f in (before, after)]
    image = free_inputs(before.proto)[0].name
    tensor = next(i for i in sessions[0].get_inputs() if i.name == image)
    dtype = Oracle(of_file(before), device).dtype(tensor.name)
    beside = bound_feeds(before)
    fixed = tensor.shape[0] if isinstance(tensor.shape[0], int) else None
    found = []
    for batch in (fixed,) if fixed else (1, 32):
        rows = np.arange(batch) % len(samples)
        feed = {tensor.name: spec.encode(torch.from_numpy(samples.images[rows])).numpy().astype(dtype)}
        seconds: tuple[list[float], list[float]] = ([], [])
        for call in range(calls + 3):
            for session, taken in zip(sessions, seconds, strict=True):
                started = time.perf_counter()
                session.run(
                    None, feed | {k: v for k, v in beside.items() if k in {i.name for i in session.get_inputs()}}
                )
                if call >= 3:  # the first calls allocate
                    taken.append(time.perf_counter() - started)
        found.append(Latency(batch, *(round(1000 * float(np.median(s)), 4) for s in seconds)))
    return tuple(found)


class _Judged:
    """A file as it is used: pixels to predicted classes and refusals, through its own class-score output."""

    def __init__(
        self,
        file: OnnxFile,
        spec: InputSpec,
        device: str,
        logits: LogitsInfo,
        output: str | None = None,
        refusal: str | None = None,
    ) -> None:
        oracle = Oracle(of_file(file), device)
        self.output, self._logits = output or _score_output(oracle, file, logits), logits
        image = free_inputs(file.proto)[0].name
        self._asked = FileClassifier(oracle, spec, [self.output, *([refusal] if refusal is not None else [])], image)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted classes int64 ``(n,)``, and which images the file rejects, bool ``(n,)``."""
        scores, *refused = self._asked.run(pixels, _BATCH)
        rejected = refused[0].astype(bool) if refused else np.zeros(len(pixels), bool)
        return of_output(scores, self._logits).argmax(1), rejected

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """Logits ``(n, classes)``; the logarithm where the file answers probabilities."""
        return of_output(self._asked.run(pixels, _BATCH)[0], self._logits)


def _score_output(oracle: Oracle, file: OnnxFile, logits: LogitsInfo) -> str:
    """The output that holds one score a class: of the floating-point tensors among those that lead to the same scores, the first."""
    for name in outputs_of(inline_functions(file.proto), logits):
        if oracle.outputs[name][1] in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            return name
    raise OnnxspectError(f"{file.path}: no output holds class scores", "export it with its probabilities or logits")


def _expected(difference: Difference) -> bool:
    return difference.kind == "tensor" or (difference.kind == "metadata" and difference.name.startswith(PROVENANCE))


def _checker(file: OnnxFile) -> str:
    try:
        # By its path where it is too large for one message; else what was read, with what was repaired.
        onnx.checker.check_model(str(file.path) if oversized(file.proto) else file.proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        return (str(error).splitlines() or ["refused"])[0]
    return ""


def _paired_error(a: np.ndarray, b: np.ndarray) -> float:
    """Standard error of mean(a) - mean(b) over the same samples."""
    return float(np.std(a.astype(float) - b.astype(float), ddof=1) / np.sqrt(len(a))) if len(a) > 1 else 0.0


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927)."""
    interval = scipy.stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)
