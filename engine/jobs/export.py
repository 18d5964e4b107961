"""The patched ONNX file: written whole or not at all, with its provenance inside.

A patched file differs from the original in the named tensors, in the nodes that a method added (named `onnxspect/...`),
and in four metadata entries (`onnxspect.*`) that say where it came from; every entry of the original stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxspect.converters.file.external_layout import write_like
from onnxspect.converters.file.onnx_file import OnnxFile
from onnxspect.converters.proof.writeback import PROVENANCE, Change, write_back
from onnxspect.converters.text import printable
from onnxspect.converters.whole import try_place
from onnxspect.engine.errors import InconclusiveError, MachineError, OnnxspectError, unwritable
from onnxspect.engine.mitigation.method import Addition
from onnxspect.engine.subject.subject import Subject


@dataclass(frozen=True)
class Provenance:
    """Where a patched file came from; written into metadata_props under `onnxspect.`."""

    original_sha256: str
    tool_version: str
    method: str
    evidence: str


def patched_model(
    subject: Subject,
    values: Mapping[str, np.ndarray],
    provenance: Provenance,
    additions: Sequence[Addition] = (),
) -> tuple[onnx.ModelProto, list[Change]]:
    """The original model with new parameter values, nodes added, and its provenance.

    Args:
        subject: from the original file; not changed.
        values: torch parameter name -> new value.
        provenance: goes into the metadata.
        additions: nodes to add, in order.

    Raises:
        OnnxspectError: the subject is not from an ONNX file, nothing changed, a changed weight is an input that a
            caller may set, or an addition does not fit.
    """
    file = subject.origin.file
    if file.faced:
        raise OnnxspectError(
            f"{file.path}: its input, or a choice by the number of images, was read otherwise than the file has it, and a patch keeps both",
            "export it with a batch axis, a shape and no such choice, and scan and patch that file",
        )
    patched, changes = write_back(file.proto, subject.origin.lowered.weights, values)
    if not changes and not additions:
        raise InconclusiveError(
            f"{file.path}: the patch changed nothing", "another --method may; `onnxspect patch --help` lists them"
        )
    _refuse_settable(file, changes)
    for addition in additions:
        addition.apply(patched)
    for key, value in sorted(vars(provenance).items()):
        name = PROVENANCE + key
        entry = next((p for p in patched.metadata_props if p.key == name), None) or patched.metadata_props.add()
        entry.key, entry.value = name, value
    return patched, changes


def _refuse_settable(file: OnnxFile, changes: Sequence[Change]) -> None:
    """Refuse to change weights that are inputs with a default: who feeds them undoes the patch.

    Before IR version 4 every initializer had to be listed among the inputs; there the list says nothing.
    """
    if file.proto.ir_version < 4:
        return
    inputs = {i.name for i in file.proto.graph.input}
    settable = [c.initializer for c in changes if c.initializer in inputs]
    if settable:
        names = ", ".join(map(printable, settable[:5]))
        raise OnnxspectError(
            f"{file.path}: the weights {names} are inputs of the model, so a caller may set them and undo the patch",
            "take them off the model's inputs (keep_initializers_as_inputs=False when exporting)",
        )


def check_writable(file: OnnxFile, out: Path) -> None:
    """Find out before hours of work whether the patched file could be written at all.

    Raises:
        OnnxspectError: `out` is the original, a folder, in no folder, or in one where nothing can be written.
    """
    if out.exists() and file.path.exists() and out.samefile(file.path):
        raise OnnxspectError(f"{out}: would overwrite the original", "choose another -o")
    if not out.parent.is_dir():
        raise OnnxspectError(f"{out.parent}: no such folder", "make the folder first")
    if out.is_dir():
        raise OnnxspectError(f"{out}: is a folder", "name a file with -o")
    if out.exists() and not os.access(out, os.W_OK):
        raise MachineError(f"{out}: is read-only", "choose another -o, or make it writable")
    try:
        try_place(out)
    except OSError as error:
        raise unwritable(out, error) from error


def write_model(model: onnx.ModelProto, file: OnnxFile, out: Path) -> str:
    """Write `model` to `out`, whole or not at all; tensors that are external in the original lie beside it again.

    Returns:
        the SHA-256 of the file, in hexadecimal: a locked-in worker cannot read it once it has its name.

    Raises:
        OnnxspectError: `out` is the original, or cannot be written; nothing is left behind.
    """
    check_writable(file, out)
    return write_like(model, file, out).sha256
