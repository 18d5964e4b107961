"""The patched ONNX file: written whole or not at all, with its provenance inside.

A patched file differs from the original in the named tensors and in four metadata entries (`onnxspect.*`) that say
where it came from; every entry of the original stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxspect.converters.onnx_file import OnnxFile
from onnxspect.converters.writeback import PROVENANCE, Change, write_back
from onnxspect.engine.errors import OnnxspectError
from onnxspect.engine.store import write_atomically
from onnxspect.engine.subject import Subject


@dataclass(frozen=True)
class Provenance:
    """Where a patched file came from; written into metadata_props under `onnxspect.`."""

    original_sha256: str
    tool_version: str
    method: str
    evidence: str


def patched_model(
    subject: Subject, values: Mapping[str, np.ndarray], provenance: Provenance
) -> tuple[onnx.ModelProto, list[Change]]:
    """The original model with new parameter values and its provenance.

    Raises:
        OnnxspectError: the subject is not from an ONNX file, or nothing changed.
    """
    file, lowered = subject.file, subject.lowered
    if file is None or lowered is None:
        raise OnnxspectError(f"{subject.name}: no ONNX file behind this subject", "export it first")
    patched, changes = write_back(file.proto, lowered.weights, values)
    if not changes:
        raise OnnxspectError(f"{file.path}: the patch changed nothing")
    for key, value in sorted(vars(provenance).items()):
        name = PROVENANCE + key
        entry = next((p for p in patched.metadata_props if p.key == name), None) or patched.metadata_props.add()
        entry.key, entry.value = name, value
    return patched, changes


def write_model(model: onnx.ModelProto, file: OnnxFile, out: Path) -> None:
    """Write `model` to `out`, whole or not at all.

    Raises:
        OnnxspectError: `out` is the original, or cannot be written; nothing is left behind.
    """
    if out.exists() and file.path.exists() and out.samefile(file.path):
        raise OnnxspectError(f"{out}: would overwrite the original", "choose another -o")
    if not out.parent.is_dir():
        raise OnnxspectError(f"{out.parent}: no such folder")
    if out.is_dir():
        raise OnnxspectError(f"{out}: is a folder")
    write_atomically(out, model.SerializeToString())
