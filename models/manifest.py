"""A zoo's manifest.json: one row a model, replaced as a whole so that a crash never leaves half a file."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from onnxspect.converters.errors import OnnxspectError

SCHEMA = "onnxspect-zoo/1"
FILE_NAME = "manifest.json"


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by a temporary one beside it, flushed to disk, then renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes it private to this user
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a zoo folder; an empty one if there is none yet.

    Errors: `OnnxspectError` if the file is not a manifest of this schema.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return {"schema": SCHEMA, "models": []}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OnnxspectError(f"{path}: is not JSON", "delete it to build the zoo anew") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise OnnxspectError(f"{path}: is not a manifest of schema {SCHEMA}", "build the zoo anew")
    return document


def write_manifest(folder: Path, document: dict[str, Any]) -> None:
    """Replace the manifest of a zoo folder."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / FILE_NAME, (text + "\n").encode("utf-8"))


def rows_by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows keyed by model name."""
    return {row["name"]: row for row in document["models"]}
