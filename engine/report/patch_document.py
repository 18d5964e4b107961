"""What a patch or a verification leaves as one JSON document, which its page is drawn from.

`onnxspect patch` keeps it in the run folder as patch.json; `onnxspect verify` writes nothing there, and its document belongs in a run folder as
verify.json where the user puts it there (`--report`). It holds what the commands print
with --json (`result`), and what it is about: the two files, the samples, the run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from onnxspect.converters.sandbox.safe_open import read_beneath
from onnxspect.converters.text import printable
from onnxspect.engine.errors import MachineError, OnnxspectError
from onnxspect.engine.report.as_json import now
from onnxspect.engine.report.as_json import render as to_json
from onnxspect.engine.store import write_atomically
from onnxspect.engine.version import tool_version

SCHEMA = "onnxspect-patch/1"
PATCH, VERIFY = "patch", "verify"
#: A document that is larger is not one of ours.
MOST_BYTES = 32 << 20


def build(
    kind: str,
    result: Mapping[str, Any],
    original: tuple[str, str],
    patched: tuple[str, str],
    data: tuple[str, str, int],
    run: str = "",
    method: str = "",
    attempts: tuple[Mapping[str, Any], ...] = (),
) -> dict[str, Any]:
    """The document, as plain JSON values.

    Args:
        kind: PATCH or VERIFY.
        result: the verification, as `Verification.describe` gives it.
        original, patched: path and SHA-256 of the files.
        data: path, SHA-256 and number of the clean samples.
        run: folder of the scan; "" without one.
        method: of the patch.
        attempts: what was tried, as `Attempt.describe` gives it.
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": {"name": "onnxspect", "version": tool_version()},
        "kind": kind,
        "original": {"path": original[0], "sha256": original[1]},
        "patched": {"path": patched[0], "sha256": patched[1]},
        "data": {"path": data[0], "sha256": data[1], "samples": data[2]},
        "run": run,
        "method": method,
        "attempts": [dict(a) for a in attempts],
        "result": dict(result),
        "finished": now(),
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def _plain(value: Any) -> Any:
    """A value as JSON has it. The facts of a method of one's own may be anything: what JSON has not becomes text, or null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def keep(document: Mapping[str, Any], folder: Path) -> Path:
    """Write it to a run folder, as patch.json or verify.json.

    Raises:
        OnnxspectError: it cannot be written.
    """
    path = folder / f"{document['kind']}.json"
    write_atomically(path, to_json(dict(document)).encode())
    return path


def read(folder: Path, kind: str) -> dict[str, Any] | None:
    """The document of a run folder; None where there is none.

    Raises:
        MachineError: the file is damaged, or something else.
    """
    path = folder / f"{kind}.json"
    if not os.path.lexists(path):
        return None
    damaged = MachineError(
        f"{printable(str(path), 200)}: damaged, or not written by onnxspect", f"run `onnxspect {kind}` again"
    )
    try:
        document = json.loads(read_beneath(folder, path.name, MOST_BYTES).data)
    except (OnnxspectError, ValueError, RecursionError) as error:
        raise damaged from error
    try:
        msgspec.convert(document, _Document)
    except msgspec.ValidationError as error:
        raise damaged from error
    return dict(document)


_Share = Annotated[float, Meta(ge=0, le=1)]
_Digest = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]


class _Tool(msgspec.Struct):
    name: str
    version: str


class _File(msgspec.Struct):
    path: str
    sha256: _Digest


class _Data(_File):
    samples: Annotated[int, Meta(ge=0)]


class _Accuracy(msgspec.Struct):
    before: _Share
    after: _Share
    after_interval: Annotated[list[float], Meta(min_length=2, max_length=2)]


class _Trigger(msgspec.Struct):
    name: str
    target: int
    before: _Share
    after: _Share
    samples: Annotated[int, Meta(ge=0)]
    rejected: _Share | None


class _Latency(msgspec.Struct):
    batch: int
    before: float
    after: float


class _Strip(msgspec.Struct):
    rejected: _Share


class _Rescan(msgspec.Struct):
    verdict: str
    reasons: list[str]


class _Changed(msgspec.Struct):
    name: str
    relative_change: float | None


class _Goals(msgspec.Struct):
    success: _Share
    accuracy_lost: _Share


class _Result(msgspec.Struct):
    holds: bool
    failures: list[str]
    samples: Annotated[int, Meta(ge=1)]
    clean_accuracy: _Accuracy
    agreement: _Share
    triggers: list[_Trigger]
    rejected: _Share | None
    withheld: bool
    additions: list[str]
    latency_ms: list[_Latency]
    strip: _Strip | None
    rescan: _Rescan | None
    checker: str
    changed_initializers: list[_Changed]
    other_differences: list[str]
    goals: _Goals
    notes: list[str] = []


class _Attempt(msgspec.Struct):
    method: str
    outcome: str
    facts: dict[str, Any]


class _Document(msgspec.Struct):
    """What every reader of a document relies on; its facts are looked at one by one where they are used."""

    schema: Literal["onnxspect-patch/1"]
    tool: _Tool
    kind: Literal["patch", "verify"]
    original: _File
    patched: _File
    data: _Data
    run: str
    method: str
    attempts: list[_Attempt]
    result: _Result
    finished: Annotated[str, Meta(pattern=r"\A[0-9]{4}(-[0-9]{2}){2}T([0-9]{2}:){2}[0-9]{2}Z\Z")]
