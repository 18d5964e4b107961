"""What a patch or a verification leaves as one JSON document, which its page is drawn from.

`onnxspect patch` keeps it in the run folder as patch.json, `onnxspect verify` as verify.json. It holds what the commands print
with --json (`result`), and what it is about: the two files, the samples, the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxspect.engine.errors import MachineError
from onnxspect.engine.report.document import as_json, now
from onnxspect.engine.run import tool_version
from onnxspect.engine.store import write_atomically

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
    plain: dict[str, Any] = json.loads(as_json(document))  # tuples and arrays of the facts become what a reader gets
    return plain


def keep(document: Mapping[str, Any], folder: Path) -> Path:
    """Write it to a run folder, as patch.json or verify.json."""
    path = folder / f"{document['kind']}.json"
    write_atomically(path, as_json(dict(document)).encode())
    return path


def read(folder: Path, kind: str) -> dict[str, Any] | None:
    """The document of a run folder; None where there is none.

    Raises:
        MachineError: the file is damaged, or something else.
    """
    path = folder / f"{kind}.json"
    if path.is_symlink() or not path.is_file():
        return None
    damaged = MachineError(f"{path}: damaged, or not written by onnxspect", f"run `onnxspect {kind}` again")
    if path.stat().st_size > MOST_BYTES:
        raise damaged
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise damaged from error
    wanted = {"tool", "kind", "original", "patched", "data", "run", "method", "attempts", "result", "finished"}
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or not wanted <= set(document):
        raise damaged
    return document
