"""The digest of what is converted: a file, or all files of a folder, which may hold neither links nor anything but files."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from onnxspect.converters.errors import OnnxspectError, caused_by
from onnxspect.converters.sandbox.safe_open import open_regular
from onnxspect.converters.text import printable, readable_bytes

_MAX_FILES = 100_000  # in a SavedModel or checkpoint folder


def source_digest(source: Path, limit: int) -> str:
    """SHA-256 of a file, or over the names and digests of a folder's files.

    Raises:
        OnnxspectError: if it is larger than `limit` bytes, or a folder holds a link or anything but files and folders.
    """
    if not source.is_dir():
        return _file_digest(source, limit)[0]
    digest = hashlib.sha256()
    left = limit
    for path in _tree(source):
        one, size = _file_digest(path, left)
        left -= size
        digest.update(f"{one}  {path.relative_to(source).as_posix()}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _tree(folder: Path) -> list[Path]:
    files: list[Path] = []
    folders = [folder]
    while folders:
        try:
            entries = sorted(os.scandir(folders.pop()), key=lambda e: e.name)
        except OSError as error:
            raise caused_by(
                error,
                f"{printable(str(folder), 200)}: cannot be read: {error.strerror}",
                "make it readable for the user who runs onnxspect",
            ) from None
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            path = Path(entry.path)
            if stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a file"
                raise OnnxspectError(
                    f"{printable(str(path), 200)}: is {kind}, inside a model's folder",
                    "a model's folder holds plain files: copy it without links",
                )
            if len(files) > _MAX_FILES:
                raise OnnxspectError(
                    f"{printable(str(folder), 200)}: more than {_MAX_FILES} files",
                    "give the model's own folder, not one around it",
                )
    return sorted(files)


def _file_digest(path: Path, limit: int) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    with os.fdopen(open_regular(path), "rb") as file:
        while chunk := file.read(1 << 22):
            size += len(chunk)
            if size > limit:
                raise OnnxspectError(
                    f"{printable(str(path), 200)}: larger than the limit of {readable_bytes(limit)}",
                    "raise the size limit",
                )
            digest.update(chunk)
    return digest.hexdigest(), size
