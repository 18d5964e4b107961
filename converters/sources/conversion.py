"""A conversion's settings and results: limits, the proof of equality, the facts, and the sidecar that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxspect.converters.file.onnx_file import Limits
from onnxspect.converters.sandbox.guard import SandboxLevel
from onnxspect.converters.sources.formats import Format

SIDECAR_SCHEMA = "onnxspect-sidecar-1"


@dataclass(frozen=True)
class ConvertLimits:
    """What a conversion may use.

    Attributes:
        seconds: wall time of the framework's child, its imports not counted.
        memory_bytes: address space of that child, on top of what the framework maps when it is imported. TensorFlow and
            torch reserve far more than they touch.
        source_bytes: size of the source, all files together.
        onnx: limits for the written model.
    """

    seconds: float = 900.0
    memory_bytes: int = 16 << 30
    source_bytes: int = 4 << 30
    onnx: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Parity:
    """The framework's own outputs against onnxruntime on the written file.

    Attributes:
        difference: largest absolute difference; nan where the framework gave none (an ONNX file copied as it is).
        allowed: what the table allows for these outputs.
        scale: largest magnitude of the framework's outputs.
        batches: batch sizes that were compared.
        spread: how much the framework's outputs vary between inputs, the most of any class; a check that finds equal what
            hardly varies says little.
        same_class: fraction of inputs for which both put the same class first.
        seed: of the inputs.
    """

    difference: float
    allowed: float
    scale: float
    batches: tuple[int, ...]
    spread: float
    same_class: float
    seed: int


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes:
        out: the ONNX file.
        sidecar: the JSON file beside it, ``<out>.json``.
        sha256: of the ONNX file, in hexadecimal.
        source_sha256: of the source (for a folder: over its files' names and digests).
        format: what the source was.
        exporter: which of the framework's ways to ONNX it was.
        versions: package -> version, of all that took part.
        sandbox: how far the child was locked in.
        parity: how equal the result is.
        layout: "NCHW", "NHWC", "flat", or "" where it is not known.
        value_range: the input's lowest and highest value, or None where the source does not tell.
        classes: names in the order of the outputs, or ().
        sample_shape: of one input, without the batch.
        batch: the only batch size the file works for, or 0 for any.
        warnings: one line each, for the user.
        facts: what the sidecar holds.
    """

    out: Path
    sidecar: Path
    sha256: str
    source_sha256: str
    format: Format
    exporter: str
    versions: Mapping[str, str]
    sandbox: SandboxLevel
    parity: Parity
    layout: str
    value_range: tuple[float, float] | None
    classes: tuple[str, ...]
    sample_shape: tuple[int, ...]
    batch: int
    warnings: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)


def sidecar_text(facts: Mapping[str, Any]) -> str:
    """The content of a sidecar."""
    return json.dumps(facts, indent=2, sort_keys=True, allow_nan=False) + "\n"


def sidecar_path(model: Path) -> Path:
    """Where a model's sidecar lies: ``model.onnx.json`` beside ``model.onnx``."""
    return model.with_name(model.name + ".json")


def sidecar(made: Conversion, source_name: str, opset: int) -> dict[str, Any]:
    """What is known about the converted file, as JSON values. Readers: the Subject's InputSpec, and people."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "schema": SIDECAR_SCHEMA,
        "model": {"sha256": made.sha256, "opset": opset, "batch": made.batch or None},
        "source": {"name": source_name, "sha256": made.source_sha256, "format": made.format.name},
        "exporter": made.exporter,
        "versions": dict(made.versions),
        "input": {
            "layout": made.layout or None,
            "range": list(made.value_range) if made.value_range else None,
            "sample_shape": list(made.sample_shape),
        },
        "classes": list(made.classes),
        "parity": {
            "max_abs_difference": number(made.parity.difference),
            "allowed": number(made.parity.allowed),
            "scale": number(made.parity.scale),
            "batches": list(made.parity.batches),
            "spread": number(made.parity.spread),
            "same_class": number(made.parity.same_class),
            "seed": made.parity.seed,
        },
        "sandbox": {"applied": list(made.sandbox.applied), "missing": list(made.sandbox.missing)},
        "warnings": list(made.warnings),
    }
