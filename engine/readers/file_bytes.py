"""What every reader does with a file's bytes: as many as were promised, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from onnxspect.engine.errors import OnnxspectError


def exactly(stream: IO[bytes], count: int, shorter: str) -> bytes:
    """The next `count` bytes.

    Raises:
        OnnxspectError: there are fewer, in the words of `shorter`.
    """
    data = stream.read(count)
    if len(data) != count:
        raise OnnxspectError(shorter, "the download or copy did not finish: fetch it again")
    return data


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_all(paths: Sequence[Path]) -> str:
    """SHA-256 of the digests of several files, in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(digest_of(path)))
    return digest.hexdigest()
