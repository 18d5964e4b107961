"""Proof of a patch, measured on the written file in onnxruntime and never on a torch copy.

A guarded file (input_filter.py) is judged as it is used: an image that it rejects is not sent to the target, and the
share of clean images that it rejects must stay under the promised false-positive rate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

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
from onnxspect.engine.mitigation.verification import Goals, Latency, StripEffect, TriggerEffect, Verification
from onnxspect.engine.run import RunContext
from onnxspect.engine.subject.class_scores import of_output
from onnxspect.engine.subject.file_classifier import FileClassifier
from onnxspect.engine.subject.onnx_model import open_file
from onnxspect.engine.subject.precision import judging
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import InputSpec
from onnxspect.engine.trigger import UNTARGETED, Aimed

#: Images a call.
_BATCH = 128


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
