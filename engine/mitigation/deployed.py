"""A file as it is deployed: the same images and triggers through every optimisation level, float and integer.

What a runtime makes of a file is not the file: onnxruntime rewrites its graph, and what ships is often a quantised copy. A backdoor can be
made to be there in the one and not in the other. So the answers of every variant are compared with those of the file itself, unoptimised,
image by image. A class may change where its score is no further above the next than rounding moves scores:

* between levels of one file, that is the tolerance of the file's precision (converters/proof/tolerances.py);
* between a file and its quantised copy, so many times the usual movement of a score on clean images.

More changes than that on clean images, or a trigger that works in one variant and not in another, is a finding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from onnxspect.converters.file.oversized import oversized
from onnxspect.converters.lowering.logits import logits_of
from onnxspect.converters.proof.oracle import LEVELS, Oracle
from onnxspect.converters.proof.parity import precision_of
from onnxspect.converters.proof.quantised import QUANTISERS, is_integer, quantise
from onnxspect.converters.proof.tolerances import allowed_difference
from onnxspect.converters.text import printable
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.subject.class_scores import scores_array
from onnxspect.engine.subject.file_classifier import FileClassifier
from onnxspect.engine.subject.samples import Samples
from onnxspect.engine.subject.subject import Subject
from onnxspect.engine.trigger import Aimed

#: Share of the images whose class may change though rounding does not explain it, and how many at least make a finding.
MOST_UNEXPLAINED, FEWEST_UNEXPLAINED = 0.01, 3
#: A trigger's success may differ by so much between two variants.
SUCCESS_DIFFERS = 0.2
#: A quantiser moves a score by so many times the median movement at most, where nothing is wrong.
_TIMES_MEDIAN = 8.0
#: ... and by no more than this share of the lead that the first class usually has: a copy whose scores move by more is no copy.
_OF_LEAD = 0.25
#: Images of a call, and those that a quantiser is calibrated on.
_BATCH, _CALIBRATED_ON = 128, 64


@dataclass(frozen=True)
class Variant:
    """What one variant of a file answers.

    Attributes:
        name: "float, all", "int8, static, disabled", ...
        provider: onnxruntime's execution provider.
        agreement: share of the clean images that are answered as by the file itself, unoptimised.
        unexplained: share whose class changes though rounding does not explain it.
        largest_difference: of any clean score from the file's.
        triggers: success by name.
        problem: why it did not run, or "".
    """

    name: str
    provider: str = ""
    agreement: float = 1.0
    unexplained: float = 0.0
    largest_difference: float = 0.0
    triggers: Mapping[str, float] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Deployment:
    """What was measured.

    Attributes:
        samples: how many clean images.
        variants: the file itself, unoptimised, first.
        findings: in sentences; empty where the variants are the same file.
        notes: what is known of the runtime, in sentences.
    """

    samples: int
    variants: tuple[Variant, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "samples": self.samples,
            "variants": [vars(v) | {"triggers": dict(v.triggers or {})} for v in self.variants],
            "findings": list(self.findings),
            "notes": list(self.notes),
        }


def deployed(subject: Subject, samples: Samples, triggers: Mapping[str, Aimed]) -> Deployment:
    """Compare a subject's file with what deployment makes of it.

    Args:
        subject: with its preprocessing settled.
        samples: clean.
        triggers: by name; may be empty.

    Raises:
        OnnxspectError: there is no file, or onnxruntime refuses it unoptimised.
    """
    proto = subject.origin.file.proto
    measuring = _Measuring(subject, samples, triggers)
    kind = "integer" if is_integer(proto) else "float"
    found = [v for level in LEVELS for v in measuring.variants(f"{kind}, {level}", proto, level)]
    if kind == "float" and not oversized(proto):
        with tempfile.TemporaryDirectory(prefix="onnxspect-") as scratch:
            for how in QUANTISERS:
                try:
                    model = _quantised(how, subject, samples, Path(scratch))
                except OnnxspectError as error:
                    found.append(Variant(how, problem=error.message))
                    continue
                found += [
                    v for level in LEVELS for v in measuring.variants(f"{how}, {level}", model, level, quantised=True)
                ]
    return Deployment(len(samples), tuple(found), tuple(_findings(found, len(samples))), tuple(known_fusions(proto)))


class _Measuring:
    """The file itself, unoptimised, and the images that variants are compared with it on."""

    def __init__(self, subject: Subject, samples: Samples, triggers: Mapping[str, Aimed]) -> None:
        origin = subject.origin
        self.subject, self.samples, self.triggers = subject, samples, triggers
        self.stamped = {
            name: (trigger.apply(samples.images[rows]), samples.labels[rows])
            for name, trigger in triggers.items()
            if (rows := trigger.counts_on(samples.labels)).any()
        }
        run, _ = _scores(subject, origin.file.proto, origin.logits.value, "disabled", "cpu")
        self.usual = run(samples.images)
        best = np.sort(self.usual, axis=1)
        self.lead = float(np.median(best[:, -1] - best[:, -2]))
        self.rounding = allowed_difference(self.usual, precision_of(origin.file.proto))

    def variants(self, name: str, model: onnx.ModelProto, level: str, quantised: bool = False) -> list[Variant]:
        """What a file answers at a level, by each provider at hand."""
        return [
            self._variant(name, model, level, device, quantised)
            for device in dict.fromkeys(("cpu", self.subject.device))
        ]

    def _variant(self, name: str, model: onnx.ModelProto, level: str, device: str, quantised: bool) -> Variant:
        try:
            value = self.subject.origin.logits.value
            if not any(value in node.output for node in model.graph.node):  # a quantiser gives values other names
                value = logits_of(model).value
            run, provider = _scores(self.subject, model, value, level, device)
            scores = run(self.samples.images)
        except OnnxspectError as error:
            return Variant(name, problem=error.message)
        moved = np.abs(scores - self.usual)
        usually = min(_TIMES_MEDIAN * float(np.median(moved)), _OF_LEAD * self.lead)
        return Variant(
            name,
            provider,
            float((scores.argmax(1) == self.usual.argmax(1)).mean()),
            float(unexplained(self.usual, scores, max(self.rounding, usually if quantised else 0.0)).mean()),
            float(moved.max()),
            {
                which: float(self.triggers[which].leads(run(images).argmax(1), labels).mean())
                for which, (images, labels) in self.stamped.items()
            },
        )


def known_fusions(model: onnx.ModelProto) -> list[str]:
    """What onnxruntime is known to get wrong on a graph, in sentences.

    Above "basic" it fuses a Pad by zeros into the MaxPool behind it as if it padded with -inf (1.31).
    """
    producers = {o: n for n in model.graph.node for o in n.output}
    found = []
    for node in model.graph.node:
        before = producers.get(node.input[0]) if node.op_type == "MaxPool" else None
        if before is not None and before.op_type == "Pad":
            names = " into ".join(printable(n.name or n.output[0]) for n in (before, node))
            found.append(
                f"onnxruntime's optimiser fuses Pad {names} as if it padded with -inf and not with the file's number: scores "
                "that differ between levels by that are the runtime's fault; whether somebody built on it no comparison can tell"
            )
    return found


def _scores(subject: Subject, model: onnx.ModelProto, value: str, level: str, device: str) -> tuple[Any, str]:
    """(pixels -> class scores ``(n, classes)``, the provider that runs them)."""
    oracle = Oracle(model, device, outputs=[value], level=level)
    classifier = FileClassifier(oracle, subject.spec, [value])

    def run(images: np.ndarray) -> np.ndarray:
        return scores_array(classifier.run(images, _BATCH)[0], subject.origin.logits)

    return run, oracle.provider


def _quantised(how: str, subject: Subject, samples: Samples, scratch: Path) -> onnx.ModelProto:
    """The file, quantised.

    Raises:
        OnnxspectError: onnxruntime's quantiser refuses it.
    """
    source, target = scratch / "float.onnx", scratch / "quantised.onnx"
    proto = subject.origin.file.proto
    onnx.save(proto, source)
    oracle = Oracle(proto)
    name, (shape, _) = next(iter(oracle.inputs.items()))
    step = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else 1
    pixels = torch.from_numpy(np.ascontiguousarray(samples.images[: max(step, _CALIBRATED_ON)], dtype=np.float32))
    quantise(how, source, target, name, subject.spec.encode(pixels).numpy().astype(oracle.dtype(name)), step)
    return onnx.load(target)


def unexplained(usual: np.ndarray, scores: np.ndarray, allowed: float) -> np.ndarray:
    """Which images change their class, bool ``(n,)``, though their score lies further above the new one than rounding moves both.

    Args:
        usual, scores: class scores ``(n, classes)`` of the file and of a variant.
        allowed: how far rounding moves a score.
    """
    rows, before, after = np.arange(len(usual)), usual.argmax(1), scores.argmax(1)
    ahead = usual[rows, before] - usual[rows, after]
    return np.asarray((before != after) & (ahead > 2 * allowed))


def _findings(variants: Sequence[Variant], samples: int) -> list[str]:
    first, found = variants[0], []
    for v in variants[1:]:
        if v.problem:
            continue
        if v.unexplained > MOST_UNEXPLAINED and v.unexplained * samples >= FEWEST_UNEXPLAINED - 0.5:
            found.append(
                f"{v.name} ({v.provider}): {v.unexplained:.1%} of the clean images change their class by more than rounding explains"
            )
        for name, success in (v.triggers or {}).items():
            before = (first.triggers or {})[name]
            if abs(success - before) > SUCCESS_DIFFERS:
                found.append(
                    f"{v.name} ({v.provider}): trigger {name} works on {success:.1%} of the images, in {first.name} on {before:.1%}"
                )
    return found
